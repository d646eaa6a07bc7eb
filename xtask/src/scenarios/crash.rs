//! Crashes after each action of a volume's life: the daemon is killed.
//!
//! The actions are enumerated, not sampled: the crash moves from one to the next until a life goes by without one.

use std::fs;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use super::guest::{DISK_A, Volume};
use crate::process::run;
use crate::vm::Rig;
use crate::workspace;

/// More actions than a life has; reaching it means that the crash never comes to an end.
const ACTIONS_MAX: u32 = 30;

/// What a volume must never lose once it was written and synced.
const KEPT: &str = "written before the crash";

pub(super) fn kill_while_formatting(rig: &mut Rig) -> Result<()> {
    each_action(rig, "format", |rig, _| wipe(rig), false)
}

pub(super) fn kill_while_opening(rig: &mut Rig) -> Result<()> {
    each_action(rig, "open", write_and_stop, true)
}

pub(super) fn kill_while_stopping(rig: &mut Rig) -> Result<()> {
    install(rig)?;
    let volume = Volume::data(DISK_A);
    rig.configure(&[&volume])?;
    wipe(rig)?;
    write_and_stop(rig, &volume)?;
    for action in 1..ACTIONS_MAX {
        rig.vm.ok("systemctl start secretfs@data")?;
        order(rig, action)?;
        rig.vm.ok("systemctl stop secretfs@data || true")?;
        let crashed = !take_back(rig)?;
        rig.vm.ok("systemctl reset-failed; systemctl start secretfs@data")?;
        volume.check_up(rig)?;
        check_kept(rig)?;
        rig.vm.ok("systemctl stop secretfs@data")?;
        volume.check_gone(rig)?;
        if !crashed {
            println!("stop, daemon killed: {} of {} crashes recovered, data kept", action - 1, action - 1);
            ensure!(action > 3, "a stop has more than {} actions", action - 1);
            return Ok(());
        }
    }
    bail!("a stop has no end after {ACTIONS_MAX} actions")
}

/// Starts the volume again and again, each time with a crash one action later, from what `prepare` makes.
fn each_action(rig: &mut Rig, what: &str, prepare: fn(&mut Rig, &Volume) -> Result<()>, has_data: bool) -> Result<()> {
    let volume = Volume::data(DISK_A);
    install(rig)?;
    rig.configure(&[&volume])?;
    if has_data {
        wipe(rig)?;
    }
    for action in 1..ACTIONS_MAX {
        prepare(rig, &volume)?;
        order(rig, action)?;
        rig.vm.ok("systemctl start secretfs@data || true")?;
        rig.wait_active("secretfs@data.service")?;
        let crashed = !take_back(rig)?;
        volume.check_up(rig)?;
        if has_data {
            check_kept(rig)?;
        }
        rig.vm.ok(&format!("echo '{KEPT}' > /mnt/data/kept && sync && systemctl stop secretfs@data"))?;
        volume.check_gone(rig)?;
        rig.vm.ok("systemctl reset-failed")?;
        if !crashed {
            println!("{what}, daemon killed: {} of {} crashes recovered", action - 1, action - 1);
            ensure!(action > 8, "a start has more than {} actions", action - 1);
            return Ok(());
        }
    }
    bail!("a start has no end after {ACTIONS_MAX} actions")
}

/// Builds the library that crashes the daemon, and has the guest's daemons load it.
fn install(rig: &Rig) -> Result<()> {
    let library = workspace().join("target/rig/crash.so");
    let mut gcc = Command::new("gcc");
    gcc.args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&library);
    run(gcc.arg(workspace().join("xtask/rig/crash.c")))?;
    rig.vm.put_file("/usr/local/lib/rig-crash.so", fs::read(&library)?)?;
    let drop_in = "[Service]\nEnvironment=LD_PRELOAD=/usr/local/lib/rig-crash.so\n";
    rig.vm.put_file("/etc/systemd/system/secretfs@.service.d/rig-crash.conf", drop_in)?;
    rig.vm.ok("mkdir -p /run/secretfs && systemctl daemon-reload").map(|_| ())
}

fn order(rig: &Rig, action: u32) -> Result<()> {
    rig.vm.put_file("/run/secretfs/crash", format!("{action}\n"))
}

/// Takes an order back; says whether it was still there, so whether the life went by without a crash.
fn take_back(rig: &Rig) -> Result<bool> {
    Ok(rig.vm.sh("rm /run/secretfs/crash")?.status.success())
}

fn wipe(rig: &mut Rig) -> Result<()> {
    // A persistent volume that was up must not come back blank, unless its claim is gone too.
    rig.vm.ok(&format!("blkdiscard --force --zeroout {DISK_A} && rm -f /var/lib/secretfs/data.*")).map(|_| ())
}

fn write_and_stop(rig: &mut Rig, volume: &Volume) -> Result<()> {
    rig.vm.ok("systemctl start secretfs@data")?;
    rig.vm.ok(&format!("echo '{KEPT}' > /mnt/data/kept && sync && systemctl stop secretfs@data"))?;
    volume.check_gone(rig)
}

fn check_kept(rig: &Rig) -> Result<()> {
    rig.vm.ok(&format!("grep '{KEPT}' /mnt/data/kept")).map(|_| ())
}
