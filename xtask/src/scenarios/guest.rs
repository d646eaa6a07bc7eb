//! What scenarios say and ask again and again: configurations, consumers, states.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::vm::Rig;

/// A volume is up within a few seconds on real hardware; emulated and beside other work it takes longer.
pub(super) const UP_LIMIT: Duration = Duration::from_mins(2);

/// The object with 64 random bytes: opens quickly, since such a key needs no slow derivation.
pub(super) const RANDOM_KEY: &str = "random-key";

/// The recipe's own object: a password.
pub(super) const PASSWORD: &str = "LuksInternalStorageKey";

/// Spare disks by identity.
pub(super) const DISK_A: &str = "/dev/disk/by-id/virtio-secretfs-disk-a";
pub(super) const DISK_B: &str = "/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_secretfs-disk-b";
pub(super) const DISK_C: &str = "/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_secretfs-disk-c";

/// A volume of `/etc/secretfs.toml`.
#[derive(Debug, Clone)]
pub(super) struct Volume {
    pub(super) name: String,
    pub(super) mount: String,
    pub(super) lifecycle: String,
    /// The value of `backing`.
    pub(super) backing: String,
    pub(super) filesystem: String,
    /// More of the file system's inline table.
    pub(super) filesystem_extra: String,
    pub(super) object: String,
    /// More of the key's inline table.
    pub(super) key_extra: String,
    /// More lines.
    pub(super) extra: String,
}

impl Volume {
    /// The volume of the recipe, `scratch`: ephemeral, over a file, at `/mnt/secretfs`.
    pub(super) fn scratch() -> Self {
        Self {
            name: "scratch".into(),
            mount: "/mnt/secretfs".into(),
            lifecycle: "ephemeral".into(),
            backing: r#"{ file = "/var/lib/secretfs/scratch.img", size = "96MiB" }"#.into(),
            filesystem: "ext4".into(),
            filesystem_extra: String::new(),
            object: RANDOM_KEY.into(),
            key_extra: String::new(),
            extra: String::new(),
        }
    }

    /// A persistent volume `data` over a spare disk at `/mnt/data`.
    pub(super) fn data(disk: &str) -> Self {
        Self {
            name: "data".into(),
            mount: "/mnt/data".into(),
            lifecycle: "persistent".into(),
            backing: format!(r#"{{ device = "{disk}" }}"#),
            ..Self::scratch()
        }
    }

    pub(super) fn toml(&self) -> String {
        let Self { name, mount, lifecycle, backing, filesystem, filesystem_extra, object, key_extra, extra } = self;
        format!(
            r#"[volume.{name}]
mount = "{mount}"
lifecycle = "{lifecycle}"
backing = {backing}
filesystem = {{ type = "{filesystem}"{filesystem_extra} }}
key = {{ source = "s3+kms", bucket = "an-internalstoragekeybucket", object = "{object}", kms-key = "alias/EncFSForEC2InternalStorageKey"{key_extra} }}
{extra}
"#
        )
    }

    pub(super) fn service(&self) -> String {
        format!("secretfs@{}.service", self.name)
    }

    pub(super) fn mapper(&self) -> String {
        format!("/dev/mapper/secretfs-{}", self.name)
    }

    /// Fails unless the volume is up: service, mapping and mount all say so.
    pub(super) fn check_up(&self, rig: &Rig) -> Result<()> {
        rig.same(&self.service(), "ActiveState", "active")?;
        // The kernel names a btrfs by its device, `/dev/dm-0`, and the others by what they were mounted from.
        let mounted = rig.vm.ok(&format!(
            "findmnt --noheadings --output SOURCE,FSTYPE --mountpoint {} | while read -r source type; do
                 echo \"$(readlink --canonicalize \"$source\") $type\"
             done",
            self.mount
        ))?;
        let device = rig.vm.ok(&format!("readlink --canonicalize {}", self.mapper()))?;
        ensure!(
            mounted.split_whitespace().eq([device.trim(), self.filesystem.as_str()]),
            "at {} is mounted: {mounted}",
            self.mount
        );
        let status = rig.vm.ok(&format!("cryptsetup status secretfs-{}", self.name))?;
        for fact in ["type:    LUKS2", "cipher:  aes-xts-plain64", "keysize: 512 bits"] {
            ensure!(status.contains(fact), "cryptsetup does not say `{fact}`:\n{status}");
        }
        Ok(())
    }

    /// Fails if anything of the volume is left: mount, mapping, loop device, running service.
    pub(super) fn check_gone(&self, rig: &Rig) -> Result<()> {
        let state = rig.show(&self.service(), "ActiveState")?;
        ensure!(state == "inactive" || state == "failed", "{} is {state}", self.service());
        self.check_nothing_open(rig)
    }

    /// Fails if a mount, a mapping or a loop device is left.
    pub(super) fn check_nothing_open(&self, rig: &Rig) -> Result<()> {
        let left = rig.vm.ok(&format!(
            "findmnt --noheadings --mountpoint {} || true
             dmsetup ls | grep '^secretfs-{}\\b' || true
             losetup --noheadings --list --output NAME,BACK-FILE | grep '/{}.img' || true",
            self.mount, self.name, self.name
        ))?;
        ensure!(left.is_empty(), "of volume {} is left:\n{left}", self.name);
        Ok(())
    }

    /// UUID of the LUKS header behind the mapping.
    pub(super) fn luks_uuid(&self, rig: &Rig) -> Result<String> {
        rig.vm.ok(&format!("dmsetup info --columns --noheadings --options uuid secretfs-{}", self.name))
    }
}

/// The unit of a `rig-consumer` on a mount point. Only the script is asked to stop, not the `sleep` in which it takes its time.
fn consumer(mount: &str, dependencies: &str) -> String {
    format!(
        "[Unit]
Description=consumer of {mount}
{dependencies}

[Service]
ExecStart=/usr/local/bin/rig-consumer {mount}
KillMode=mixed

[Install]
WantedBy=multi-user.target
"
    )
}

/// The dependency of a consumer that names the service.
pub(super) const REQUIRES: &str = "Requires=secretfs@scratch.service\nAfter=secretfs@scratch.service";

/// The dependency of a consumer that knows only the path.
pub(super) const REQUIRES_MOUNTS_FOR: &str = "RequiresMountsFor=/mnt/secretfs";

impl Rig {
    /// Writes `/etc/secretfs.toml` and has systemd read it.
    pub(super) fn configure(&self, volumes: &[&Volume]) -> Result<()> {
        self.configure_text(&volumes.iter().map(|volume| volume.toml()).collect::<Vec<_>>().join("\n"))
    }

