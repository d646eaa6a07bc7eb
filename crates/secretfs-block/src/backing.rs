//! The file behind a volume.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use secretfs_core::cause::{Cause, Failure};

use crate::Outcome;
use crate::device::kind_of;

/// Why there is no backing file that may be used.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// Something is there, and it is not the volume's backing file.
    #[error("{} {fault}; {cure}", path.display())]
    Mismatch {
        /// The configured path.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
        /// How to put it right.
        cure: String,
    },
    /// The file system is smaller than the file is to be.
    #[error("{} is to have {bytes} bytes, its file system has {capacity} in all", path.display())]
    NoSpace {
        /// The configured path.
        path: PathBuf,
        /// The configured size.
        bytes: u64,
        /// The size of the file system.
        capacity: u64,
    },
    /// A step of making or opening it failed.
    #[error("cannot {step} {}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What was to be done with it.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl BackingError {
    /// The row of the cause table, and the particulars.
    pub fn failure(&self) -> Failure {
        let cause = match self {
            Self::Mismatch { .. } => Cause::BackingMismatch,
            Self::NoSpace { .. } => Cause::BackingNoSpace,
            Self::File { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge | io::ErrorKind::QuotaExceeded => {
                    Cause::BackingNoSpace
                }
                _ => Cause::System,
            },
        };
        Failure::new(cause, crate::chain(self))
    }
}

/// Sees to it that `path` is a sparse file of `bytes` bytes that is ours alone, with its directories.
///
/// What is there is never changed, but for an empty file that a crash left between creation and sizing.
pub fn ensure(path: &Path, bytes: u64) -> Result<Outcome, BackingError> {
    match open(path) {
        Ok(file) => check(path, &file, Some(bytes)).and_then(|size| {
            if size == bytes {
                Ok(Outcome::Unchanged)
            } else {
                resize(path, &file, bytes)?;
                Ok(Outcome::Changed)
            }
        }),
        Err(BackingError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            create(path, bytes)?;
            Ok(Outcome::Changed)
        }
        Err(error) => Err(error),
    }
}

/// Makes the existing backing file `path`, which is ours alone, as large as `bytes`; it is never made smaller.
///
/// The caller has seen that the volume is in it.
pub fn extend(path: &Path, bytes: u64) -> Result<Outcome, BackingError> {
    let file = open(path)?;
    if check(path, &file, None)? >= bytes {
        return Ok(Outcome::Unchanged);
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    room_for(path, directory, bytes)?;
    resize(path, &file, bytes)?;
    Ok(Outcome::Changed)
}

/// Opens an existing backing file and checks that it is ours alone.
pub(crate) fn open_checked(path: &Path) -> Result<File, BackingError> {
    let file = open(path)?;
    check(path, &file, None)?;
    Ok(file)
}

fn open(path: &Path) -> Result<File, BackingError> {
    let mismatch = |fault: &str| BackingError::Mismatch {
        path: path.to_owned(),
        fault: fault.to_owned(),
        cure: "name a regular file, or a path that is still free".to_owned(),
    };
    // O_NONBLOCK: opening a FIFO would wait for its other end.
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(descriptor) => Ok(File::from(descriptor)),
        Err(Errno::LOOP) => Err(mismatch("is a symbolic link")),
        Err(Errno::ISDIR) => Err(mismatch("is a directory")),
        Err(Errno::NXIO) => Err(mismatch("is a socket or a device that is not there")),
        Err(errno) => Err(failed(path, "open")(errno.into())),
    }
}

