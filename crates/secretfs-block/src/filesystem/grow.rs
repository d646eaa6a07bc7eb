//! Making a mounted file system as large as its device, with the distribution's programs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use secretfs_core::cause::{Cause, Failure};
use secretfs_core::config::FilesystemType;

use crate::Outcome;
use crate::device::DevicePath;
use crate::inspect::{self, InspectError};
use crate::tool::{self, ToolError};

/// What may be left over at the end of the device: a file system ends with a whole block, and drops a last group that
/// would hold little but its own tables.
const LEFT_OVER: u64 = 1 << 20;

/// Why a file system was not made larger.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// The size of the device can't be told.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// The size of the file system can't be told.
    #[error("cannot read the superblock of {device}")]
    Read {
        /// The device.
        device: DevicePath,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The program failed.
    #[error("cannot grow the {filesystem} on {device}")]
    Tool {
        /// The device.
        device: DevicePath,
        /// What is on it.
        filesystem: &'static str,
        /// What the program said.
        #[source]
        source: ToolError,
    },
}

impl GrowError {
    /// The row of the cause table, and the particulars.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Inspect(error) => error.failure(),
            Self::Read { .. } => Failure::new(Cause::System, crate::chain(self)),
            Self::Tool { .. } => Failure::new(Cause::GrowFailed, crate::chain(self)),
        }
    }
}

/// Has the file system on `device`, mounted at `mount`, fill the device, if it leaves room worth having. Swap space has the
/// size it was made with.
pub fn grow(device: &DevicePath, mount: &Path, kind: FilesystemType) -> Result<Outcome, GrowError> {
    let mount = mount.to_string_lossy();
    let (size, program, arguments): (Size, _, &[&str]) = match kind {
        FilesystemType::Ext4 => (ext4, "resize2fs", &[device.as_str()]),
        FilesystemType::Xfs => (xfs, "xfs_growfs", &["-d", &mount]),
        FilesystemType::Btrfs => (btrfs, "btrfs", &["filesystem", "resize", "max", &mount]),
        FilesystemType::Swap => return Ok(Outcome::Unchanged),
    };
    if bytes(device, size)? + LEFT_OVER > inspect::size(device)? {
        return Ok(Outcome::Unchanged);
    }
    match tool::run(program, arguments) {
        Ok(_) => Ok(Outcome::Changed),
        Err(source) => Err(GrowError::Tool { device: device.clone(), filesystem: kind.as_str(), source }),
    }
}

/// Reads the size from a superblock.
type Size = fn(&File) -> io::Result<u64>;

/// The size of the file system by its superblock. XFS and btrfs may write it a little later than they act on it; then
/// the program is run once more, and has nothing to do.
fn bytes(device: &DevicePath, size: Size) -> Result<u64, GrowError> {
    let read = File::open(device.as_path()).and_then(|file| size(&file));
    read.map_err(|source| GrowError::Read { device: device.clone(), source })
}

fn read<const N: usize>(file: &File, offset: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, offset).map(|()| bytes)
}

/// `struct ext4_super_block` of the kernel's documentation (ext4 data structures).
fn ext4(file: &File) -> io::Result<u64> {
    const AT: u64 = 1024;
    const INCOMPAT_64BIT: u32 = 0x80;
    let low = u64::from(u32::from_le_bytes(read(file, AT + 0x4)?));
    let shift = u32::from_le_bytes(read(file, AT + 0x18)?);
    let incompat = u32::from_le_bytes(read(file, AT + 0x60)?);
    let high = match incompat & INCOMPAT_64BIT {
        0 => 0,
        _ => u64::from(u32::from_le_bytes(read(file, AT + 0x150)?)),
    };
    let block = 1024_u64.checked_shl(shift).ok_or(io::ErrorKind::InvalidData)?;
    Ok((high << 32 | low).saturating_mul(block))
}

/// `struct xfs_dsb` of the kernel's `xfs_format.h`.
fn xfs(file: &File) -> io::Result<u64> {
    let block = u64::from(u32::from_be_bytes(read(file, 4)?));
    Ok(u64::from_be_bytes(read(file, 8)?).saturating_mul(block))
}

