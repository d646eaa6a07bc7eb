//! The steps of a volume's life, each one call of the daemon's.

use std::fmt;
use std::time::Duration;

use crate::config::FilesystemType;
use crate::key::Kdf;

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Look at what is mapped and mounted under the volume's names.
    Survey,
    /// Make the mount point unwritable for as long as nothing is mounted on it; not for swap space.
    Guard,
    /// Have the backing device there, and look at what is on it.
    Attach,
    /// Have the key fetched.
    FetchKey,
    /// Make a LUKS header, marked as unfinished.
    Format(Kdf),
    /// Open the mapping.
    Unlock,
    /// Look at what is on the mapping.
    Inspect,
    /// Write zeros through the whole mapping.
    Wipe,
    /// Make the file system or the swap space.
    MakeFilesystem,
    /// Take the mark of an unfinished format away.
    FinishFormat,
    /// Have systemd mount it, or put it to use as swap space.
    Mount,
    /// Have the file system fill the mapping, should that have become larger; not for swap space.
    Grow,
    /// Give the mounted root directory its owner, group and mode; not for swap space.
    Own,
    /// Read the chain back.
    Verify,
    /// Have systemd unmount it, or take it out of use as swap space.
    Unmount,
    /// Close the mapping.
    Close,
    /// Detach the loop device.
    Detach,
}

impl Step {
    /// The word for it, in the journal's `STEP=`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Survey => "survey",
            Self::Guard => "guard",
            Self::Attach => "attach",
            Self::FetchKey => "fetch-key",
            Self::Format(_) => "format",
            Self::Unlock => "unlock",
            Self::Inspect => "inspect",
            Self::Wipe => "wipe",
            Self::MakeFilesystem => "make-filesystem",
            Self::FinishFormat => "finish-format",
            Self::Mount => "mount",
            Self::Grow => "grow",
            Self::Own => "own",
            Self::Verify => "verify",
            Self::Unmount => "unmount",
            Self::Close => "close",
            Self::Detach => "detach",
        }
    }

    /// What `STATUS=` says while it runs.
    pub(super) fn status(self, kind: FilesystemType, adopting: bool) -> &'static str {
        match self {
            Self::MakeFilesystem if kind == FilesystemType::Swap => "Making the swap space",
            Self::Mount if kind == FilesystemType::Swap => "Putting the swap space to use",
            Self::Verify if kind == FilesystemType::Swap && adopting => "Verifying swap space that was already in use",
            Self::Verify if kind == FilesystemType::Swap => {
                "Verifying the swap space, the mapping and the backing device"
            }
            Self::Unmount if kind == FilesystemType::Swap => {
                "Taking the swap space out of use, reading back what is in it"
            }
            Self::Survey => "Looking for a volume that is already there",
            Self::Guard => "Guarding the mount point",
            Self::Attach => "Preparing the backing device",
            Self::FetchKey => "Fetching the key",
            Self::Format(Kdf::Pbkdf2Minimal) => "Formatting the backing device with LUKS2",
            Self::Format(Kdf::Argon2id) => "Formatting the backing device with LUKS2 (Argon2id takes seconds)",
            Self::Unlock => "Unlocking",
            Self::Inspect => "Looking at what the volume holds",
            Self::Wipe => "Zeroing the volume",
            Self::MakeFilesystem => "Making the file system",
            Self::FinishFormat => "Finishing the format",
            Self::Mount => "Mounting",
            Self::Grow => "Looking whether the file system fills the volume",
            Self::Own => "Setting owner, group and mode of the root directory",
            Self::Verify if adopting => "Verifying a volume that was already mounted",
            Self::Verify => "Verifying the mount, the mapping and the backing device",
            Self::Unmount => "Unmounting",
            Self::Close => "Closing the mapping",
            Self::Detach => "Detaching the backing device",
        }
    }

    /// How long it may legitimately take; what `EXTEND_TIMEOUT_USEC=` is told before it runs.
    pub fn limit(self) -> Duration {
        let seconds = match self {
            Self::Survey | Self::Guard | Self::Own | Self::Verify | Self::FinishFormat | Self::Detach => 30,
            // Inspection reads samples of the device, twice; a cold network disk takes milliseconds for each.
            // The wipe's is extended each time it tells how far it came.
            Self::Attach | Self::Inspect | Self::Wipe | Self::Close => 120,
            // S3, KMS and the metadata service, with the SDK's own retries.
            Self::FetchKey => 60,
            // Argon2id first measures the machine, then uses up to a gigabyte of memory.
            Self::Format(_) | Self::Unlock => 180,
            // mkfs discards the whole device where it can.
            Self::MakeFilesystem => 900,
            // A journal may have to be replayed, the rest of the page cache written or what was swapped out read back;
            // growing writes new group tables.
            Self::Mount | Self::Grow | Self::Unmount => 300,
        };
        Duration::from_secs(seconds)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
