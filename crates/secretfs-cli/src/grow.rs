//! `secretfs grow`: a running volume follows a backing that became larger.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use secretfs_core::cause::Cause;
use secretfs_core::config::Target;
use secretfs_core::name::MountPoint;
use secretfs_systemd::manager::{JobResult, Manager};

/// systemd ends a reload at `TimeoutStartSec=` of the unit, which is less.
const LIMIT: Duration = Duration::from_mins(5);

/// Has the volume `name` grow, and says what came of it.
pub fn run(name: &str) -> io::Result<ExitCode> {
    let config = secretfs_generator::read_config(Path::new("/"));
    let Some(volume) = config.volumes.values().find(|volume| volume.name.as_str() == name) else {
        let refused = config.refused.keys().any(|refused| refused.as_str() == name);
        let why = if refused { "is refused" } else { "does not exist" };
        eprintln!(
            "secretfs: volume {name} {why}\nhint: `secretfs status` shows all, `secretfs check` says what is wrong"
        );
        return Ok(if refused { ExitCode::FAILURE } else { ExitCode::from(crate::NO_SUCH_VOLUME) });
    };
    let mount = match &volume.target {
        Target::Mount(mount) => mount,
        Target::Swap => {
            let row = Cause::SwapFixed.row();
            eprintln!("secretfs: volume {name} did not grow: {}\nhint: {}", Cause::SwapFixed, row.hint);
            return Ok(ExitCode::FAILURE);
        }
    };
    let before = size(mount);
    let unit = volume.name.service();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let hint = match runtime.block_on(Manager::private().reload_unit(&unit, LIMIT)) {
        Ok(JobResult::Done) => {
            let after = size(mount);
            writeln!(io::stdout(), "{name}: {}", describe(before, after))?;
            return Ok(ExitCode::SUCCESS);
        }
        Ok(result) => {
            eprintln!("secretfs: volume {name} did not grow: the reload of {unit} ended with: {result}");
            format!("`journalctl --unit {unit}` says why; the volume goes on as it was")
        }
        Err(error) => {
            eprintln!("secretfs: volume {name} did not grow: {}", error.failure());
            format!("only root can ask, and only while {unit} runs; a volume that is stopped grows when it is started")
        }
    };
    eprintln!("hint: {hint}");
    Ok(ExitCode::FAILURE)
}

/// What the file system has in all, in bytes.
fn size(mount: &MountPoint) -> u64 {
    rustix::fs::statvfs(mount.as_str()).map_or(0, |stat| stat.f_blocks * stat.f_frsize)
}

fn describe(before: u64, after: u64) -> String {
    let mib = |bytes: u64| bytes >> 20;
    if after > before {
        format!("grown, the file system has {} MiB instead of {} MiB", mib(after), mib(before))
    } else {
        format!("as large as its backing already, the file system has {} MiB", mib(after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_in_words() {
        assert_eq!(describe(64 << 20, 96 << 20), "grown, the file system has 96 MiB instead of 64 MiB");
        assert_eq!(describe(64 << 20, 64 << 20), "as large as its backing already, the file system has 64 MiB");
    }
}
