//! When one of the kernel's tables changes: PID 1's of mounts, or that of swap space.

use std::fs::File;
use std::io;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits for changes of the table: the kernel reports them as urgent data and an error condition (proc(5); for swaps,
/// `swaps_poll` of the kernel's `mm/swapfile.c`).
pub struct Watch(AsyncFd<File>);

impl Watch {
    /// Begins to watch the table `path`.
    #[allow(unsafe_code)]
    pub fn new(path: &str) -> io::Result<Self> {
        let file = File::open(path)?;
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
