//! What a file system and the encryption below it are made with.

use anyhow::{Result, ensure};

use super::boot::wait_for_boot;
use super::guest::{DISK_A, UP_LIMIT, Volume, in_order};
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

/// Swap space has no mount point, lives for one boot, and is watched as a mount is.
pub(super) fn swap(rig: &mut Rig) -> Result<()> {
    // For its name; what it says of a mount holds for none.
    let volume = Volume { name: "swap".into(), ..Volume::data(DISK_A) };
    rig.configure_text(&format!(
        r#"[volume.swap]
backing = {{ device = "{DISK_A}" }}
filesystem = {{ type = "swap", label = "rig-swap", mount-options = ["pri=7", "discard"] }}
luks = {{ discard = true }}
key = {{ source = "s3+kms", bucket = "an-internalstoragekeybucket", object = "random-key", kms-key = "alias/EncFSForEC2InternalStorageKey" }}
consumers = ["rig-named.service"]
"#
    ))?;
    let requires = "Requires=secretfs@swap.service\nAfter=secretfs@swap.service";
    for (unit, dependencies) in [("rig-app.service", requires), ("rig-named.service", "")] {
        let text = format!(
            "[Unit]\nDescription={unit}\n{dependencies}\n\n[Service]\nExecStart=/bin/sleep infinity\n\n[Install]\nWantedBy=multi-user.target\n"
        );
        rig.vm.put_file(&format!("/etc/systemd/system/{unit}"), text)?;
    }
    rig.vm.ok("systemctl daemon-reload && systemctl enable rig-app rig-named")?;
    let plan = rig.vm.ok("secretfs plan swap")?;
    ensure!(plan.contains("FORMAT") && plan.contains("use it as swap space"), "{plan}");

    rig.vm.ok("systemctl start rig-app rig-named")?;
    check_swap_up(rig)?;
    let used = rig.number("dev-mapper-secretfs\\x2dswap.swap", "ActiveEnterTimestampMonotonic")?;
    let ready = rig.number("secretfs@swap.service", "ActiveEnterTimestampMonotonic")?;
    for unit in ["rig-app.service", "rig-named.service"] {
        let started = rig.number(unit, "ExecMainStartTimestampMonotonic")?;
        ensure!(used < ready && ready < started, "swap at {used} µs, ready at {ready} µs, {unit} at {started} µs");
    }
    let plan = rig.vm.ok("secretfs plan swap")?;
    ensure!(plan.contains("take over the swap space"), "{plan}");
    let label = "blkid --probe --match-tag LABEL --output value /dev/mapper/secretfs-swap";
    ensure!(rig.vm.ok(label)?.trim() == "rig-swap", "the label is another");

    // It has the size that it was made with.
    let said = rig.vm.fails("secretfs grow swap 2>&1")?;
    ensure!(said.contains("swap-fixed"), "{said}");
    rig.vm.fails("systemctl reload secretfs@swap")?;
    rig.check_said("secretfs@swap.service", &["swap-fixed"])?;
    check_swap_up(rig)?;

    // A second start in the same boot finds what the first one made.
    let made = "blkid --probe --match-tag UUID --output value /dev/mapper/secretfs-swap";
    let before = (volume.luks_uuid(rig)?, rig.vm.ok(made)?);
    rig.vm.ok("systemctl stop secretfs@swap")?;
    check_swap_gone(rig, &volume)?;
    rig.same("secretfs@swap.service", "Result", "success")?;
    rig.vm.ok("systemctl start rig-app rig-named")?;
    check_swap_up(rig)?;
    ensure!((volume.luks_uuid(rig)?, rig.vm.ok(made)?) == before, "it was made anew in the same boot");

    let daemon = rig.number("secretfs@swap.service", "MainPID")?;
    rig.vm.ok(&format!("kill -9 {daemon}"))?;
    rig.vm.wait_until(
        "another instance is ready",
        &format!(
            "[ \"$(systemctl show --value --property MainPID secretfs@swap)\" != {daemon} ] &&
             systemctl is-active secretfs@swap"
        ),
        UP_LIMIT,
    )?;
    check_swap_up(rig)?;
    for unit in ["rig-app.service", "rig-named.service"] {
        rig.wait_active(unit)?;
    }

    rig.vm.ok("swapoff /dev/mapper/secretfs-swap")?;
    rig.vm.wait_until("the service has failed", "systemctl is-failed secretfs@swap", UP_LIMIT)?;
    rig.vm.wait_until("the consumers are stopped", "! systemctl is-active rig-app rig-named", UP_LIMIT)?;
    let status = rig.show("secretfs@swap.service", "StatusText")?;
    ensure!(status.contains("swap-lost"), "STATUS= is `{status}`");
    rig.check_said("secretfs@swap.service", &["swap-lost", "hint:"])?;
    check_swap_gone(rig, &volume)?;
    rig.vm.ok("systemctl start rig-app rig-named")?;
    check_swap_up(rig)?;

    // systemd takes all swap space out of use at shutdown, which is no loss, and nobody waits for anybody.
    rig.vm.reboot()?;
    let last = rig.vm.ok("journalctl --no-pager --quiet --boot=-1 --output=short-precise")?;
    let down = last.rfind("Stopping rig-named.service").map_or("", |at| &last[at..]);
    in_order(down, &["Stopped rig-named.service", "Deactivated swap", "Stopped secretfs@swap.service"])?;
    ensure!(!down.contains("swap-lost"), "{down}");
    wait_for_boot(rig)?;
    check_swap_up(rig)?;
    let after = (volume.luks_uuid(rig)?, rig.vm.ok(made)?);
    ensure!(before.0 != after.0 && before.1 != after.1, "it was not made anew: {before:?}, {after:?}");
    for unit in ["rig-app.service", "rig-named.service"] {
        rig.same(unit, "ActiveState", "active")?;
    }
    rig.vm.ok("systemctl stop secretfs@swap")?;
    check_swap_gone(rig, &volume)?;
    rig.check_quiet_journal()
}

