//! The file system or swap space on an opened volume, made and made larger with the distribution's programs.

mod grow;
mod root;

pub use self::grow::{GrowError, grow};
pub use self::root::{OwnError, own};

use secretfs_core::cause::{Cause, Failure};
use secretfs_core::config::{Filesystem, FilesystemType};

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
pub fn make(device: &DevicePath, filesystem: &Filesystem) -> Result<(), MakeError> {
    // mke2fs asks before it overwrites only when it has a terminal; without one it goes ahead.
    match inspect::signature(device)? {
        None => {}
        Some(inspect::Contents::Signature { kind, .. }) => {
            return Err(MakeError::Occupied { device: device.clone(), kind });
        }
        Some(_) => return Err(MakeError::Occupied { device: device.clone(), kind: "LUKS".to_owned() }),
    }
    let (program, arguments) = arguments(filesystem);
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.push(device.as_str());
    let made = tool::run(program, &arguments);
    made.map(|_| ()).map_err(|source| MakeError::Mkfs {
        device: device.clone(),
        filesystem: filesystem.kind.as_str(),
        source,
    })
}

/// The program, and all of its arguments but the device.
fn arguments(filesystem: &Filesystem) -> (&'static str, Vec<String>) {
    // A fresh volume holds nothing to discard, and on EBS or a full sparse file it would take minutes.
    let (program, own): (_, &[&str]) = match filesystem.kind {
        FilesystemType::Ext4 => ("mkfs.ext4", &["-q", "-j", "-O", "dir_index"]),
        FilesystemType::Xfs => ("mkfs.xfs", &["-q", "-K"]),
        FilesystemType::Btrfs => ("mkfs.btrfs", &["-q", "-K"]),
        FilesystemType::Swap => ("mkswap", &[]),
    };
    let mut arguments: Vec<String> = own.iter().map(|&word| word.to_owned()).collect();
    if filesystem.kind == FilesystemType::Ext4 {
        // Of several -E the last one alone counts; -O adds up.
        let (extended, rest) = take_extended(&filesystem.mkfs_options);
        arguments.extend(["-E".to_owned(), [vec!["nodiscard"], extended].concat().join(",")]);
        arguments.extend(rest);
    } else {
        arguments.extend(filesystem.mkfs_options.iter().cloned());
    }
    if let Some(label) = &filesystem.label {
        arguments.extend(["-L".to_owned(), label.clone()]);
    }
    (program, arguments)
}

