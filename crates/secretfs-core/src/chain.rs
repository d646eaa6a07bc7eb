//! Reading back what is really mounted or swapped to: mountinfo or swaps, then the mapping's uuid and table, then the
//! backing device.

mod swaps;

pub use self::swaps::{Swap, parse_swaps};
use crate::config::{FilesystemType, Target};
use crate::name::{MapperName, MountPoint};

/// A device-mapper device as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Its device number, `MAJOR:MINOR`.
    pub devno: String,
    /// Its device-mapper uuid (`/sys/block/dm-N/dm/uuid`).
    pub uuid: String,
    /// Its table, as `dmsetup table` prints it without keys.
    pub table: String,
    /// The numbers of all the devices of the mounted btrfs that this is a device of; empty if there is none.
    pub btrfs: Vec<String>,
    /// The dm-integrity device that it lies on, if it lies on one.
    pub integrity: Option<Integrity>,
}

/// The dm-integrity device between a mapping and its backing, which libcryptsetup makes for a volume with integrity tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Integrity {
    /// Its device number, `MAJOR:MINOR`.
    pub devno: String,
    /// Its device-mapper uuid.
    pub uuid: String,
    /// The number of the device below it.
    pub backing: String,
}

/// What the volume's chain should be made of.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// Where it is used.
    pub target: &'a Target,
    /// The mapping's name.
    pub mapper: &'a MapperName,
    /// Device number of the backing device, `MAJOR:MINOR`; none if it is not attached.
    pub backing: Option<&'a str>,
}

/// What the kernel says is in use.
#[derive(Debug, Clone, Copy)]
pub struct InUse<'a> {
    /// The text of a mountinfo file.
    pub mountinfo: &'a str,
    /// The lines of `/proc/swaps`.
    pub swaps: &'a [Swap],
}

/// One part of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Nothing is there.
    Absent,
    /// The volume's own is there.
    Ours,
    /// Something else is there.
    Foreign(String),
}

/// How the data is encrypted, as the kernel's table says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// The cipher specification, such as `aes-xts-plain64`.
    pub cipher: String,
    /// The length of the volume key in bits.
    pub key_bits: usize,
    /// Bytes in one encryption sector.
    pub sector_size: u32,
    /// Whether each sector has a tag that tells a change of it.
    pub authenticated: bool,
    /// The device below, `MAJOR:MINOR`.
    pub backing: String,
}

/// A chain that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// How the data is encrypted.
    pub encryption: Encryption,
    /// The LUKS uuid, in its usual form.
    pub luks_uuid: String,
    /// The type of the mounted file system, or `swap`.
    pub filesystem: String,
}

/// Why a chain is not whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// Nothing is mounted on the mount point.
    #[error("nothing is mounted on {0}")]
    NotMounted(MountPoint),
    /// It is not among the kernel's swap space.
    #[error("{} is not in use as swap space", .0.device())]
    NotSwappedTo(MapperName),
    /// Something is there that is not the volume's.
    #[error("{0}")]
    Foreign(String),
}

/// A line of `/proc/PID/mountinfo` (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Device number, `MAJOR:MINOR`.
    pub devno: String,
    /// The directory of the file system that is mounted.
    pub root: String,
    /// Where.
    pub mount_point: String,
    /// The file system's type.
    pub filesystem: String,
    /// What was mounted, as the file system tells it.
    pub source: String,
}

impl Mount {
    /// Whether it is the file system on `mapping`, named `mapper`.
    ///
    /// A btrfs has a made-up device number, for it may lie on many devices. It tells one of them by name, and sysfs
    /// tells them all.
    pub fn is_on(&self, mapper: &MapperName, mapping: &Mapping) -> bool {
        let kernel_name = mapping.devno.split(':').nth(1).map(|minor| format!("/dev/dm-{minor}"));
        let named = self.source == mapper.device() || Some(&self.source) == kernel_name.as_ref();
        self.devno == mapping.devno || (self.filesystem == "btrfs" && named && mapping.btrfs.contains(&mapping.devno))
    }
}

