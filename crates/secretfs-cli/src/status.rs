//! `secretfs status`: what each volume is, as systemd and the kernel say now.

mod collect;
mod render;
mod watch;

pub use self::watch::run as watch;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use secretfs_core::progress::Progress;
use serde::Serialize;

/// A shown volume is not ready; the number is that of `systemctl status`.
const NOT_READY: u8 = 3;

/// One volume, as `--json` prints it. What could not be read or does not apply is null.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    name: String,
    /// `ready`, `starting`, `stopping`, `stopped`, `failed`, `refused` or `unknown`.
    state: &'static str,
    /// The service's own words.
    status: Option<String>,
    /// Seconds since the epoch.
    since: Option<u64>,
    unit: String,
    main_pid: Option<u32>,
    mount: Option<String>,
    mounted: bool,
    /// Whether it is in use as swap space; null for what is mounted instead.
    swap: Option<bool>,
    filesystem: Option<String>,
    mapper: String,
    cipher: Option<String>,
    key_bits: Option<usize>,
    sector_size: Option<u32>,
    luks_uuid: Option<String>,
    lifecycle: Option<&'static str>,
    backing: Option<String>,
    backing_device: Option<String>,
    key_source: Option<String>,
    usage: Option<Usage>,
    /// How far the volume is zeroed, while it is.
    zeroing: Option<Progress>,
    /// What is wrong with the configuration.
    errors: Vec<String>,
}

/// How full the file system or the swap space is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    size: u64,
    used: u64,
    available: u64,
}

/// Shows the volume `name`, or all of them.
pub fn run(name: Option<&str>, json: bool) -> io::Result<ExitCode> {
    let config = secretfs_generator::read_config(Path::new("/"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let reports = runtime.block_on(collect::collect(&config, name));
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &reports)?;
        writeln!(out)?;
    } else {
        let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        out.write_all(render::render(&reports, now, colour).as_bytes())?;
    }
    out.flush()?;
    let mut err = io::stderr().lock();
    for error in &config.errors {
        writeln!(err, "{error}")?;
    }
    if reports.is_empty() {
        match name {
            Some(name) => writeln!(err, "secretfs: there is no volume {name}\nhint: `secretfs status` shows all")?,
            None => writeln!(err, "secretfs: no volume is configured\nhint: see secretfs.toml(5)")?,
        }
        return Ok(ExitCode::from(crate::NO_SUCH_VOLUME));
    }
    let ready = reports.iter().all(|report| report.state == "ready");
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::from(NOT_READY) })
}
