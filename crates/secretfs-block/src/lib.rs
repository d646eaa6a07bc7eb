//! Block devices: backing files and loop devices, disks by what they are and LVM over them, what is on a device, LUKS,
//! mappings and file systems.
//!
//! Every function here blocks, and belongs on a thread of its own. This is the only crate with unsafe code; no C type
//! leaves it. Whatever is already as it should be is an ordinary result, [`Outcome::Unchanged`].

pub mod backing;
pub mod claim;
pub mod device;
pub mod disks;
pub mod filesystem;
pub mod inspect;
pub mod loops;
pub mod luks;
pub mod lvm;
pub mod mapping;
pub mod mountpoint;
pub mod passphrase;
pub mod volume;
pub mod wipe;

mod cryptsetup;
mod note;
mod tool;

#[cfg(test)]
mod testing;

pub use cryptsetup::CryptError;
pub use device::DevicePath;
pub use passphrase::Passphrase;
pub use tool::ToolError;

use std::error::Error;

/// Whether a step had anything to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All was as it should be already.
    Unchanged,
    /// Something was done.
    Changed,
}

/// An error and its sources in one line, for the detail of a [`secretfs_core::cause::Failure`].
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