/// Fails unless the volume `swap` is up: service, swap unit, mapping and the kernel's table all say so.
fn check_swap_up(rig: &Rig) -> Result<()> {
    rig.same("secretfs@swap.service", "ActiveState", "active")?;
    rig.same("dev-mapper-secretfs\\x2dswap.swap", "ActiveState", "active")?;
    let device = rig.vm.ok("readlink --canonicalize /dev/mapper/secretfs-swap")?;
    let swaps = rig.vm.ok("awk 'NR > 1 { print $1, $5 }' /proc/swaps")?;
    ensure!(swaps.trim() == format!("{} 7", device.trim()), "/proc/swaps has: {swaps}");
    let table = rig.vm.ok("dmsetup table secretfs-swap")?;
    ensure!(table.contains(" crypt aes-xts-plain64 ") && table.contains("allow_discards"), "{table}");
    let reports: serde_json::Value = serde_json::from_str(&rig.vm.ok("secretfs status swap --json")?)?;
    let wanted = serde_json::json!({
        "state": "ready", "mount": null, "mounted": false, "swap": true, "filesystem": "swap", "lifecycle": "ephemeral",
    });
    for (key, wanted) in wanted.as_object().expect("an object") {
        ensure!(reports[0][key] == *wanted, "`{key}` should be {wanted}: {reports:#}");
    }
    Ok(())
}

/// Fails if anything of the volume `swap` is left.
fn check_swap_gone(rig: &Rig, volume: &Volume) -> Result<()> {
    let swaps = rig.vm.ok("tail --lines=+2 /proc/swaps")?;
    ensure!(swaps.is_empty(), "in use is still: {swaps}");
    for unit in ["rig-app.service", "rig-named.service"] {
        rig.same(unit, "ActiveState", "inactive")?;
    }
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
