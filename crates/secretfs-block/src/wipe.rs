//! Zeros through the mapping: over all of a volume before it is used, or over the free space of one that is in use.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use secretfs_core::cause::{Cause, Failure};

use crate::device::DevicePath;
use crate::inspect::{self, InspectError};

/// Written at a time: enough for every core to encrypt a part of it, little enough to stop soon.
const CHUNK: usize = 4 << 20;

/// Where a buffer for `O_DIRECT` has to begin (open(2)); no encryption sector is larger.
const ALIGNMENT: usize = 4096;

/// The file in the root directory that holds the zeroed space until all of it is.
const FILE: &str = ".secretfs-wipe";

/// Of the free space, so much of the whole is left to the volume's users: a twentieth, at least this.
const RESERVE_MIN: u64 = 16 << 20;

/// Why zeros were not written.
#[derive(Debug, thiserror::Error)]
pub enum WipeError {
    /// The size of the device can't be told.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// A call failed.
    #[error("cannot {step} {}", path.display())]
    System {
        /// The device or file.
        path: PathBuf,
        /// What was to be done with it.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Something else goes by the name of the file.
    #[error("{} is not secretfs's own file; take it away", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
    },
}

impl WipeError {
    /// The row of the cause table, and the particulars.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Inspect(error) => error.failure(),
            Self::System { .. } | Self::Taken { .. } => Failure::new(Cause::WipeFailed, crate::chain(self)),
        }
    }
}

/// A target of zeros and how far it is filled with them.
#[derive(Debug)]
pub struct Zeroing {
    path: PathBuf,
    file: File,
    zeros: Vec<u8>,
    done: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// A mapping of so many bytes.
    Device { bytes: u64 },
    /// A file that grows into the free space.
    FreeSpace,
}

impl Zeroing {
    /// All of `device` from the byte `from` on, on which nothing has been made yet.
    pub fn of_device(device: &DevicePath, from: u64) -> Result<Self, WipeError> {
        let bytes = inspect::size(device)?;
        // A mapping that somebody has mounted or mapped can't be opened like this.
        let flags = OFlags::RDWR | OFlags::EXCL | OFlags::DIRECT | OFlags::CLOEXEC;
        let path = device.as_path().to_owned();
        let file =
            rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| failed(&path, "open")(errno.into()))?;
        // What was noted is on the disk; it is a multiple of what can be written.
        let done = align(from).min(bytes);
        Ok(Self { path, file: File::from(file), zeros: zeros(), done, kind: Kind::Device { bytes } })
    }

    /// The free space of the file system that is mounted on `mount`; goes on where an earlier one was interrupted.
    ///
    /// It is held in a file, so that no part is zeroed twice, and the file is removed at the end. Of the space that is
    /// free a part is left alone for the volume's users, who find the rest taken until then.
    pub fn of_free_space(mount: &Path) -> Result<Self, WipeError> {
        let path = mount.join(FILE);
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::DIRECT | OFlags::CLOEXEC;
        let file = rustix::fs::openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(file.map_err(|errno| match errno {
            Errno::LOOP | Errno::ISDIR | Errno::NXIO => WipeError::Taken { path: path.clone() },
            errno => failed(&path, "open")(errno.into()),
        })?);
        let metadata = file.metadata().map_err(failed(&path, "look at"))?;
        let own = metadata.is_file() && metadata.nlink() == 1 && metadata.mode() & 0o7777 == 0o600;
        if !own || metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(WipeError::Taken { path });
        }
        Ok(Self { path, file, zeros: zeros(), done: align(metadata.len()), kind: Kind::FreeSpace })
    }

    /// Gives up an interrupted zeroing of free space, and the space with it.
    pub fn give_up_free_space(mount: &Path) -> Result<(), WipeError> {
        match fs::symlink_metadata(mount.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            _ => Self::of_free_space(mount)?.finish(),
        }
    }

    /// Bytes that are zeroed.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Bytes in all, as far as is known now: others fill and empty a file system that is in use.
    pub fn total(&self) -> Result<u64, WipeError> {
        match self.kind {
            Kind::Device { bytes } => Ok(bytes),
            Kind::FreeSpace => {
                let stat = rustix::fs::fstatvfs(&self.file);
                let stat = stat.map_err(|errno| failed(&self.path, "look at the file system of")(errno.into()))?;
                let reserve = (stat.f_blocks.saturating_mul(stat.f_frsize) / 20).max(RESERVE_MIN);
                Ok(self.done + stat.f_bavail.saturating_mul(stat.f_frsize).saturating_sub(reserve))
            }
        }
    }

    /// Writes the next zeros; says whether there are more to write.
    pub fn step(&mut self) -> Result<bool, WipeError> {
        let left = self.total()?.saturating_sub(self.done);
        let chunk = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        // A file system that is in use need not be filled to its last block.
        if chunk == 0 || (chunk < CHUNK && matches!(self.kind, Kind::FreeSpace)) {
            return Ok(false);
        }
        let begin = self.zeros.as_ptr().align_offset(ALIGNMENT);
        match self.file.write_all_at(&self.zeros[begin..begin + chunk], self.done) {
            Ok(()) => {
                self.done += chunk as u64;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::StorageFull && matches!(self.kind, Kind::FreeSpace) => {
                Ok(false)
            }
            Err(error) => Err(failed(&self.path, "write zeros to")(error)),
        }
    }

    /// Has what was written so far reach the disk.
    pub fn sync(&self) -> Result<(), WipeError> {
        self.file.sync_all().map_err(failed(&self.path, "sync"))
    }

    /// Ends it: all is on the disk, and space that was held is free again.
    pub fn finish(self) -> Result<(), WipeError> {
        self.sync()?;
        match self.kind {
            Kind::Device { .. } => Ok(()),
            Kind::FreeSpace => fs::remove_file(&self.path).map_err(failed(&self.path, "remove")),
        }
    }
}

