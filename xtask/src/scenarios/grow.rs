//! Volumes that become larger.

use anyhow::{Context, Result, ensure};

use super::guest::{DISK_A, REQUIRES, Volume};
use crate::emulator::Role;
use crate::vm::Rig;

/// A device that can grow while it is in use.
const GROWING: &str = "/dev/mapper/rig-growing";

/// A mapping that is as it was but for its size.
const LUKS: &str = "luks = { discard = true, no-read-workqueue = true }";

const MIB: u64 = 1 << 20;

fn in_file(filesystem: &str, mib: u64) -> Volume {
    Volume {
        lifecycle: "persistent".into(),
        backing: format!(r#"{{ file = "/var/lib/secretfs/scratch.img", size = "{mib}MiB" }}"#),
        filesystem: filesystem.into(),
        extra: LUKS.into(),
        ..Volume::scratch()
    }
}

pub(super) fn file(rig: &mut Rig) -> Result<()> {
    for (filesystem, before, running, started) in
        [("ext4", 96, 160, 224), ("xfs", 384, 512, 640), ("btrfs", 256, 384, 512)]
    {
        let volume = in_file(filesystem, before);
        rig.configure(&[&volume])?;
        rig.add_consumer("rig-app.service", "/mnt/secretfs", REQUIRES)?;
        rig.vm.ok("systemctl start rig-app")?;
        volume.check_up(rig)?;
        let pids = |rig: &Rig| -> Result<_> {
            Ok((rig.number("secretfs@scratch.service", "MainPID")?, rig.number("rig-app.service", "MainPID")?))
        };
        let (uuid, pids_before, table) = (volume.luks_uuid(rig)?, pids(rig)?, parameters(rig, "scratch")?);
        rig.vm.ok("dd if=/dev/urandom of=/mnt/secretfs/data bs=1M count=16 status=none")?;
        let sum = rig.vm.ok("sha256sum /mnt/secretfs/data")?;

        let volume = in_file(filesystem, running);
        rig.configure(&[&volume])?;
        let said = rig.vm.ok("secretfs grow scratch")?;
        ensure!(said.contains("grown"), "{filesystem}: {said}");
        volume.check_up(rig)?;
        check_sizes(rig, &volume, running)?;
        ensure!(pids(rig)? == pids_before, "{filesystem}: the daemon or its consumer was restarted");
        ensure!(parameters(rig, "scratch")? == table, "{filesystem}: the mapping has other parameters than before");
        ensure!(rig.vm.ok("sha256sum /mnt/secretfs/data")? == sum, "{filesystem}: the data differ");
        let said = rig.vm.ok("secretfs grow scratch")?;
        ensure!(said.contains("already"), "{filesystem}: {said}");
        rig.vm.ok("systemctl stop secretfs@scratch")?;
        volume.check_gone(rig)?;

        let volume = in_file(filesystem, started);
        rig.configure(&[&volume])?;
        rig.vm.ok("systemctl start secretfs@scratch")?;
        volume.check_up(rig)?;
        check_sizes(rig, &volume, started)?;
        ensure!(volume.luks_uuid(rig)? == uuid, "{filesystem}: the volume was formatted");
        ensure!(rig.vm.ok("sha256sum /mnt/secretfs/data")? == sum, "{filesystem}: the data differ");
        rig.vm.ok("systemctl stop secretfs@scratch")?;
        volume.check_gone(rig)?;
        rig.vm.ok("rm /var/lib/secretfs/scratch.*")?;
    }
    rig.check_quiet_journal()
}

pub(super) fn device(rig: &mut Rig) -> Result<()> {
    let resize = |rig: &Rig, verb: &str, mib: u64| {
        let table = format!("0 {} linear {DISK_A} 0", mib * MIB / 512);
        rig.vm.ok(&format!("dmsetup {verb} rig-growing --table '{table}'"))
    };
    resize(rig, "create", 96)?;
    let volume = Volume { extra: LUKS.into(), ..Volume::data(GROWING) };
    rig.configure(&[&volume])?;
    rig.vm.ok("systemctl start secretfs@data")?;
    volume.check_up(rig)?;
    check_sizes(rig, &volume, 96)?;
    let (uuid, table) = (volume.luks_uuid(rig)?, parameters(rig, "data")?);
    rig.vm.ok("echo text > /mnt/data/file")?;

    resize(rig, "load", 160)?;
    rig.vm.ok("dmsetup resume rig-growing")?;
    check_sizes(rig, &volume, 96)?;
    rig.vm.ok("secretfs grow data")?;
    volume.check_up(rig)?;
    check_sizes(rig, &volume, 160)?;
    ensure!(parameters(rig, "data")? == table, "the mapping has other parameters than before");
    rig.vm.ok("systemctl stop secretfs@data")?;
    volume.check_gone(rig)?;

    resize(rig, "load", 224)?;
    rig.vm.ok("dmsetup resume rig-growing")?;
    rig.vm.ok("systemctl start secretfs@data")?;
    volume.check_up(rig)?;
    check_sizes(rig, &volume, 224)?;
    ensure!(volume.luks_uuid(rig)? == uuid, "the volume was formatted");
    rig.vm.ok("grep text /mnt/data/file")?;
    rig.vm.ok("systemctl stop secretfs@data && dmsetup remove rig-growing")?;
    volume.check_gone(rig)?;
    rig.check_quiet_journal()
}

pub(super) fn refused(rig: &mut Rig) -> Result<()> {
    rig.vm.fails("secretfs grow scratch")?;
    let volume = in_file("ext4", 96);
    rig.configure(&[&volume])?;
    let said = rig.vm.fails("secretfs grow scratch")?;
    ensure!(said.contains("hint:"), "a volume that is stopped: {said}");
    rig.add_consumer("rig-app.service", "/mnt/secretfs", REQUIRES)?;
    rig.vm.ok("systemctl start rig-app")?;
    let consumer = rig.number("rig-app.service", "MainPID")?;
    let goes_on = |rig: &Rig, cause: &str| -> Result<()> {
        rig.vm.fails("secretfs grow scratch")?;
        rig.check_said("secretfs@scratch.service", &[cause, "hint:"])?;
        in_file("ext4", 96).check_up(rig)?;
        ensure!(rig.number("rig-app.service", "MainPID")? == consumer, "the consumer was restarted");
        Ok(())
    };

    rig.configure(&[&in_file("ext4", 64)])?;
    goes_on(rig, "backing-mismatch")?;
    check_sizes(rig, &volume, 96)?;

    rig.configure(&[&in_file("ext4", 160)])?;
    rig.aws.set_role(Role::Denied)?;
    goes_on(rig, "kms-access-denied")?;

    rig.aws.set_role(Role::Reader)?;
    rig.vm.ok("secretfs grow scratch")?;
    check_sizes(rig, &volume, 160)?;
    rig.vm.ok("systemctl stop secretfs@scratch")?;
    volume.check_gone(rig)?;

    rig.configure(&[&volume])?;
    rig.vm.fails("systemctl start secretfs@scratch")?;
    rig.check_failed("secretfs@scratch.service", "backing-mismatch")?;
    volume.check_gone(rig)?;

    // A file that is nobody's volume is not made larger, however small it is.
    rig.vm.ok("rm /var/lib/secretfs/scratch.img && (umask 077; seq 100000 > /var/lib/secretfs/scratch.img)")?;
    let sum = rig.vm.ok("sha256sum /var/lib/secretfs/scratch.img")?;
    rig.vm.fails("systemctl start secretfs@scratch")?;
    ensure!(rig.vm.ok("sha256sum /var/lib/secretfs/scratch.img")? == sum, "a foreign file was changed");
    rig.check_quiet_journal()
}

/// Fails unless mapping and file system have what a backing of so many MiB gives them.
fn check_sizes(rig: &Rig, volume: &Volume, mib: u64) -> Result<()> {
    let number = |text: String| text.trim().parse::<u64>().with_context(|| format!("not a number: {text}"));
    // The LUKS2 header takes 16 MiB.
    let mapping = number(rig.vm.ok(&format!("blockdev --getsize64 {}", volume.mapper()))?)? / MIB;
    ensure!(mapping == mib - 16, "the mapping has {mapping} MiB over a backing of {mib} MiB");
    let filesystem =
        number(rig.vm.ok(&format!("df --output=size --block-size=1 {} | tail -n 1", volume.mount))?)? / MIB;
    // What the file systems keep for themselves: the journal of an ext4, the log of an xfs.
    ensure!(
        (mapping * 3 / 5..=mapping).contains(&filesystem),
        "the file system has {filesystem} MiB over a mapping of {mapping} MiB"
    );
    Ok(())
}

/// The table of a volume's mapping without its size.
fn parameters(rig: &Rig, name: &str) -> Result<String> {
    let table = rig.vm.ok(&format!("dmsetup table secretfs-{name}"))?;
    Ok(table.split_whitespace().skip(2).collect::<Vec<_>>().join(" "))
}
