//! Loop devices over backing files, told apart by the file's device and inode rather than by its name.
#![expect(unsafe_code, reason = "LOOP_GET_STATUS64 is in no crate at hand")]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use loopdev::{LoopControl, LoopDevice};
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode};
use secretfs_core::cause::{Cause, Failure};

use crate::Outcome;
use crate::backing::{self, BackingError};
use crate::device::{DeviceNumber, DevicePath, names_in};

/// Between `LOOP_CTL_GET_FREE` and `LOOP_SET_FD` somebody else may take the device; many volumes start at once at boot.
const ATTACH_TRIES: u32 = 64;

/// How long a detached device may linger because udev still looks at it.
const DETACH_LIMIT: Duration = Duration::from_secs(5);

/// Between two looks at a device that is to go away, or two tries to get one.
const PAUSE: Duration = Duration::from_millis(20);

/// Why a loop device could not be had, found or let go.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The backing file was refused.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// The file is attached already, in a way that is not ours.
    #[error("{} is attached to {device} already, {how}", path.display())]
    Taken {
        /// The backing file.
        path: PathBuf,
        /// The device that has it.
        device: DevicePath,
        /// With an offset, read-only, …
        how: &'static str,
    },
    /// The loop device is in use, so that it can't be detached.
    #[error("{device} is in use{users}")]
    Busy {
        /// The device.
        device: DevicePath,
        /// By whom, where that is known.
        users: String,
    },
    /// The kernel refused a step.
    #[error("cannot {step} a loop device for {}", path.display())]
    Kernel {
        /// The backing file.
        path: PathBuf,
        /// What was to be done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl LoopError {
    /// The row of the cause table, and the particulars.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Backing(error) => error.failure(),
            Self::Taken { .. } | Self::Busy { .. } => Failure::new(Cause::DeviceBusy, crate::chain(self)),
            Self::Kernel { .. } => Failure::new(Cause::System, crate::chain(self)),
        }
    }
}

/// Attaches the backing file to a loop device, or finds the one that has it.
///
/// The device is not cleared by itself when its last user goes (no autoclear): a daemon that was killed must find it
/// again. It keeps the kernel's 512-byte logical sectors, which every file system of an older volume can live with;
/// LUKS2 sets its own.
pub fn attach_loop(path: &Path) -> Result<(DevicePath, Outcome), LoopError> {
    let file = backing::open_checked(path)?;
    if let Some(device) = find(path, &file)? {
        return Ok((device, Outcome::Unchanged));
    }
    let kernel = |step| move |source| LoopError::Kernel { path: path.to_owned(), step, source };
    let control = LoopControl::open().map_err(kernel("ask for"))?;
    let mut tries = 0;
    let device = loop {
        let device = control.next_free().map_err(kernel("find"))?;
        match device.with().attach_fd(file.as_raw_fd()) {
            Ok(()) => break device,
            Err(error) if is_busy(&error) && tries < ATTACH_TRIES => tries += 1,
            Err(error) => return Err(kernel("attach")(error)),
        }
        thread::sleep(PAUSE);
    };
    // Without it every page would be cached twice. Not every file system can (tmpfs, some of FUSE).
    if let Err(error) = device.set_direct_io(true) {
        tracing::debug!(path = %path.display(), %error, "no direct input/output for the loop device");
    }
    let device = device.path().and_then(|path| path.to_str().map(DevicePath::at));
    device.map(|device| (device, Outcome::Changed)).ok_or_else(|| kernel("name")(io::ErrorKind::InvalidData.into()))
}

/// The loop device that the file is attached to, if it is.
pub fn find_loop(path: &Path) -> Result<Option<DevicePath>, LoopError> {
    match File::open(path) {
        Ok(file) => find(path, &file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LoopError::Kernel { path: path.to_owned(), step: "find", source }),
    }
}

/// Has the loop device of the backing file, if there is one, follow a file that became larger.
pub fn refresh(path: &Path) -> Result<Outcome, LoopError> {
    let kernel = |source| LoopError::Kernel { path: path.to_owned(), step: "resize", source };
    let Some(device) = find_loop(path)? else { return Ok(Outcome::Unchanged) };
    let file_bytes = fs::metadata(path).map_err(kernel)?.len();
    let mut node = File::open(device.as_path()).map_err(kernel)?;
    if io::Seek::seek(&mut node, io::SeekFrom::End(0)).map_err(kernel)? >= file_bytes {
        return Ok(Outcome::Unchanged);
    }
    LoopDevice::open(device.as_path()).and_then(|device| device.set_capacity()).map_err(kernel)?;
    Ok(Outcome::Changed)
}

