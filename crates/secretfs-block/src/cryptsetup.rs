//! What libcryptsetup says, and how it fails.
#![expect(unsafe_code, reason = "libcryptsetup hands its messages to a C callback")]

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::io;
use std::sync::Once;

use libcryptsetup_rs::consts::vals::CryptLogLevel;
use libcryptsetup_rs::{LibcryptErr, c_int};
use rustix::io::Errno;

/// What libcryptsetup refused, in its own words where it had any.
#[derive(Debug, thiserror::Error)]
#[error("{}", if words.is_empty() { "libcryptsetup refused" } else { words.as_str() })]
pub struct CryptError {
    words: String,
    #[source]
    source: io::Error,
}

impl CryptError {
    pub(crate) fn is(&self, errno: Errno) -> bool {
        self.source.raw_os_error() == Some(errno.raw_os_error())
    }

    /// Whether a part of the kernel or of the library is missing, which waiting does not bring.
    pub(crate) fn is_unsupported(&self) -> bool {
        [Errno::OPNOTSUPP, Errno::NODEV, Errno::NOTBLK, Errno::NOSYS].iter().any(|errno| self.is(*errno))
    }
}

thread_local! {
    /// The error messages of the call that this thread is in.
    static ERRORS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Runs calls of libcryptsetup; a failure comes back with the messages they logged.
pub(crate) fn call<T>(calls: impl FnOnce() -> Result<T, LibcryptErr>) -> Result<T, CryptError> {
    static CALLBACK: Once = Once::new();
    CALLBACK.call_once(|| libcryptsetup_rs::set_log_callback::<()>(Some(log), None));
    ERRORS.take();
    calls().map_err(|error| {
        let source = match error {
            LibcryptErr::IOError(source) => source,
            other => io::Error::other(other),
        };
        CryptError { words: ERRORS.take().join("; "), source }
    })
}

unsafe extern "C" fn log(level: c_int, message: *const c_char, _: *mut c_void) {
    // SAFETY: libcryptsetup passes a string that ends with NUL and lives until the callback returns.
    let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    let message = message.trim_end();
    if message.is_empty() {
        return;
    }
    tracing::debug!(target: "libcryptsetup", "{message}");
    if level == CryptLogLevel::Error as c_int {
        ERRORS.with_borrow_mut(|errors| errors.push(message.trim_end_matches('.').to_owned()));
    }
}
