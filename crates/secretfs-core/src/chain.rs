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
    let encryption = parse_crypt_table(&mapping.table)
        .ok_or_else(|| format!("{mapper} is not one dm-crypt target: its table is {:?}", mapping.table.trim()))?;
    // A volume that somebody else formatted may have any real cipher; `cipher_null` encrypts nothing.
    if encryption.cipher.contains("null") || encryption.key_bits < 128 {
        return Err(format!("{mapper} is mapped with the cipher {}", encryption.cipher));
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
    Some(Encryption { cipher: (*cipher).to_owned(), key_bits, sector_size, backing: (*device).to_owned() })
}

/// The LUKS uuid in a device-mapper uuid `CRYPT-LUKS2-UUID-NAME`, with its hyphens put back.
pub fn luks_uuid(dm_uuid: &str) -> Option<String> {
    let digits = dm_uuid.split('-').nth(2).filter(|digits| digits.len() == 32 && digits.is_ascii())?;
    Some([&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::name::VolumeName;

    const MOUNTINFO: &str = "\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
40 22 253:0 / /mnt/secretfs rw,relatime shared:9 - ext4 /dev/mapper/secretfs-scratch rw\n\
41 22 0:33 / /mnt/with\\040space rw - tmpfs tmpfs rw\n";

    fn mapping() -> Mapping {
        Mapping {
            devno: "253:0".to_owned(),
            uuid: "CRYPT-LUKS2-0123456789abcdef0123456789abcdef-secretfs-scratch".to_owned(),
            table: "0 98304 crypt aes-xts-plain64 :64:logon:cryptsetup:0123-d0 0 7:0 32768 1 sector_size:4096\n"
                .to_owned(),
            btrfs: Vec::new(),
        }
    }

    fn with<T>(backing: Option<&str>, run: impl FnOnce(Expected<'_>) -> T) -> T {
        let target = Target::Mount(MountPoint::new("/mnt/secretfs").unwrap());
        let mapper = VolumeName::new("scratch").unwrap().mapper();
        run(Expected { target: &target, mapper: &mapper, backing })
    }

    fn mounted(mountinfo: &str) -> InUse<'_> {
        InUse { mountinfo, swaps: &[] }
    }

    #[test]
    fn a_whole_chain() {
        let verified = with(Some("7:0"), |expected| verify(expected, mounted(MOUNTINFO), Some(&mapping())));
        let encryption = Encryption {
            cipher: "aes-xts-plain64".to_owned(),
            key_bits: 512,
            sector_size: 4096,
            backing: "7:0".to_owned(),
        };
        let luks_uuid = "01234567-89ab-cdef-0123-456789abcdef".to_owned();
        assert_eq!(verified, Ok(Verified { encryption, luks_uuid, filesystem: "ext4".to_owned() }));
    }

    #[test]
    fn a_btrfs_is_known_by_its_devices() {
        for source in ["/dev/mapper/secretfs-scratch", "/dev/dm-0", "/dev/dm-1", "/dev/mapper/secretfs-scratch-2"] {
            let mountinfo = format!("40 22 0:45 / /mnt/secretfs rw - btrfs {source} rw\n");
            for (members, whole) in [(vec!["253:0"], true), (vec![], false), (vec!["253:0", "8:0"], false)] {
                let mapping = Mapping { btrfs: members.iter().map(|&member| member.to_owned()).collect(), ..mapping() };
                let in_use = mounted(&mountinfo);
                let ours = with(Some("7:0"), |expected| survey_mount(expected, in_use, Some(&mapping)));
                let verified = with(Some("7:0"), |expected| verify(expected, in_use, Some(&mapping)));
                let named = !source.ends_with(['1', '2']);
                assert_eq!(ours == Link::Ours, named && !members.is_empty(), "{source} {members:?}");
                assert_eq!(verified.is_ok(), named && whole, "{source} {members:?}: {verified:?}");
            }
        }
    }

    #[test]
    fn a_missing_mount_is_told_from_a_wrong_one() {
        let root_only = MOUNTINFO.lines().next().unwrap();
        let fault = with(Some("7:0"), |expected| verify(expected, mounted(root_only), Some(&mapping()))).unwrap_err();
        assert_eq!(fault.to_string(), "nothing is mounted on /mnt/secretfs");
        let over = format!("{MOUNTINFO}50 40 0:50 / /mnt/secretfs rw - tmpfs tmpfs rw\n");
        let fault = with(Some("7:0"), |expected| verify(expected, mounted(&over), Some(&mapping()))).unwrap_err();
        assert!(matches!(fault, ChainFault::Foreign(_)), "{fault}");
    }

    #[test]
    fn every_wrong_link_is_refused() {
        let wrong: [(&str, Mapping); 5] = [
            ("plain", Mapping { uuid: "CRYPT-PLAIN-secretfs-scratch".to_owned(), ..mapping() }),
            ("other name", Mapping { uuid: mapping().uuid.replace("scratch", "other"), ..mapping() }),
            ("linear", Mapping { table: "0 98304 linear 7:0 0\n".to_owned(), ..mapping() }),
            ("null", Mapping { table: mapping().table.replace("aes-xts-plain64", "cipher_null-ecb"), ..mapping() }),
            ("other device", Mapping { table: mapping().table.replace("7:0", "7:1"), ..mapping() }),
        ];
        for (what, mapping) in wrong {
            let link = with(Some("7:0"), |expected| survey_mapping(expected, Some(&mapping)));
            assert!(matches!(link, Link::Foreign(_)), "{what}: {link:?}");
            let verified = with(Some("7:0"), |expected| verify(expected, mounted(MOUNTINFO), Some(&mapping)));
            assert!(verified.is_err(), "{what}");
        }
        assert!(matches!(with(None, |expected| survey_mapping(expected, Some(&mapping()))), Link::Foreign(_)));
    }

    #[test]
    fn a_survey_of_each_kind() {
        with(Some("7:0"), |expected| {
            assert_eq!(survey_mapping(expected, None), Link::Absent);
            assert_eq!(survey_mapping(expected, Some(&mapping())), Link::Ours);
            assert_eq!(survey_mount(expected, mounted(MOUNTINFO), Some(&mapping())), Link::Ours);
            assert_eq!(survey_mount(expected, mounted(""), Some(&mapping())), Link::Absent);
            assert!(matches!(survey_mount(expected, mounted(MOUNTINFO), None), Link::Foreign(_)));
        });
    }

    #[test]
    fn swap_space_is_known_by_its_device() {
        let mapper = VolumeName::new("scratch").unwrap().mapper();
        let expected = Expected { target: &Target::Swap, mapper: &mapper, backing: Some("7:0") };
        let text = "Filename Type Size Used Priority\n/dev/dm-0 partition 65532 0 -2\n";
        let lost = ChainFault::NotSwappedTo(mapper.clone());
        for (devno, link) in [(Some("253:0"), Link::Ours), (Some("253:1"), Link::Absent), (None, Link::Absent)] {
            let swaps = parse_swaps(text, |_| devno.map(str::to_owned));
            // What is mounted is of no interest.
            let in_use = InUse { mountinfo: MOUNTINFO, swaps: &swaps };
            assert_eq!(survey_mount(expected, in_use, Some(&mapping())), link);
            let verified = verify(expected, in_use, Some(&mapping())).map(|verified| verified.filesystem);
            assert_eq!(
                verified,
                if link == Link::Ours { Ok("swap".to_owned()) } else { Err(lost.clone()) },
                "{devno:?}"
            );
            assert_eq!(survey_mount(expected, in_use, None), Link::Absent);
            assert_eq!(verify(expected, in_use, None), Err(lost.clone()));
        }
        let swaps = parse_swaps(text, |_| Some("253:0".to_owned()));
        let null = Mapping { table: mapping().table.replace("aes-xts-plain64", "cipher_null-ecb"), ..mapping() };
        let fault = verify(expected, InUse { mountinfo: "", swaps: &swaps }, Some(&null)).unwrap_err();
        assert!(matches!(fault, ChainFault::Foreign(_)), "{fault}");
    }

    #[test]
    fn a_key_in_the_table_counts_its_digits() {
        let table = format!("0 8 crypt aes-cbc-essiv:sha256 {} 0 7:0 4096", "0".repeat(64));
        let encryption = parse_crypt_table(&table).unwrap();
        assert_eq!((encryption.key_bits, encryption.sector_size), (256, 512));
    }

    #[test]
    fn escapes_of_mountinfo() {
        assert_eq!(parse_mountinfo(MOUNTINFO)[2].mount_point, "/mnt/with space");
        assert_eq!(unescape("a\\134b\\"), "a\\b\\");
    }

    proptest! {
        #[test]
        fn never_panics(text in "(?s).{0,120}") {
            let _ = parse_mountinfo(&text);
            let _ = parse_swaps(&text, |_| None);
            let _ = parse_crypt_table(&text);
            let _ = luks_uuid(&text);
        }
    }
}
