//! Disks claimed by what they are: found, found again, and left alone where there is any doubt.

use anyhow::{Result, ensure};

use super::guest::{DISK_C, UP_LIMIT, Volume};
use crate::vm::Rig;
use crate::vm::machine::{DISK_B, DISK_C as SERIAL_C, DISK_D as SERIAL_D, DISK_E, DISK_F, INSTANCE_ID};

/// The two small disks by model and serial, in stripes.
fn striped() -> String {
    format!(
        r#"{{ match = {{ model = "QEMU NVMe Ctrl", serial = ["{SERIAL_C}", "{SERIAL_D}"] }}, layout = "striped", stripe-size = "16KiB" }}"#
    )
}

/// A persistent volume over the two small disks.
fn over_two() -> Volume {
    Volume { backing: striped(), ..Volume::data("") }
}

/// A volume over one small disk.
fn over_one(lifecycle: &str) -> Volume {
    let backing = format!(r#"{{ match = {{ serial = "{SERIAL_C}" }} }}"#);
    Volume { lifecycle: lifecycle.into(), backing, ..Volume::data("") }
}

/// What the kernel calls the disk now.
fn kernel_name(rig: &Rig, serial: &str) -> Result<String> {
    let names = rig
        .vm
        .ok(&format!("lsblk --nodeps --noheadings --output NAME,SERIAL | awk '$2 == \"{serial}\" {{ print $1 }}'"))?;
    Ok(names.trim().to_owned())
}

/// A checksum of every byte of the two small disks.
fn sums(rig: &Rig) -> Result<String> {
    rig.vm.disk_sums(&[SERIAL_C, SERIAL_D])
}

/// Fails if LVM's device is left.
fn check_inactive(rig: &Rig) -> Result<()> {
    let left = rig.vm.ok("dmsetup ls | grep '^secretfs--' || true")?;
    ensure!(left.is_empty(), "of LVM is left:\n{left}");
    Ok(())
}

/// A volume of every layout, each persistent and over disks of its own.
fn every_layout() -> [Volume; 3] {
    let linear = format!(r#"{{ match = {{ serial = ["{DISK_E}", "{DISK_F}"] }}, layout = "linear" }}"#);
    let single = format!(r#"{{ match = {{ by-id = "nvme-QEMU_NVMe_Ctrl_{DISK_B}" }} }}"#);
    let named =
        |name: &str, backing| Volume { name: name.into(), mount: format!("/mnt/{name}"), backing, ..Volume::data("") };
    [over_two(), named("line", linear), named("one", single)]
}

pub(super) fn every_layout_swapped(rig: &mut Rig) -> Result<()> {
    rig.vm.power_off()?;
    rig.vm.set_nvme(&[DISK_B, SERIAL_C, SERIAL_D, DISK_E, DISK_F]);
    rig.vm.boot()?;
    let volumes = every_layout();
    rig.configure(&volumes.iter().collect::<Vec<_>>())?;
    let plan = rig.vm.ok("secretfs plan data")?;
    ensure!(plan.contains("one device of /dev/nvme") && plan.contains("FORMAT"), "the plan is: {plan}");
    rig.vm.ok("systemctl start secretfs@data secretfs@line secretfs@one")?;
    let lvm = "lvs --noheadings --options vg_name,vg_tags,vg_autoactivation,lv_name,segtype,stripes,stripesize --units k --nosuffix";
    let made = rig.vm.ok(lvm)?;
    let wanted = [
        ["secretfs-data", "secretfs", "data", "striped", "2", "16.00"],
        ["secretfs-line", "secretfs", "data", "linear", "1", "0"],
    ];
    for words in wanted {
        // A linear volume has a segment on each disk.
        ensure!(made.lines().any(|line| line.split_whitespace().eq(words)), "LVM has made:\n{made}");
    }
    for (mapper, lower) in [("secretfs-data", "(secretfs--data-data)"), ("secretfs-line", "(secretfs--line-data)")] {
        let below = rig.vm.ok(&format!("dmsetup deps --options devname {mapper}"))?;
        ensure!(below.contains(lower), "the encryption {mapper} lies on {below}");
    }
    let status = rig.vm.ok("secretfs status data")?;
    ensure!(status.contains("striped disks") && status.contains(" on /dev/"), "the status is:\n{status}");

    let mut before = Vec::new();
    for volume in &volumes {
        volume.check_up(rig)?;
        let kept = format!("{}/kept", volume.mount);
        rig.vm.ok(&format!("head --bytes=20M /dev/urandom > {kept} && sync --file-system {kept}"))?;
        before.push((rig.vm.ok(&format!("sha256sum {kept}"))?, volume.luks_uuid(rig)?));
    }
    let serials = [DISK_B, SERIAL_C, SERIAL_D, DISK_E, DISK_F];
    let names = |rig: &Rig| serials.iter().map(|serial| kernel_name(rig, serial)).collect::<Result<Vec<_>>>();
    let called = names(rig)?;
    rig.vm.power_off()?;
    rig.vm.set_nvme(&[DISK_F, SERIAL_D, DISK_E, SERIAL_C, DISK_B]);
    rig.vm.boot()?;
    let renamed = names(rig)?;
    ensure!(called.iter().zip(&renamed).filter(|(was, is)| was != is).count() >= 4, "{called:?} became {renamed:?}");
    for (volume, (sum, uuid)) in volumes.iter().zip(&before) {
        rig.wait_active(&volume.service())?;
        rig.check_said(&volume.service(), &["it lies on the same devices as before"])?;
        volume.check_up(rig)?;
        ensure!(volume.luks_uuid(rig)? == *uuid, "volume {} has another LUKS header", volume.name);
        let now = rig.vm.ok(&format!("sha256sum {}/kept", volume.mount))?;
        ensure!(now == *sum, "the data of volume {} is not what it was", volume.name);
    }
    println!("the kernel called the disks {called:?} and then {renamed:?}; every layout kept its data");

    rig.vm.ok("systemctl stop secretfs@data secretfs@line secretfs@one")?;
    for volume in &volumes {
        volume.check_gone(rig)?;
    }
    check_inactive(rig)?;
    rig.check_quiet_journal()
}

pub(super) fn missing_member(rig: &mut Rig) -> Result<()> {
    let volume = over_two();
    rig.configure(&[&volume])?;
    rig.vm.ok("systemctl start secretfs@data && echo kept > /mnt/data/marker")?;
    rig.vm.ok("systemctl stop secretfs@data")?;
    rig.vm.power_off()?;
    rig.vm.set_nvme(&[DISK_B, SERIAL_D]);
    rig.vm.boot()?;
    let before = sums(rig)?;
    rig.vm.wait_until(
        "STATUS= names the missing disk",
        &format!(
            "systemctl show --property StatusText secretfs@data | tee /dev/stderr |
             grep 'backing-missing.*missing: serial \"{SERIAL_C}\"'"
        ),
        UP_LIMIT,
    )?;
    rig.same("secretfs@data.service", "ActiveState", "activating")?;
    let plan = rig.vm.ok("secretfs plan data")?;
    ensure!(plan.starts_with("data: wait for ") && plan.contains(SERIAL_C), "the plan is: {plan}");
    rig.vm.ok("systemctl stop secretfs@data")?;
    volume.check_gone(rig)?;
    ensure!(sums(rig)? == before, "the disk that is left was written to");

    rig.vm.power_off()?;
    rig.vm.set_nvme(&[DISK_B, SERIAL_C, SERIAL_D]);
    rig.vm.boot()?;
    rig.wait_active("secretfs@data.service")?;
    rig.vm.ok("grep kept /mnt/data/marker").map(|_| ())
}

/// What a disk may carry, how it comes there, and the causes for a persistent volume over this one disk and for an
/// ephemeral one in stripes.
const FOREIGN: [(&str, &str, &str, &str); 7] = [
    ("ext4", "mkfs.ext4 -q -F $disk", "foreign-signature", "foreign-signature"),
    // A persistent volume is opened with whatever LUKS header is there: the recipe's volumes are.
    (
        "LUKS1",
        "printf foreign | cryptsetup luksFormat --batch-mode --type luks1 --pbkdf-force-iterations 1000 $disk -",
        "wrong-key",
        "foreign-signature",
    ),
    ("an LVM physical volume", "pvcreate --quiet --yes $disk", "foreign-signature", "foreign-signature"),
    (
        "an md superblock",
        r"at() { dd of=$disk bs=1 seek=$1 status=none; }
          printf '\xfc\x4e\x2b\xa9\x01' | at 4096; printf '\x07%.0s' {1..16} | at 4112; printf '\x08' | at 4240",
        "foreign-signature",
        "foreign-signature",
    ),
    (
        "a ZFS label",
        r"for block in {128..135}; do printf '\x0c\xb1\xba' | dd of=$disk bs=1024 seek=$block status=none; done",
        "foreign-signature",
        "foreign-signature",
    ),
    ("a GPT", "echo 'label: gpt' | sfdisk --quiet $disk", "foreign-signature", "foreign-signature"),
    (
        "zeros at its beginning and data in its middle",
        "dd if=/dev/urandom of=$disk bs=1M seek=64 count=8 status=none",
        "not-blank",
        "not-blank",
    ),
];

pub(super) fn foreign(rig: &mut Rig) -> Result<()> {
    let in_stripes = Volume { lifecycle: "ephemeral".into(), ..over_two() };
    for (what, make, persistent, ephemeral) in FOREIGN {
        rig.vm.ok(&format!("blkdiscard --force --zeroout {DISK_C}; disk={DISK_C}; {make}; udevadm settle"))?;
        let before = sums(rig)?;
        for (volume, cause) in [(&over_one("persistent"), persistent), (&in_stripes, ephemeral)] {
            rig.configure(&[volume])?;
            if cause != "wrong-key" {
                let plan = rig.vm.fails("secretfs plan data")?;
                ensure!(plan.contains("refuse to touch") && plan.contains(cause), "{what}: the plan is: {plan}");
            }
            // Ten starts in ten minutes are the unit's limit.
            rig.vm.ok("systemctl reset-failed secretfs@data || true")?;
            rig.vm.fails("systemctl start secretfs@data")?;
            rig.check_failed("secretfs@data.service", cause)?;
            volume.check_gone(rig)?;
            check_inactive(rig)?;
        }
        ensure!(sums(rig)? == before, "the disk with {what}, or the one beside it, was written to");
    }
    Ok(())
}

pub(super) fn persistent_came_back_blank(rig: &mut Rig) -> Result<()> {
    let volume = over_one("persistent");
    let refused = |rig: &Rig, cause: &str| -> Result<()> {
        let plan = rig.vm.fails("secretfs plan data")?;
        ensure!(plan.contains("refuse to touch") && plan.contains(cause), "the plan is: {plan}");
        let before = sums(rig)?;
        rig.vm.fails("systemctl start secretfs@data")?;
        rig.check_failed("secretfs@data.service", cause)?;
        volume.check_gone(rig)?;
        ensure!(sums(rig)? == before, "the disk was written to");
        Ok(())
    };
    rig.configure(&[&volume])?;
    rig.vm.ok("systemctl start secretfs@data")?;
    let uuid = rig.vm.ok(&format!("cryptsetup luksUUID {DISK_C}"))?;
    let claim = rig.vm.ok("cat /var/lib/secretfs/data.claim.json")?;
    ensure!(claim.contains(uuid.trim()) && claim.contains(SERIAL_C), "the claim is:\n{claim}");
    let boot = rig.vm.ok("cat /proc/sys/kernel/random/boot_id")?;
    ensure!(claim.contains(INSTANCE_ID) && claim.contains(boot.trim()), "the claim is:\n{claim}");
    rig.vm.ok(&format!("systemctl stop secretfs@data && blkdiscard --force --zeroout {DISK_C}"))?;
    refused(rig, "header-gone")?;
    rig.check_said("secretfs@data.service", &[uuid.trim()])?;

    rig.vm.ok(&format!(
        "printf other | cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 {DISK_C} -"
    ))?;
    refused(rig, "claim-changed")?;

    rig.vm.ok(&format!("blkdiscard --force --zeroout {DISK_C}; rm /var/lib/secretfs/data.claim.json"))?;
    rig.vm.ok("systemctl start secretfs@data")?;
    volume.check_up(rig)
}

/// What the header says counts, whatever this machine remembers.
pub(super) fn persistent_named_ephemeral(rig: &mut Rig) -> Result<()> {
    let (kept, volume) = (over_one("persistent"), over_one("ephemeral"));
    rig.configure(&[&kept])?;
    rig.vm.ok("systemctl start secretfs@data && echo kept > /mnt/data/marker && sync /mnt/data/marker")?;
    rig.configure(&[&volume])?;
    // The daemon that takes it over reads the new configuration.
    let started = rig.number("secretfs@data.service", "ExecMainStartTimestampMonotonic")?;
    rig.vm.ok("systemctl kill --signal=KILL secretfs@data")?;
    let is_new =
        format!("test $(systemctl show --value --property ExecMainStartTimestampMonotonic secretfs@data) != {started}");
    rig.vm.wait_until("the daemon is a new one", &is_new, UP_LIMIT)?;
    rig.wait_active("secretfs@data.service")?;
    volume.check_up(rig)?;
    rig.vm.ok("systemctl stop secretfs@data")?;

    for cause in ["claim-changed", "foreign-signature"] {
        let before = sums(rig)?;
        let plan = rig.vm.fails("secretfs plan data")?;
        ensure!(plan.contains("refuse to touch") && plan.contains(cause), "the plan is: {plan}");
        rig.vm.fails("systemctl start secretfs@data")?;
        rig.check_failed("secretfs@data.service", cause)?;
        volume.check_gone(rig)?;
        ensure!(sums(rig)? == before, "the disk was written to");
        rig.vm.ok("rm -f /var/lib/secretfs/data.claim.json; systemctl reset-failed")?;
    }
    rig.check_said("secretfs@data.service", &["persistent volume secretfs-data"])?;
    rig.configure(&[&kept])?;
    rig.vm.ok("systemctl start secretfs@data && grep kept /mnt/data/marker").map(|_| ())
}

/// The instance was stopped and started: its instance stores are other disks now, and blank.
pub(super) fn ephemeral_came_back_blank(rig: &mut Rig) -> Result<()> {
    let small = r#"{ match = { model = "QEMU NVMe*", max-size = "256MiB" }, layout = "striped" }"#;
    let volume = Volume { backing: small.into(), ..Volume::scratch() };
    rig.configure(&[&volume])?;
    rig.vm.ok("systemctl start secretfs@scratch && echo lost > /mnt/secretfs/marker")?;
    volume.check_up(rig)?;
    rig.vm.power_off()?;
    rig.vm.set_nvme(&[DISK_B, DISK_E, DISK_F]);
    rig.vm.boot()?;
    rig.wait_active("secretfs@scratch.service")?;
    volume.check_up(rig)?;
    rig.vm.fails("cat /mnt/secretfs/marker")?;
    rig.check_said("secretfs@scratch.service", &["new and blank", "stop and start of the instance", DISK_E, DISK_F])?;
    rig.vm.ok("systemctl stop secretfs@scratch")?;
    volume.check_gone(rig)?;
    check_inactive(rig)
}

pub(super) fn kernel_name_warned_of(rig: &mut Rig) -> Result<()> {
    let path = format!("/dev/{}", kernel_name(rig, SERIAL_C)?);
    let volume = Volume::data(&path);
    rig.configure(&[&volume])?;
    let said = rig.vm.ok("secretfs check 2>&1 > /dev/null")?;
    for text in ["warning: /etc/secretfs.toml:", &path, "/dev/disk/by-id/"] {
        ensure!(said.contains(text), "`secretfs check` does not say `{text}`:\n{said}");
    }
    let logged = rig.vm.ok("journalctl --boot --no-pager --priority=warning..warning | grep 'may be another disk'")?;
    ensure!(logged.contains(&path), "the generator's warning is:\n{logged}");
    rig.vm.ok("systemctl start secretfs@data")?;
    volume.check_up(rig)
}

pub(super) fn attached_late(rig: &mut Rig) -> Result<()> {
    let backing = format!(r#"{{ match = {{ serial = "{DISK_E}" }} }}"#);
    let volume = Volume { backing, ..Volume::data("") };
    rig.configure(&[&volume])?;
    rig.vm.ok("systemctl start --no-block secretfs@data")?;
    // Long enough for the schedule to be at its longest wait, half a minute.
    rig.vm.wait_until(
        "the start waits for long",
        "systemctl show --property StatusText secretfs@data | tee /dev/stderr |
             grep 'backing-missing.*next try in 2[0-9] s, giving up in'",
        UP_LIMIT,
    )?;
    rig.vm.attach_nvme(DISK_E)?;
    rig.wait_active("secretfs@data.service")?;
    volume.check_up(rig)?;
    let journal = rig.vm.ok("journalctl --boot --no-pager --output=short-unix")?;
    let at = |text: &str| {
        let line = journal.lines().rfind(|line| line.contains(text));
        line.and_then(|line| line.split_whitespace().next()).and_then(|time| time.parse::<f64>().ok())
    };
    let (Some(found), Some(fetched)) = (at("nvme3n1").or(at("nvme nvme3")), at("KMS decrypted its key")) else {
        anyhow::bail!("the disk or the key is not in the journal:\n{journal}");
    };
    println!(
        "a disk that was attached during the longest wait: its key came {:.1} s after the kernel found it",
        fetched - found
    );
    rig.vm.ok("systemctl stop secretfs@data")?;
    volume.check_gone(rig)
}

/// systemd lets the service have a device by its path only if it is there when the service begins.
pub(super) fn attached_late_by_path(rig: &mut Rig) -> Result<()> {
    let path = format!("/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_{DISK_F}");
    let volume = Volume::data(&path);
    let unit = rig.vm.ok(&format!("systemd-escape --path --suffix=device {path}"))?;
    let soon = "[Unit]\nJobRunningTimeoutSec=3s\n";
    rig.vm.put_file(&format!("/run/systemd/system/{}.d/rig.conf", unit.trim()), soon)?;
    rig.configure(&[&volume])?;
    rig.vm.ok("systemctl start --no-block secretfs@data")?;
    let waits = "systemctl show --property StatusText secretfs@data | grep backing-missing";
    rig.vm.wait_until("the start waits", waits, UP_LIMIT)?;
    rig.vm.attach_nvme(DISK_F)?;
    rig.wait_active("secretfs@data.service")?;
    volume.check_up(rig)?;
    rig.same("secretfs@data.service", "NRestarts", "0")?;
    rig.vm.ok("systemctl stop secretfs@data")?;
    volume.check_gone(rig)
}
