//! The private socket's byte stream, as zbus can read it.
//!
//! Over its private socket systemd names itself `org.freedesktop.systemd1` as the sender of every reply and signal
//! (there is no bus to give it a unique name), and systemctl's library takes that. zbus insists on a unique name, one
//! that begins with `:`, and drops the message (seen with zbus 6.2.1 and systemd 252). So the first letter of that
//! name is replaced while the bytes come in; nobody looks at the sender on a connection with one peer.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};
use zbus::export::async_trait::async_trait;

/// What stands before the name in a message's header: field 7 (sender), signature `s`, length 24 in the byte order of
/// this machine, which is also PID 1's. No D-Bus string holds a NUL, so it does not occur in text.
const BEFORE_SENDER: [u8; 8] = {
    let length = u32::to_ne_bytes(24);
    [7, 1, b's', 0, length[0], length[1], length[2], length[3]]
};

/// A stream to systemd.
#[derive(Debug)]
pub(super) struct PeerSocket(UnixStream);

impl PeerSocket {
    pub(super) async fn connect(path: &Path) -> io::Result<Self> {
        UnixStream::connect(path).await.map(Self)
    }
}

impl Socket for PeerSocket {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        let (read, write) = self.0.into_split();
        Split::new(Reader { stream: read, senders: Senders::default() }, Writer(write))
    }
}

/// What is received.
#[derive(Debug)]
pub(super) struct Reader {
    stream: OwnedReadHalf,
    senders: Senders,
}

#[async_trait]
impl ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let length = self.stream.read(buffer).await?;
        self.senders.mend(&mut buffer[..length]);
        Ok((length, Vec::new()))
    }
}

/// What is sent; passing on descriptors is not offered, so there never are any.
#[derive(Debug)]
pub(super) struct Writer(OwnedWriteHalf);

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], _descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.0.write(buffer).await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }
}

/// Mends the senders in a stream that arrives in pieces of any length.
#[derive(Debug, Default)]
struct Senders {
    /// The last bytes that went by.
    last: [u8; BEFORE_SENDER.len()],
}

impl Senders {
    fn mend(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if *byte == b'o' && self.last == BEFORE_SENDER {
                *byte = b':';
            }
            self.last.rotate_left(1);
            self.last[BEFORE_SENDER.len() - 1] = *byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use zbus::Message;

    use super::*;

    #[test]
    fn a_well_known_sender_becomes_a_unique_one() {
        let text = "org.freedesktop.systemd1";
        let message = Message::signal("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "JobRemoved")
            .sender(":rg.freedesktop.systemd1")
            .build(&(7_u32, text))
            .unwrap();
        let zbus_takes: Vec<u8> = message.data().to_vec();
        let at = zbus_takes.windows(text.len()).position(|bytes| bytes == b":rg.freedesktop.systemd1").unwrap();
        let mut systemd_sends = zbus_takes.clone();
        systemd_sends[at] = b'o';
        for length in 1..=systemd_sends.len() {
            let mut senders = Senders::default();
            let mut stream = systemd_sends.repeat(2);
            stream.chunks_mut(length).for_each(|piece| senders.mend(piece));
            assert_eq!(stream, zbus_takes.repeat(2), "in pieces of {length}");
        }
    }
}
