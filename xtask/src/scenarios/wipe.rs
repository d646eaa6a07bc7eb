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
    // It says by its exit status that the volume is not ready yet.
    let script = format!(
        "{{ secretfs status data --json || true; }} | awk '/\"done\":/ {{ found = $2 + 0 }} END {{ exit !(found > {from}) }}'"
    );
    rig.vm.wait_until(&format!("the zeroing is beyond byte {from}"), &script, UP_LIMIT)?;
    done(rig)?.context("the zeroing ended meanwhile")
}

/// What the LUKS2 header of the disk says of the zeroing.
fn noted(rig: &Rig, disk: &str) -> Result<String> {
    rig.vm.ok(&format!(
        "cryptsetup luksDump --dump-json-metadata {disk} | tr --delete '[:space:]' | {{ grep --only-matching 'secretfs-wipe[^}}]*' || true; }}"
    ))
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

/// Lets the daemon write to the disk no faster than this, so that there is something to interrupt.
fn slow_down(rig: &Rig, disk: &str, mib_per_second: u32) -> Result<()> {
    let limit = format!("[Service]\nIOWriteBandwidthMax={disk} {mib_per_second}M\n");
    rig.vm.put_file("/etc/systemd/system/secretfs@.service.d/rig-slow.conf", limit)
}

pub(super) fn before_ready(rig: &mut Rig) -> Result<()> {
    let volume = Volume { extra: "wipe = \"zero\"\nwipe-before-ready = true".into(), ..Volume::data(DISK_B) };
    slow_down(rig, DISK_B, 16)?;
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
    slow_down(rig, DISK_A, 32)?;
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

pub(super) fn given_up(rig: &mut Rig) -> Result<()> {
    let volume = Volume { extra: "wipe = \"zero\"".into(), ..Volume::data(DISK_A) };
    slow_down(rig, DISK_A, 32)?;
    rig.configure(&[&volume])?;
    rig.vm.ok("systemctl start secretfs@data")?;
    wait_beyond(rig, 0)?;
    rig.vm.ok("systemctl stop secretfs@data")?;
    // The configuration does not ask for it any more.
    rig.configure(&[&Volume::data(DISK_A)])?;
    rig.vm.ok("systemctl start secretfs@data")?;
    rig.vm.wait_until("the space is given back", "! test -e /mnt/data/.secretfs-wipe", UP_LIMIT)?;
    rig.vm.wait_until(
        "the header speaks of no zeroing",
        &format!("! cryptsetup luksDump --dump-json-metadata {DISK_A} | grep secretfs-wipe"),
        UP_LIMIT,
    )?;
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
    // libcryptsetup writes the whole header area, mkfs its journal.
    ensure!(emptied + (32 << 10) < full, "the file took {full} KiB and takes {emptied} KiB");
    Ok(())
}

pub(super) fn integrity(rig: &mut Rig) -> Result<()> {
    let volume = Volume {
        name: "data".into(),
        mount: "/mnt/data".into(),
        lifecycle: "persistent".into(),
        backing: r#"{ file = "/var/lib/secretfs/data.img", size = "56MiB" }"#.into(),
        extra: "luks = { integrity = \"hmac-sha256\" }".into(),
        ..Volume::scratch()
    };
    rig.configure(&[&volume])?;
    rig.vm.ok("systemctl start secretfs@data")?;
    let table = rig.vm.ok("dmsetup table secretfs-data")?;
    ensure!(table.contains("authenc(hmac(sha256),xts(aes))") && table.contains("integrity:32:aead"), "{table}");
    let status = rig.vm.ok("secretfs status data")?;
    ensure!(status.contains("hmac(sha256)") && status.contains("data - ready"), "the status is:\n{status}");
    // All of it can be read, so all of it was written.
    rig.vm.ok("dd if=/dev/mapper/secretfs-data of=/dev/null bs=1M iflag=direct status=none")?;
    rig.vm.ok("df --output=avail --block-size=1M /mnt/data | tail -1 | { read -r free; head --bytes=$((free - 2))M /dev/urandom > /mnt/data/kept; }")?;
    let sum = rig.vm.ok("sha256sum /mnt/data/kept")?;

    // The daemon that comes after one that was killed, and a second start, find it as it was.
    rig.vm.ok("systemctl kill --kill-whom=main --signal=KILL secretfs@data")?;
    rig.vm.wait_until(
        "the daemon is back",
        "systemctl is-active secretfs@data && journalctl --boot --unit secretfs@data | grep 'taken over'",
        UP_LIMIT,
    )?;
    let refused = rig.vm.fails("secretfs grow data")?;
    ensure!(refused.contains("did not grow"), "{refused}");
    rig.vm.ok("systemctl restart secretfs@data")?;
    ensure!(rig.vm.ok("sha256sum /mnt/data/kept")? == sum, "the data is not what it was");

    // What a crash leaves between the two mappings.
    rig.vm.ok("systemctl stop secretfs@data")?;
    volume.check_gone(rig)?;
    rig.vm.ok(
        "disk=$(losetup --find --show /var/lib/secretfs/data.img)
         printf '0 64 integrity %s 32768 32 J 1 block_size:4096' \"$disk\" > /run/rig-table
         uuid=$(cryptsetup luksUUID \"$disk\" | tr --delete -)
         sectors=$(od --address-radix=n --format=u8 --skip-bytes=$((16777216 + 16)) --read-bytes=8 \"$disk\" | tr --delete ' ')
         sed --in-place \"s/^0 64/0 $sectors/\" /run/rig-table
         dmsetup create secretfs-data_dif --uuid \"CRYPT-INTEGRITY-$uuid-secretfs-data_dif\" < /run/rig-table",
    )?;
    rig.vm.ok("systemctl start secretfs@data")?;
    ensure!(rig.vm.ok("sha256sum /mnt/data/kept")? == sum, "the data is not what it was");

    // A change behind the encryption's back is an error, never other data.
    rig.vm.ok("systemctl stop secretfs@data
         dd if=/dev/urandom of=/var/lib/secretfs/data.img bs=1M seek=40 count=2 conv=notrunc status=none
         systemctl start secretfs@data")?;
    let said = rig.vm.fails("sha256sum /mnt/data/kept")?;
    ensure!(said.contains("Input/output error"), "{said}");
    rig.vm.ok("journalctl --boot --dmesg --no-pager | grep 'INTEGRITY AEAD ERROR'").map(|_| ())
}