/// The values of `-E`, and what else there is.
fn take_extended(options: &[String]) -> (Vec<&str>, Vec<String>) {
    let (mut extended, mut rest) = (Vec::new(), Vec::new());
    let mut words = options.iter();
    while let Some(word) = words.next() {
        match word.strip_prefix("-E") {
            Some("") => extended.extend(words.next().map(String::as_str)),
            Some(value) => extended.push(value),
            None => rest.push(word.clone()),
        }
    }
    (extended, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::{Contents, Usage};
    use crate::testing::{Scratch, put};

    const MIB: u64 = 1 << 20;

    #[test]
    fn each_is_made_over_noise_and_never_over_another() {
        let scratch = Scratch::new();
        for filesystem in FilesystemType::ALL {
            let device = scratch.device(filesystem.as_str(), 512 * MIB);
            put(&device, 0, &vec![0xa7; 65536]);
            let named = Filesystem { label: Some("scratch".to_owned()), ..Filesystem::of(filesystem) };
            make(&device, &named).unwrap();
            let usage = if filesystem == FilesystemType::Swap { Usage::Other } else { Usage::Filesystem };
            let wanted = Contents::Signature { kind: filesystem.as_str().to_owned(), usage };
            assert_eq!(inspect::inspect(&device).unwrap(), wanted);
            let label = tool::run("blkid", &["--probe", "--match-tag", "LABEL", "--output", "value", device.as_str()]);
            assert_eq!(label.unwrap().trim(), "scratch");
            for other in FilesystemType::ALL {
                let failure = make(&device, &Filesystem::of(other)).unwrap_err().failure();
                let detail = format!("{device} carries {} already", filesystem.as_str());
                assert_eq!(failure, Failure::new(Cause::ForeignSignature, detail));
            }
        }
    }

    #[test]
    fn a_journal_and_hashed_directories() {
        let scratch = Scratch::new();
        let device = scratch.device("ext4", 64 * MIB);
        make(&device, &Filesystem::of(FilesystemType::Ext4)).unwrap();
        let text = tool::run("dumpe2fs", &["-h", device.as_str()]).unwrap();
        let features = text.lines().find(|line| line.starts_with("Filesystem features:")).unwrap();
        assert!(features.contains("has_journal") && features.contains("dir_index"), "{features}");
    }

    /// What is configured is added to what secretfs gives, and takes nothing of it away.
    #[test]
    fn options_are_passed_on() {
        let scratch = Scratch::new();
        let with = |kind, words: &[&str]| Filesystem {
            mkfs_options: words.iter().map(|&word| word.to_owned()).collect(),
            ..Filesystem::of(kind)
        };
        let words = ["-m", "0", "-O^metadata_csum", "-Estride=8", "-E", "stripe_width=16"];
        let ext4 = with(FilesystemType::Ext4, &words);
        let (_, arguments) = arguments(&ext4);
        let extended = "nodiscard,stride=8,stripe_width=16";
        assert_eq!(arguments, ["-q", "-j", "-O", "dir_index", "-E", extended, "-m", "0", "-O^metadata_csum"]);
        let device = scratch.device("ext4", 64 * MIB);
        make(&device, &ext4).unwrap();
        let text = tool::run("dumpe2fs", &["-h", device.as_str()]).unwrap();
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        assert!(line("Reserved block count:").ends_with(" 0"), "{text}");
        assert!(line("RAID stride:").ends_with(" 8") && line("RAID stripe width:").ends_with(" 16"), "{text}");
        let features = line("Filesystem features:");
        assert!(features.contains("dir_index") && !features.contains("metadata_csum"), "{features}");

        let device = scratch.device("xfs", 512 * MIB);
        make(&device, &with(FilesystemType::Xfs, &["-d", "agcount=2"])).unwrap();
        let text = tool::run("xfs_db", &["-r", "-c", "sb 0", "-c", "p agcount", device.as_str()]).unwrap();
        assert_eq!(text.trim(), "agcount = 2");

        let device = scratch.device("swap", 64 * MIB);
        let uuid = "01234567-89ab-cdef-0123-456789abcdef";
        // The longest label there is.
        let label = Some("fifteen-bytes-x".to_owned());
        make(&device, &Filesystem { label, ..with(FilesystemType::Swap, &["-U", uuid]) }).unwrap();
        let tags = tool::run("blkid", &["--probe", device.as_str()]).unwrap();
        assert!(tags.contains(uuid) && tags.contains("LABEL=\"fifteen-bytes-x\""), "{tags}");

        let device = scratch.device("btrfs", 512 * MIB);
        make(&device, &with(FilesystemType::Btrfs, &["--csum=xxhash", "--mixed"])).unwrap();
        let text = tool::run("btrfs", &["inspect-internal", "dump-super", device.as_str()]).unwrap();
        assert!(text.contains("xxhash64") && text.contains("MIXED_GROUPS"), "{text}");
    }

    /// The smallest backing that the configuration takes, less the LUKS2 header, has room for a file system.
    #[test]
    fn the_smallest_are_large_enough() {
        use FilesystemType::{Btrfs, Ext4, Swap, Xfs};
        let scratch = Scratch::new();
        for (kind, backing) in [(Ext4, 32), (Xfs, 320), (Btrfs, 160), (Swap, 32)] {
            let device = scratch.device(&format!("small-{}", kind.as_str()), (backing - 16) * MIB);
            make(&device, &Filesystem::of(kind)).unwrap();
        }
    }

    #[test]
    fn mkfs_has_its_say() {
        let scratch = Scratch::new();
        let device = scratch.device("small", 8 * MIB);
        let failure = make(&device, &Filesystem::of(FilesystemType::Xfs)).unwrap_err().failure();
        assert_eq!(failure.cause, Cause::MkfsFailed);
        assert!(failure.detail.starts_with(&format!("cannot make xfs on {device}: mkfs.xfs: ")), "{failure}");
        assert!(failure.detail.contains("too small") && !failure.detail.contains("Usage"), "{failure}");
    }
}