/// Detaches `device` from its file, and waits until it is gone.
///
/// Nothing is done when it is not attached. A device that is held is left alone.
pub fn detach_loop(device: &DevicePath) -> Result<Outcome, LoopError> {
    let kernel = |step| move |source| LoopError::Kernel { path: device.as_path().to_owned(), step, source };
    let sysfs = sysfs_of(device);
    let attached = || sysfs.join("loop/backing_file").exists();
    if !attached() {
        return Ok(Outcome::Unchanged);
    }
    // The kernel would take the order and carry it out once the last user is gone; a held device is to stay whole.
    let holders = names_in(&sysfs.join("holders"), |_| true);
    if !holders.is_empty() {
        return Err(LoopError::Busy { device: device.clone(), users: format!(" by {}", holders.join(", ")) });
    }
    let handle = LoopDevice::open(device.as_path()).map_err(kernel("open"))?;
    match handle.detach() {
        Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => return Ok(Outcome::Unchanged),
        Err(error) if is_busy(&error) => return Err(LoopError::Busy { device: device.clone(), users: String::new() }),
        Err(error) => return Err(kernel("detach")(error)),
        // It is cleared when the last descriptor is closed.
        Ok(()) => drop(handle),
    }
    let deadline = Instant::now() + DETACH_LIMIT;
    while attached() {
        if Instant::now() > deadline {
            let users = "; it detaches by itself once nobody has it open".to_owned();
            return Err(LoopError::Busy { device: device.clone(), users });
        }
        thread::sleep(PAUSE);
    }
    Ok(Outcome::Changed)
}

fn find(path: &Path, file: &File) -> Result<Option<DevicePath>, LoopError> {
    let kernel = |source| LoopError::Kernel { path: path.to_owned(), step: "find", source };
    let metadata = file.metadata().map_err(kernel)?;
    for name in names_in(Path::new("/sys/block"), |entry| entry.join("loop/backing_file").exists()) {
        let device = DevicePath::at(format!("/dev/{name}"));
        // A device that goes away meanwhile has not got our file.
        let Ok(status) = File::open(device.as_path()).and_then(|handle| status(&handle)) else { continue };
        if status.inode != metadata.ino() || decode(status.device) != DeviceNumber::from_raw(metadata.dev()) {
            continue;
        }
        let how = if status.offset != 0 || status.size_limit != 0 {
            "only a part of it"
        } else if status.flags & FLAG_READ_ONLY != 0 {
            "read-only"
        } else {
            return Ok(Some(device));
        };
        return Err(LoopError::Taken { path: path.to_owned(), device, how });
    }
    Ok(None)
}

/// `LOOP_GET_STATUS64` of linux/loop.h.
const GET_STATUS: Opcode = 0x4C05;

