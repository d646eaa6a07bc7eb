use std::fs;

use super::*;
use crate::testing::{Scratch, put, run};

/// Large enough not to be read whole.
const LARGE: u64 = 512 * MIB;

fn kind(device: &DevicePath) -> (String, Usage) {
    match inspect(device).unwrap() {
        Contents::Signature { kind, usage } => (kind, usage),
        other => panic!("{other:?}"),
    }
}

#[test]
fn zeros_are_blank_whatever_their_number() {
    let scratch = Scratch::new();
    for bytes in [1, 511, 512, 4096, 12345, MIB, 18 * MIB, 18 * MIB + 1, LARGE, LARGE + 512, 4096 * MIB] {
        let device = scratch.device("blank", bytes);
        assert_eq!(inspect(&device).unwrap(), Contents::Blank, "{bytes}");
    }
}

#[test]
fn no_bytes_prove_nothing() {
    let scratch = Scratch::new();
    let device = scratch.device("empty", 0);
    let failure = inspect(&device).unwrap_err().failure();
    assert_eq!(failure, Failure::new(Cause::BackingMismatch, format!("{device} is empty: its size is 0")));
    fs::remove_file(device.as_path()).unwrap();
    assert_eq!(inspect(&device).unwrap_err().failure().cause, Cause::BackingMissing);
}

#[test]
fn one_byte_is_not_blank() {
    let scratch = Scratch::new();
    let middle = regions(LARGE)[128].start;
    for (bytes, offset) in [(MIB, 700_000), (LARGE, MIB - 1), (LARGE, LARGE - 1), (LARGE, middle + 77)] {
        let device = scratch.device("byte", bytes);
        put(&device, offset, &[1]);
        let contents = inspect(&device).unwrap();
        assert_eq!(contents, Contents::Unknown { offset });
        let detail = format!("{device} has no signature that is known, but data at byte {offset}");
        assert_eq!(contents.refusal(&device), Some(Failure::new(Cause::NotBlank, detail)));
    }
}

#[test]
fn a_first_mib_of_zeros_hides_no_data() {
    let scratch = Scratch::new();
    let device = scratch.device("middle", LARGE);
    // An eighth of a per cent of the device.
    put(&device, 200 * MIB, &vec![0xa7; usize::try_from(4 * MIB).unwrap()]);
    assert!(matches!(inspect(&device).unwrap(), Contents::Unknown { offset } if offset >= 200 * MIB));
}

#[test]
fn samples_cover_the_device_in_order() {
    for bytes in [18 * MIB + 512, 19 * MIB, 300 * MIB + 1, LARGE, 1 << 44] {
        let regions = regions(bytes);
        assert_eq!(regions.len(), 258);
        assert_eq!((regions[0].clone(), regions[257].end), (0..MIB, bytes));
        assert!(regions[257].start <= bytes - MIB);
        assert!(regions.windows(2).all(|pair| pair[0].end <= pair[1].start), "{bytes}");
        assert!(regions.iter().all(|region| region.start % ALIGNMENT == 0));
        let stride = (bytes - 2 * MIB) / SAMPLES;
        let widest = regions.windows(2).map(|pair| pair[1].start - pair[0].end).max().unwrap();
        assert!(widest <= stride + 2 * ALIGNMENT, "{bytes}: {widest}");
    }
}

#[test]
fn file_systems_and_swap_are_named() {
    let scratch = Scratch::new();
    let device = scratch.device("fs", LARGE);
    run("mkfs.ext4", &["-q", device.as_str()]);
    assert_eq!(kind(&device), ("ext4".to_owned(), Usage::Filesystem));
    let refusal = inspect(&device).unwrap().refusal(&device).unwrap();
    let wanted = Failure::new(Cause::ForeignSignature, format!("{device} carries ext4, a file system"));
    assert_eq!(refusal, wanted);
    // A damaged superblock is a signature still: its checksum is wrong now.
    put(&device, 1024 + 0x78, b"damaged");
    assert_eq!(kind(&device).0, "ext4");
    let device = scratch.device("fs", LARGE);
    run("mkfs.xfs", &["-q", device.as_str()]);
    assert_eq!(kind(&device), ("xfs".to_owned(), Usage::Filesystem));
    let device = scratch.device("fs", LARGE);
    run("mkswap", &[device.as_str()]);
    assert_eq!(kind(&device), ("swap".to_owned(), Usage::Other));
}

#[test]
fn luks_headers_are_told() {
    let scratch = Scratch::new();
    let key = scratch.path("key");
    fs::write(&key, "horse").unwrap();
    for (version, kind) in [(1, "luks1"), (2, "luks2")] {
        let device = scratch.device(kind, 64 * MIB);
        let mut arguments = vec!["luksFormat", "--batch-mode", "--type", kind, "--pbkdf", "pbkdf2"];
        arguments.extend(["--pbkdf-force-iterations", "1000", "--uuid", "6cd0b4f5-3c9d-4b2e-9a0e-5a3b5b0d8f11"]);
        arguments.extend([device.as_str(), key.to_str().unwrap()]);
        run("cryptsetup", &arguments);
        let uuid = "6cd0b4f5-3c9d-4b2e-9a0e-5a3b5b0d8f11".to_owned();
        let facts = LuksFacts { version, uuid, label: String::new(), subsystem: String::new() };
        assert_eq!(inspect(&device).unwrap(), Contents::Luks(facts));
    }
}

