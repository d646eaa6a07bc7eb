use std::path::Path;

use secretfs_core::cause::{Cause, Failure};
use secretfs_core::name::VolumeName;

use super::*;
use crate::testing::{self, Scratch, passphrase, put, run};

const MIB: u64 = 1 << 20;

fn mapper() -> MapperName {
    VolumeName::new("scratch").unwrap().mapper()
}

fn random_key() -> Passphrase {
    passphrase(&[0, 255, b'\n', 7].repeat(16))
}

/// What a random key is formatted with where nothing else is configured.
fn usual(mapper: &MapperName) -> FormatOptions<'_> {
    FormatOptions { mapper, kdf: Kdf::Pbkdf2Minimal, sector_size: None, integrity: None, wipe: Wipe::None }
}

fn formatted(scratch: &Scratch) -> DevicePath {
    let device = scratch.device("volume", 64 * MIB);
    format(&device, usual(&mapper()), &random_key()).unwrap();
    device
}

/// What plain cryptsetup says of a header.
fn dump(device: &DevicePath) -> String {
    crate::tool::run("cryptsetup", &["luksDump", device.as_str()]).unwrap()
}

/// A header as plain cryptsetup makes it, with the words of `extra` added.
fn legacy(scratch: &Scratch, name: &str, key: &[u8], extra: &[&str]) -> DevicePath {
    let device = scratch.device(name, 64 * MIB);
    let file = scratch.path("key");
    std::fs::write(&file, key).unwrap();
    let mut arguments = vec!["luksFormat", "--batch-mode"];
    arguments.extend(extra);
    arguments.extend([device.as_str(), file.to_str().unwrap()]);
    run("cryptsetup", &arguments);
    device
}

const CHEAP: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];

#[test]
fn a_header_as_it_should_be() {
    let scratch = Scratch::new();
    let device = formatted(&scratch);
    let facts = header(&device).unwrap().unwrap();
    let wanted = LuksFacts {
        version: 2,
        uuid: facts.uuid.clone(),
        label: "secretfs-scratch".to_owned(),
        subsystem: FORMATTING.to_owned(),
    };
    assert_eq!(facts, wanted);
    assert!(facts.is_interrupted(&mapper()));
    let text = dump(&device);
    for line in ["cipher: aes-xts-plain64", "sector: 4096 [bytes]", "Cipher key: 512 bits", "PBKDF:      pbkdf2"] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(text.contains("Iterations: 1000"), "{text}");
    test(&device, &random_key()).unwrap();
}

#[test]
fn the_mark_is_set_once_and_the_key_still_fits() {
    let scratch = Scratch::new();
    let device = formatted(&scratch);
    let before = header(&device).unwrap().unwrap();
    assert_eq!(mark_complete(&device, &mapper(), Lifecycle::Persistent).unwrap(), Outcome::Changed);
    assert_eq!(mark_complete(&device, &mapper(), Lifecycle::Persistent).unwrap(), Outcome::Unchanged);
    let after = header(&device).unwrap().unwrap();
    assert_eq!(after, LuksFacts { subsystem: PERSISTENT.to_owned(), ..before });
    assert!(after.is_ours(&mapper()) && !after.is_interrupted(&mapper()));
    test(&device, &random_key()).unwrap();
    let other = VolumeName::new("other").unwrap().mapper();
    assert_eq!(mark_complete(&device, &other, Lifecycle::Persistent).unwrap_err().failure().cause, Cause::HeaderBroken);
}

#[test]
fn an_odd_size_gets_small_sectors() {
    let scratch = Scratch::new();
    let device = scratch.device("odd", 64 * MIB + 512);
    format(&device, usual(&mapper()), &random_key()).unwrap();
    assert!(dump(&device).contains("sector: 512 [bytes]"), "{}", dump(&device));
}

#[test]
fn a_sector_size_that_was_asked_for_counts() {
    let scratch = Scratch::new();
    let with = |device: &DevicePath, sector_size| {
        format(device, FormatOptions { sector_size: Some(sector_size), ..usual(&mapper()) }, &random_key())
    };
    let even = scratch.device("even", 64 * MIB);
    with(&even, 512).unwrap();
    assert!(dump(&even).contains("sector: 512 [bytes]"), "{}", dump(&even));
    let odd = scratch.device("odd", 64 * MIB + 512);
    let detail = format!("{odd} has 67109376 bytes, no multiple of `sector-size = 4096`; use 512, or leave it out");
    assert_eq!(with(&odd, 4096).unwrap_err().failure(), Failure::new(Cause::BackingMismatch, detail));
    assert!(!std::fs::read(odd.as_path()).unwrap().iter().any(|byte| *byte != 0), "{odd} was written to");
}