/// Reads a mountinfo file; lines that are not of its form are passed over.
pub fn parse_mountinfo(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (fields, filesystem) = line.split_once(" - ")?;
    let mut fields = fields.split(' ').skip(2);
    let mut filesystem = filesystem.split(' ');
    Some(Mount {
        devno: fields.next()?.to_owned(),
        root: unescape(fields.next()?),
        mount_point: unescape(fields.next()?),
        filesystem: filesystem.next()?.to_owned(),
        source: unescape(filesystem.next()?),
    })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = &after[3..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What is mounted on top at `mount_point`, if anything is.
pub fn top_mount(mountinfo: &str, mount_point: &MountPoint) -> Option<Mount> {
    parse_mountinfo(mountinfo).into_iter().rfind(|mount| mount.mount_point == mount_point.as_str())
}

/// Tells of a mapping of the volume's name whether it is the volume's.
pub fn survey_mapping(expected: Expected<'_>, mapping: Option<&Mapping>) -> Link {
    let Some(mapping) = mapping else { return Link::Absent };
    match check_mapping(expected, mapping) {
        Ok(_) => Link::Ours,
        Err(why) => Link::Foreign(why),
    }
}

/// Tells of what is on the volume's mount point whether it is the volume's; and of swap space whether it is in use.
pub fn survey_mount(expected: Expected<'_>, in_use: InUse<'_>, mapping: Option<&Mapping>) -> Link {
    let mount_point = match expected.target {
        Target::Mount(mount_point) => mount_point,
        // No other device can be in its place: swap space has no place.
        Target::Swap if is_swapped_to(in_use, mapping) => return Link::Ours,
        Target::Swap => return Link::Absent,
    };
    match top_mount(in_use.mountinfo, mount_point) {
        None => Link::Absent,
        Some(mount) if mapping.is_some_and(|mapping| mount.is_on(expected.mapper, mapping)) => Link::Ours,
        Some(mount) => {
            Link::Foreign(format!("{} of device {} is mounted on {mount_point}", mount.filesystem, mount.devno))
        }
    }
}

fn is_swapped_to(in_use: InUse<'_>, mapping: Option<&Mapping>) -> bool {
    mapping.is_some_and(|mapping| in_use.swaps.iter().any(|swap| swap.devno.as_ref() == Some(&mapping.devno)))
}

/// Verifies the whole chain from what was read back.
pub fn verify(expected: Expected<'_>, in_use: InUse<'_>, mapping: Option<&Mapping>) -> Result<Verified, ChainFault> {
    let no_mapping = || ChainFault::Foreign(format!("there is no mapping {}", expected.mapper));
    let (mapping, filesystem) = match expected.target {
        Target::Mount(mount_point) => {
            let mount = top_mount(in_use.mountinfo, mount_point);
            let mount = mount.ok_or_else(|| ChainFault::NotMounted(mount_point.clone()))?;
            let mapping = mapping.ok_or_else(no_mapping)?;
            check_mount(expected.mapper, mount_point, &mount, mapping)?;
            (mapping, mount.filesystem)
        }
        Target::Swap if !is_swapped_to(in_use, mapping) => {
            return Err(ChainFault::NotSwappedTo(expected.mapper.clone()));
        }
        Target::Swap => (mapping.ok_or_else(no_mapping)?, FilesystemType::Swap.as_str().to_owned()),
    };
    let encryption = check_mapping(expected, mapping).map_err(ChainFault::Foreign)?;
    let luks_uuid = luks_uuid(&mapping.uuid).unwrap_or_default();
    Ok(Verified { encryption, luks_uuid, filesystem })
}

/// Checks that `mount` is all of the file system on `mapping`, and that this has no other device.
fn check_mount(
    mapper: &MapperName,
    mount_point: &MountPoint,
    mount: &Mount,
    mapping: &Mapping,
) -> Result<(), ChainFault> {
    if !mount.is_on(mapper, mapping) {
        let why = format!("device {} is mounted on {mount_point}, not {mapper} ({})", mount.devno, mapping.devno);
        return Err(ChainFault::Foreign(why));
    }
    if mapping.btrfs.len() > 1 {
        let devices = mapping.btrfs.join(", ");
        return Err(ChainFault::Foreign(format!("the btrfs of {mapper} lies on more devices: {devices}")));
    }
    if mount.root != "/" {
        let why = format!("only the directory {} of the volume is mounted on {mount_point}", mount.root);
        return Err(ChainFault::Foreign(why));
    }
    Ok(())
}

fn check_mapping(expected: Expected<'_>, mapping: &Mapping) -> Result<Encryption, String> {
    let mapper = expected.mapper;
    let named = mapping.uuid.strip_suffix(mapper.as_str()).is_some_and(|rest| rest.ends_with('-'));
    if !(mapping.uuid.starts_with("CRYPT-LUKS") && named) {
        return Err(format!("{mapper} is not a LUKS mapping of this volume: its uuid is {:?}", mapping.uuid));
    }
    let mut encryption = parse_crypt_table(&mapping.table)
        .ok_or_else(|| format!("{mapper} is not one dm-crypt target: its table is {:?}", mapping.table.trim()))?;
    // A volume that somebody else formatted may have any real cipher; `cipher_null` encrypts nothing.
    if encryption.cipher.contains("null") || encryption.key_bits < 128 {
        return Err(format!("{mapper} is mapped with the cipher {}", encryption.cipher));
    }
    if let Some(integrity) = mapping.integrity.as_ref().filter(|integrity| integrity.devno == encryption.backing) {
        let same_header = luks_uuid(&integrity.uuid).is_some_and(|uuid| Some(uuid) == luks_uuid(&mapping.uuid));
        if !(integrity.uuid.starts_with("CRYPT-INTEGRITY-") && same_header && encryption.authenticated) {
            return Err(format!("{mapper} lies on an integrity device of another volume: {:?}", integrity.uuid));
        }
        encryption.backing.clone_from(&integrity.backing);
    }
    match expected.backing {
        Some(backing) if backing == encryption.backing => Ok(encryption),
        Some(backing) => {
            Err(format!("{mapper} lies on device {}, but the backing device is {backing}", encryption.backing))
        }
        None => Err(format!("{mapper} lies on device {}, but the backing is not attached", encryption.backing)),
    }
}

/// Reads a table of one crypt target (kernel documentation, device-mapper/dm-crypt):
/// `START LENGTH crypt CIPHER KEY IV_OFFSET DEVICE OFFSET [PARAMETERS]`.
pub fn parse_crypt_table(table: &str) -> Option<Encryption> {
    let mut lines = table.lines().filter(|line| !line.trim().is_empty());
    let line = lines.next()?;
    if lines.next().is_some() {
        return None;
    }
    let fields: Vec<&str> = line.split_whitespace().collect();
    let ["0", _length, "crypt", cipher, key, _iv_offset, device, _offset, parameters @ ..] = fields.as_slice() else {
        return None;
    };
    // A key in the kernel's keyring is `:BYTES:TYPE:NAME`; a key in the table is hexadecimal, shown as zeros.
    let key_bits = match key.strip_prefix(':') {
        Some(reference) => reference.split(':').next()?.parse::<usize>().ok()? * 8,
        None => key.len() * 4,
    };
    let sector_size = parameters
        .iter()
        .find_map(|parameter| parameter.strip_prefix("sector_size:"))
        .map_or(Some(512), |size| size.parse().ok())?;
    let authenticated = parameters.iter().any(|parameter| parameter.starts_with("integrity:"));
    Some(Encryption {
        cipher: (*cipher).to_owned(),
        key_bits,
        sector_size,
        authenticated,
        backing: (*device).to_owned(),
    })
}

/// The LUKS uuid in a device-mapper uuid `CRYPT-LUKS2-UUID-NAME`, with its hyphens put back.
pub fn luks_uuid(dm_uuid: &str) -> Option<String> {
    let digits = dm_uuid.split('-').nth(2).filter(|digits| digits.len() == 32 && digits.is_ascii())?;
    Some([&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-"))
}

#[cfg(test)]
mod tests;
