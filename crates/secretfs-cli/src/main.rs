//! `secretfs`: what an administrator asks of the volumes.

#![forbid(unsafe_code)]

mod check;
mod cli;
mod generate;
mod grow;
mod plan;
mod status;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser as _;

use self::cli::{Cli, Command};

/// The exit status for a volume that does not exist, as `systemctl status` has it.
const NO_SUCH_VOLUME: u8 = 4;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Status { name: Some(name), watch: true, .. } => status::watch(&name),
        Command::Status { name, json, .. } => status::run(name.as_deref(), json),
        Command::Plan { name, json } => plan::run(name.as_deref(), json),
        Command::Grow { name } => grow::run(&name),
        Command::Check { file } => check::run(file.as_deref()),
        Command::Man { directory } => generate::man(&directory).map(|()| ExitCode::SUCCESS),
        Command::Completions { shell } => {
            generate::completions(shell);
            Ok(ExitCode::SUCCESS)
        }
    };
    match result {
        Ok(code) => code,
        // Whoever reads has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "secretfs: {error}");
            ExitCode::FAILURE
        }
    }
}
