//! Units that depend on a volume.

use anyhow::{Result, ensure};

use super::guest::{REQUIRES, REQUIRES_MOUNTS_FOR, Volume, in_order};
use crate::vm::Rig;

pub(super) fn requires_and_after(rig: &mut Rig) -> Result<()> {
    starts_after_and_stops_before(rig, &Volume::scratch(), REQUIRES)
}

pub(super) fn requires_mounts_for(rig: &mut Rig) -> Result<()> {
    starts_after_and_stops_before(rig, &Volume::scratch(), REQUIRES_MOUNTS_FOR)
}

pub(super) fn named_in_configuration(rig: &mut Rig) -> Result<()> {
    let volume = Volume { extra: r#"consumers = ["rig-app.service"]"#.into(), ..Volume::scratch() };
    starts_after_and_stops_before(rig, &volume, "")
}

/// As an administrator restarts the service after a change, or needrestart(1) after an update of a library.
pub(super) fn restarted_with_the_volume(rig: &mut Rig) -> Result<()> {
    let volume = Volume { extra: r#"consumers = ["rig-named.service"]"#.into(), ..Volume::scratch() };
    rig.configure(&[&volume])?;
    rig.add_consumer("rig-app.service", "/mnt/secretfs", REQUIRES)?;
    rig.add_consumer("rig-named.service", "/mnt/secretfs", "")?;
    let units = ["rig-app.service", "rig-named.service"];
    let started = |rig: &Rig| -> Result<Vec<u64>> {
        units.iter().map(|unit| rig.number(unit, "ExecMainStartTimestampMonotonic")).collect()
    };
    rig.vm.ok("systemctl start rig-app rig-named")?;
    let before = started(rig)?;
    rig.vm.ok("systemctl restart secretfs@scratch")?;
    volume.check_up(rig)?;
    for unit in units {
        rig.wait_active(unit)?;
    }
    let after = started(rig)?;
    ensure!(before.iter().zip(&after).all(|(before, after)| before < after), "{units:?}: {before:?}, then {after:?}");
    rig.check_quiet_journal()
}

/// The consumer pulls the volume in, runs only on it, and is stopped before it although it is slow and holds a file.
fn starts_after_and_stops_before(rig: &Rig, volume: &Volume, dependencies: &str) -> Result<()> {
    rig.configure(&[volume])?;
    rig.add_consumer("rig-app.service", "/mnt/secretfs", dependencies)?;
    rig.vm.ok("systemctl start rig-app")?;
    volume.check_up(rig)?;
    rig.same("rig-app.service", "ActiveState", "active")?;
    let ready = rig.number("secretfs@scratch.service", "ActiveEnterTimestampMonotonic")?;
    let mounted = rig.number("mnt-secretfs.mount", "ActiveEnterTimestampMonotonic")?;
    let started = rig.number("rig-app.service", "ExecMainStartTimestampMonotonic")?;
    ensure!(mounted < started, "the consumer started {} µs before the mount", mounted - started);
    if dependencies != REQUIRES_MOUNTS_FOR {
        ensure!(ready < started, "the consumer started {} µs before READY=1", ready - started);
    }
    rig.vm.ok("test -s /mnt/secretfs/held")?;

    rig.vm.ok("systemctl stop secretfs@scratch")?;
    rig.same("rig-app.service", "ActiveState", "inactive")?;
    rig.same("rig-app.service", "Result", "success")?;
    rig.same("secretfs@scratch.service", "Result", "success")?;
    volume.check_gone(rig)?;
    in_order(&rig.journal()?, STOPPED_IN_ORDER)?;
    rig.check_quiet_journal()
}

/// What systemd and the consumer say, in order, when the volume stops.
const STOPPED_IN_ORDER: &[&str] = &[
    "consumer: stopping",
    "consumer: stopped",
    "Stopped rig-app.service",
    "Unmounted mnt-secretfs.mount",
    "Stopped secretfs@scratch.service",
];
