//! The tests of the crates that a development machine leaves out, on the guest's kernel.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::capture;
use crate::vm::Rig;
use crate::workspace;

/// Ignored for reasons of their own: one prints figures only, one takes minutes under emulation, and what it tests is seen
/// in the scenarios of the recipe.
const LEFT_OUT: &str = "--skip figures --skip a_password_gets_argon2id";

pub(super) fn ignored_tests(rig: &mut Rig) -> Result<()> {
    let program = test_program("secretfs-block")?;
    rig.vm.put_file("/srv/rig/tests", fs::read(program)?)?;
    let said = rig.vm.ok(&format!("cd /srv/rig && chmod +x tests && ./tests --ignored --test-threads=1 {LEFT_OUT}"))?;
    let result = said.lines().find(|line| line.starts_with("test result:")).context("no test result")?;
    ensure!(result.contains("ok. ") && !result.contains("ok. 0 passed"), "{said}");
    println!("{result}");
    Ok(())
}

/// Builds the unit tests of a crate and gives the program's path.
fn test_program(package: &str) -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(workspace());
    cargo.args(["test", "--locked", "--quiet", "--no-run", "--lib", "--message-format=json", "--package", package]);
    for line in capture(&mut cargo)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        if let Some(path) = message["executable"].as_str() {
            return Ok(path.into());
        }
    }
    anyhow::bail!("cargo named no test program of {package}")
}