#[test]
fn flags_of_an_activation() {
    assert_eq!(OpenFlags::default().activation().bits(), 0);
    let flags = OpenFlags { discard: true, no_read_workqueue: true, no_write_workqueue: true };
    let wanted = CryptActivate::ALLOW_DISCARDS | CryptActivate::NO_READ_WORKQUEUE | CryptActivate::NO_WRITE_WORKQUEUE;
    assert_eq!(flags.activation().bits(), wanted.bits());
}

#[test]
fn a_wrong_key_is_told_apart_and_not_shown() {
    let scratch = Scratch::new();
    let device = formatted(&scratch);
    let error = test(&device, &passphrase(b"correct horse")).unwrap_err();
    let wanted = Failure::new(Cause::WrongKey, format!("no key slot of {device} takes the key"));
    assert_eq!(error.failure(), wanted);
    assert!(!format!("{error:?} {error}").contains("horse"));
}

#[test]
fn ours_is_formatted_anew_and_nothing_else_is() {
    let scratch = Scratch::new();
    let device = formatted(&scratch);
    let first = header(&device).unwrap().unwrap();
    format(&device, usual(&mapper()), &random_key()).unwrap();
    assert_ne!(header(&device).unwrap().unwrap().uuid, first.uuid);

    // One that was kept stays that, and is not formatted again.
    mark_complete(&device, &mapper(), Lifecycle::Ephemeral).unwrap();
    format(&device, usual(&mapper()), &random_key()).unwrap();
    mark_complete(&device, &mapper(), Lifecycle::Persistent).unwrap();
    assert_eq!(mark_complete(&device, &mapper(), Lifecycle::Ephemeral).unwrap(), Outcome::Unchanged);
    let failure = format(&device, usual(&mapper()), &random_key()).unwrap_err().failure();
    let detail = format!("{device} carries the LUKS header of the persistent volume secretfs-scratch");
    assert_eq!(failure, Failure::new(Cause::ForeignSignature, detail));

    let other = VolumeName::new("other").unwrap().mapper();
    let options = usual(&other);
    let refused = |device: &DevicePath| {
        let before = std::fs::read(device.as_path()).unwrap();
        let failure = format(device, options, &random_key()).unwrap_err().failure();
        assert!(before == std::fs::read(device.as_path()).unwrap(), "{device} was written to");
        failure
    };
    let detail = format!("{device} carries a LUKS header that secretfs did not make as secretfs-other");
    assert_eq!(refused(&device), Failure::new(Cause::ForeignSignature, detail));
    let plain = legacy(&scratch, "plain", b"horse", &CHEAP);
    assert_eq!(refused(&plain).cause, Cause::ForeignSignature);
    let swap = scratch.device("swap", 64 * MIB);
    run("mkswap", &[swap.as_str()]);
    assert_eq!(refused(&swap), Failure::new(Cause::ForeignSignature, format!("{swap} carries swap")));
}

#[test]
fn headers_of_plain_cryptsetup_open() {
    let scratch = Scratch::new();
    let luks1 = legacy(&scratch, "luks1", b"correct horse", &["--type", "luks1", "--pbkdf-force-iterations", "1000"]);
    let mut arguments = vec!["--type", "luks2"];
    arguments.extend(CHEAP);
    let luks2 = legacy(&scratch, "luks2", b"correct horse", &arguments);
    let argon = ["--pbkdf", "argon2id", "--pbkdf-memory", "64", "--pbkdf-force-iterations", "4"];
    let argon2 = legacy(&scratch, "argon2", b"correct horse", &argon);
    for (device, version) in [(luks1, 1), (luks2, 2), (argon2, 2)] {
        let facts = header(&device).unwrap().unwrap();
        assert_eq!((facts.version, facts.label.as_str(), facts.subsystem.as_str()), (version, "", ""));
        assert!(!facts.is_ours(&mapper()));
        test(&device, &passphrase(b"correct horse")).unwrap();
        assert_eq!(test(&device, &passphrase(b"wrong")).unwrap_err().failure().cause, Cause::WrongKey);
    }
}

#[test]
fn plain_cryptsetup_opens_ours() {
    let scratch = Scratch::new();
    let device = formatted(&scratch);
    let file = scratch.path("key");
    std::fs::write(&file, random_key().expose_secret()).unwrap();
    run("cryptsetup", &["open", "--test-passphrase", "--key-file", file.to_str().unwrap(), device.as_str()]);
}

