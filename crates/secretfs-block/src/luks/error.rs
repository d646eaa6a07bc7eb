//! What can go wrong with a header or a mapping.

use secretfs_core::cause::{Cause, Failure};
use secretfs_core::name::MapperName;

use rustix::io::Errno;

use crate::CryptError;
use crate::device::{DeviceError, DevicePath};
use crate::inspect::InspectError;
use crate::mapping::MappingError;
use crate::tool::ToolError;

/// Why a device could not be formatted.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Something is there that may not be overwritten.
    #[error("{device} carries {kind}")]
    Occupied {
        /// The device.
        device: DevicePath,
        /// What is there.
        kind: String,
    },
    /// There is no room for a header.
    #[error("{device} has {bytes} bytes; a LUKS2 header alone takes {header}")]
    TooSmall {
        /// The device.
        device: DevicePath,
        /// Its size.
        bytes: u64,
        /// The size of a header.
        header: u64,
    },
    /// It ends within an encryption sector.
    #[error("{device} has {bytes} bytes, no multiple of `sector-size = {sector_size}`; use 512, or leave it out")]
    Uneven {
        /// The device.
        device: DevicePath,
        /// Its size.
        bytes: u64,
        /// The size of an encryption sector.
        sector_size: u32,
    },
    /// It can't be told what is there.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// It does not take a discard.
    #[error("cannot discard {device}")]
    Discard {
        /// The device.
        device: DevicePath,
        /// What blkdiscard said.
        #[source]
        source: ToolError,
    },
    /// libcryptsetup refused.
    #[error("cannot make a LUKS2 header on {device}")]
    Library {
        /// The device.
        device: DevicePath,
        /// What it said.
        #[source]
        source: CryptError,
    },
}

impl FormatError {
    /// The row of the cause table, and the particulars.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Occupied { .. } => Failure::new(Cause::ForeignSignature, crate::chain(self)),
            Self::Inspect(error) => error.failure(),
            Self::TooSmall { .. } | Self::Uneven { .. } => Failure::new(Cause::BackingMismatch, crate::chain(self)),
            Self::Discard { .. } => Failure::new(Cause::DiscardFailed, crate::chain(self)),
            Self::Library { source, .. } => Failure::new(library(source), crate::chain(self)),
        }
    }
}

/// Why a header could not be read or marked.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// It can't be told what is there.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// There is a LUKS header, and libcryptsetup can't use it.
    #[error("cannot use the LUKS header of {device}")]
    Broken {
        /// The device.
        device: DevicePath,
        /// What libcryptsetup said.
        #[source]
        source: CryptError,
    },
    /// The header is not one that secretfs made for this volume.
    #[error("{device} has no LUKS header that secretfs made as {mapper}")]
    NotOurs {
        /// The device.
        device: DevicePath,
        /// The mapping it should be for.
        mapper: MapperName,
    },
    /// The mark could not be written.
    #[error("cannot mark the LUKS header of {device}")]
    Write {
        /// The device.
        device: DevicePath,
        /// What libcryptsetup said.
        #[source]
        source: CryptError,
    },
}

impl HeaderError {
    /// The row of the cause table, and the particulars.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Inspect(error) => error.failure(),
            Self::Broken { source, .. } => {
                // An input/output error or an exhausted lock says nothing about the header itself.
                let unusable = source.is(Errno::INVAL) || source.is(Errno::NOTSUP);
                Failure::new(if unusable { Cause::HeaderBroken } else { library(source) }, crate::chain(self))
            }
            Self::NotOurs { .. } => Failure::new(Cause::HeaderBroken, crate::chain(self)),
            Self::Write { source, .. } => Failure::new(library(source), crate::chain(self)),
        }
    }
}

/// Why a volume could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The header could not be read.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// There is no header.
    #[error("{device} has no LUKS header")]
    NoHeader {
        /// The device.
        device: DevicePath,
    },
    /// The device could not be looked at.
    #[error(transparent)]
    Device {
        /// Why.
        source: DeviceError,
    },
    /// The mappings could not be looked at.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// Another mapping has the name.
    #[error("{mapper} is {found}, not {wanted}")]
    OtherMapping {
        /// The name.
        mapper: MapperName,
        /// What it stands for.
        found: String,
        /// What it should stand for.
        wanted: String,
    },
    /// The key fits no key slot.
    #[error("no key slot of {device} takes the key")]
    WrongKey {
        /// The device.
        device: DevicePath,
    },
    /// The header has no key slot.
    #[error("{device} has no usable key slot")]
    NoKeySlot {
        /// The device.
        device: DevicePath,
        /// What libcryptsetup said.
        #[source]
        source: CryptError,
    },
    /// libcryptsetup refused.
    #[error("cannot open {device}")]
    Library {
        /// The device.
        device: DevicePath,
        /// What it said.
        #[source]
        source: CryptError,
    },
}

impl OpenError {
    /// The row of the cause table, and the particulars.
    pub fn failure(&self) -> Failure {
        let cause = match self {
            Self::Header(error) => return error.failure(),
            Self::Device { source } => return source.failure(),
            Self::Mapping(error) => return error.failure(),
            Self::NoHeader { .. } | Self::NoKeySlot { .. } => Cause::HeaderBroken,
            Self::OtherMapping { .. } => Cause::ChainBroken,
            Self::WrongKey { .. } => Cause::WrongKey,
            Self::Library { source, .. } => library(source),
        };
        Failure::new(cause, crate::chain(self))
    }
}

/// Why a mapping could not be closed.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// The mappings could not be looked at.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// The name is some other mapping's.
    #[error("{mapper} is no encrypted volume (its UUID is {uuid:?})")]
    NotCrypt {
        /// The name.
        mapper: MapperName,
        /// What device-mapper calls it.
        uuid: String,
    },
    /// Somebody has it open.
    #[error("{mapper} is still in use{users}")]
    Busy {
        /// The mapping.
        mapper: MapperName,
        /// By whom, where that is known.
        users: String,
        /// What libcryptsetup said.
        #[source]
        source: CryptError,
    },
    /// What a crash left below it could not be removed.
    #[error("cannot remove the integrity device that is left of {mapper}")]
    Orphan {
        /// The mapping.
        mapper: MapperName,
        /// What dmsetup said.
        #[source]
        source: ToolError,
    },
    /// libcryptsetup refused.
    #[error("cannot close {mapper}")]
    Library {
        /// The mapping.
        mapper: MapperName,
        /// What it said.
        #[source]
        source: CryptError,
    },
}

impl CloseError {
    /// The row of the cause table, and the particulars.
    pub fn failure(&self) -> Failure {
        let cause = match self {
            Self::Mapping(error) => return error.failure(),
            Self::NotCrypt { .. } => Cause::ChainBroken,
            Self::Busy { .. } | Self::Orphan { .. } => Cause::DeviceBusy,
            Self::Library { source, .. } => library(source),
        };
        Failure::new(cause, crate::chain(self))
    }
}

pub(super) fn library(source: &CryptError) -> Cause {
    if source.is(Errno::BUSY) {
        Cause::DeviceBusy
    } else if source.is_unsupported() {
        Cause::Internal
    } else {
        Cause::System
    }
}
