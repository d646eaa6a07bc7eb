//! An open mapping that is to become as large as its device.

use libcryptsetup_rs::consts::flags::CryptActivate;
use libcryptsetup_rs::{CryptDevice, CryptInit, LibcryptErr, get_sector_size};
use rustix::io::Errno;
use secrecy::ExposeSecret;
use secretfs_core::cause::{Cause, Failure};
use secretfs_core::name::MapperName;

use super::error::library;
use crate::device::DevicePath;
use crate::inspect::{self, InspectError};
use crate::{CryptError, Passphrase, cryptsetup};

/// What device-mapper counts in.
const SECTOR: u64 = 512;

/// Why a mapping was not made larger.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The size of the device can't be told.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// The key fits no key slot.
    #[error("no key slot of {mapper} takes the key")]
    WrongKey {
        /// The mapping.
        mapper: MapperName,
    },
    /// libcryptsetup refused.
    #[error("cannot resize {mapper}")]
    Library {
        /// The mapping.
        mapper: MapperName,
        /// What it said.
        #[source]
        source: CryptError,
    },
}

impl ResizeError {
    /// The row of the cause table, and the particulars.
    pub fn failure(&self) -> Failure {
        let cause = match self {
            Self::Inspect(error) => return error.failure(),
            Self::WrongKey { .. } => Cause::WrongKey,
            Self::Library { source, .. } if source.is_unsupported() => library(source),
            Self::Library { .. } => Cause::GrowFailed,
        };
        Failure::new(cause, crate::chain(self))
    }
}

/// Room that an open mapping leaves on its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The size that the mapping can have, in sectors of 512 bytes.
    sectors: u64,
    /// Whether its table names a key in the kernel's keyring, where no other process finds it: then the table can't be
    /// written anew without the passphrase.
    pub needs_key: bool,
}

/// Looks whether the open mapping is smaller than `device`, below it, has room for.
pub fn room(device: &DevicePath, mapper: &MapperName) -> Result<Option<Room>, ResizeError> {
    let bytes = inspect::size(device)?;
    let read = cryptsetup::call(|| {
        let mut handle = open(mapper)?;
        let active = handle.runtime_handle(mapper.as_str()).get_active_device()?;
        let offset = handle.status_handle().get_data_offset();
        let sector = u64::try_from(get_sector_size(Some(&mut handle))).unwrap_or(SECTOR).max(SECTOR);
        let sectors = fitting(bytes, offset, sector);
        let needs_key = active.flags.contains(CryptActivate::KEYRING_KEY);
        Ok((sectors > active.size).then_some(Room { sectors, needs_key }))
    });
    read.map_err(|source| ResizeError::Library { mapper: mapper.clone(), source })
}

/// Makes the mapping as large as [`room`] found that it can be.
pub fn resize(mapper: &MapperName, room: Room, passphrase: Option<&Passphrase>) -> Result<(), ResizeError> {
    let resized = cryptsetup::call(|| {
        let mut handle = open(mapper)?;
        if let Some(passphrase) = passphrase {
            // Nothing is activated: the volume key goes into this thread's keyring, where dm-crypt looks for it when the
            // table is written anew.
            let key = passphrase.expose_secret();
            handle.activate_handle().activate_by_passphrase(None, None, key, CryptActivate::KEYRING_KEY)?;
        }
        handle.context_handle().resize(mapper.as_str(), room.sectors)
    });
    resized.map_err(|source| {
        let mapper = mapper.clone();
        // libcryptsetup says so of a passphrase, and of a key that is missing from the keyring.
        if passphrase.is_some() && source.is(Errno::PERM) {
            ResizeError::WrongKey { mapper }
        } else {
            ResizeError::Library { mapper, source }
        }
    })
}

fn open(mapper: &MapperName) -> Result<CryptDevice, LibcryptErr> {
    CryptInit::init_by_name_and_header(mapper.as_str(), None)
}

/// How many sectors of 512 bytes lie behind `offset`, in whole sectors of the encryption.
fn fitting(bytes: u64, offset: u64, sector: u64) -> u64 {
    let data = bytes.saturating_sub(offset.saturating_mul(SECTOR));
    data / sector * (sector / SECTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_sectors_behind_the_header() {
        const HEADER: u64 = 32768;
        assert_eq!(fitting(64 << 20, HEADER, 4096), (48 << 20) / 512);
        assert_eq!(fitting((64 << 20) + 512, HEADER, 4096), (48 << 20) / 512);
        assert_eq!(fitting((64 << 20) + 512, HEADER, 512), (48 << 20) / 512 + 1);
        assert_eq!(fitting(1 << 20, HEADER, 4096), 0);
    }
}
