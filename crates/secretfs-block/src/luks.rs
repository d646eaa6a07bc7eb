//! LUKS headers and mappings, through libcryptsetup.

use std::thread;
use std::time::{Duration, Instant};

use libcryptsetup_rs::consts::flags::{CryptActivate, CryptDeactivate, CryptPbkdf, CryptVolumeKey};
use libcryptsetup_rs::consts::vals::{CryptKdf, EncryptionFormat};
use libcryptsetup_rs::{
    CryptDevice, CryptInit, CryptParamsLuks2, CryptParamsLuks2Ref, CryptPbkdfType, CryptSettingsHandle, Either,
    LibcryptErr,
};
use rustix::io::Errno;
use secrecy::ExposeSecret;
use secretfs_core::config::{Integrity, Lifecycle, Wipe};
use secretfs_core::key::Kdf;
use secretfs_core::name::MapperName;

use crate::cryptsetup;
use crate::device::{self, DevicePath};
use crate::inspect::{self, Contents};
use crate::{Outcome, Passphrase, mapping, tool};

mod error;
mod hidden;
mod resize;
mod wipe;

pub use error::{CloseError, FormatError, HeaderError, OpenError};
pub use hidden::{ShowError, finish_show, show};
pub use resize::{ResizeError, Room, resize, room};
pub use wipe::{note_zeroed, zeroed};

/// The LUKS2 subsystem of a volume whose file system is not whole yet.
pub const FORMATTING: &str = "secretfs-formatting";

/// The LUKS2 subsystem of a volume that is whole, and overwritten in the next boot.
pub const EPHEMERAL: &str = "secretfs";

/// The LUKS2 subsystem of a volume that is whole, and kept.
pub const PERSISTENT: &str = "secretfs-persistent";

/// AES-256 in XTS mode takes two keys of 32 bytes.
const VOLUME_KEY_BYTES: usize = 64;

/// The volume key is longer by a key for the tags (cryptsetup(8), `--integrity hmac-sha256`).
const HMAC_SHA256_KEY_BYTES: usize = 32;

/// The encryption sector where the size of the device allows it: an eighth of the initialisation vectors, and what
/// flash devices and page caches write anyway.
const LARGE_SECTOR: u32 = 4096;

/// The encryption sector that always works.
const SMALL_SECTOR: u32 = 512;

/// What libcryptsetup sets aside before the data (cryptsetup(8), "LUKS2 header").
const HEADER_BYTES: u64 = 16 << 20;

/// The least iterations of PBKDF2 that LUKS2 takes (`cryptsetup --pbkdf-force-iterations`).
const MINIMAL_ITERATIONS: u32 = 1000;

/// udev opens a mapping to look at it, and is done in much less.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Between two tries to close.
const CLOSE_PAUSE: Duration = Duration::from_millis(100);

/// What a LUKS header says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LuksFacts {
    /// 1 or 2.
    pub version: u8,
    /// Its UUID, with dashes.
    pub uuid: String,
    /// Its label; LUKS1 has none.
    pub label: String,
    /// Its subsystem; LUKS1 has none.
    pub subsystem: String,
}

impl LuksFacts {
    /// Whether secretfs made this header for the mapping `mapper`.
    pub fn is_ours(&self, mapper: &MapperName) -> bool {
        self.is_of_secretfs() && self.label == mapper.as_str()
    }

    fn is_of_secretfs(&self) -> bool {
        self.version == 2 && [FORMATTING, EPHEMERAL, PERSISTENT].contains(&self.subsystem.as_str())
    }

    /// Whether secretfs made this header for another mapping than `mapper`.
    pub fn is_of_another(&self, mapper: &MapperName) -> bool {
        self.is_of_secretfs() && self.label != mapper.as_str()
    }

    /// Whether secretfs made this header, for whatever mapping, and it is not to be overwritten.
    pub fn is_kept(&self) -> bool {
        self.is_of_secretfs() && self.subsystem == PERSISTENT
    }

    /// Whether secretfs began this header for `mapper` and did not get as far as [`mark_complete`].
    pub fn is_interrupted(&self, mapper: &MapperName) -> bool {
        self.is_ours(mapper) && self.subsystem == FORMATTING
    }
}

