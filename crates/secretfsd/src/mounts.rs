//! PID 1's table of mounts: what it says, and when it changes.

use std::fs::{self, File};
use std::io;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The mounts as PID 1 sees them; the daemon's own sandbox has a few more.
const MOUNTINFO: &str = "/proc/1/mountinfo";

/// Reads the table.
pub fn read() -> io::Result<String> {
    fs::read_to_string(MOUNTINFO)
}

/// Waits for changes of the table: the kernel reports them as urgent data and an error condition (proc(5)).
pub struct Watch(AsyncFd<File>);

impl Watch {
    /// Begins to watch.
    #[allow(unsafe_code)]
    pub fn new() -> io::Result<Self> {
        let file = File::open(MOUNTINFO)?;
        // SAFETY: a `File` owns its descriptor and keeps it open until it is dropped, which the `AsyncFd` does itself.
        let watched = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY | Interest::ERROR) }?;
        Ok(Self(watched))
    }

    /// Returns after the next change.
    pub async fn changed(&self) -> io::Result<()> {
        self.0.ready(Interest::PRIORITY | Interest::ERROR).await?.clear_ready();
        Ok(())
    }
}
