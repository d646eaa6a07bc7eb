//! Volumes over boots: links of the generator, reboot, power-off, power cut.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::guest::{DISK_A, REQUIRES, REQUIRES_MOUNTS_FOR, Volume, in_order};
use crate::vm::Rig;

/// From the first answer over ssh until the last job of the boot is done.
const BOOT_JOBS_LIMIT: Duration = Duration::from_mins(3);

/// Waits until every job of the boot is done; fails if a unit failed.
pub(super) fn wait_for_boot(rig: &Rig) -> Result<()> {
    rig.vm.wait_until("no job is left", "[ -z \"$(systemctl list-jobs --no-legend)\" ]", BOOT_JOBS_LIMIT)?;
    let failed = rig.vm.ok("systemctl list-units --no-legend --failed")?;
    ensure!(failed.is_empty(), "after the boot some units are failed:\n{failed}");
    Ok(())
}

/// Two consumers that start at boot, one of each kind.
fn enable_consumers(rig: &Rig) -> Result<()> {
    rig.add_consumer("rig-app.service", "/mnt/secretfs", REQUIRES)?;
    rig.add_consumer("rig-mount.service", "/mnt/secretfs", REQUIRES_MOUNTS_FOR)?;
    rig.vm.ok("systemctl enable rig-app rig-mount").map(|_| ())
}

pub(super) fn at_boot(rig: &mut Rig) -> Result<()> {
    let volume = Volume::scratch();
    rig.configure(&[&volume])?;
    enable_consumers(rig)?;
    rig.vm.reboot()?;
    wait_for_boot(rig)?;
    volume.check_up(rig)?;
    for unit in ["rig-app.service", "rig-mount.service"] {
        rig.same(unit, "ActiveState", "active")?;
    }
    let wanted_by = rig.show("secretfs@scratch.service", "WantedBy")?;
    ensure!(wanted_by.split(' ').any(|unit| unit == "multi-user.target"), "the volume is wanted by: {wanted_by}");
    let online = rig.number("network-online.target", "ActiveEnterTimestampMonotonic")?;
    let started = rig.number("secretfs@scratch.service", "ExecMainStartTimestampMonotonic")?;
    ensure!(
        online > 0 && online < started,
        "the daemon started at {started} µs, the network was online at {online} µs"
    );
    rig.check_quiet_journal()
}

pub(super) fn reboot_persistent_and_ephemeral(rig: &mut Rig) -> Result<()> {
    let (scratch, data) = (Volume::scratch(), Volume::data(DISK_A));
    rig.configure(&[&scratch, &data])?;
    rig.vm.ok("systemctl start secretfs@scratch secretfs@data")?;
    rig.vm.ok("echo kept > /mnt/data/marker; echo lost > /mnt/secretfs/marker")?;
    let before = (scratch.luks_uuid(rig)?, data.luks_uuid(rig)?);

    rig.vm.reboot()?;
    wait_for_boot(rig)?;
    scratch.check_up(rig)?;
    data.check_up(rig)?;
    rig.vm.ok("grep kept /mnt/data/marker")?;
    rig.vm.ok("test ! -e /mnt/secretfs/marker")?;
    let after = (scratch.luks_uuid(rig)?, data.luks_uuid(rig)?);
    ensure!(before.0 != after.0, "the ephemeral volume kept its LUKS header");
    ensure!(before.1 == after.1, "the persistent volume has another LUKS header");
    rig.check_quiet_journal()
}

pub(super) fn power_off(rig: &mut Rig) -> Result<()> {
    let volume = Volume::scratch();
    rig.configure(&[&volume])?;
    enable_consumers(rig)?;
    rig.vm.ok("systemctl start rig-app rig-mount")?;
    volume.check_up(rig)?;

    rig.vm.power_off()?;
    rig.vm.boot()?;
    let last = rig.vm.ok("journalctl --no-pager --quiet --boot=-1 --output=short-precise")?;
    for consumer in ["rig-app.service", "rig-mount.service"] {
        let stopped = format!("Stopped {consumer}");
        in_order(&last, &[&stopped, "Unmounted mnt-secretfs.mount", "Stopped secretfs@scratch.service"])?;
    }
    ensure!(last.matches("consumer: stopped").count() == 2, "a consumer was not left the time to stop:\n{last}");
    wait_for_boot(rig)?;
    volume.check_up(rig)?;
    // The journal of both boots: a mapping or loop device left to systemd-shutdown would be said there.
    rig.check_quiet_journal()
}

pub(super) fn power_cut(rig: &mut Rig) -> Result<()> {
    let volume = Volume::data(DISK_A);
    rig.configure(&[&volume])?;
    rig.vm.ok("systemctl start secretfs@data")?;
    rig.vm.ok("echo kept > /mnt/data/marker; sync")?;
    rig.vm.power_cut()?;
    rig.vm.boot()?;
    wait_for_boot(rig)?;
    volume.check_up(rig)?;
    rig.vm.ok("grep kept /mnt/data/marker").map(|_| ())
}
