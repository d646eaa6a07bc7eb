//! `secretfs-fetch`: fetches one key, hands it to the process that asked, and is gone.
//!
//! The request comes as JSON on standard input ([`FetchRequest`]), the report goes as one line of JSON to standard output
//! ([`FetchReport`]), the log goes to standard error, and the key leaves through one inherited descriptor.
//!
//! The key is written, and its descriptor closed, before the report: whoever reads a report of success has the whole key
//! already waiting, as many bytes as the report says. A key (4096 bytes at most) and a report both fit into a pipe, so
//! the parent may read them in either order. A failure closes the descriptor with nothing written.

mod args;
mod outlet;
mod process;

use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;

use args::{Command, USAGE};
use outlet::Outlet;
use secretfs_core::cause::{Cause, Failure, Retry};
use secretfs_core::key::{FetchReport, FetchRequest};
use secretfs_keys::{Outcome, fetch, http_client};
use tracing::error;

/// What sysexits.h calls them.
const EX_USAGE: u8 = 64;
const EX_TEMPFAIL: u8 = 75;
const EX_NOPERM: u8 = 77;

/// A request is some hundred bytes; an encryption context may be 8 KiB.
const MAX_REQUEST: u64 = 64 * 1024;

fn main() -> ExitCode {
    let complaints = process::harden();
    process::log_to_stderr();
    for complaint in complaints {
        tracing::warn!("{complaint}");
    }
    match prepare() {
        Ok(Some((request, outlet))) => run(&request, outlet),
        Ok(None) => ExitCode::SUCCESS,
        Err(complaint) => {
            eprintln!("secretfs-fetch: {complaint}\n\n{USAGE}");
            ExitCode::from(EX_USAGE)
        }
    }
}

/// What there is to do; nothing, where only a question about the program was answered.
fn prepare() -> Result<Option<(FetchRequest, Outlet)>, String> {
    let text = match args::parse(std::env::args_os().skip(1))? {
        Command::Fetch { key_fd } => {
            // Taken before anything else opens descriptors, so that the number can only mean the inherited one.
            let outlet = Outlet::inherit(key_fd)?;
            return Ok(Some((read_request()?, outlet)));
        }
        Command::Help => USAGE,
        Command::Version => concat!("secretfs-fetch ", env!("CARGO_PKG_VERSION")),
    };
    println!("{text}");
    Ok(None)
}

fn read_request() -> Result<FetchRequest, String> {
    if io::stdin().is_terminal() {
        return Err("the request is read from standard input, which is a terminal".to_owned());
    }
    let mut text = Vec::new();
    let limited = io::stdin().lock().take(MAX_REQUEST + 1).read_to_end(&mut text);
    limited.map_err(|error| format!("cannot read the request from standard input: {error}"))?;
    if text.len() as u64 > MAX_REQUEST {
        return Err(format!("the request on standard input is larger than {MAX_REQUEST} bytes"));
    }
    serde_json::from_slice(&text).map_err(|error| format!("the request on standard input is not understood: {error}"))
}

fn run(request: &FetchRequest, outlet: Outlet) -> ExitCode {
    let report = report(fetch_blocking(request), outlet);
    let code = match &report {
        FetchReport::Fetched { .. } => ExitCode::SUCCESS,
        // Whoever reads the report logs it; once is enough.
        FetchReport::Failed { failure, .. } => ExitCode::from(match failure.cause.retry() {
            Retry::Transient => EX_TEMPFAIL,
            Retry::Permanent => EX_NOPERM,
        }),
    };
    let line = serde_json::to_string(&report).expect("a report has only string keys");
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => code,
        Err(error) => {
            error!(volume = request.volume, "cannot write the report to standard output: {error}");
            ExitCode::from(EX_TEMPFAIL)
        }
    }
}

fn fetch_blocking(request: &FetchRequest) -> Outcome {
    let refuse = |failure| Outcome { key: Err(failure), trail: secretfs_core::key::AuditTrail::default() };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(Failure::new(Cause::System, format!("cannot start the runtime: {error}"))),
    };
    let outcome = match http_client() {
        Ok(http) => runtime.block_on(fetch(request, http)),
        Err(failure) => refuse(failure),
    };
    // The name resolver of libc blocks a thread and knows no deadline; waiting for it would break ours.
    runtime.shutdown_background();
    outcome
}

/// Hands the key over, and says how that went.
fn report(outcome: Outcome, outlet: Outlet) -> FetchReport {
    let trail = outcome.trail;
    match outcome.key.and_then(|key| outlet.write(key.expose()).map(|()| key)) {
        Ok(key) => FetchReport::Fetched { form: key.form(), length: key.length(), trail },
        Err(failure) => FetchReport::Failed { failure, trail },
    }
}
