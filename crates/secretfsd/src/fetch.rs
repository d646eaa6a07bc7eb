//! Has the key fetched by a short-lived, unprivileged child, the only program that talks to the network.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use nix::unistd::User;
use secretfs_block::Passphrase;
use secretfs_core::cause::{Cause, Failure};
use secretfs_core::config::{Aws, Volume};
use secretfs_core::key::{AuditTrail, FetchReport, FetchRequest, KeyForm};
use secretfs_core::machine::Step;
use secretfs_core::paths::{FETCH_PROGRAM, FETCH_USER};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// The descriptor through which the child writes the key.
const KEY_FD: i32 = 3;

/// A report is one line; more than this is none.
const REPORT_MAX: u64 = 64 << 10;

/// What the child's own deadline leaves for it to start, report and end before the step's limit.
const MARGIN: Duration = Duration::from_secs(10);

/// What of the daemon's environment the child gets besides the SDK's own settings (`AWS_…`).
const PASSED_ON: [&str; 2] = ["SSL_CERT_FILE", "JOURNAL_STREAM"];

/// A key, and how it was got.
pub struct Fetched {
    /// The key.
    pub key: Passphrase,
    /// What kind of key it is.
    pub form: KeyForm,
}

/// What the fetcher is asked for the volume's key.
pub fn request(volume: &Volume, aws: &Aws) -> FetchRequest {
    let deadline = Step::FetchKey.limit().saturating_sub(MARGIN);
    FetchRequest {
        volume: volume.name.to_string(),
        source: volume.key.clone(),
        region: aws.region.clone(),
        deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
    }
}

/// Runs the fetcher on `request`, within the step's limit. Dropping the future ends the child.
pub async fn fetch(request: FetchRequest) -> (Result<Fetched, Failure>, AuditTrail) {
    match tokio::time::timeout(Step::FetchKey.limit(), run(&request)).await {
        Ok(Ok((report, key, status))) => judge(&report, key, status),
        Err(_) => {
            let detail = format!("it ran for {} s", Step::FetchKey.limit().as_secs());
            (Err(Failure::new(Cause::FetchFailed, detail)), AuditTrail::default())
        }
        Ok(Err(error)) => {
            let detail = format!("{FETCH_PROGRAM}: {error}");
            (Err(Failure::new(Cause::Internal, detail)), AuditTrail::default())
        }
    }
}

async fn run(request: &FetchRequest) -> io::Result<(Vec<u8>, io::Result<Passphrase>, ExitStatus)> {
    let (key_reader, key_writer) = io::pipe()?;
    let mut child = command(key_writer.into())?.spawn()?;
    let mut stdin = child.stdin.take().expect("stdin was asked for as a pipe");
    let stdout = child.stdout.take().expect("stdout was asked for as a pipe");
    stdin.write_all(&serde_json::to_vec(request).map_err(io::Error::other)?).await?;
    drop(stdin);
    // Blocks until the child closes its end; the child's death does that too, so this thread never outlives it.
    let key = tokio::task::spawn_blocking(move || Passphrase::read_from(key_reader, Passphrase::MAX_BYTES));
    let mut report = Vec::new();
    stdout.take(REPORT_MAX).read_to_end(&mut report).await?;
    let status = child.wait().await?;
    let key = key.await.map_err(io::Error::other)?.map_err(io::Error::other);
    Ok((report, key, status))
}

fn command(key: OwnedFd) -> io::Result<Command> {
    let user = User::from_name(FETCH_USER)?
        .ok_or_else(|| io::Error::other(format!("there is no user {FETCH_USER}; run systemd-sysusers")))?;
    let mut command = Command::new(FETCH_PROGRAM);
    command
        .args(["--key-fd", &KEY_FD.to_string()])
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| {
            name.to_str().is_some_and(|name| name.starts_with("AWS_") || PASSED_ON.contains(&name))
        }))
        .current_dir("/")
        .uid(user.uid.as_raw())
        .gid(user.gid.as_raw())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    command.fd_mappings(vec![FdMapping { parent_fd: key, child_fd: KEY_FD }]).map_err(io::Error::other)?;
    Ok(command)
}

/// Takes a key only from a child that reports it, whole, and ends well.
fn judge(report: &[u8], key: io::Result<Passphrase>, status: ExitStatus) -> (Result<Fetched, Failure>, AuditTrail) {
    let unfit = |why: String| Failure::new(Cause::FetchFailed, format!("it ended with {status}{why}"));
    match serde_json::from_slice(report) {
        Ok(FetchReport::Fetched { form, length, trail }) => {
            let fetched = match key {
                Ok(key) if status.success() && key.len() == length && length > 0 => Ok(Fetched { key, form }),
                Ok(key) => Err(unfit(format!(" and gave {} of {length} bytes", key.len()))),
                Err(error) => Err(Failure::new(Cause::System, format!("the key cannot be held: {error}"))),
            };
            (fetched, trail)
        }
        Ok(FetchReport::Failed { failure, trail }) => (Err(failure), trail),
        Err(error) => (Err(unfit(format!(" and an unreadable report: {error}"))), AuditTrail::default()),
    }
}
