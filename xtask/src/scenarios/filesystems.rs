//! What a file system and the encryption below it are made with.

use anyhow::{Result, ensure};

use super::guest::{DISK_A, UP_LIMIT, Volume};
use crate::vm::Rig;

/// A btrfs has no device number of its own in the table of mounts, and must be known all the same.
pub(super) fn btrfs(rig: &mut Rig) -> Result<()> {
    let volume = Volume {
        lifecycle: "persistent".into(),
        backing: r#"{ file = "/var/lib/secretfs/scratch.img", size = "256MiB" }"#.into(),
        filesystem: "btrfs".into(),
        filesystem_extra: r#", label = "rig", mkfs-options = ["--csum=xxhash"], mount-options = ["compress=zstd"]"#
            .into(),
        ..Volume::scratch()
    };
    rig.configure(&[&volume])?;
    rig.vm.ok("systemctl start secretfs@scratch")?;
    volume.check_up(rig)?;
    let uuid = volume.luks_uuid(rig)?;
    let made = rig.vm.ok("btrfs inspect-internal dump-super /dev/mapper/secretfs-scratch")?;
    ensure!(made.contains("xxhash64"), "{made}");
    check_mount_options(rig, &volume, &["compress=zstd"])?;
    let status = rig.vm.ok("secretfs status scratch")?;
    ensure!(status.contains("/mnt/secretfs (btrfs)"), "{status}");
    rig.vm.ok("echo text > /mnt/secretfs/file")?;

    let daemon = rig.number("secretfs@scratch.service", "MainPID")?;
    rig.vm.ok(&format!("kill -9 {daemon}"))?;
    rig.vm.wait_until(
        "another instance is ready",
        &format!(
            "[ \"$(systemctl show --value --property MainPID secretfs@scratch)\" != {daemon} ] &&
             systemctl is-active secretfs@scratch"
        ),
        UP_LIMIT,
    )?;
    volume.check_up(rig)?;
    rig.vm.ok("systemctl stop secretfs@scratch")?;
    volume.check_gone(rig)?;

    rig.vm.ok("systemctl start secretfs@scratch")?;
    volume.check_up(rig)?;
    ensure!(volume.luks_uuid(rig)? == uuid, "the persistent volume has another LUKS header");
    rig.vm.ok("grep text /mnt/secretfs/file")?;

    rig.vm.ok("umount /mnt/secretfs")?;
    rig.vm.wait_until("the service has failed", "systemctl is-failed secretfs@scratch", UP_LIMIT)?;
    rig.check_failed("secretfs@scratch.service", "mount-lost")?;
    volume.check_gone(rig)
}

pub(super) fn options(rig: &mut Rig) -> Result<()> {
    let made = r#", label = "rig-data", mkfs-options = ["-m", "0", "-E", "stride=8"]"#;
    let mounted = r#", mount-options = ["noatime", "discard"], owner = "www-data", group = "adm", mode = "0750""#;
    let flags = "discard = true, no-read-workqueue = true, no-write-workqueue = true";
    let volume = Volume {
        filesystem_extra: [made, mounted].concat(),
        extra: format!("luks = {{ {flags}, sector-size = 512 }}"),
        ..Volume::data(DISK_A)
    };
    rig.configure(&[&volume])?;
    rig.vm.ok("systemctl start secretfs@data")?;
    volume.check_up(rig)?;
    let made = rig.vm.ok("dumpe2fs -h /dev/mapper/secretfs-data 2>/dev/null")?;
    for (name, value) in [("Filesystem volume name", "rig-data"), ("Reserved block count", "0"), ("RAID stride", "8")] {
        let line = made.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap_or_default();
        ensure!(line.split_whitespace().last() == Some(value), "{name} should be {value}:\n{made}");
    }
    let table = rig.vm.ok("dmsetup table secretfs-data")?;
    for flag in ["allow_discards", "no_read_workqueue", "no_write_workqueue"] {
        ensure!(table.split_whitespace().any(|word| word == flag), "{flag} is missing: {table}");
    }
    let header = rig.vm.ok(&format!("cryptsetup luksDump {DISK_A}"))?;
    ensure!(header.contains("sector: 512 [bytes]"), "{header}");
    check_mount_options(rig, &volume, &["noatime", "discard"])?;
    check_root(rig, "750 www-data adm")?;
    rig.vm.ok("fstrim --verbose /mnt/data")?;

    // Somebody else's doing is undone at the next start, and so is what was never done.
    rig.vm.ok("chown root:root /mnt/data && chmod 0777 /mnt/data")?;
    rig.vm.ok("systemctl restart secretfs@data")?;
    volume.check_up(rig)?;
    check_root(rig, "750 www-data adm")?;
    rig.vm.ok("systemctl stop secretfs@data")?;
    volume.check_gone(rig)?;
    rig.check_guarded("/mnt/data")?;

    // What is not configured is left as it is.
    let only_mode = Volume { filesystem_extra: r#", mode = "1777""#.into(), ..volume.clone() };
    rig.configure(&[&only_mode])?;
    rig.vm.ok("systemctl start secretfs@data")?;
    check_root(rig, "1777 www-data adm")?;
    rig.vm.ok("systemctl stop secretfs@data")?;
    only_mode.check_gone(rig)?;
    rig.check_quiet_journal()
}

pub(super) fn unknown_owner(rig: &mut Rig) -> Result<()> {
    let volume = Volume { filesystem_extra: r#", owner = "rig-nobody""#.into(), ..Volume::data(DISK_A) };
    rig.configure(&[&volume])?;
    let requires = "Requires=secretfs@data.service\nAfter=secretfs@data.service";
    rig.add_consumer("rig-app.service", "/mnt/data", requires)?;
    rig.vm.fails("systemctl start secretfs@data")?;
    rig.check_failed("secretfs@data.service", "no-such-owner")?;
    rig.vm.fails("systemctl start rig-app")?;
    rig.same("rig-app.service", "ExecMainStartTimestampMonotonic", "0")?;
    volume.check_gone(rig)?;
    rig.check_guarded("/mnt/data")?;

    rig.vm.ok("useradd --system rig-nobody")?;
    rig.vm.ok("systemctl start secretfs@data")?;
    let owned = check_root(rig, "755 rig-nobody root");
    rig.vm.ok("userdel rig-nobody")?;
    owned?;
    rig.vm.ok("systemctl stop secretfs@data")?;
    volume.check_gone(rig)
}

/// Fails unless the root directory of the volume at `/mnt/data` has this mode, owner and group.
fn check_root(rig: &Rig, wanted: &str) -> Result<()> {
    let root = rig.vm.ok("stat --format '%a %U %G' /mnt/data")?;
    ensure!(root.trim() == wanted, "the root directory is {root}, not {wanted}");
    Ok(())
}

fn check_mount_options(rig: &Rig, volume: &Volume, wanted: &[&str]) -> Result<()> {
    let options = rig.vm.ok(&format!("findmnt --noheadings --output OPTIONS --mountpoint {}", volume.mount))?;
    for option in wanted {
        ensure!(options.trim().split(',').any(|have| have.starts_with(option)), "{option} is missing: {options}");
    }
    Ok(())
}