#[test]
fn a_damaged_header_is_told_from_none() {
    let scratch = Scratch::new();
    let device = formatted(&scratch);
    // Both copies of the metadata lose their checksum.
    put(&device, 4096 + 10, b"damage");
    put(&device, 16384 + 4096 + 10, b"damage");
    assert_eq!(header(&device).unwrap_err().failure().cause, Cause::HeaderBroken);
    let blank = scratch.device("blank", MIB);
    assert_eq!(header(&blank).unwrap(), None);
    let failure = test(&blank, &random_key()).unwrap_err().failure();
    assert_eq!(failure, Failure::new(Cause::HeaderBroken, format!("{blank} has no LUKS header")));
}

#[test]
fn a_header_without_key_slot_is_told_from_a_wrong_key() {
    let scratch = Scratch::new();
    let device = formatted(&scratch);
    run("cryptsetup", &["luksErase", "--batch-mode", device.as_str()]);
    assert_eq!(test(&device, &random_key()).unwrap_err().failure().cause, Cause::HeaderBroken);
}

#[test]
fn a_device_too_small_for_a_header_is_refused() {
    let scratch = Scratch::new();
    let device = scratch.device("small", MIB);
    let failure = format(&device, usual(&mapper()), &random_key()).unwrap_err().failure();
    let detail = format!("{device} has 1048576 bytes; a LUKS2 header alone takes 16777216");
    assert_eq!(failure, Failure::new(Cause::BackingMismatch, detail));
}

#[test]
fn what_is_not_open_is_closed_already() {
    assert_eq!(close(&VolumeName::new("no.such.volume").unwrap().mapper()).unwrap(), Outcome::Unchanged);
}

#[test]
fn no_copy_of_the_key_stays_behind() {
    let scratch = Scratch::new();
    let device = scratch.device("volume", 64 * MIB);
    let mut secret = testing::masked_secret(64);
    secret.unmask();
    let key = passphrase(secret.bytes());
    secret.mask();
    format(&device, usual(&mapper()), &key).unwrap();
    test(&device, &key).unwrap();
    assert_eq!(secret.copies_in_memory(), 1);
    drop(key);
    assert_eq!(secret.copies_in_memory(), 0);
}

#[test]
#[ignore = "takes ten seconds and 1 GiB of memory"]
fn a_password_gets_argon2id() {
    let scratch = Scratch::new();
    let device = scratch.device("volume", 64 * MIB);
    let key = passphrase(b"correct horse");
    let clock = Instant::now();
    format(&device, FormatOptions { kdf: Kdf::Argon2id, ..usual(&mapper()) }, &key).unwrap();
    eprintln!("argon2id: format {:?}", clock.elapsed());
    let clock = Instant::now();
    test(&device, &key).unwrap();
    eprintln!("argon2id: test {:?}", clock.elapsed());
    assert!(dump(&device).contains("PBKDF:      argon2id"), "{}", dump(&device));
}

