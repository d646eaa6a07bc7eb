//! Crashes after each action of a volume's life: the daemon killed, or the machine's power taken away.
//!
//! The actions are enumerated, not sampled: the crash moves from one to the next until a life goes by without one.

use std::fs;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use super::guest::{DISK_A, UP_LIMIT, Volume};
use crate::process::run;
use crate::vm::Rig;
use crate::workspace;

/// More actions than a life has; reaching it means that the crash never comes to an end.
const ACTIONS_MAX: u32 = 30;

/// What a volume must never lose once it was written and synced.
const KEPT: &str = "written before the crash";

/// How the daemon, or all of the machine, ends.
#[derive(Clone, Copy, PartialEq)]
enum Crash {
    Kill,
    PowerCut,
}

pub(super) fn kill_while_formatting(rig: &mut Rig) -> Result<()> {
    each_action(rig, Crash::Kill, "format", |rig, _| wipe(rig), false)
}

pub(super) fn kill_while_opening(rig: &mut Rig) -> Result<()> {
    each_action(rig, Crash::Kill, "open", write_and_stop, true)
}

pub(super) fn kill_while_stopping(rig: &mut Rig) -> Result<()> {
    install(rig)?;
    let volume = Volume::data(DISK_A);
    rig.configure(&[&volume])?;
    wipe(rig)?;
    write_and_stop(rig, &volume)?;
    for action in 1..ACTIONS_MAX {
        rig.vm.ok("systemctl start secretfs@data")?;
        order(rig, "kill", action)?;
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

pub(super) fn power_cut_while_formatting(rig: &mut Rig) -> Result<()> {
    each_action(rig, Crash::PowerCut, "format", |rig, _| wipe(rig), false)
}

/// Starts the volume again and again, each time with a crash one action later, from what `prepare` makes.
fn each_action(
    rig: &mut Rig,
    crash: Crash,
    what: &str,
    prepare: fn(&mut Rig, &Volume) -> Result<()>,
    has_data: bool,
) -> Result<()> {
    let volume = Volume::data(DISK_A);
    install(rig)?;
    rig.configure(&[&volume])?;
    rig.add_consumer("rig-app.service", "/mnt/data", "Requires=secretfs@data.service\nAfter=secretfs@data.service")?;
    rig.add_consumer("rig-mount.service", "/mnt/data", "RequiresMountsFor=/mnt/data")?;
    if has_data {
        wipe(rig)?;
    }
    for action in 1..ACTIONS_MAX {
        prepare(rig, &volume)?;
        let crashed = match crash {
            Crash::Kill => {
                order(rig, "kill", action)?;
                rig.vm.ok("systemctl start secretfs@data || true")?;
                rig.wait_active("secretfs@data.service")?;
                !take_back(rig)?
            }
            Crash::PowerCut => {
                order(rig, "hang", action)?;
                rig.vm.ok("systemctl start --no-block rig-app rig-mount")?;
                rig.vm.wait_until(
                    "the action is reached, or the volume is up",
                    "test -e /run/secretfs/hung || systemctl is-active secretfs@data",
                    UP_LIMIT,
                )?;
                let crashed = !take_back(rig)?;
                if crashed {
                    check_dark(rig)?;
                    rig.vm.power_cut()?;
                    rig.vm.boot()?;
                    // The volume is started by the boot; a preloaded library that waits for no order does nothing.
                    rig.wait_active("secretfs@data.service")?;
                }
                crashed
            }
        };
        volume.check_up(rig)?;
        if has_data {
            check_kept(rig)?;
        }
        rig.vm.ok(&format!("echo '{KEPT}' > /mnt/data/kept && sync && systemctl stop secretfs@data"))?;
        volume.check_gone(rig)?;
        rig.vm.ok("systemctl reset-failed")?;
        if !crashed {
            let how = if crash == Crash::Kill { "daemon killed" } else { "power cut" };
            println!("{what}, {how}: {} of {} crashes recovered", action - 1, action - 1);
            if crash == Crash::PowerCut {
                println!("{what}, hung at each of them: no consumer started, nothing on the root file system");
            }
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
    // Below /run, a drop-in would be gone after the power cut, and with it the proof that it does nothing unordered.
    let drop_in = "[Service]\nEnvironment=LD_PRELOAD=/usr/local/lib/rig-crash.so\n";
    rig.vm.put_file("/etc/systemd/system/secretfs@.service.d/rig-crash.conf", drop_in)?;
    rig.vm.ok("mkdir -p /run/secretfs && systemctl daemon-reload").map(|_| ())
}

fn order(rig: &Rig, verb: &str, action: u32) -> Result<()> {
    rig.vm.put_file("/run/secretfs/crash", format!("{verb} {action}\n"))
}

/// Takes an order back; says whether it was still there, so whether the life went by without a crash.
fn take_back(rig: &Rig) -> Result<bool> {
    Ok(rig.vm.sh("rm /run/secretfs/crash")?.status.success())
}

/// While a start hangs, no consumer runs without the volume, and nothing of one is on the root file system.
fn check_dark(rig: &Rig) -> Result<()> {
    rig.same("rig-app.service", "ExecMainStartTimestampMonotonic", "0")?;
    // The mount is all that this one waits for, so it may run once the volume is mounted.
    if rig.show("rig-mount.service", "ExecMainStartTimestampMonotonic")? != "0" {
        rig.vm.ok("findmnt --mountpoint /mnt/data")?;
    }
    let written = rig.vm.ok("mkdir -p /srv/rig/root && mount --bind / /srv/rig/root
         if [ -e /srv/rig/root/mnt/data ]; then find /srv/rig/root/mnt/data -mindepth 1; fi
         umount /srv/rig/root")?;
    ensure!(written.is_empty(), "on the root file system, below the mount point:\n{written}");
    Ok(())
}

fn wipe(rig: &mut Rig) -> Result<()> {
    rig.vm.ok(&format!("blkdiscard --force --zeroout {DISK_A}")).map(|_| ())
}

fn write_and_stop(rig: &mut Rig, volume: &Volume) -> Result<()> {
    rig.vm.ok("systemctl start secretfs@data")?;
    rig.vm.ok(&format!("echo '{KEPT}' > /mnt/data/kept && sync && systemctl stop secretfs@data"))?;
    volume.check_gone(rig)
}

fn check_kept(rig: &Rig) -> Result<()> {
    rig.vm.ok(&format!("grep '{KEPT}' /mnt/data/kept")).map(|_| ())
}
