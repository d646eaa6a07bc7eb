//! `secretfsd NAME`: brings one volume up, says `READY=1` when it is really there, holds it, and takes it down.

mod config;
mod daemon;
mod fetch;
mod grow;
mod mounts;
mod steps;
mod tell;
mod units;
mod wipe;
mod worker;

use std::process::ExitCode;

use secretfs_core::name::VolumeName;
use secretfs_systemd::journal;

const USAGE: &str = "\
Usage: secretfsd [--grow] NAME

Brings the encrypted volume NAME of /etc/secretfs.toml up and holds it. Meant to be run by systemd, as
secretfs@NAME.service; by hand it does the same until it is interrupted.

      --grow     have the volume, which another secretfsd holds, follow a backing that became larger, and end
  -h, --help     show this
      --version  show the version

Exit status: 0 stopped, or grown; 64 wrong usage; 75 a failure that may pass; 77 a failure that somebody has to see to.
";

/// `EX_USAGE` of sysexits(3).
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (grow, arguments) = match arguments.split_first() {
        Some((first, rest)) if first == "--grow" => (true, rest.to_vec()),
        _ => (false, arguments),
    };
    let name = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["-h" | "--help"] if !grow => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        ["--version"] if !grow => {
            println!("secretfsd {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        [name] if !name.starts_with('-') => VolumeName::new(name),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let name = match name {
        Ok(name) => name,
        Err(error) => {
            eprintln!("secretfsd: {error}\nhint: {}", error.hint());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if let Err(error) = journal::init("secretfsd") {
        eprintln!("secretfsd: logging cannot be set up: {error}");
    }
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let exit = runtime.block_on(async { if grow { grow::run(&name).await } else { daemon::run(&name).await } });
            // A blocking step that outlived its volume must not keep the process.
            runtime.shutdown_background();
            ExitCode::from(exit.status())
        }
        Err(error) => {
            tracing::error!(volume = %name, "volume {name}: the daemon's runtime cannot start: {error}");
            ExitCode::from(secretfs_core::machine::Exit::Transient.status())
        }
    }
}
