//! The machine's disk: Debian 12 with what secretfs depends on, made once per recipe and kept below `target/rig`.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{capture, run};
use crate::rig_dir;

const SUITE: &str = "bookworm";

/// Room for Debian and a few volumes; the file is sparse.
const DISK_SIZE: &str = "4G";

/// The package's dependencies and recommendations, a kernel, and a way in.
const PACKAGES: &[&str] = &[
    "btrfs-progs",
    "ca-certificates",
    "cryptsetup-bin",
    "dbus",
    "dmsetup",
    "e2fsprogs",
    "fdisk",
    "iproute2",
    "kmod",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "lvm2",
    "openssh-server",
    "procps",
    "psmisc",
    "systemd",
    "systemd-sysv",
    "udev",
    "util-linux",
    "xfsprogs",
];

/// Files written over the fresh Debian.
const FILES: &[(&str, &str)] = &[
    ("etc/hostname", "secretfs-rig\n"),
    ("etc/hosts", "127.0.0.1 localhost secretfs-rig\n"),
    // Fixed, so that the journal of every boot lies in one directory and no boot counts as the first.
    ("etc/machine-id", "5ec2e7f5000000000000000000000001\n"),
    ("etc/fstab", "/dev/vda / ext4 noatime 0 1\n"),
    ("etc/resolv.conf", "nameserver 10.0.2.3\n"),
    // Nobody may ask a metadata service but the rig's own, should the settings that lead there ever be missing.
    (
        "etc/systemd/network/10-rig.network",
        "[Match]\nName=en* eth*\n\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\n\n\
         [Route]\nDestination=169.254.0.0/16\nType=unreachable\n",
    ),
    // Scenarios read the journal of the boot before, and every line counts.
    ("etc/systemd/journald.conf.d/rig.conf", "[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\n"),
    ("etc/ssh/sshd_config.d/rig.conf", "UseDNS no\nUsePAM no\nMaxSessions 100\n"),
];

/// Units that only cost time in a machine of a few minutes.
const MASKED: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "systemd-timesyncd.service",
];

const ENABLED: &[&str] = &["ssh.service", "systemd-networkd-wait-online.service", "systemd-networkd.service"];

/// A finished image.
pub(crate) struct Image {
    /// Raw disk with the root file system; never written to after it was made.
    pub(crate) disk: PathBuf,
    /// Kernel for direct boot.
    pub(crate) kernel: PathBuf,
    /// Its initial ramdisk.
    pub(crate) initrd: PathBuf,
    /// Private half of the key that may log in as root.
    pub(crate) ssh_key: PathBuf,
}

/// Gives the image of this recipe, making it if it is not there.
pub(crate) fn image() -> Result<Image> {
    let directory = rig_dir().join(format!("image-{:016x}", recipe()));
    if !directory.exists() {
        let unfinished = directory.with_extension("unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        fs::create_dir_all(&unfinished)?;
        make(&unfinished).context("cannot make the machine's image")?;
        fs::rename(&unfinished, &directory)?;
    }
    Ok(Image {
        disk: directory.join("disk.raw"),
        kernel: directory.join("vmlinuz"),
        initrd: directory.join("initrd"),
        ssh_key: directory.join("ssh_key"),
    })
}

/// A number that changes when anything above does.
fn recipe() -> u64 {
    let mut hasher = DefaultHasher::new();
    (SUITE, DISK_SIZE, PACKAGES, FILES, MASKED, ENABLED).hash(&mut hasher);
    hasher.finish()
}

fn make(directory: &Path) -> Result<()> {
    println!("image: debootstrapping Debian 12 (about a minute)");
    let root = directory.join("root");
    run(Command::new("mmdebstrap")
        .args(["--quiet", "--variant=minbase"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(SUITE)
        .arg(&root))?;

    let key = directory.join("ssh_key");
    capture(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "rig", "-f"]).arg(&key))?;
    configure(&root, &fs::read_to_string(key.with_extension("pub"))?)?;

    copy_newest(&root.join("boot"), "vmlinuz-", &directory.join("vmlinuz"))?;
    copy_newest(&root.join("boot"), "initrd.img-", &directory.join("initrd"))?;
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&root)
        .arg(directory.join("disk.raw"))
        .arg(DISK_SIZE))?;
    fs::remove_dir_all(&root)?;
    Ok(())
}

fn configure(root: &Path, public_key: &str) -> Result<()> {
    for (path, text) in FILES {
        write(&root.join(path), text)?;
    }
    let keys = root.join("root/.ssh/authorized_keys");
    write(&keys, public_key)?;
    fs::set_permissions(keys.parent().expect("joined above"), fs::Permissions::from_mode(0o700))?;
    for unit in MASKED {
        let link = root.join("etc/systemd/system").join(unit);
        match fs::remove_file(&link) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => symlink("/dev/null", &link)?,
        }
    }
    let mut enable = Command::new("systemctl");
    capture(enable.arg("--root").arg(root).arg("enable").args(ENABLED))?;
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::create_dir_all(path.parent().expect("a file has a directory"))?;
    // A symbolic link of the distribution is replaced, not followed.
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => fs::write(path, text).with_context(|| format!("cannot write {}", path.display())),
    }
}

fn copy_newest(boot: &Path, prefix: &str, to: &Path) -> Result<()> {
    let mut names: Vec<_> =
        fs::read_dir(boot)?.collect::<Result<Vec<_>, _>>()?.iter().map(fs::DirEntry::path).collect();
    names.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
    names.sort();
    let Some(newest) = names.last() else { bail!("no {prefix}* below {}", boot.display()) };
    fs::copy(newest, to)?;
    Ok(())
}