#[test]
fn members_of_something_larger_are_named() {
    let scratch = Scratch::new();
    let device = scratch.device("lvm", 64 * MIB);
    let mut label = [0_u8; 512];
    label[..8].copy_from_slice(b"LABELONE");
    label[8] = 1;
    label[20] = 32;
    label[24..32].copy_from_slice(b"LVM2 001");
    label[32..64].copy_from_slice(&[b'a'; 32]);
    put(&device, 512, &label);
    assert_eq!(kind(&device), ("LVM2_member".to_owned(), Usage::Raid));

    let device = scratch.device("md", 64 * MIB);
    let mut superblock = [0_u8; 256];
    superblock[..4].copy_from_slice(&0xa92b_4efc_u32.to_le_bytes());
    superblock[4] = 1;
    superblock[16..32].copy_from_slice(&[7; 16]);
    superblock[144..152].copy_from_slice(&8_u64.to_le_bytes());
    put(&device, 4096, &superblock);
    assert_eq!(kind(&device), ("linux_raid_member".to_owned(), Usage::Raid));

    let device = scratch.device("zfs", 128 * MIB);
    for number in 0..8 {
        put(&device, 128 * 1024 + number * 1024, &0x00ba_b10c_u64.to_le_bytes());
    }
    assert_eq!(kind(&device).0, "zfs_member");
}

#[test]
fn partition_tables_are_named() {
    let scratch = Scratch::new();
    let device = scratch.device("dos", 64 * MIB);
    put(&device, 0, &boot_record(0x83));
    assert_eq!(kind(&device), ("dos".to_owned(), Usage::PartitionTable));
    let device = scratch.device("gpt", 64 * MIB);
    put_gpt(&device, 64 * MIB);
    assert_eq!(kind(&device), ("gpt".to_owned(), Usage::PartitionTable));
    let words = inspect(&device).unwrap().refusal(&device).unwrap().detail;
    assert_eq!(words, format!("{device} carries gpt, a partition table"));
}

#[test]
fn two_signatures_are_both_named() {
    let scratch = Scratch::new();
    let device = scratch.device("two", LARGE);
    run("mkfs.ext4", &["-q", device.as_str()]);
    let mut superblock = [0_u8; 1024];
    fs::File::open(device.as_path()).unwrap().read_exact_at(&mut superblock, 1024).unwrap();
    let device = scratch.device("two", LARGE);
    run("mkfs.xfs", &["-q", device.as_str()]);
    put(&device, 1024, &superblock);
    let (kind, usage) = kind(&device);
    assert_eq!((kind.contains("ext4"), kind.contains("xfs"), usage), (true, true, Usage::Other), "{kind}");
}

#[test]
fn a_luks_header_over_an_older_file_system_is_luks() {
    let scratch = Scratch::new();
    let device = scratch.device("over", 64 * MIB);
    run("mkfs.ext4", &["-q", device.as_str()]);
    let mut superblock = [0_u8; 1024];
    fs::File::open(device.as_path()).unwrap().read_exact_at(&mut superblock, 1024).unwrap();
    let key = scratch.path("key");
    fs::write(&key, "horse").unwrap();
    let luks = ["luksFormat", "--batch-mode", "--type", "luks1", "--pbkdf-force-iterations", "1000"];
    run("cryptsetup", &[&luks[..], &[device.as_str(), key.to_str().unwrap()]].concat());
    // Older cryptsetup left the sectors between the header and its key slots as they were.
    put(&device, 1024, &superblock);
    assert!(matches!(inspect(&device).unwrap(), Contents::Luks(LuksFacts { version: 1, .. })));
}

/// A boot record with one partition of the kind, from sector 1 on.
fn boot_record(partition: u8) -> [u8; 512] {
    let mut record = [0; 512];
    record[446 + 4] = partition;
    record[446 + 8] = 1;
    record[446 + 12..446 + 16].copy_from_slice(&(128 * 1024_u32 - 1).to_le_bytes());
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    record
}

/// An empty GPT (UEFI specification, chapter 5) without its copy at the end.
fn put_gpt(device: &DevicePath, bytes: u64) {
    put(device, 0, &boot_record(0xee));
    let entries = [0_u8; 128 * 128];
    let last = bytes / 512 - 1;
    let mut header = [0_u8; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[8..16].copy_from_slice(&[0, 0, 1, 0, 92, 0, 0, 0]);
    for (offset, value) in [(24, 1), (32, last), (40, 34), (48, last - 33), (72, 2)] {
        header[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }
    header[56..72].copy_from_slice(&[9; 16]);
    header[80..88].copy_from_slice(&[128, 0, 0, 0, 128, 0, 0, 0]);
    header[88..].copy_from_slice(&crc32(&entries).to_le_bytes());
    let checksum = crc32(&header);
    header[16..20].copy_from_slice(&checksum.to_le_bytes());
    put(device, 512, &header);
    put(device, 1024, &entries);
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1)))
    })
}
