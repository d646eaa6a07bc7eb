//! What several tests of this crate need: a directory that goes away, and a secret to look for.

use std::fs::{self, File};
use std::io::{BufRead, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::device::DevicePath;
use crate::passphrase::Passphrase;

/// A directory for one test, removed when it ends.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("secretfs-block-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A sparse file, standing in for a device.
    pub(crate) fn device(&self, name: &str, bytes: u64) -> DevicePath {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        device_at(&path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A plain file in the place of a device: whatever only reads and writes works on both.
pub(crate) fn device_at(path: &Path) -> DevicePath {
    DevicePath::at(path.to_str().unwrap())
}

pub(crate) fn put(device: &DevicePath, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(device.as_path()).unwrap().write_all_at(bytes, offset).unwrap();
}

/// Runs one of the distribution's tools.
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).env("PATH", crate::tool::PATH).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

pub(crate) fn passphrase(bytes: &[u8]) -> Passphrase {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(bytes).unwrap();
    drop(writer);
    Passphrase::read_from(reader, Passphrase::MAX_BYTES).unwrap()
}

/// Random bytes that lie in this process's memory only in disguise, so that copies made by others can be counted.
pub(crate) struct MaskedSecret(Vec<u8>);

const MASK: u8 = 0x5a;

pub(crate) fn masked_secret(length: usize) -> MaskedSecret {
    let mut bytes = vec![0; length];
    std::io::Read::read_exact(&mut File::open("/dev/urandom").unwrap(), &mut bytes).unwrap();
    MaskedSecret(bytes)
}

impl MaskedSecret {
    pub(crate) fn unmask(&mut self) {
        self.mask();
    }

    /// The disguise is its own inverse.
    pub(crate) fn mask(&mut self) {
        self.0.iter_mut().for_each(|byte| *byte ^= MASK);
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Counts the copies whose offset is not to be `ignored`, those made by the search itself.
    fn copies_in(&self, window: &[u8], ignored: impl Fn(usize) -> bool) -> usize {
        let (first, mut at, mut copies) = (self.0[0] ^ MASK, 0, 0);
        // `skip_until` is the standard library's fast search, in a debug build too.
        while at < window.len() {
            at += (&window[at..]).skip_until(first).unwrap();
            let found = window.get(at - 1..at - 1 + self.0.len());
            if found.is_some_and(|found| found.iter().zip(&self.0).all(|(a, b)| a ^ MASK == *b)) && !ignored(at - 1) {
                copies += 1;
            }
        }
        copies
    }

    /// Searches every readable page of this process.
    pub(crate) fn copies_in_memory(&self) -> usize {
        let memory = File::open("/proc/self/mem").unwrap();
        let mut window = vec![0_u8; 1 << 20];
        let own = window.as_ptr() as usize as u64;
        let own = own..own + window.len() as u64;
        let mut copies = 0;
        for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
            let (range, rest) = line.split_once(' ').unwrap();
            let (from, to) = range.split_once('-').unwrap();
            let (mut at, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
            if !rest.starts_with('r') || rest.ends_with("[vvar]") {
                continue;
            }
            while at < to {
                let wanted = window.len().min(usize::try_from(to - at).unwrap());
                let Ok(read) = memory.read_at(&mut window[..wanted], at) else { break };
                if read < self.0.len() {
                    break;
                }
                copies += self.copies_in(&window[..read], |offset| own.contains(&(at + offset as u64)));
                if read < wanted || at + read as u64 >= to {
                    break;
                }
                at += (read - self.0.len() + 1) as u64;
            }
        }
        copies
    }
}