/// How a volume is formatted.
#[derive(Debug, Clone, Copy)]
pub struct FormatOptions<'a> {
    /// Becomes the header's label.
    pub mapper: &'a MapperName,
    /// How the key slot derives its key.
    pub kdf: Kdf,
    /// Bytes in one encryption sector; nothing for the largest that the size of the device allows.
    pub sector_size: Option<u32>,
    /// What the tags of the sectors are made with, if they are to have any.
    pub integrity: Option<Integrity>,
    /// What is done about what was on the device before; zeros are only noted to be due.
    pub wipe: Wipe,
}

/// How a volume is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// Whether discards go through to the device, which shows it what is in use.
    pub discard: bool,
    /// Whether reads are decrypted at once, in the caller's context, instead of in a work queue.
    pub no_read_workqueue: bool,
    /// Whether writes are encrypted at once instead of in a work queue.
    pub no_write_workqueue: bool,
}

impl OpenFlags {
    fn activation(self) -> CryptActivate {
        let mut flags = CryptActivate::empty();
        flags.set(CryptActivate::ALLOW_DISCARDS, self.discard);
        flags.set(CryptActivate::NO_READ_WORKQUEUE, self.no_read_workqueue);
        flags.set(CryptActivate::NO_WRITE_WORKQUEUE, self.no_write_workqueue);
        flags
    }
}

/// Makes a LUKS2 header with one key slot for `passphrase`, marked as [`FORMATTING`].
///
/// The caller has proven that the device is blank or ours. As a last guard, a device with a signature other than a
/// header that secretfs made for this very volume, and that is not to be kept, is refused.
pub fn format(device: &DevicePath, options: FormatOptions<'_>, passphrase: &Passphrase) -> Result<(), FormatError> {
    match inspect::signature(device)? {
        None => {}
        Some(Contents::Luks(facts)) if facts.is_ours(options.mapper) && !facts.is_kept() => {}
        Some(Contents::Luks(facts)) if facts.is_ours(options.mapper) => {
            let kind = format!("the LUKS header of the persistent volume {}", options.mapper);
            return Err(FormatError::Occupied { device: device.clone(), kind });
        }
        Some(Contents::Signature { kind, .. }) => {
            return Err(FormatError::Occupied { device: device.clone(), kind });
        }
        Some(_) => {
            let kind = format!("a LUKS header that secretfs did not make as {}", options.mapper);
            return Err(FormatError::Occupied { device: device.clone(), kind });
        }
    }
    let bytes = inspect::size(device)?;
    // libcryptsetup notices on a block device only, and lets a plain file grow.
    if bytes <= HEADER_BYTES {
        return Err(FormatError::TooSmall { device: device.clone(), bytes, header: HEADER_BYTES });
    }
    let largest = if bytes.is_multiple_of(LARGE_SECTOR.into()) { LARGE_SECTOR } else { SMALL_SECTOR };
    let sector_size = options.sector_size.unwrap_or(largest);
    if !bytes.is_multiple_of(sector_size.into()) {
        return Err(FormatError::Uneven { device: device.clone(), bytes, sector_size });
    }
    if options.wipe == Wipe::Discard {
        tool::run("blkdiscard", &[device.as_str()])
            .map_err(|source| FormatError::Discard { device: device.clone(), source })?;
    }
    let (integrity, tag_key_bytes) = match options.integrity {
        Some(Integrity::HmacSha256) => (Some("hmac(sha256)".to_owned()), HMAC_SHA256_KEY_BYTES),
        None => (None, 0),
    };
    let formatted = cryptsetup::call(|| {
        let parameters = CryptParamsLuks2 {
            pbkdf: Some(pbkdf(options.kdf)?),
            integrity,
            integrity_params: None,
            data_alignment: 0,
            data_device: None,
            sector_size,
            label: Some(options.mapper.as_str().to_owned()),
            subsystem: Some(FORMATTING.to_owned()),
        };
        let mut parameters: CryptParamsLuks2Ref<'_> = (&parameters).try_into()?;
        let mut handle = CryptInit::init(device.as_path())?;
        handle.context_handle().format(
            EncryptionFormat::Luks2,
            ("aes", "xts-plain64"),
            None,
            Either::Right(VOLUME_KEY_BYTES + tag_key_bytes),
            Some(&mut parameters),
        )?;
        let key = passphrase.expose_secret();
        handle.keyslot_handle().add_by_key(None, None, key, CryptVolumeKey::empty())?;
        match options.wipe {
            Wipe::Zero { .. } => wipe::note(&mut handle, Some(0)),
            Wipe::None | Wipe::Discard => Ok(()),
        }
    });
    formatted.map_err(|source| FormatError::Library { device: device.clone(), source })
}

