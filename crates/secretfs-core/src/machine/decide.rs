//! What to do with a device, from what is on it. In doubt: nothing.

use crate::cause::{Cause, Failure};
use crate::config::{FilesystemType, Lifecycle};

/// What is on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// No signature, and nothing but zeros wherever it was read.
    Blank,
    /// What an interrupted format of ours left that had not come as far as a header.
    Begun,
    /// A LUKS header.
    Luks {
        /// Whether secretfs made it, by its subsystem label.
        ours: bool,
        /// Whether it carries the marker of a format that was not finished.
        unfinished: bool,
    },
    /// Another signature, by the name libblkid gives it.
    Signature(String),
    /// No signature, but not blank either.
    Unknown {
        /// The first byte that was found not to be zero.
        offset: u64,
    },
}

impl Contents {
    /// Whether it is the header of a format of ours that was not finished.
    pub fn is_unfinished(&self) -> bool {
        matches!(self, Self::Luks { ours: true, unfinished: true })
    }

    /// Whether it is a LUKS header.
    pub fn is_luks(&self) -> bool {
        matches!(self, Self::Luks { .. })
    }
}

/// How a volume is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// With a new header.
    Format,
    /// With the header that is there.
    Unlock,
    /// With the header of a format that was interrupted while the volume was zeroed, which then goes on.
    Resume,
}

/// Decides whether a backing device is formatted, unlocked or refused.
///
/// A device is formatted only when it is blank, when an earlier format of ours was not finished (no file system of it
/// was ever mounted), or when it carries an ephemeral volume of ours from an earlier boot.
pub fn decide_opening(
    lifecycle: Lifecycle,
    contents: &Contents,
    formatted_this_boot: bool,
    wipe_begun: bool,
) -> Result<Opening, Failure> {
    match (lifecycle, contents) {
        (_, Contents::Luks { ours: true, unfinished: true }) if wipe_begun => Ok(Opening::Resume),
        (_, Contents::Blank | Contents::Begun | Contents::Luks { ours: true, unfinished: true }) => Ok(Opening::Format),
        (Lifecycle::Persistent, Contents::Luks { .. }) => Ok(Opening::Unlock),
        (Lifecycle::Ephemeral, Contents::Luks { ours: true, .. }) if formatted_this_boot => Ok(Opening::Unlock),
        (Lifecycle::Ephemeral, Contents::Luks { ours: true, .. }) => Ok(Opening::Format),
        (Lifecycle::Ephemeral, Contents::Luks { ours: false, .. }) => Err(Failure::new(
            Cause::ForeignSignature,
            "it has a LUKS header that secretfs did not make, and an ephemeral volume would overwrite it",
        )),
        (_, Contents::Signature(kind)) => Err(Failure::new(Cause::ForeignSignature, format!("found {kind}"))),
        (_, Contents::Unknown { offset }) => {
            let detail = format!("it has no signature that is known, but data at byte {offset}");
            Err(Failure::new(Cause::NotBlank, detail))
        }
    }
}

/// Checks that an opened volume holds the file system it is configured with.
pub(super) fn check_filesystem(filesystem: FilesystemType, contents: &Contents) -> Result<(), Failure> {
    let found = match contents {
        Contents::Signature(kind) if kind == filesystem.as_str() => return Ok(()),
        // ext3 is what the shell recipe's `mke2fs -j` made; the kernel's ext4 mounts it as it is.
        Contents::Signature(kind) if kind == "ext3" && filesystem == FilesystemType::Ext4 => return Ok(()),
        Contents::Signature(kind) => kind.as_str(),
        Contents::Blank | Contents::Begun => "nothing",
        Contents::Luks { .. } => "another LUKS header",
        Contents::Unknown { .. } => "data without a signature",
    };
    Err(Failure::new(Cause::FilesystemMissing, format!("{} was expected and {found} was found", filesystem.as_str())))
}