fn zeros() -> Vec<u8> {
    vec![0; CHUNK + ALIGNMENT]
}

fn align(bytes: u64) -> u64 {
    bytes - bytes % ALIGNMENT as u64
}

fn failed<'a>(path: &'a Path, step: &'static str) -> impl Fn(io::Error) -> WipeError + 'a {
    move |source| WipeError::System { path: path.to_owned(), step, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Instant;

    use super::*;
    use crate::testing::Scratch;

    const MIB: u64 = 1 << 20;

    fn drain(mut zeroing: Zeroing) -> u64 {
        while zeroing.step().unwrap() {}
        let done = zeroing.done();
        zeroing.finish().unwrap();
        done
    }

    #[test]
    fn all_of_a_device_from_where_it_was() {
        let scratch = Scratch::new();
        let bytes = 9 * MIB + 512;
        let device = scratch.device("device", bytes);
        let path = device.as_path();
        fs::write(path, vec![0xa5; usize::try_from(bytes).unwrap()]).unwrap();
        assert_eq!(drain(Zeroing::of_device(&device, 4 * MIB + 100).unwrap()), bytes);
        let written = fs::read(path).unwrap();
        let (kept, zeroed) = written.split_at(usize::try_from(4 * MIB).unwrap());
        assert!(kept.iter().all(|byte| *byte == 0xa5));
        assert_eq!(zeroed.len() as u64, bytes - 4 * MIB);
        assert!(zeroed.iter().all(|byte| *byte == 0));
        // One that is done already has nothing left to do.
        assert_eq!(drain(Zeroing::of_device(&device, bytes).unwrap()), bytes);
    }

    #[test]
    fn what_goes_by_the_name_of_the_file_is_left_alone() {
        let scratch = Scratch::new();
        fs::write(scratch.path("target"), "kept").unwrap();
        symlink(scratch.path("target"), scratch.path(FILE)).unwrap();
        let failure = Zeroing::of_free_space(&scratch.path("")).unwrap_err().failure();
        assert_eq!(failure.cause, Cause::WipeFailed);
        assert!(failure.detail.contains("take it away"), "{failure}");
        fs::remove_file(scratch.path(FILE)).unwrap();
        fs::hard_link(scratch.path("target"), scratch.path(FILE)).unwrap();
        assert!(matches!(Zeroing::of_free_space(&scratch.path("")), Err(WipeError::Taken { .. })));
        assert_eq!(fs::read_to_string(scratch.path("target")).unwrap(), "kept");
    }

    /// Zeroing against `dd` on the same file, which has its blocks already.
    #[test]
    #[ignore = "prints figures"]
    fn figures_of_zeroing() {
        let scratch = Scratch::new();
        let device = scratch.device("device", 256 * MIB);
        let target = format!("of={device}");
        let dd = ["if=/dev/zero", &target, "bs=4M", "count=64", "oflag=direct", "conv=notrunc,fsync", "status=none"];
        crate::testing::run("dd", &dd);
        for _ in 0..3 {
            let begun = Instant::now();
            drain(Zeroing::of_device(&device, 0).unwrap());
            let ours = begun.elapsed();
            let begun = Instant::now();
            crate::testing::run("dd", &dd);
            let theirs = begun.elapsed();
            println!(
                "256 MiB of zeros: {ours:?}, dd {theirs:?}, ratio {:.2}",
                ours.as_secs_f64() / theirs.as_secs_f64()
            );
        }
    }
}