/// Marks the volume as whole, once its file system is made, and as one that is kept or not. One that is marked as kept
/// stays that.
pub fn mark_complete(device: &DevicePath, mapper: &MapperName, lifecycle: Lifecycle) -> Result<Outcome, HeaderError> {
    let subsystem = match lifecycle {
        Lifecycle::Ephemeral => EPHEMERAL,
        Lifecycle::Persistent => PERSISTENT,
    };
    match header(device)?.filter(|facts| facts.is_ours(mapper)) {
        None => return Err(HeaderError::NotOurs { device: device.clone(), mapper: mapper.clone() }),
        Some(facts) if facts.is_kept() || facts.subsystem == subsystem => return Ok(Outcome::Unchanged),
        Some(_) => {}
    }
    let marked = cryptsetup::call(|| {
        let mut handle = load(device)?;
        handle.context_handle().set_label(Some(mapper.as_str()), Some(subsystem))
    });
    marked.map_err(|source| HeaderError::Write { device: device.clone(), source })?;
    Ok(Outcome::Changed)
}

/// Reads the header, for which no key is needed; nothing when libblkid finds no LUKS or finds more than that.
pub fn header(device: &DevicePath) -> Result<Option<LuksFacts>, HeaderError> {
    let Some(Contents::Luks(facts)) = inspect::signature(device)? else { return Ok(None) };
    match cryptsetup::call(|| load(device)) {
        Ok(_) => Ok(Some(facts)),
        Err(source) => Err(HeaderError::Broken { device: device.clone(), source }),
    }
}

/// Opens the volume as `/dev/mapper/MAPPER`; one whose format is not finished is kept from udev's rules, and so from
/// systemd, until [`show`]. An existing mapping of this very volume is left as it is.
pub fn open(
    device: &DevicePath,
    mapper: &MapperName,
    passphrase: &Passphrase,
    flags: OpenFlags,
) -> Result<Outcome, OpenError> {
    let facts = header(device)?.ok_or_else(|| OpenError::NoHeader { device: device.clone() })?;
    if is_open(device, mapper, &facts)? {
        return Ok(Outcome::Unchanged);
    }
    let mut activation = flags.activation();
    activation.set(CryptActivate::PRIVATE, facts.is_interrupted(mapper));
    activate(device, Some(mapper), passphrase, activation)?;
    Ok(Outcome::Changed)
}

/// Removes the dm-integrity device of a mapping that is not there itself: a crash while it was opened or closed leaves it,
/// and the backing device in use by it.
pub fn remove_orphan(mapper: &MapperName) -> Result<Outcome, CloseError> {
    let name = mapping::integrity_name(mapper);
    let ours = mapping::uuid(&name)?.is_some_and(|uuid| uuid.starts_with("CRYPT-INTEGRITY-") && uuid.ends_with(&name));
    if !ours || mapping::find(mapper)?.is_some() {
        return Ok(Outcome::Unchanged);
    }
    // One that is in use is not removed.
    tool::run("dmsetup", &["remove", "--retry", &name])
        .map_err(|source| CloseError::Orphan { mapper: mapper.clone(), source })?;
    Ok(Outcome::Changed)
}

/// Tries the key without opening anything.
pub fn test(device: &DevicePath, passphrase: &Passphrase) -> Result<(), OpenError> {
    header(device)?.ok_or_else(|| OpenError::NoHeader { device: device.clone() })?;
    activate(device, None, passphrase, CryptActivate::empty())
}

