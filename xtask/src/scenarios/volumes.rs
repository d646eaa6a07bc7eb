//! One volume by hand: start, stop, and what may happen to it in between.

use anyhow::{Result, ensure};

use super::guest::{DISK_B, REQUIRES, REQUIRES_MOUNTS_FOR, UP_LIMIT, Volume};
use crate::vm::Rig;

/// Something to look for on the encrypted side.
const MARKER: &str = "a text that must not reach the disk in clear";

pub(super) fn start_and_stop(rig: &mut Rig) -> Result<()> {
    let volume = Volume::scratch();
    rig.configure(&[&volume])?;
    volume.check_gone(rig)?;

    rig.vm.ok("systemctl start secretfs@scratch")?;
    volume.check_up(rig)?;
    check_status(rig)?;
    check_audit(rig)?;
    let features = rig.vm.ok("dumpe2fs -h /dev/mapper/secretfs-scratch 2>/dev/null | grep 'Filesystem features:'")?;
    ensure!(features.contains("has_journal") && features.contains("dir_index"), "{features}");
    let file = rig.vm.ok("stat --format '%a %U %G' /var/lib/secretfs/scratch.img")?;
    ensure!(file.trim() == "600 root root", "the backing file is {file}");
    rig.vm.ok("systemctl start secretfs@scratch")?;
    volume.check_up(rig)?;

    rig.vm.ok(&format!("echo '{MARKER}' > /mnt/secretfs/marker && sync --file-system /mnt/secretfs/marker"))?;
    rig.vm.ok("systemctl stop secretfs@scratch")?;
    volume.check_gone(rig)?;
    rig.same("secretfs@scratch.service", "Result", "success")?;
    rig.same("mnt-secretfs.mount", "ActiveState", "inactive")?;
    rig.vm.fails(&format!("sync; grep --text '{MARKER}' /var/lib/secretfs/scratch.img"))?;
    rig.check_guarded("/mnt/secretfs")?;
    rig.check_quiet_journal()
}

/// `secretfs status` tells what the kernel says.
fn check_status(rig: &Rig) -> Result<()> {
    rig.vm.ok("secretfs status scratch")?;
    let reports: serde_json::Value = serde_json::from_str(&rig.vm.ok("secretfs status --json")?)?;
    let wanted = serde_json::json!({
        "state": "ready",
        "mount": "/mnt/secretfs",
        "mounted": true,
        "filesystem": "ext4",
        "cipher": "aes-xts-plain64",
        "key-bits": 512,
        "sector-size": 4096,
        "backing": "/var/lib/secretfs/scratch.img",
    });
    for (key, wanted) in wanted.as_object().expect("an object") {
        ensure!(reports[0][key] == *wanted, "`{key}` should be {wanted}: {reports:#}");
    }
    // Anybody may look; what needs root is left out.
    rig.vm.ok("runuser -u nobody -- secretfs status scratch | grep ready").map(|_| ())
}

/// The use of the key is one record, with what joins it to CloudTrail, and the catalog explains it.
fn check_audit(rig: &Rig) -> Result<()> {
    let used = "journalctl --quiet --boot MESSAGE_ID=2b89c100500b44a7b2b52b09b716b6c7 VOLUME=scratch --lines=1";
    let record: serde_json::Value = serde_json::from_str(&rig.vm.ok(&format!("{used} --output=json"))?)?;
    for field in ["AWS_REQUEST_ID", "S3_REQUEST_ID", "KMS_KEY_ARN", "STEP"] {
        ensure!(record[field].as_str().is_some_and(|value| !value.is_empty()), "no {field}: {record:#}");
    }
    let explained = rig.vm.ok(&format!("{used} --catalog"))?;
    ensure!(explained.contains("Defined-By: secretfs"), "{explained}");
    Ok(())
}

