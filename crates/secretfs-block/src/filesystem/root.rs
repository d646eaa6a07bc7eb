//! Owner, group and mode of a mounted file system's root directory.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use secretfs_core::cause::{Cause, Failure};

use crate::Outcome;

/// Why the root directory is not as it should be.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {}", path.display())]
pub struct OwnError {
    /// The directory.
    path: PathBuf,
    /// What was to be done with it.
    step: &'static str,
    /// What the kernel said.
    #[source]
    source: io::Error,
}

impl OwnError {
    /// The row of the cause table, and the particulars.
    pub fn failure(&self) -> Failure {
        Failure::new(Cause::System, crate::chain(self))
    }
}

/// Gives the directory `path` the owner, the group and the permissions that are given, and leaves the others.
pub fn own(path: &Path, owner: Option<u32>, group: Option<u32>, mode: Option<u32>) -> Result<Outcome, OwnError> {
    let failed = |step| move |source: io::Error| OwnError { path: path.to_owned(), step, source };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed("open")(errno.into()))?;
    let directory = File::from(directory);
    let metadata = directory.metadata().map_err(failed("look at"))?;
    let mut outcome = Outcome::Unchanged;
    let owner = owner.filter(|owner| *owner != metadata.uid());
    let group = group.filter(|group| *group != metadata.gid());
    if owner.is_some() || group.is_some() {
        rustix::fs::fchown(&directory, owner.map(Uid::from_raw), group.map(Gid::from_raw))
            .map_err(|errno| failed("change the owner of")(errno.into()))?;
        outcome = Outcome::Changed;
    }
    if let Some(mode) = mode.filter(|mode| *mode != metadata.mode() & 0o7777) {
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode))
            .map_err(|errno| failed("change the mode of")(errno.into()))?;
        outcome = Outcome::Changed;
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn what_is_given_is_set_once_and_the_rest_left() {
        let scratch = Scratch::new();
        let path = scratch.path("root");
        fs::create_dir(&path).unwrap();
        let own_uid = rustix::process::geteuid().as_raw();
        let its_group = fs::metadata(&path).unwrap().gid();
        assert_eq!(own(&path, None, None, Some(0o1750)).unwrap(), Outcome::Changed);
        assert_eq!(own(&path, Some(own_uid), Some(its_group), Some(0o1750)).unwrap(), Outcome::Unchanged);
        assert_eq!(own(&path, None, None, None).unwrap(), Outcome::Unchanged);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o1750);
        if own_uid == 0 {
            assert_eq!(own(&path, Some(65534), None, None).unwrap(), Outcome::Changed);
            assert_eq!(own(&path, None, Some(65534), None).unwrap(), Outcome::Changed);
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (65534, 65534, 0o1750));
        } else {
            eprintln!("SKIPPED: another owner (needs root)");
        }
    }

    #[test]
    fn what_is_no_directory_is_refused() {
        let scratch = Scratch::new();
        let link = scratch.path("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        let failure = own(&link, None, None, Some(0o700)).unwrap_err().failure();
        assert_eq!(failure.cause, Cause::System);
        assert!(failure.detail.starts_with("cannot open "), "{failure}");
    }
}
