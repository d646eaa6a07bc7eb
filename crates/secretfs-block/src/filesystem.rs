//! Making a file system on an opened volume, with the distribution's mkfs.

use secretfs_core::cause::{Cause, Failure};
use secretfs_core::config::Filesystem;

use crate::device::DevicePath;
use crate::inspect::{self, InspectError};
use crate::tool::{self, ToolError};

/// Why no file system was made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// Something is there already.
    #[error("{device} carries {kind} already")]
    Occupied {
        /// The device.
        device: DevicePath,
        /// What is there.
        kind: String,
    },
    /// It can't be told what is there.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// mkfs failed.
    #[error("cannot make {filesystem} on {device}")]
    Mkfs {
        /// The device.
        device: DevicePath,
        /// What was to be made.
        filesystem: &'static str,
        /// What mkfs said.
        #[source]
        source: ToolError,
    },
}

impl MakeError {
    /// The row of the cause table, and the particulars.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Occupied { .. } => Failure::new(Cause::ForeignSignature, crate::chain(self)),
            Self::Inspect(error) => error.failure(),
            Self::Mkfs { .. } => Failure::new(Cause::MkfsFailed, crate::chain(self)),
        }
    }
}

/// Makes a file system on `device`, the mapping of a volume that was just formatted.
pub fn make(device: &DevicePath, filesystem: Filesystem, label: Option<&str>) -> Result<(), MakeError> {
    // mke2fs asks before it overwrites only when it has a terminal; without one it goes ahead.
    match inspect::signature(device)? {
        None => {}
        Some(inspect::Contents::Signature { kind, .. }) => {
            return Err(MakeError::Occupied { device: device.clone(), kind });
        }
        Some(_) => return Err(MakeError::Occupied { device: device.clone(), kind: "LUKS".to_owned() }),
    }
    let (program, mut arguments) = match filesystem {
        // A fresh volume holds nothing to discard, and on EBS or a full sparse file it would take minutes.
        Filesystem::Ext4 => ("mkfs.ext4", vec!["-q", "-j", "-O", "dir_index", "-E", "nodiscard"]),
        Filesystem::Xfs => ("mkfs.xfs", vec!["-q", "-K"]),
    };
    if let Some(label) = label {
        arguments.extend(["-L", label]);
    }
    arguments.push(device.as_str());
    let made = tool::run(program, &arguments);
    made.map(|_| ()).map_err(|source| MakeError::Mkfs {
        device: device.clone(),
        filesystem: filesystem.as_str(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::{Contents, Usage};
    use crate::testing::{Scratch, put};

    const MIB: u64 = 1 << 20;

    #[test]
    fn both_are_made_over_noise_and_never_over_one_another() {
        let scratch = Scratch::new();
        for filesystem in [Filesystem::Ext4, Filesystem::Xfs] {
            let device = scratch.device(filesystem.as_str(), 512 * MIB);
            put(&device, 0, &vec![0xa7; 65536]);
            make(&device, filesystem, Some("scratch")).unwrap();
            let wanted = Contents::Signature { kind: filesystem.as_str().to_owned(), usage: Usage::Filesystem };
            assert_eq!(inspect::inspect(&device).unwrap(), wanted);
            for other in [Filesystem::Ext4, Filesystem::Xfs] {
                let failure = make(&device, other, None).unwrap_err().failure();
                let detail = format!("{device} carries {} already", filesystem.as_str());
                assert_eq!(failure, Failure::new(Cause::ForeignSignature, detail));
            }
        }
    }

    #[test]
    fn a_journal_and_hashed_directories() {
        let scratch = Scratch::new();
        let device = scratch.device("ext4", 64 * MIB);
        make(&device, Filesystem::Ext4, None).unwrap();
        let text = tool::run("dumpe2fs", &["-h", device.as_str()]).unwrap();
        let features = text.lines().find(|line| line.starts_with("Filesystem features:")).unwrap();
        assert!(features.contains("has_journal") && features.contains("dir_index"), "{features}");
    }

    #[test]
    fn mkfs_has_its_say() {
        let scratch = Scratch::new();
        let device = scratch.device("small", 8 * MIB);
        let failure = make(&device, Filesystem::Xfs, None).unwrap_err().failure();
        assert_eq!(failure.cause, Cause::MkfsFailed);
        assert!(failure.detail.starts_with(&format!("cannot make xfs on {device}: mkfs.xfs: ")), "{failure}");
        assert!(failure.detail.contains("too small") && !failure.detail.contains("Usage"), "{failure}");
    }
}
