//! The one place a key's bytes live in.
#![expect(unsafe_code, reason = "memory is mapped, locked and unmapped by hand")]

use std::ffi::c_void;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::slice;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use secrecy::ExposeSecret;
use secretfs_core::cause::{Cause, Failure};
use zeroize::Zeroize;

/// Why no passphrase could be read. Says nothing about its bytes.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The kernel refused the memory, or refused to lock it.
    #[error("cannot lock {bytes} bytes of memory for a key")]
    Memory {
        /// What was asked for.
        bytes: usize,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The descriptor could not be read.
    #[error("cannot read the key from its descriptor")]
    Read {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// More bytes came than a key may have.
    #[error("the key is longer than {max} bytes")]
    TooLong {
        /// The limit.
        max: usize,
    },
}

impl ReadError {
    /// The row of the cause table, and the particulars.
    pub fn failure(&self) -> Failure {
        let cause = match self {
            Self::Memory { .. } | Self::Read { .. } => Cause::System,
            Self::TooLong { .. } => Cause::Internal,
        };
        Failure::new(cause, crate::chain(self))
    }
}

/// A key: in memory of its own that is locked, left out of core dumps, empty in a forked child, and zeroed on drop.
pub struct Passphrase {
    memory: NonNull<u8>,
    /// Bytes of the mapping, whole pages.
    mapped: usize,
    /// Bytes of the key.
    length: usize,
}

impl Passphrase {
    /// The longest key that [`Passphrase::read_from`] need be asked for; KMS decrypts to 4096 bytes at most.
    pub const MAX_BYTES: usize = 8192;

    /// Reads a key up to the end of `source`, straight into locked memory.
    ///
    /// A key of `max` bytes fits in a pipe's buffer (64 KiB), so the writer need not be alive any more.
    pub fn read_from(source: impl AsFd, max: usize) -> Result<Self, ReadError> {
        // One byte more than a key may have: it tells a key of exactly `max` bytes from one that is too long.
        let mut passphrase = Self::map(max + 1).map_err(|source| ReadError::Memory { bytes: max + 1, source })?;
        let mut length = 0;
        while length <= max {
            match rustix::io::read(&source, &mut passphrase.memory_mut()[length..=max]) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(ReadError::Read { source: errno.into() }),
            }
        }
        if length > max {
            return Err(ReadError::TooLong { max });
        }
        passphrase.length = length;
        Ok(passphrase)
    }

    /// How many bytes the key has.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing came.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Keeps the first `length` bytes and zeroes the others.
    pub fn truncate(&mut self, length: usize) {
        if length < self.length {
            self.memory_mut()[length..].zeroize();
            self.length = length;
        }
    }

    fn map(bytes: usize) -> io::Result<Self> {
        let mapped = bytes.next_multiple_of(rustix::param::page_size());
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a null address lets the kernel choose a range that nothing else uses.
        let memory = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), mapped, protection, MapFlags::PRIVATE) }?;
        let memory = NonNull::new(memory.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // From here on the drop unmaps it.
        let passphrase = Self { memory, mapped, length: 0 };
        let start = memory.as_ptr().cast::<c_void>();
        // SAFETY: the range is the whole mapping made above.
        unsafe { rustix::mm::mlock(start, mapped) }?;
        for advice in [Advice::LinuxDontDump, Advice::LinuxWipeOnFork] {
            // SAFETY: the range is the whole mapping made above; neither advice changes its contents in this process.
            unsafe { rustix::mm::madvise(start, mapped, advice) }?;
        }
        Ok(passphrase)
    }

    fn memory_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is readable, writable, zeroed by the kernel, `mapped` long and owned by `self` alone.
        unsafe { slice::from_raw_parts_mut(self.memory.as_ptr(), self.mapped) }
    }

    fn wipe(&mut self) {
        self.memory_mut().zeroize();
        self.length = 0;
    }
}