/// The size of the file, when all else is right.
fn check(path: &Path, file: &File, wanted: Option<u64>) -> Result<u64, BackingError> {
    let metadata = file.metadata().map_err(failed(path, "look at"))?;
    let user = rustix::process::geteuid().as_raw();
    let shown = path.display();
    let fault = if !metadata.is_file() {
        Some((
            format!("is {}, not a regular file", kind_of(&metadata)),
            "a block device is configured as `backing = { device = … }`".to_owned(),
        ))
    } else if metadata.uid() != user {
        let cure = format!("if it is this volume's, `chown {user} {shown}`");
        Some((format!("belongs to user {}, not to user {user}", metadata.uid()), cure))
    } else if metadata.mode() & 0o077 != 0 {
        let cure = format!("`chmod 600 {shown}`");
        Some((format!("may be used by others (mode {:04o})", metadata.mode() & 0o7777), cure))
    } else if metadata.nlink() != 1 {
        let cure = format!("`find {} -xdev -inum {}` shows the others", mount_hint(path), metadata.ino());
        Some((format!("has {} names (hard links)", metadata.nlink()), cure))
    } else {
        wanted.filter(|wanted| metadata.size() != *wanted && metadata.size() != 0).map(|wanted| {
            let has = metadata.size();
            let cure = format!("set `size = {has}`, or move the file away if its data may go");
            (format!("has {has} bytes, the configuration says {wanted}"), cure)
        })
    };
    match fault {
        Some((fault, cure)) => Err(BackingError::Mismatch { path: path.to_owned(), fault, cure }),
        None => Ok(metadata.size()),
    }
}

fn mount_hint(path: &Path) -> String {
    path.parent().unwrap_or(Path::new("/")).display().to_string()
}

fn create(path: &Path, bytes: u64) -> Result<(), BackingError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_directories(directory)?;
    room_for(path, directory, bytes)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .map(File::from)
        .map_err(|errno| failed(path, "create")(errno.into()))?;
    resize(path, &file, bytes)?;
    sync_directory(directory)
}

/// Sizes the file. A crash before this leaves an empty file, which the next start completes.
fn resize(path: &Path, file: &File, bytes: u64) -> Result<(), BackingError> {
    file.set_len(bytes).map_err(failed(path, "size"))?;
    file.sync_all().map_err(failed(path, "sync"))
}

/// Makes what is missing of `directory`, for its owner only.
fn create_directories(directory: &Path) -> Result<(), BackingError> {
    let missing: Vec<&Path> = directory.ancestors().take_while(|at| !at.exists()).collect();
    for at in missing.into_iter().rev().filter(|at| !at.as_os_str().is_empty()) {
        match DirBuilder::new().mode(0o700).create(at) {
            // Another volume's start may make the same directory at the same time.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(at, "create")(error)),
            _ => sync_directory(at.parent().filter(|up| !up.as_os_str().is_empty()).unwrap_or(Path::new(".")))?,
        }
    }
    Ok(())
}

/// A file that can never be filled is refused; one that might run out of room is what sparse files are.
fn room_for(path: &Path, directory: &Path, bytes: u64) -> Result<(), BackingError> {
    let system = rustix::fs::statvfs(directory).map_err(|errno| failed(directory, "look at")(errno.into()))?;
    let capacity = system.f_blocks.saturating_mul(system.f_frsize);
    let available = system.f_bavail.saturating_mul(system.f_frsize);
    if bytes > capacity {
        return Err(BackingError::NoSpace { path: path.to_owned(), bytes, capacity });
    }
    if bytes > available {
        tracing::warn!(path = %path.display(), bytes, available, "the backing file may outgrow its file system");
    }
    Ok(())
}

fn sync_directory(directory: &Path) -> Result<(), BackingError> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(failed(directory, "sync"))
}

