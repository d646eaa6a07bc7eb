//! Mount points that nobody can write to while nothing is mounted on them.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, IFlags, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use secretfs_core::cause::{Cause, Failure};

use crate::Outcome;

/// Why a mount point is not guarded.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// It is something else, or a link to something.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The mount point.
        path: PathBuf,
    },
    /// It is not there, and the directory that it is to be in is not either.
    #[error("{} cannot be made: is the directory above it there?", path.display())]
    NoParent {
        /// The mount point.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file system below it has no such flag, or is read-only.
    #[error("{} cannot be made immutable: its file system cannot do that", path.display())]
    Unsupported {
        /// The mount point.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It could not be made, opened or flagged.
    #[error("cannot make {} immutable", path.display())]
    System {
        /// The mount point.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl GuardError {
    /// Whether the file system is the reason.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Unsupported { .. })
    }

    /// The row of the cause table, and the particulars.
    pub fn failure(&self) -> Failure {
        let cause = match self {
            Self::NotADirectory { .. } | Self::NoParent { .. } => Cause::MountPointUnfit,
            Self::Unsupported { .. } | Self::System { .. } => Cause::System,
        };
        Failure::new(cause, crate::chain(self))
    }
}

/// Makes the directory `path` if it is absent, in one that is there, and sets its immutable flag (`chattr +i`, chattr(1)):
/// not even root writes to it then, and a reboot keeps the flag. What is mounted over it has flags of its own, so the flag
/// need not be taken away for a mount; and what is mounted there already is left as it is.
pub fn guard(path: &Path) -> Result<Outcome, GuardError> {
    let failed = |source: io::Error| match Errno::from_io_error(&source) {
        Some(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::ROFS) => {
            GuardError::Unsupported { path: path.to_owned(), source }
        }
        Some(Errno::NOTDIR | Errno::LOOP) => GuardError::NotADirectory { path: path.to_owned() },
        _ => GuardError::System { path: path.to_owned(), source },
    };
    if let Err(error) = fs::symlink_metadata(path)
        && error.kind() == io::ErrorKind::NotFound
    {
        // As systemd makes it (systemd.mount(5), DirectoryMode=).
        match DirBuilder::new().mode(0o755).create(path) {
            // Not made either: the sandbox lets the daemon write to that directory if it was there when it began.
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                return Err(GuardError::NoParent { path: path.to_owned(), source });
            }
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    let facts = rustix::fs::statx(&directory, "", AtFlags::EMPTY_PATH, StatxFlags::empty());
    // systemd was quicker, and this is the volume's own root: the flag would stay with the volume.
    if facts.map_err(|errno| failed(errno.into()))?.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(Outcome::Unchanged);
    }
    let flags = rustix::fs::ioctl_getflags(&directory).map_err(|errno| failed(errno.into()))?;
    if flags.contains(IFlags::IMMUTABLE) {
        return Ok(Outcome::Unchanged);
    }
    rustix::fs::ioctl_setflags(&directory, flags | IFlags::IMMUTABLE).map_err(|errno| failed(errno.into()))?;
    Ok(Outcome::Changed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn what_is_no_directory_is_refused() {
        let scratch = Scratch::new();
        let file = scratch.path("file");
        fs::write(&file, "").unwrap();
        assert_eq!(guard(&file).unwrap_err().failure().cause, Cause::MountPointUnfit);
        let link = scratch.path("link");
        symlink("/etc", &link).unwrap();
        assert_eq!(guard(&link).unwrap_err().failure().cause, Cause::MountPointUnfit);
        let below_nothing = scratch.path("a/b");
        assert_eq!(guard(&below_nothing).unwrap_err().failure().cause, Cause::MountPointUnfit);
        assert!(!scratch.path("a").exists());
    }

    /// procfs has no such flag, so to ask it for one would fail.
    #[test]
    fn what_is_mounted_there_keeps_its_own_flags() {
        assert_eq!(guard(Path::new("/proc")).unwrap(), Outcome::Unchanged);
        assert!(guard(Path::new("/proc/self")).is_err());
    }

    #[test]
    #[ignore = "needs root, and a file system with the flag"]
    fn nothing_can_be_written_below_a_guarded_directory() {
        let scratch = Scratch::new();
        let path = scratch.path("a");
        assert_eq!(guard(&path).unwrap(), Outcome::Changed);
        let written = fs::write(path.join("file"), "");
        assert_eq!(guard(&path).unwrap(), Outcome::Unchanged);
        let directory = rustix::fs::open(&path, OFlags::RDONLY, Mode::empty()).unwrap();
        let flags = rustix::fs::ioctl_getflags(&directory).unwrap();
        rustix::fs::ioctl_setflags(&directory, flags - IFlags::IMMUTABLE).unwrap();
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