/// A persistent volume keeps its data and its header from one start to the next.
pub(super) fn xfs_on_a_disk(rig: &mut Rig) -> Result<()> {
    let volume = Volume { filesystem: "xfs".into(), ..Volume::data(DISK_B) };
    rig.configure(&[&volume])?;
    rig.vm.ok("systemctl start secretfs@data")?;
    volume.check_up(rig)?;
    let uuid = volume.luks_uuid(rig)?;
    rig.vm.ok(&format!("echo '{MARKER}' > /mnt/data/marker"))?;
    rig.vm.ok("systemctl stop secretfs@data")?;
    volume.check_gone(rig)?;
    rig.vm.fails(&format!("grep --text '{MARKER}' {DISK_B}"))?;

    rig.vm.ok("systemctl start secretfs@data")?;
    volume.check_up(rig)?;
    ensure!(volume.luks_uuid(rig)? == uuid, "the persistent volume has another LUKS header");
    rig.vm.ok(&format!("grep '{MARKER}' /mnt/data/marker"))?;
    rig.check_quiet_journal()
}

/// A consumer that depends on the mount does not notice. One that requires the service, by itself or because the
/// configuration names it, is restarted by systemd with every automatic restart of what it requires.
pub(super) fn kill_the_daemon(rig: &mut Rig) -> Result<()> {
    let volume = Volume { extra: r#"consumers = ["rig-named.service"]"#.into(), ..Volume::scratch() };
    rig.configure(&[&volume])?;
    rig.add_consumer("rig-mount.service", "/mnt/secretfs", REQUIRES_MOUNTS_FOR)?;
    rig.add_consumer("rig-named.service", "/mnt/secretfs", "")?;
    rig.add_consumer("rig-app.service", "/mnt/secretfs", REQUIRES)?;
    rig.vm.ok("systemctl start rig-mount rig-named rig-app")?;
    let mount_id = "findmnt --noheadings --output ID --mountpoint /mnt/secretfs";
    let (mount_before, uuid_before) = (rig.vm.ok(mount_id)?, volume.luks_uuid(rig)?);
    let consumer = rig.number("rig-mount.service", "MainPID")?;
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
    rig.same("secretfs@scratch.service", "NRestarts", "1")?;
    ensure!(rig.vm.ok(mount_id)? == mount_before, "the volume was mounted anew");
    ensure!(volume.luks_uuid(rig)? == uuid_before, "the volume was opened anew");
    ensure!(rig.number("rig-mount.service", "MainPID")? == consumer, "the consumer of the mount was restarted");
    rig.wait_active("rig-named.service")?;
    rig.wait_active("rig-app.service")?;

    rig.vm.ok("systemctl stop secretfs@scratch")?;
    volume.check_gone(rig)?;
    rig.check_quiet_journal()
}

/// A configuration that systemd has not read yet is told from one that does not work.
pub(super) fn reload_forgotten(rig: &mut Rig) -> Result<()> {
    let volume = Volume::scratch();
    rig.vm.put_file("/etc/secretfs.toml", volume.toml())?;
    rig.vm.fails("systemctl start secretfs@scratch")?;
    rig.check_failed("secretfs@scratch.service", "units-missing")?;
    rig.check_said("secretfs@scratch.service", &["systemctl daemon-reload"])?;
    volume.check_gone(rig)?;
    rig.vm.ok("systemctl daemon-reload && systemctl start secretfs@scratch")?;
    volume.check_up(rig)
}

pub(super) fn reload_and_reexec(rig: &mut Rig) -> Result<()> {
    let volume = Volume::scratch();
    rig.configure(&[&volume])?;
    rig.add_consumer("rig-app.service", "/mnt/secretfs", REQUIRES)?;
    rig.vm.ok("systemctl start rig-app")?;
    let pids = |rig: &Rig| -> Result<_> {
        Ok((rig.number("secretfs@scratch.service", "MainPID")?, rig.number("rig-app.service", "MainPID")?))
    };
    let before = pids(rig)?;
    for verb in ["daemon-reload", "daemon-reexec", "daemon-reload"] {
        rig.vm.ok(&format!("systemctl {verb}"))?;
        // What a reload would wrongly stop, it stops a moment later.
        rig.vm.ok("sleep 2")?;
        volume.check_up(rig)?;
        rig.same("rig-app.service", "ActiveState", "active")?;
        ensure!(pids(rig)? == before, "{verb} restarted the daemon or its consumer");
    }
    rig.vm.ok("systemctl stop secretfs@scratch")?;
    rig.same("rig-app.service", "ActiveState", "inactive")?;
    volume.check_gone(rig)?;
    rig.check_quiet_journal()
}

pub(super) fn second_volume_broken(rig: &mut Rig) -> Result<()> {
    let good = Volume::scratch();
    let broken = Volume { lifecycle: "eternal".into(), ..Volume::data(DISK_B) };
    rig.configure(&[&good, &broken])?;
    rig.add_consumer("rig-app.service", "/mnt/data", "Requires=secretfs@data.service\nAfter=secretfs@data.service")?;
    rig.add_consumer("rig-mount.service", "/mnt/data", "RequiresMountsFor=/mnt/data")?;

    rig.vm.fails("systemctl start secretfs@data")?;
    // The broken value stands in the third line of the second volume, after the first and an empty line.
    let line = good.toml().lines().count() + 1 + 3;
    rig.check_said("secretfs@data.service", &["/etc/secretfs.toml", &format!(":{line}"), "eternal"])?;
    rig.vm.fails("systemctl start rig-app")?;
    rig.vm.fails("systemctl start rig-mount")?;
    for unit in ["rig-app.service", "rig-mount.service"] {
        rig.same(unit, "ExecMainStartTimestampMonotonic", "0")?;
    }

    rig.vm.ok("systemctl start secretfs@scratch")?;
    good.check_up(rig)?;
    rig.vm.ok("systemctl stop secretfs@scratch")?;
    good.check_gone(rig)?;
    broken.check_nothing_open(rig)
}

/// systemd has a unit that is to be stopped come before those that are to be started and are ordered against it.
pub(super) fn second_volume_stops_slowly(rig: &mut Rig) -> Result<()> {
    let (volume, slow) = (Volume::scratch(), Volume::data(DISK_B));
    rig.configure(&[&volume, &slow])?;
    let consumer = "[Unit]\nRequires=secretfs@data.service\nAfter=secretfs@data.service\n\n\
                    [Service]\nExecStart=/bin/sleep infinity\nExecStop=/bin/sleep infinity\n";
    rig.vm.put_file("/etc/systemd/system/rig-app.service", consumer)?;
    rig.vm.ok("systemctl daemon-reload && systemctl start rig-app && systemctl stop --no-block secretfs@data")?;
    rig.same("rig-app.service", "ActiveState", "deactivating")?;

    rig.vm.ok("systemctl start secretfs@scratch")?;
    volume.check_up(rig)?;
    rig.same("rig-app.service", "ActiveState", "deactivating")?;
    slow.check_up(rig)?;
    rig.vm.ok(
        "systemctl stop secretfs@scratch && systemctl kill --signal=KILL rig-app && systemctl stop secretfs@data",
    )?;
    volume.check_gone(rig)?;
    slow.check_gone(rig)
}

pub(super) fn external_umount(rig: &mut Rig) -> Result<()> {
    let volume = Volume::scratch();
    rig.configure(&[&volume])?;
    // A consumer that does not keep the file system busy, or `umount` would be refused.
    let consumer = format!("[Unit]\n{REQUIRES}\n\n[Service]\nExecStart=/bin/sleep infinity\n");
    rig.vm.put_file("/etc/systemd/system/rig-app.service", consumer)?;
    rig.vm.ok("systemctl daemon-reload && systemctl start rig-app")?;
    rig.same("rig-app.service", "ActiveState", "active")?;

    rig.vm.ok("umount /mnt/secretfs")?;
    rig.vm.wait_until("the service has failed", "systemctl is-failed secretfs@scratch", UP_LIMIT)?;
    rig.vm.wait_until("the consumer is stopped", "! systemctl is-active rig-app", UP_LIMIT)?;
    rig.check_failed("secretfs@scratch.service", "mount-lost")?;
    volume.check_gone(rig)?;

    rig.vm.ok("systemctl start rig-app")?;
    volume.check_up(rig)
}
