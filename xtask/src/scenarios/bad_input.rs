//! Configurations and devices that must be refused, with place and cure, and with the disk untouched.

use anyhow::{Result, ensure};

use super::guest::{DISK_A, DISK_B, Volume};
use crate::vm::Rig;

/// `secretfs check` refuses the configuration, names file and line, and says each of the texts.
fn check_refused(rig: &Rig, text: &str, said: &[&str]) -> Result<()> {
    rig.configure_text(text)?;
    let answer = rig.vm.fails("secretfs check /etc/secretfs.toml")?;
    for part in [&["/etc/secretfs.toml:"], said].concat() {
        ensure!(answer.contains(part), "`secretfs check` does not say `{part}`:\n{answer}");
    }
    Ok(())
}

/// The volume's own unit refuses to start for a wrong configuration and leaves nothing open.
fn check_start_refused(rig: &Rig, volume: &Volume) -> Result<()> {
    rig.vm.fails(&format!("systemctl start '{}'", volume.service()))?;
    rig.check_said(&volume.service(), &["/etc/secretfs.toml:"])?;
    volume.check_nothing_open(rig)
}

pub(super) fn malformed_or_unknown_key(rig: &mut Rig) -> Result<()> {
    let volume = Volume { extra: "lifecicle = \"persistent\"".into(), ..Volume::data(DISK_A) };
    check_refused(rig, &volume.toml(), &["lifecicle", "lifecycle"])?;
    check_start_refused(rig, &volume)?;

    let good = Volume::data(DISK_A);
    check_refused(rig, &good.toml().replace("backing = {", "backing = "), &[])?;
    rig.vm.fails("systemctl start secretfs@data")?;
    check_blank(rig, DISK_A)
}

pub(super) fn two_on_one(rig: &mut Rig) -> Result<()> {
    let first = Volume::data(DISK_A);
    let same_mount = Volume { name: "other".into(), ..Volume::data(DISK_B) };
    check_refused(rig, &[first.toml(), same_mount.toml()].join("\n"), &["/mnt/data", "other"])?;
    check_start_refused(rig, &same_mount)?;

    let same_device = Volume { name: "other".into(), mount: "/mnt/other".into(), ..Volume::data(DISK_A) };
    check_refused(rig, &[first.toml(), same_device.toml()].join("\n"), &[DISK_A, "other"])?;
    check_start_refused(rig, &same_device)?;
    check_blank(rig, DISK_B)
}

pub(super) fn mount_points(rig: &mut Rig) -> Result<()> {
    let relative = Volume { mount: "mnt/data".into(), ..Volume::data(DISK_A) };
    check_refused(rig, &relative.toml(), &["mnt/data", "absolute"])?;
    check_start_refused(rig, &relative)?;

    let above = Volume { name: "above".into(), mount: "/mnt/a".into(), ..Volume::data("/dev/mapper/secretfs-below") };
    let below = Volume {
        name: "below".into(),
        mount: "/mnt/b".into(),
        backing: r#"{ file = "/mnt/a/below.img", size = "96MiB" }"#.into(),
        ..above.clone()
    };
    check_refused(rig, &[above.toml(), below.toml()].join("\n"), &["above", "below"])?;

    // The inner one is `early` in the order of names; the outer one would be mounted over it.
    let inner = Volume { name: "early".into(), mount: "/mnt/data/inner".into(), ..Volume::data(DISK_A) };
    let outer = Volume::data(DISK_B);
    rig.configure(&[&inner, &outer])?;
    rig.vm.ok("systemctl start secretfs@early secretfs@data")?;
    inner.check_up(rig)?;
    outer.check_up(rig)?;
    rig.vm.ok("systemctl stop secretfs@data")?;
    inner.check_gone(rig)?;
    outer.check_gone(rig)?;
    rig.check_quiet_journal()
}

pub(super) fn names(rig: &mut Rig) -> Result<()> {
    for name in ["two words", "a/b", "a@b", &"long".repeat(80)] {
        let text = Volume::data(DISK_A).toml().replace("[volume.data]", &format!("[volume.\"{name}\"]"));
        check_refused(rig, &text, &[])?;
    }
    check_blank(rig, DISK_A)
}

pub(super) fn file_for_device(rig: &mut Rig) -> Result<()> {
    let contents = "not a device\n";
    rig.vm.put_file("/srv/rig/file", contents)?;
    let volume = Volume::data("/srv/rig/file");
    rig.configure_text(&volume.toml())?;
    rig.vm.fails("systemctl start secretfs@data")?;
    volume.check_gone(rig)?;
    rig.check_said("secretfs@data.service", &["/srv/rig/file", "hint:"])?;
    ensure!(rig.vm.ok("cat /srv/rig/file")? == contents, "the file was written to");
    Ok(())
}

pub(super) fn foreign_file_system(rig: &mut Rig) -> Result<()> {
    rig.vm.ok(&format!("mkfs.xfs -q {DISK_A}"))?;
    let sum = format!("sha256sum {DISK_A}");
    let before = rig.vm.ok(&sum)?;
    for lifecycle in ["persistent", "ephemeral"] {
        let volume = Volume { lifecycle: lifecycle.into(), ..Volume::data(DISK_A) };
        rig.configure(&[&volume])?;
        rig.vm.fails("systemctl start secretfs@data")?;
        rig.check_failed("secretfs@data.service", "foreign-signature")?;
        volume.check_gone(rig)?;
    }
    ensure!(rig.vm.ok(&sum)? == before, "the disk with a foreign file system was written to");
    Ok(())
}

/// Fails unless the spare disk is as blank as the scenario found it.
fn check_blank(rig: &Rig, disk: &str) -> Result<()> {
    rig.vm.ok(&format!("cmp --bytes=\"$(blockdev --getsize64 {disk})\" {disk} /dev/zero")).map(|_| ())
}
