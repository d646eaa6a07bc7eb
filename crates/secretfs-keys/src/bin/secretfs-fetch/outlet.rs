//! The one way out for a key.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags, fcntl_get_seals, fcntl_getfl, fstat};
use secretfs_core::cause::{Cause, Failure};

/// An inherited pipe, socket or memfd that can be written.
#[derive(Debug)]
pub(crate) struct Outlet(File);

impl Outlet {
    /// Takes over the inherited descriptor `number`; to be called once, before anything else opens descriptors.
    pub(crate) fn inherit(number: i32) -> Result<Self, String> {
        // Asked by name first, for a descriptor may only be taken over if there is one. Reading a link opens nothing.
        if !Path::new("/proc/self/fd").join(number.to_string()).is_symlink() {
            return Err(format!("descriptor {number} is not open; it should be a pipe for the key"));
        }
        // SAFETY: the descriptor is open (above), is none of the standard ones (`args::parse`), and nothing in this process
        // has opened or taken over any descriptor yet, so it is the parent's and becomes ours alone.
        #[allow(unsafe_code)]
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        match refusal(&descriptor) {
            None => Ok(Self(File::from(descriptor))),
            Some(why) => Err(format!("descriptor {number} {why}; it should be a pipe, socket or memfd for the key")),
        }
    }

    /// Writes the key and closes the descriptor.
    pub(crate) fn write(mut self, key: &[u8]) -> Result<(), Failure> {
        // A `File` has no buffer of its own, in which a copy of the key would stay.
        let written = self.0.write_all(key);
        written.map_err(|error| Failure::new(Cause::System, format!("cannot hand over the key: {error}")))
    }
}

/// Why a key must not be written there: a terminal or a file would keep it.
fn refusal(descriptor: impl AsFd) -> Option<String> {
    let stat = match fstat(&descriptor) {
        Ok(stat) => stat,
        Err(error) => return Some(format!("cannot be examined ({error})")),
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    let fit = match kind {
        FileType::Fifo | FileType::Socket => true,
        // Only memory files know seals, and only a file without a name is a memfd.
        FileType::RegularFile => stat.st_nlink == 0 && fcntl_get_seals(&descriptor).is_ok(),
        _ => false,
    };
    let writable = fcntl_getfl(&descriptor).is_ok_and(|flags| !(flags & OFlags::ACCMODE).is_empty());
    match (fit, writable) {
        (false, _) => Some(format!("is a {kind:?}")),
        (true, false) => Some("is open for reading only".to_owned()),
        (true, true) => None,
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn pipes_sockets_and_memory_are_fit() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert_eq!(refusal(&writer), None);
        assert_eq!(refusal(&reader).as_deref(), Some("is open for reading only"));
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(refusal(&socket), None);
        assert_eq!(refusal(memfd_create("key", MemfdFlags::CLOEXEC).unwrap()), None);
    }

    #[test]
    fn files_and_devices_are_not() {
        let null = File::options().write(true).open("/dev/null").unwrap();
        assert_eq!(refusal(&null).as_deref(), Some("is a CharacterDevice"));
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(refusal(&file).as_deref(), Some("is a RegularFile"));
    }

    #[test]
    fn a_reader_that_left_is_said() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let failure = Outlet(File::from(OwnedFd::from(writer))).write(b"hunter2").unwrap_err();
        assert_eq!(failure.cause, Cause::System);
        assert!(!failure.detail.contains("hunter2"), "{failure}");
    }
}
