//! What was on a device before: zeroed before the volume is ready, zeroed beside it, or discarded.

use anyhow::{Context as _, Result, ensure};

use super::guest::{DISK_A, DISK_B, UP_LIMIT, Volume};
use crate::vm::Rig;

/// What LUKS2 sets aside before the data.
const HEADER_MIB: u64 = 16;

/// Bytes that the volume's zeroing has done, by `secretfs status --json`; nothing while it does not go on.
fn done(rig: &Rig) -> Result<Option<u64>> {
    let reports: serde_json::Value = serde_json::from_str(&rig.vm.sh("secretfs status data --json")?.stdout)?;
    Ok(reports[0]["zeroing"]["done"].as_u64())
}

/// Waits until the zeroing is under way beyond the byte `from`, and gives where it is.
fn wait_beyond(rig: &Rig, from: u64) -> Result<u64> {
    let script = format!(
        "secretfs status data --json | grep --only-matching '\"done\": [0-9]*' | awk '{{ exit !($2 > {from}) }}'"
    );
    rig.vm.wait_until(&format!("the zeroing is beyond byte {from}"), &script, UP_LIMIT)?;
    done(rig)?.context("the zeroing ended meanwhile")
}

/// What the LUKS2 header of the disk says of the zeroing.
fn noted(rig: &Rig, disk: &str) -> Result<String> {
    rig.vm.ok(&format!("cryptsetup luksDump --dump-json-metadata {disk} | grep --only-matching 'secretfs-wipe.*\"bytes\":\"[0-9]*' || true"))
}

/// How many of the bytes behind the header are zeros on the disk itself, in a thousand; ciphertext has 4.
fn zeros_per_mille(rig: &Rig, disk: &str) -> Result<u64> {
    let counted = rig.vm.ok(&format!(
        "sync; all=$(( $(blockdev --getsize64 {disk}) - ({HEADER_MIB} << 20) ))
         other=$(dd if={disk} bs=1M skip={HEADER_MIB} iflag=direct status=none | tr --delete '\\0' | wc --bytes)
         echo $(( (all - other) * 1000 / all ))"
    ))?;
    counted.trim().parse().with_context(|| format!("not a number: {counted}"))
}

pub(super) fn before_ready(rig: &mut Rig) -> Result<()> {
    let volume = Volume { extra: "wipe = \"zero\"\nwipe-before-ready = true".into(), ..Volume::data(DISK_B) };
    rig.configure(&[&volume])?;
    rig.vm.ok("systemctl start --no-block secretfs@data")?;
    let first = wait_beyond(rig, 0)?;
    rig.same("secretfs@data.service", "ActiveState", "activating")?;
    let status = rig.show("secretfs@data.service", "StatusText")?;
    ensure!(status.starts_with("Zeroing the volume: ") && status.contains(" left"), "STATUS= is {status}");
    rig.vm.fails("findmnt --mountpoint /mnt/data")?;
    let shown = rig.vm.sh("secretfs status data")?.stdout;
    ensure!(shown.contains("Zeroing: ") && shown.contains("/s, "), "the status is:\n{shown}");

    // A stop notes how far it came, and the next start goes on there.
    rig.vm.ok("systemctl stop secretfs@data")?;
    volume.check_gone(rig)?;
    ensure!(done(rig)?.is_none(), "a zeroing is told of that does not go on");
    let uuid = rig.vm.ok(&format!("cryptsetup luksUUID {DISK_B}"))?;
    ensure!(!noted(rig, DISK_B)?.is_empty(), "the header does not say how far it came");
    let plan = rig.vm.ok("secretfs plan data")?;
    ensure!(plan.contains("go on zeroing"), "the plan is: {plan}");
    rig.vm.ok("systemctl reset-failed; systemctl start --no-block secretfs@data")?;
    let second = wait_beyond(rig, first - 1)?;

    // So does the daemon that comes after one that was killed, with what was noted last.
    rig.vm.ok("systemctl kill --kill-whom=main --signal=KILL secretfs@data")?;
    rig.wait_active("secretfs@data.service")?;
    volume.check_up(rig)?;
    ensure!(rig.vm.ok(&format!("cryptsetup luksUUID {DISK_B}"))? == uuid, "it was formatted anew");
    ensure!(noted(rig, DISK_B)?.is_empty(), "the header still speaks of a zeroing");
    let zeros = zeros_per_mille(rig, DISK_B)?;
    ensure!(zeros < 10, "of 1000 bytes on the disk {zeros} were never written");
    rig.check_said("secretfs@data.service", &["zeroed, 496.0 MiB"])?;
    println!(
        "zeroed before ready: {first} bytes at the stop, {second} at the kill, {zeros} of 1000 bytes on the disk are zero"
    );

    // What is formatted is not zeroed again.
    rig.vm.ok("echo kept > /mnt/data/marker && systemctl restart secretfs@data && grep kept /mnt/data/marker")?;
    ensure!(rig.vm.ok(&format!("cryptsetup luksUUID {DISK_B}"))? == uuid, "it was formatted anew");
    Ok(())
}

