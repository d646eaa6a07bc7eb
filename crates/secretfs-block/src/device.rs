//! What a block device is, and who has it.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use secretfs_core::cause::{Cause, Failure};
use secretfs_core::chain::{Swap, parse_mountinfo, parse_swaps};

/// The kernel's table of swap space (proc(5)).
pub const SWAPS: &str = "/proc/swaps";

/// The canonical path of a block device, such as `/dev/nvme1n1` or `/dev/loop0`.
///
/// Kernel names move from boot to boot: a `DevicePath` is good for as long as the device is there, and is not what a
/// configuration should name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevicePath(String);

impl DevicePath {
    /// For paths that are known to be right: found by [`resolve`] or given by the kernel.
    pub(crate) fn at(path: impl Into<String>) -> Self {
        Self(path.into())
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl fmt::Display for DevicePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A device's major and minor number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// The driver's number.
    pub major: u32,
    /// The device's number within the driver.
    pub minor: u32,
}

impl DeviceNumber {
    /// From the one number that stat(2) gives.
    pub fn from_raw(raw: u64) -> Self {
        Self { major: rustix::fs::major(raw), minor: rustix::fs::minor(raw) }
    }
}

impl fmt::Display for DeviceNumber {
    /// As sysfs and mountinfo write it: `254:0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Why a path leads to no usable block device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Nothing is there.
    #[error("{} is not there", path.display())]
    Missing {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{} is {kind}, not a block device{}", path.display(), cure(kind))]
    NotABlockDevice {
        /// The path that was asked for.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The device's name is not UTF-8.
    #[error("{} has a name that is not UTF-8", path.display())]
    Name {
        /// Its canonical path.
        path: PathBuf,
    },
    /// It could not be asked.
    #[error("cannot ask {} what it is", path.display())]
    Ask {
        /// The path or device.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl DeviceError {
    /// The row of the cause table, and the particulars.
    pub fn failure(&self) -> Failure {
        let cause = match self {
            Self::Missing { .. } => Cause::BackingMissing,
            Self::NotABlockDevice { .. } | Self::Name { .. } => Cause::BackingMismatch,
            Self::Ask { .. } => Cause::System,
        };
        Failure::new(cause, crate::chain(self))
    }
}

/// Follows `path`, a `/dev/disk/by-…` link for instance, to the block device it names.
pub fn resolve(path: &Path) -> Result<DevicePath, DeviceError> {
    let missing_or = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => DeviceError::Missing { path: path.to_owned() },
        _ => DeviceError::Ask { path: path.to_owned(), source },
    };
    let canonical = fs::canonicalize(path).map_err(missing_or)?;
    let metadata = fs::metadata(&canonical).map_err(missing_or)?;
    if !metadata.file_type().is_block_device() {
        return Err(DeviceError::NotABlockDevice { path: path.to_owned(), kind: kind_of(&metadata) });
    }
    match canonical.to_str() {
        Some(text) => Ok(DevicePath::at(text)),
        None => Err(DeviceError::Name { path: canonical }),
    }
}

/// What is known of a block device, without reading what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Its number.
    pub number: DeviceNumber,
    /// Its size.
    pub bytes: u64,
    /// The smallest unit it can be read or written in.
    pub logical_sector: u32,
    /// The smallest unit it writes without reading first.
    pub physical_sector: u32,
    /// Whether it can't be written.
    pub read_only: bool,
    /// Devices made of it: dm-crypt, LVM, md, as the kernel calls them.
    pub holders: Vec<String>,
    /// Its partitions, as the kernel calls them.
    pub partitions: Vec<String>,
    /// Where it is mounted, in this mount namespace.
    pub mounts: Vec<String>,
    /// Whether it is swapped to.
    pub swap: bool,
    /// Whether somebody has claimed it: what the three above say, and besides mounts in other namespaces, members of
    /// multi-device file systems and programs that want it for themselves.
    pub claimed: bool,
}

impl DeviceFacts {
    /// Who has the device, in words; nothing when it is free. Partitions count: they are a foreign table's.
    pub fn users(&self) -> Option<String> {
        let mut users: Vec<String> = self.mounts.iter().map(|at| format!("mounted at {at}")).collect();
        users.extend(self.holders.iter().map(|holder| format!("held by {holder}")));
        if self.swap {
            users.push("used as swap space".to_owned());
        }
        if !self.partitions.is_empty() {
            users.push(format!("divided into partitions ({})", self.partitions.join(", ")));
        }
        if users.is_empty() && self.claimed {
            users.push("claimed by somebody".to_owned());
        }
        (!users.is_empty()).then(|| users.join(", "))
    }
}

/// Collects what is known of `device`.
pub fn facts(device: &DevicePath) -> Result<DeviceFacts, DeviceError> {
    let ask = |source: io::Error| match source.raw_os_error() {
        // ENXIO and ENODEV: the node is there and the device behind it is not.
        Some(number) if [Errno::NOENT, Errno::NXIO, Errno::NODEV].iter().any(|e| e.raw_os_error() == number) => {
            DeviceError::Missing { path: device.as_path().to_owned() }
        }
        _ => DeviceError::Ask { path: device.as_path().to_owned(), source },
    };
    let mut file = File::from(open(device, OFlags::empty()).map_err(|errno| ask(errno.into()))?);
    let number = DeviceNumber::from_raw(file.metadata().map_err(ask)?.rdev());
    let sysfs = PathBuf::from(format!("/sys/dev/block/{number}"));
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").map_err(ask)?;
    let swaps = swaps().unwrap_or_default();
    // The kernel lets only one claim a block device: what is mounted, mapped or swapped to is claimed (open(2), O_EXCL).
    let claimed = match open(device, OFlags::EXCL) {
        Ok(_) => false,
        Err(Errno::BUSY) => true,
        Err(errno) => return Err(ask(errno.into())),
    };
    Ok(DeviceFacts {
        number,
        bytes: file.seek(SeekFrom::End(0)).map_err(ask)?,
        logical_sector: rustix::fs::ioctl_blksszget(&file).map_err(|errno| ask(errno.into()))?,
        physical_sector: rustix::fs::ioctl_blkpbszget(&file).map_err(|errno| ask(errno.into()))?,
        read_only: fs::read_to_string(sysfs.join("ro")).is_ok_and(|text| text.trim() == "1"),
        holders: names_in(&sysfs.join("holders"), |_| true),
        partitions: names_in(&sysfs, |entry| entry.join("partition").exists()),
        mounts: mounts_of(&mountinfo, number),
        swap: swaps.iter().any(|swap| swap.devno.as_ref() == Some(&number.to_string())),
        claimed,
    })
}

/// The device's number.
pub fn number(device: &DevicePath) -> Result<DeviceNumber, DeviceError> {
    match fs::metadata(device.as_path()) {
        Ok(metadata) => Ok(DeviceNumber::from_raw(metadata.rdev())),
        Err(source) => Err(DeviceError::Ask { path: device.as_path().to_owned(), source }),
    }
}

/// The swap space that is in use; in a kernel without swap there is none.
pub fn swaps() -> io::Result<Vec<Swap>> {
    let text = match fs::read(SWAPS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read?,
    };
    // A name that is no UTF-8 is a file's.
    Ok(parse_swaps(&String::from_utf8_lossy(&text), |path| {
        let metadata = fs::metadata(path).ok().filter(|metadata| metadata.file_type().is_block_device())?;
        Some(DeviceNumber::from_raw(metadata.rdev()).to_string())
    }))
}

/// Opens for reading. `O_NONBLOCK`: a path may have become a FIFO since it was looked at.
pub(crate) fn open(device: &DevicePath, flags: OFlags) -> Result<std::os::fd::OwnedFd, Errno> {
    rustix::fs::open(device.as_path(), OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | flags, Mode::empty())
}

/// What kind of file this is, with its article.
pub(crate) fn kind_of(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_file() {
        "a regular file"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_block_device() {
        "a block device"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_fifo() {
        "a FIFO"
    } else {
        "a socket"
    }
}

fn cure(kind: &str) -> &'static str {
    if kind == "a regular file" { "; a file is configured as `backing = { file = …, size = … }`" } else { "" }
}

/// The names in a directory, in order; a directory that isn't there has none.
pub(crate) fn names_in(directory: &Path, wanted: impl Fn(&Path) -> bool) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| wanted(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    names
}

/// Where the device is mounted, by the text of `/proc/self/mountinfo`.
fn mounts_of(mountinfo: &str, number: DeviceNumber) -> Vec<String> {
    let number = number.to_string();
    let mounts = parse_mountinfo(mountinfo).into_iter().filter(|mount| mount.devno == number);
    mounts.map(|mount| mount.mount_point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn mounts_are_found_by_number() {
        let mountinfo = "22 1 254:0 / /mnt/a\\040b rw shared:1 - ext4 /dev/mapper/x rw\n\
                         23 1 254:01 / /no rw - ext4 /dev/x rw\n\
                         24 1 254:0 /sub /mnt/c rw - ext4 /dev/mapper/x rw\n";
        let number = DeviceNumber { major: 254, minor: 0 };
        assert_eq!(mounts_of(mountinfo, number), ["/mnt/a b", "/mnt/c"]);
    }

    #[test]
    fn what_is_no_block_device_is_refused_by_name() {
        let scratch = Scratch::new();
        let file = scratch.device("file", 4096);
        let failure = resolve(file.as_path()).unwrap_err().failure();
        let detail = format!(
            "{file} is a regular file, not a block device; a file is configured as `backing = {{ file = …, size = … }}`"
        );
        assert_eq!(failure, Failure::new(Cause::BackingMismatch, detail));
        let failure = resolve(Path::new("/dev/null")).unwrap_err().failure();
        assert_eq!(
            failure,
            Failure::new(Cause::BackingMismatch, "/dev/null is a character device, not a block device")
        );
        let gone = scratch.path("gone");
        let failure = resolve(&gone).unwrap_err().failure();
        assert_eq!(failure, Failure::new(Cause::BackingMissing, format!("{} is not there", gone.display())));
    }

    #[test]
    fn users_in_words() {
        let mut facts = DeviceFacts {
            number: DeviceNumber { major: 7, minor: 0 },
            bytes: 0,
            logical_sector: 512,
            physical_sector: 512,
            read_only: false,
            holders: Vec::new(),
            partitions: Vec::new(),
            mounts: Vec::new(),
            swap: false,
            claimed: false,
        };
        assert_eq!(facts.users(), None);
        facts.claimed = true;
        assert_eq!(facts.users().as_deref(), Some("claimed by somebody"));
        facts.holders = vec!["dm-0".to_owned()];
        facts.mounts = vec!["/srv".into()];
        assert_eq!(facts.users().as_deref(), Some("mounted at /srv, held by dm-0"));
    }
}
