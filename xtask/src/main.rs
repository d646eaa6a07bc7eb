//! Builds, packages, tests and demonstrates secretfs: `cargo xtask help`.

mod demo;
mod deps;
mod dist;
mod emulator;
mod process;
mod scenarios;
mod setup;
mod test;
mod vm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::dist::Profile;

/// Builds, packages, tests and demonstrates secretfs.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install the Debian packages that the other verbs need
    Setup,
    /// Build the programs and make a Debian package in target/dist
    Dist {
        /// How to build
        #[arg(long, value_enum, default_value_t = Profile::Release)]
        profile: Profile,
    },
    /// Run the golden tests of the generator and of refused configurations
    Golden {
        /// Write what comes out in place of what was expected
        #[arg(long)]
        update: bool,
    },
    /// Measure: deriving keys, inspecting devices, zeroing, planning units
    Bench,
    /// Check which crate may reach which
    CheckDeps,
    /// Boot a virtual machine, install the package there and run the scenarios
    Vm(vm::Arguments),
    /// Everything: format, lints, dependencies, unit and golden tests, package, scenarios
    #[command(alias = "ci")]
    Test,
    /// Show a volume's life in a virtual machine, from S3 object to nothing left
    Demo {
        /// How to build
        #[arg(long, value_enum, default_value_t = Profile::Release)]
        profile: Profile,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Setup => setup::setup(),
        Verb::Dist { profile } => dist::dist(profile).map(|_| ()),
        Verb::Golden { update } => test::golden(update),
        Verb::Bench => test::bench(),
        Verb::CheckDeps => deps::check(),
        Verb::Vm(arguments) => vm::vm(&arguments),
        Verb::Test => test::test(),
        Verb::Demo { profile } => demo::demo(profile),
    }
}

/// The directory of the workspace.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Where the rig keeps what it makes: image, virtual environment, logs.
pub(crate) fn rig_dir() -> PathBuf {
    workspace().join("target/rig")
}
