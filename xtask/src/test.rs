//! `cargo xtask test`: everything that must hold, in the order in which it is quickest to learn of a fault.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::dist::{self, Profile};
use crate::process::run;
use crate::{deps, setup, vm, workspace};

/// Runs every check; the first that fails ends the run.
pub(crate) fn test() -> Result<()> {
    let begun = Instant::now();
    setup::setup()?;
    step("format", || cargo(&["fmt", "--all", "--check"]))?;
    step("dependency directions", deps::check)?;
    step("lints", || cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    step("unit and golden tests", || cargo(&["test", "--locked", "--workspace"]))?;
    let package = step("package", || dist::dist(Profile::Release))?;
    step("scenarios in a virtual machine", || vm::run_all(&package))?;
    println!("test: everything passed ({} s)", begun.elapsed().as_secs());
    Ok(())
}

/// Runs the golden tests, or makes what comes out of them the expectation.
pub(crate) fn golden(update: bool) -> Result<()> {
    // `gives` leaves the verification of the trees out, which would read them while they are written.
    for arguments in [["secretfs-generator", "golden", "gives"], ["secretfs-core", "bad", ""]] {
        let [package, test, filter] = arguments;
        let mut command = Command::new("cargo");
        command.current_dir(workspace()).args(["test", "--package", package, "--test", test, filter]);
        if update {
            command.env("UPDATE_GOLDEN", "1");
        }
        run(&mut command)?;
    }
    Ok(())
}

/// Prints figures of optimised builds. They are for comparing within one run, and nothing is expected of them.
pub(crate) fn bench() -> Result<()> {
    setup::setup()?;
    for package in ["secretfs-block", "secretfs-generator"] {
        cargo(&["test", "--release", "--quiet", "--package", package, "figures", "--", "--ignored", "--nocapture"])?;
    }
    Ok(())
}

fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("test: {name}");
    let begun = Instant::now();
    let value = work().with_context(|| format!("failed: {name}"))?;
    println!("test: {name}: ok ({} s)", begun.elapsed().as_secs());
    Ok(value)
}

fn cargo(arguments: &[&str]) -> Result<()> {
    run(Command::new("cargo").current_dir(workspace()).args(arguments))
}