pub(super) fn beside(rig: &mut Rig) -> Result<()> {
    let volume = Volume { extra: "wipe = \"zero\"".into(), ..Volume::data(DISK_A) };
    rig.configure(&[&volume])?;
    rig.vm.ok("systemctl start secretfs@data")?;
    volume.check_up(rig)?;
    rig.vm.ok("head --bytes=20M /dev/urandom > /mnt/data/kept && sync --file-system /mnt/data/kept")?;
    let sum = rig.vm.ok("sha256sum /mnt/data/kept")?;
    let first = wait_beyond(rig, 0)?;
    let status = rig.show("secretfs@data.service", "StatusText")?;
    ensure!(status.contains("holding the volume, zeroing its free space: "), "STATUS= is {status}");

    // Stopping is not held up by it, and it goes on afterwards.
    rig.vm.ok("systemctl stop secretfs@data")?;
    volume.check_gone(rig)?;
    rig.vm.ok("systemctl start secretfs@data")?;
    let second = wait_beyond(rig, first - 1)?;

    // On a terminal there is a bar, elsewhere lines; both end when the zeroing does.
    let watched = rig
        .vm
        .ok("TERM=xterm script --quiet --return --command 'stty cols 80; secretfs status data --watch' /dev/null")?;
    ensure!(watched.contains('█') && watched.contains(" % of "), "no bar was drawn:\n{watched}");
    ensure!(done(rig)?.is_none(), "the zeroing goes on");
    rig.vm.ok("secretfs status data --watch | grep 'data - ready'")?;
    rig.vm.fails("ls /mnt/data/.secretfs-wipe")?;
    ensure!(noted(rig, DISK_A)?.is_empty(), "the header still speaks of a zeroing");
    ensure!(rig.vm.ok("sha256sum /mnt/data/kept")? == sum, "the data is not what it was");
    rig.check_said("secretfs@data.service", &["its free space is zeroed, "])?;
    let zeros = zeros_per_mille(rig, DISK_A)?;
    // A twentieth is left to the users, and what the file system keeps for itself was never written.
    ensure!(zeros < 150, "of 1000 bytes on the disk {zeros} were never written");
    println!(
        "zeroed beside the volume: {first} bytes at the stop, {second} after it, {zeros} of 1000 bytes on the disk are zero"
    );
    rig.vm.ok("systemctl restart secretfs@data")?;
    ensure!(done(rig)?.is_none(), "it is zeroed once more");
    volume.check_up(rig)
}

pub(super) fn discarded(rig: &mut Rig) -> Result<()> {
    let volume = Volume { extra: "wipe = \"discard\"".into(), ..Volume::scratch() };
    let kib = |rig: &Rig| -> Result<u64> {
        let used = rig.vm.ok("sync; du --block-size=1K /var/lib/secretfs/scratch.img | cut --fields=1")?;
        used.trim().parse().with_context(|| format!("not a number: {used}"))
    };
    rig.configure(&[&volume])?;
    rig.vm.ok("systemctl start secretfs@scratch && head --bytes=40M /dev/urandom > /mnt/secretfs/data")?;
    rig.vm.ok("systemctl stop secretfs@scratch")?;
    let full = kib(rig)?;
    // A boot knows of no format before it.
    rig.vm.ok("rm /run/secretfs/scratch.formatted && systemctl start secretfs@scratch")?;
    volume.check_up(rig)?;
    let emptied = kib(rig)?;
    ensure!(full > 40 << 10 && emptied < 24 << 10, "the file took {full} KiB and takes {emptied} KiB");
    Ok(())
}
