//! `secretfs plan` against what then happens.

use anyhow::{Result, ensure};

use super::guest::{DISK_A, Volume};
use crate::vm::Rig;

pub(super) fn told_and_done(rig: &mut Rig) -> Result<()> {
    let (file, disk) = (Volume::scratch(), Volume::data(DISK_A));
    rig.configure(&[&file, &disk])?;
    check_deeds(rig, "create", "format")?;
    rig.vm.ok("test ! -e /var/lib/secretfs/scratch.img && test -z \"$(losetup --list --noheadings)\"")?;

    rig.vm.ok("systemctl start secretfs@scratch secretfs@data")?;
    check_deeds(rig, "take-over", "take-over")?;
    let before = disk.luks_uuid(rig)?;

    rig.vm.ok("systemctl stop secretfs@scratch secretfs@data")?;
    // This boot has formatted the ephemeral volume, so it is opened again; the next boot would format it.
    check_deeds(rig, "unlock", "unlock")?;
    rig.vm.ok("systemctl start secretfs@data")?;
    ensure!(disk.luks_uuid(rig)? == before, "what was to be unlocked was formatted");
    rig.vm.ok("systemctl stop secretfs@data")?;

    rig.vm.ok(&format!("blkdiscard --force --zeroout {DISK_A} && mkfs.ext4 -q {DISK_A}"))?;
    let sum = rig.vm.ok(&format!("sha256sum {DISK_A}"))?;
    let said = rig.vm.fails("secretfs plan data")?;
    ensure!(said.contains("foreign-signature") && said.contains("hint:"), "{said}");
    ensure!(rig.vm.ok(&format!("sha256sum {DISK_A}"))? == sum, "looking changed the disk");
    Ok(())
}

/// Fails unless `secretfs plan --json` tells these deeds of the volumes `scratch` and `data`.
fn check_deeds(rig: &Rig, scratch: &str, data: &str) -> Result<()> {
    let plans: serde_json::Value = serde_json::from_str(&rig.vm.ok("secretfs plan --json")?)?;
    for (name, wanted) in [("scratch", scratch), ("data", data)] {
        let plan = plans.as_array().and_then(|plans| plans.iter().find(|plan| plan["name"] == name));
        let deed = plan.map(|plan| &plan["deed"]);
        ensure!(deed.is_some_and(|deed| deed == wanted), "`{wanted}` should be told of {name}: {plans:#}");
    }
    rig.vm.ok("secretfs plan").map(|_| ())
}
