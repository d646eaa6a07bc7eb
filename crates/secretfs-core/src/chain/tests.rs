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
        table: "0 98304 crypt aes-xts-plain64 :64:logon:cryptsetup:0123-d0 0 7:0 32768 1 sector_size:4096\n".to_owned(),
        btrfs: Vec::new(),
        integrity: None,
    }
}

/// The same with integrity tags, as the kernel and libcryptsetup 2.6 show it.
fn tagged() -> Mapping {
    Mapping {
        table: "0 98304 crypt capi:authenc(hmac(sha256),xts(aes))-plain64 :96:logon:cryptsetup:0123-d0 0 253:7 0 2 \
                integrity:32:aead sector_size:4096\n"
            .to_owned(),
        integrity: Some(Integrity {
            devno: "253:7".to_owned(),
            uuid: "CRYPT-INTEGRITY-0123456789abcdef0123456789abcdef-secretfs-scratch_dif".to_owned(),
            backing: "7:0".to_owned(),
        }),
        ..mapping()
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
        authenticated: false,
        backing: "7:0".to_owned(),
    };
    let luks_uuid = "01234567-89ab-cdef-0123-456789abcdef".to_owned();
    assert_eq!(verified, Ok(Verified { encryption, luks_uuid, filesystem: "ext4".to_owned() }));
}

#[test]
fn integrity_tags_lie_between() {
    let verified = with(Some("7:0"), |expected| verify(expected, mounted(MOUNTINFO), Some(&tagged()))).unwrap();
    assert!(verified.encryption.authenticated);
    assert_eq!((verified.encryption.key_bits, verified.encryption.backing.as_str()), (768, "7:0"));
    let change = |change: fn(&mut Integrity)| {
        let mut mapping = tagged();
        mapping.integrity.iter_mut().for_each(change);
        with(Some("7:0"), |expected| survey_mapping(expected, Some(&mapping)))
    };
    assert_eq!(change(|_| {}), Link::Ours);
    for changed in [
        change(|integrity| integrity.backing = "7:1".to_owned()),
        change(|integrity| integrity.devno = "253:8".to_owned()),
        change(|integrity| integrity.uuid = integrity.uuid.replace("0123", "4567")),
        change(|integrity| integrity.uuid = integrity.uuid.replace("INTEGRITY", "LUKS2")),
    ] {
        assert!(matches!(changed, Link::Foreign(_)), "{changed:?}");
    }
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
        assert_eq!(verified, if link == Link::Ours { Ok("swap".to_owned()) } else { Err(lost.clone()) }, "{devno:?}");
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
    assert_eq!(unescape("a\\04"), "a\\04");
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