fn failed<'a>(path: &'a Path, step: &'static str) -> impl Fn(io::Error) -> BackingError + 'a {
    move |source| BackingError::File { path: path.to_owned(), step, source }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::testing::Scratch;

    const MIB: u64 = 1 << 20;

    fn refusal(path: &Path) -> Failure {
        ensure(path, MIB).unwrap_err().failure()
    }

    #[test]
    fn made_once_sparse_and_private() {
        let scratch = Scratch::new();
        let path = scratch.path("a/b/scratch.img");
        assert_eq!(ensure(&path, 64 * MIB).unwrap(), Outcome::Changed);
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.size(), metadata.blocks(), metadata.mode() & 0o7777), (64 * MIB, 0, 0o600));
        assert_eq!(fs::metadata(scratch.path("a/b")).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(ensure(&path, 64 * MIB).unwrap(), Outcome::Unchanged);
    }

    #[test]
    fn an_empty_file_of_a_crash_is_completed() {
        let scratch = Scratch::new();
        let path = scratch.path("f");
        File::create(&path).unwrap().set_permissions(Permissions::from_mode(0o600)).unwrap();
        assert_eq!(ensure(&path, MIB).unwrap(), Outcome::Changed);
        assert_eq!(fs::metadata(&path).unwrap().len(), MIB);
    }

    #[test]
    fn another_size_is_refused_with_both() {
        let scratch = Scratch::new();
        let path = scratch.path("f");
        ensure(&path, 2 * MIB).unwrap();
        let detail = format!(
            "{} has 2097152 bytes, the configuration says 1048576; set `size = 2097152`, \
             or move the file away if its data may go",
            path.display()
        );
        assert_eq!(refusal(&path), Failure::new(Cause::BackingMismatch, detail));
        assert_eq!(fs::metadata(&path).unwrap().len(), 2 * MIB);
    }

    #[test]
    fn a_file_is_extended_and_never_cut() {
        let scratch = Scratch::new();
        let path = scratch.path("f");
        assert_eq!(extend(&path, MIB).unwrap_err().failure().cause, Cause::System);
        ensure(&path, 2 * MIB).unwrap();
        assert_eq!(extend(&path, MIB).unwrap(), Outcome::Unchanged);
        assert_eq!(extend(&path, 4 * MIB).unwrap(), Outcome::Changed);
        assert_eq!(fs::metadata(&path).unwrap().len(), 4 * MIB);
        assert_eq!(ensure(&path, 4 * MIB).unwrap(), Outcome::Unchanged);
        assert_eq!(extend(&path, 1 << 60).unwrap_err().failure().cause, Cause::BackingNoSpace);
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert_eq!(extend(&path, 8 * MIB).unwrap_err().failure().cause, Cause::BackingMismatch);
        assert_eq!(fs::metadata(&path).unwrap().len(), 4 * MIB);
    }

    #[test]
    fn what_is_not_ours_alone_is_refused() {
        let scratch = Scratch::new();
        let path = scratch.path("f");
        ensure(&path, MIB).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let detail = format!("{0} may be used by others (mode 0640); `chmod 600 {0}`", path.display());
        assert_eq!(refusal(&path), Failure::new(Cause::BackingMismatch, detail));
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        fs::hard_link(&path, scratch.path("g")).unwrap();
        assert!(refusal(&path).detail.contains("has 2 names"), "{:?}", refusal(&path));
        fs::remove_file(scratch.path("g")).unwrap();
        assert_eq!(ensure(&path, MIB).unwrap(), Outcome::Unchanged);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            assert!(refusal(&path).detail.contains("belongs to user 65534, not to user 0"), "{:?}", refusal(&path));
        } else {
            eprintln!("SKIPPED: a file of another user (needs root)");
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused() {
        let scratch = Scratch::new();
        let target = scratch.path("target");
        ensure(&target, MIB).unwrap();
        let link = scratch.path("link");
        symlink(&target, &link).unwrap();
        let dangling = scratch.path("dangling");
        symlink(scratch.path("nowhere"), &dangling).unwrap();
        let directory = scratch.path("directory");
        fs::create_dir(&directory).unwrap();
        let fifo = scratch.path("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        let cases = [
            (link, "is a symbolic link;"),
            (dangling, "is a symbolic link;"),
            (directory, "is a directory;"),
            (fifo, "is a FIFO, not a regular file;"),
            (PathBuf::from("/dev/null"), "is a character device, not a regular file;"),
        ];
        for (path, words) in cases {
            let failure = refusal(&path);
            assert_eq!(failure.cause, Cause::BackingMismatch);
            assert!(failure.detail.contains(words), "{failure}");
        }
        assert!(!scratch.path("nowhere").exists());
    }

    #[test]
    fn a_file_larger_than_its_file_system_is_refused() {
        let scratch = Scratch::new();
        let path = scratch.path("f");
        let failure = ensure(&path, 1 << 60).unwrap_err().failure();
        assert_eq!(failure.cause, Cause::BackingNoSpace);
        assert!(!path.exists());
    }
}