#[test]
#[ignore = "prints figures"]
fn figures() {
    let scratch = Scratch::new();
    let device = scratch.device("volume", 64 * MIB);
    let key = random_key();
    let median = |mut run: Box<dyn FnMut() + '_>| {
        let mut times: Vec<Duration> = (0..10)
            .map(|_| {
                let clock = Instant::now();
                run();
                clock.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[5]
    };
    eprintln!("format {:?}", median(Box::new(|| format(&device, usual(&mapper()), &key).unwrap())));
    eprintln!("test {:?}", median(Box::new(|| test(&device, &key).unwrap())));
    eprintln!("header {:?}", median(Box::new(|| drop(header(&device).unwrap()))));
    let blank = scratch.device("blank", 2048 * MIB);
    eprintln!("inspect, 2 GiB sparse {:?}", median(Box::new(|| drop(inspect::inspect(&blank).unwrap()))));
}

/// Detaches when a test ends, however it ends.
struct Tidy(DevicePath);

impl Drop for Tidy {
    fn drop(&mut self) {
        let _ = crate::loops::detach_loop(&self.0);
    }
}

/// The whole way, on a kernel with dm-crypt.
#[test]
#[ignore = "needs root, loop devices and dm-crypt"]
fn open_adopt_close() {
    use secretfs_core::config::{Filesystem, FilesystemType};

    use crate::filesystem::make;
    use crate::{backing, loops};

    let scratch = Scratch::new();
    let file = scratch.path("volume.img");
    backing::ensure(&file, 64 * MIB).unwrap();
    let (device, _) = loops::attach_loop(&file).unwrap();
    let _tidy = Tidy(device.clone());
    assert_eq!(inspect::inspect(&device).unwrap(), Contents::Blank);
    let mapper = VolumeName::new(&format!("test-{}", std::process::id())).unwrap().mapper();
    let key = random_key();
    format(&device, usual(&mapper), &key).unwrap();
    let flags = OpenFlags { discard: true, ..OpenFlags::default() };
    assert_eq!(open(&device, &mapper, &key, flags).unwrap(), Outcome::Changed);
    assert_eq!(open(&device, &mapper, &key, flags).unwrap(), Outcome::Unchanged);
    let plain = device::resolve(Path::new(&mapper.device())).unwrap();
    make(&plain, &Filesystem::of(FilesystemType::Ext4)).unwrap();
    // udev has seen the file system, and systemd does not.
    let ready = || {
        crate::tool::run("udevadm", &["settle"]).unwrap();
        let properties = crate::tool::run("udevadm", &["info", "--query=property", plain.as_str()]).unwrap();
        !properties.lines().any(|line| line == "SYSTEMD_READY=0")
    };
    assert!(!ready());
    assert_eq!(mark_complete(&device, &mapper, Lifecycle::Ephemeral).unwrap(), Outcome::Changed);
    assert_eq!(finish_show(&mapper).unwrap(), Outcome::Unchanged);
    assert_eq!(show(&mapper).unwrap(), Outcome::Changed);
    assert!(ready());
    assert_eq!(show(&mapper).unwrap(), Outcome::Unchanged);
    assert_eq!(inspect::inspect(&plain).unwrap().refusal(&plain).unwrap().cause, Cause::ForeignSignature);
    let uuid = header(&device).unwrap().unwrap().uuid.replace('-', "");
    let text = mapping::active(&mapper).unwrap().unwrap();
    assert_eq!(text.uuid, format!("CRYPT-LUKS2-{uuid}-{mapper}"));
    let number = device::number(&device).unwrap().to_string();
    assert_eq!(mapping::find(&mapper).unwrap().unwrap().slaves, [number.as_str()]);
    assert!(text.table.contains(&format!(" {number} ")), "{}", text.table);
    assert_eq!(text.devno, device::number(&plain).unwrap().to_string());
    assert!(text.table.contains(" crypt aes-xts-plain64 ") && text.table.contains("allow_discards"), "{}", text.table);
    assert!(text.table.contains("sector_size:4096"), "{}", text.table);

    // Another volume under the same name is another volume.
    let other = scratch.path("other.img");
    backing::ensure(&other, 64 * MIB).unwrap();
    let (second, _) = loops::attach_loop(&other).unwrap();
    let _tidy_second = Tidy(second.clone());
    format(&second, usual(&mapper), &key).unwrap();
    let failure = open(&second, &mapper, &key, flags).unwrap_err().failure();
    assert_eq!(failure.cause, Cause::ChainBroken, "{failure}");

    // Held devices are neither formatted, nor detached, nor closed.
    let options = usual(&mapper);
    assert_eq!(format(&device, options, &key).unwrap_err().failure().cause, Cause::DeviceBusy);
    assert_eq!(loops::detach_loop(&device).unwrap_err().failure().cause, Cause::DeviceBusy);
    let held = std::fs::File::open(plain.as_path()).unwrap();
    assert_eq!(close(&mapper).unwrap_err().failure().cause, Cause::DeviceBusy);
    drop(held);
    assert_eq!(close(&mapper).unwrap(), Outcome::Changed);
    assert_eq!(close(&mapper).unwrap(), Outcome::Unchanged);
    assert_eq!(mapping::active(&mapper).unwrap(), None);
    for device in [device, second] {
        assert_eq!(loops::detach_loop(&device).unwrap(), Outcome::Changed);
    }
}

#[test]
fn how_far_a_volume_is_zeroed_stands_in_its_header() {
    let scratch = Scratch::new();
    let device = scratch.device("volume", 64 * MIB);
    let wipe = Wipe::Zero { before_ready: false };
    format(&device, FormatOptions { wipe, ..usual(&mapper()) }, &random_key()).unwrap();
    assert_eq!(zeroed(&device).unwrap(), Some(0));
    note_zeroed(&device, Some(u64::MAX)).unwrap();
    assert_eq!(zeroed(&device).unwrap(), Some(u64::MAX));
    mark_complete(&device, &mapper(), Lifecycle::Persistent).unwrap();
    assert_eq!(zeroed(&device).unwrap(), Some(u64::MAX));
    note_zeroed(&device, None).unwrap();
    note_zeroed(&device, None).unwrap();
    assert_eq!(zeroed(&device).unwrap(), None);
}

#[test]
fn what_can_not_be_discarded_is_not_formatted() {
    let scratch = Scratch::new();
    // blkdiscard takes block devices only.
    let device = scratch.device("volume", 64 * MIB);
    let mapper = mapper();
    let options = FormatOptions { wipe: Wipe::Discard, ..usual(&mapper) };
    let failure = format(&device, options, &random_key()).unwrap_err().failure();
    assert_eq!(failure.cause, Cause::DiscardFailed);
    assert_eq!(header(&device).unwrap(), None);
}