    pub(super) fn configure_text(&self, text: &str) -> Result<()> {
        self.vm.put_file("/etc/secretfs.toml", text)?;
        self.vm.ok("systemctl daemon-reload").map(|_| ())
    }

    /// Writes a consumer's unit; its name must begin with `rig-` so that cleaning finds it.
    pub(super) fn add_consumer(&self, unit: &str, mount: &str, dependencies: &str) -> Result<()> {
        self.vm.put_file(&format!("/etc/systemd/system/{unit}"), consumer(mount, dependencies))?;
        self.vm.ok("systemctl daemon-reload").map(|_| ())
    }

    /// One property of a unit.
    pub(super) fn show(&self, unit: &str, property: &str) -> Result<String> {
        Ok(self.vm.ok(&format!("systemctl show --value --property {property} '{unit}'"))?.trim().to_owned())
    }

    /// Fails unless the property has the value.
    pub(super) fn same(&self, unit: &str, property: &str, wanted: &str) -> Result<()> {
        let value = self.show(unit, property)?;
        ensure!(value == wanted, "{unit}: {property} is `{value}`, should be `{wanted}`");
        Ok(())
    }

    /// A property that is a number.
    pub(super) fn number(&self, unit: &str, property: &str) -> Result<u64> {
        let value = self.show(unit, property)?;
        value.parse().with_context(|| format!("{unit}: {property} is `{value}`"))
    }

    /// Waits until a unit is active.
    pub(super) fn wait_active(&self, unit: &str) -> Result<()> {
        self.vm.wait_until(&format!("{unit} is active"), &format!("systemctl is-active '{unit}'"), UP_LIMIT)
    }

    /// Fails unless the service failed for good with this cause: in `STATUS=` and, with a hint, in the journal.
    pub(super) fn check_failed(&self, service: &str, cause: &str) -> Result<()> {
        self.same(service, "ActiveState", "failed")?;
        self.same(service, "NRestarts", "0")?;
        let status = self.show(service, "StatusText")?;
        ensure!(status.contains(cause), "{service}: STATUS= is `{status}`, without `{cause}`");
        self.check_said(service, &[cause, "hint:"])
    }

    /// Fails unless the unit's own messages since the scenario began contain every text.
    pub(super) fn check_said(&self, service: &str, texts: &[&str]) -> Result<()> {
        let journal = self.journal_of(service)?;
        for text in texts {
            ensure!(journal.contains(text), "the journal of {service} lacks `{text}`:\n{journal}");
        }
        Ok(())
    }

    /// Fails if anything can be written to the mount point of a locked volume.
    pub(super) fn check_guarded(&self, mount: &str) -> Result<()> {
        self.vm.fails(&format!("touch {mount}/file"))?;
        let flags = self.vm.ok(&format!("lsattr -d {mount}"))?;
        ensure!(flags.split(' ').next().is_some_and(|flags| flags.contains('i')), "{mount} has the flags {flags}");
        Ok(())
    }

    /// Fails if the journal since the scenario began has a line that shows a busy file system or a broken cycle.
    pub(super) fn check_quiet_journal(&self) -> Result<()> {
        let journal = self.journal()?;
        for line in journal.lines() {
            let lower = line.to_lowercase();
            for trouble in ["busy", "failed unmounting", "failed to unmount", "ordering cycle", "deleted to break"] {
                ensure!(!lower.contains(trouble), "the journal says: {line}");
            }
        }
        Ok(())
    }
}

/// Fails unless the lines that contain the texts stand in this order; each text is looked for after the one before it.
pub(super) fn in_order(journal: &str, texts: &[&str]) -> Result<()> {
    let mut lines = journal.lines();
    for text in texts {
        if !lines.any(|line| line.contains(text)) {
            bail!("`{text}` is missing, or not after what should precede it; wanted in order: {texts:?}\n{journal}");
        }
    }
    Ok(())
}