/// Closes the mapping, and waits a little for those who only look at it.
pub fn close(mapper: &MapperName) -> Result<Outcome, CloseError> {
    let Some(nodes) = mapping::find(mapper)? else { return Ok(Outcome::Unchanged) };
    if !nodes.uuid.starts_with("CRYPT-") {
        return Err(CloseError::NotCrypt { mapper: mapper.clone(), uuid: nodes.uuid });
    }
    let deadline = Instant::now() + CLOSE_LIMIT;
    loop {
        let closed = cryptsetup::call(|| {
            let mut handle = CryptInit::init_by_name_and_header(mapper.as_str(), None)?;
            handle.activate_handle().deactivate(mapper.as_str(), CryptDeactivate::empty())
        });
        match closed {
            Ok(()) => return Ok(Outcome::Changed),
            Err(source) if source.is(Errno::NODEV) && mapping::find(mapper)?.is_none() => {
                return Ok(Outcome::Unchanged);
            }
            Err(source) if !source.is(Errno::BUSY) => {
                return Err(CloseError::Library { mapper: mapper.clone(), source });
            }
            Err(_) if Instant::now() < deadline => thread::sleep(CLOSE_PAUSE),
            Err(source) => {
                let users = device::facts(&DevicePath::at(mapper.device())).ok().and_then(|facts| facts.users());
                let users = users.map_or_else(String::new, |users| format!(": {users}"));
                return Err(CloseError::Busy { mapper: mapper.clone(), users, source });
            }
        }
    }
}

/// Whether the mapping is there already, over this very volume.
fn is_open(device: &DevicePath, mapper: &MapperName, facts: &LuksFacts) -> Result<bool, OpenError> {
    let Some(nodes) = mapping::find(mapper)? else { return Ok(false) };
    let uuid = format!("CRYPT-LUKS{}-{}-{mapper}", facts.version, facts.uuid.replace('-', ""));
    let number = device::number(device).map_err(|source| OpenError::Device { source })?.to_string();
    if nodes.uuid == uuid && mapping::backing_number(mapper, &nodes)?.as_ref() == Some(&number) {
        return Ok(true);
    }
    let found = format!("{} over {}", nodes.uuid, nodes.slaves.join(" and "));
    Err(OpenError::OtherMapping { mapper: mapper.clone(), found, wanted: format!("{uuid} over {number}") })
}

fn activate(
    device: &DevicePath,
    mapper: Option<&MapperName>,
    passphrase: &Passphrase,
    flags: CryptActivate,
) -> Result<(), OpenError> {
    let activated = cryptsetup::call(|| {
        let mut handle = load(device)?;
        let key = passphrase.expose_secret();
        handle.activate_handle().activate_by_passphrase(mapper.map(MapperName::as_str), None, key, flags)
    });
    activated.map(|_| ()).map_err(|source| {
        let device = device.clone();
        if source.is(Errno::PERM) {
            OpenError::WrongKey { device }
        } else if source.is(Errno::NOENT) {
            OpenError::NoKeySlot { device, source }
        } else {
            OpenError::Library { device, source }
        }
    })
}

fn load(device: &DevicePath) -> Result<CryptDevice, LibcryptErr> {
    let mut handle = CryptInit::init(device.as_path())?;
    handle.context_handle().load::<()>(None, None)?;
    Ok(handle)
}

fn pbkdf(kdf: Kdf) -> Result<CryptPbkdfType, LibcryptErr> {
    match kdf {
        Kdf::Pbkdf2Minimal => Ok(CryptPbkdfType {
            type_: CryptKdf::Pbkdf2,
            hash: Some("sha256".to_owned()),
            time_ms: 0,
            iterations: MINIMAL_ITERATIONS,
            max_memory_kb: 0,
            parallel_threads: 0,
            flags: CryptPbkdf::NO_BENCHMARK,
        }),
        // The library measures the machine: two seconds, and half of its memory or 1 GiB at most.
        Kdf::Argon2id => CryptSettingsHandle::get_pbkdf_type_params(&CryptKdf::Argon2Id),
    }
}

#[cfg(test)]
mod tests;