impl ExposeSecret<[u8]> for Passphrase {
    fn expose_secret(&self) -> &[u8] {
        // SAFETY: `length` never exceeds the mapping, which lives as long as `self` and is not written while borrowed.
        unsafe { slice::from_raw_parts(self.memory.as_ptr(), self.length) }
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

impl Drop for Passphrase {
    fn drop(&mut self) {
        self.wipe();
        // SAFETY: the mapping was made by `map`, is unmapped only here, and no borrow of it outlives `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.memory.as_ptr().cast(), self.mapped) };
        debug_assert!(unmapped.is_ok(), "the range is a whole mapping");
    }
}

// SAFETY: the mapping belongs to the value, not to a thread.
unsafe impl Send for Passphrase {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for Passphrase {}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::testing;

    fn piped(bytes: &[u8]) -> io::PipeReader {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(bytes).unwrap();
        reader
    }

    fn locked_kib() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn every_byte_comes_through_the_pipe() {
        let all: Vec<u8> = (0..=255).collect();
        let passphrase = Passphrase::read_from(piped(&all), Passphrase::MAX_BYTES).unwrap();
        assert_eq!(passphrase.expose_secret(), all);
        assert_eq!(passphrase.len(), 256);
        assert!(Passphrase::read_from(piped(b""), 16).unwrap().is_empty());
    }

    #[test]
    fn a_key_of_the_limit_is_taken_and_one_byte_more_is_not() {
        assert_eq!(Passphrase::read_from(piped(&[7; 4096]), 4096).unwrap().len(), 4096);
        let error = Passphrase::read_from(piped(&[7; 4097]), 4096).unwrap_err();
        assert_eq!(error.failure(), Failure::new(Cause::Internal, "the key is longer than 4096 bytes"));
    }

    #[test]
    fn truncation_zeroes_the_rest() {
        let mut passphrase = Passphrase::read_from(piped(b"horse\n\n"), 16).unwrap();
        passphrase.truncate(9);
        assert_eq!(passphrase.expose_secret(), b"horse\n\n");
        passphrase.truncate(5);
        assert_eq!(passphrase.expose_secret(), b"horse");
        assert!(passphrase.memory_mut()[5..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn wiping_leaves_zeros() {
        let mut passphrase = Passphrase::read_from(piped(b"horse"), 16).unwrap();
        passphrase.wipe();
        assert!(passphrase.memory_mut().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn debug_shows_nothing() {
        let passphrase = Passphrase::read_from(piped(b"horse"), 16).unwrap();
        assert_eq!(format!("{passphrase:?}"), "Passphrase(..)");
    }

    /// The figures of the whole process and the search through all of its memory stand no neighbours: one test for
    /// all, and the memory is told from a neighbour's by its size and its contents.
    #[test]
    fn memory_is_locked_undumped_searched_and_gone() {
        const LARGE: usize = 256 * 1024;
        let mut secret = testing::masked_secret(48);
        secret.unmask();
        let source = piped(secret.bytes());
        secret.mask();
        let before = locked_kib();
        let passphrase = Passphrase::read_from(source, LARGE).unwrap();
        assert!(locked_kib() >= before + LARGE / 1024, "{before} then {}", locked_kib());
        let start = format!("{:x}-", passphrase.memory.as_ptr() as usize);
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mapping: Vec<&str> = smaps.lines().skip_while(|line| !line.starts_with(&start)).take(30).collect();
        let flags = mapping.iter().find_map(|line| line.strip_prefix("VmFlags: ")).unwrap();
        for flag in ["lo", "dd", "wf"] {
            assert!(flags.split(' ').any(|set| set == flag), "{flag} in {flags}");
        }
        assert_eq!(secret.copies_in_memory(), 1);
        drop(passphrase);
        assert_eq!(secret.copies_in_memory(), 0);
        assert!(!std::fs::read_to_string("/proc/self/maps").unwrap().contains(&start));
    }
}