/// `struct btrfs_super_block` of the kernel's `btrfs_tree.h`.
fn btrfs(file: &File) -> io::Result<u64> {
    Ok(u64::from_le_bytes(read(file, 0x1_0000 + 0x70)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::make;
    use crate::testing::Scratch;
    use secretfs_core::config::Filesystem;

    const MIB: u64 = 1 << 20;

    /// Those that can be mounted.
    const SIZES: [(FilesystemType, Size); 3] =
        [(FilesystemType::Ext4, ext4), (FilesystemType::Xfs, xfs), (FilesystemType::Btrfs, btrfs)];

    #[test]
    fn swap_space_stays_as_it_is() {
        let scratch = Scratch::new();
        let device = scratch.device("swap", 64 * MIB);
        make(&device, &Filesystem::of(FilesystemType::Swap)).unwrap();
        File::options().write(true).open(device.as_path()).unwrap().set_len(128 * MIB).unwrap();
        assert_eq!(grow(&device, Path::new("/nowhere"), FilesystemType::Swap).unwrap(), Outcome::Unchanged);
    }

    #[test]
    fn a_superblock_tells_the_size() {
        let scratch = Scratch::new();
        for (kind, size) in SIZES {
            let device = scratch.device(kind.as_str(), 512 * MIB);
            make(&device, &Filesystem::of(kind)).unwrap();
            assert_eq!(bytes(&device, size).unwrap(), 512 * MIB, "{kind:?}");
            // Nothing is mounted anywhere: a program that was run would fail.
            assert_eq!(grow(&device, Path::new("/nowhere"), kind).unwrap(), Outcome::Unchanged);
        }
    }

    #[test]
    fn a_larger_device_calls_for_the_program() {
        let scratch = Scratch::new();
        for kind in [FilesystemType::Xfs, FilesystemType::Btrfs] {
            let device = scratch.device(kind.as_str(), 512 * MIB);
            make(&device, &Filesystem::of(kind)).unwrap();
            File::options().write(true).open(device.as_path()).unwrap().set_len(600 * MIB).unwrap();
            let failure = grow(&device, Path::new("/nowhere"), kind).unwrap_err().failure();
            assert_eq!(failure.cause, Cause::GrowFailed);
            assert!(failure.detail.contains(kind.as_str()), "{failure}");
        }
        // resize2fs grows what is not mounted as well.
        let device = scratch.device("ext4", 64 * MIB);
        make(&device, &Filesystem::of(FilesystemType::Ext4)).unwrap();
        File::options().write(true).open(device.as_path()).unwrap().set_len(128 * MIB).unwrap();
        assert_eq!(grow(&device, Path::new("/nowhere"), FilesystemType::Ext4).unwrap(), Outcome::Changed);
        assert_eq!(bytes(&device, ext4).unwrap(), 128 * MIB);
        assert_eq!(grow(&device, Path::new("/nowhere"), FilesystemType::Ext4).unwrap(), Outcome::Unchanged);
    }

    #[test]
    #[ignore = "needs root, loop devices and mount(2)"]
    fn a_mounted_file_system_grows() {
        let scratch = Scratch::new();
        for (kind, _) in SIZES {
            let path = scratch.path(kind.as_str());
            crate::backing::ensure(&path, 512 * MIB).unwrap();
            make(&crate::testing::device_at(&path), &Filesystem::of(kind)).unwrap();
            let (device, _) = crate::loops::attach_loop(&path).unwrap();
            let mount = scratch.path(&format!("{}-mount", kind.as_str()));
            std::fs::create_dir(&mount).unwrap();
            let mounted = tool::run("mount", &["-t", kind.as_str(), device.as_str(), mount.to_str().unwrap()]);
            if let Err(error) = mounted {
                eprintln!("SKIPPED: {error}");
                crate::loops::detach_loop(&device).unwrap();
                continue;
            }
            let before = rustix::fs::statvfs(&mount).unwrap().f_blocks;
            let grown = crate::backing::extend(&path, 800 * MIB)
                .map_err(|error| error.failure())
                .and_then(|_| crate::loops::refresh(&path).map_err(|error| error.failure()))
                .and_then(|_| grow(&device, &mount, kind).map_err(|error| error.failure()));
            let after = rustix::fs::statvfs(&mount).unwrap().f_blocks;
            tool::run("umount", &[mount.to_str().unwrap()]).unwrap();
            crate::loops::detach_loop(&device).unwrap();
            // The kernel lets only CAP_SYS_RESOURCE resize an ext4, which root in a container may lack.
            if grown.as_ref().is_err_and(|failure| failure.detail.contains("Permission denied")) {
                eprintln!("SKIPPED: {kind:?} (needs CAP_SYS_RESOURCE)");
                continue;
            }
            assert_eq!(grown, Ok(Outcome::Changed), "{kind:?}");
            assert!(after > before * 14 / 10, "{kind:?}: {before} blocks, then {after}");
        }
    }
}