/// `LO_FLAGS_READ_ONLY` of linux/loop.h.
const FLAG_READ_ONLY: u32 = 1;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Status {
    device: u64,
    inode: u64,
    own_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

fn status(handle: &File) -> io::Result<Status> {
    // SAFETY: LOOP_GET_STATUS64 writes a `loop_info64`, which `Status` is, field for field.
    let getter = unsafe { Getter::<GET_STATUS, Status>::new() };
    // SAFETY: the opcode means the same on every device that takes it, and the getter brings room for the answer.
    Ok(unsafe { rustix::ioctl::ioctl(handle, getter) }?)
}

/// Undoes the kernel's `huge_encode_dev`, which is not the C library's encoding of a device number.
fn decode(device: u64) -> DeviceNumber {
    let low = u32::try_from(device & 0xffff_ffff).expect("masked to 32 bits");
    DeviceNumber { major: (low & 0x000f_ff00) >> 8, minor: (low & 0xff) | ((low >> 12) & 0x000f_ff00) }
}

fn sysfs_of(device: &DevicePath) -> PathBuf {
    let number = fs::metadata(device.as_path()).map_or(0, |metadata| metadata.rdev());
    PathBuf::from(format!("/sys/dev/block/{}", DeviceNumber::from_raw(number)))
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::BUSY.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device;
    use crate::testing::Scratch;

    #[test]
    fn the_status_has_the_kernels_layout() {
        assert_eq!(size_of::<Status>(), 232);
        assert_eq!(std::mem::offset_of!(Status, flags), 52);
    }

    #[test]
    fn device_numbers_are_decoded() {
        assert_eq!(decode(0x0000_fe00), DeviceNumber { major: 254, minor: 0 });
        assert_eq!(decode(0x0010_0801), DeviceNumber { major: 8, minor: 257 });
    }

    #[test]
    fn a_file_that_is_not_there_is_not_attached() {
        assert_eq!(find_loop(&Scratch::new().path("none")).unwrap(), None);
    }

    #[test]
    #[ignore = "needs root and loop devices"]
    fn attach_reuse_detach() {
        let scratch = Scratch::new();
        let path = scratch.path("f");
        backing::ensure(&path, 64 << 20).unwrap();
        let (device, outcome) = attach_loop(&path).unwrap();
        assert_eq!(outcome, Outcome::Changed);
        // The same file by another way: it is the inode that counts.
        let moved = scratch.path("g");
        fs::rename(&path, &moved).unwrap();
        assert_eq!(attach_loop(&moved).unwrap(), (device.clone(), Outcome::Unchanged));
        // Another file by the same name is another file.
        backing::ensure(&path, 32 << 20).unwrap();
        assert_eq!(find_loop(&path).unwrap(), None);
        assert_eq!(device::resolve(device.as_path()).unwrap(), device);
        let facts = device::facts(&device).unwrap();
        assert_eq!((facts.bytes, facts.logical_sector, facts.users()), (64 << 20, 512, None));
        assert_eq!(refresh(&moved).unwrap(), Outcome::Unchanged);
        assert_eq!(backing::extend(&moved, 96 << 20).unwrap(), Outcome::Changed);
        assert_eq!(device::facts(&device).unwrap().bytes, 64 << 20);
        assert_eq!(refresh(&moved).unwrap(), Outcome::Changed);
        assert_eq!(refresh(&moved).unwrap(), Outcome::Unchanged);
        assert_eq!(device::facts(&device).unwrap().bytes, 96 << 20);
        assert_eq!(detach_loop(&device).unwrap(), Outcome::Changed);
        assert_eq!(detach_loop(&device).unwrap(), Outcome::Unchanged);
        assert_eq!(refresh(&moved).unwrap(), Outcome::Unchanged);
        assert_eq!(find_loop(&moved).unwrap(), None);
    }

    #[test]
    #[ignore = "needs root and loop devices"]
    fn a_part_of_the_file_attached_elsewhere_is_refused() {
        let scratch = Scratch::new();
        let path = scratch.path("f");
        backing::ensure(&path, 64 << 20).unwrap();
        let other = LoopControl::open().unwrap().next_free().unwrap();
        other.with().offset(4096).attach(&path).unwrap();
        let device = DevicePath::at(other.path().unwrap().to_str().unwrap());
        let failure = attach_loop(&path).unwrap_err().failure();
        other.detach().unwrap();
        drop(other);
        let detail = format!("{} is attached to {device} already, only a part of it", path.display());
        assert_eq!(failure, Failure::new(Cause::DeviceBusy, detail));
    }

    #[test]
    #[ignore = "needs root and loop devices"]
    fn many_at_once_get_one_each() {
        let scratch = Scratch::new();
        let paths: Vec<PathBuf> = (0..6).map(|number| scratch.path(&number.to_string())).collect();
        for path in &paths {
            assert_eq!(backing::ensure(path, 1 << 20).unwrap(), Outcome::Changed);
        }
        let mut devices: Vec<DevicePath> = thread::scope(|scope| {
            let threads: Vec<_> = paths.iter().map(|path| scope.spawn(|| attach_loop(path).unwrap().0)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for device in &devices {
            assert_eq!(detach_loop(device).unwrap(), Outcome::Changed);
        }
        devices.sort();
        devices.dedup();
        assert_eq!(devices.len(), paths.len());
    }
}
