//! Word to the service manager: `sd_notify(3)`.

use std::time::Duration;

use libsystemd::daemon::{NotifyState, notify, watchdog_enabled};
use libsystemd::errors::SdError;

/// A status line of `systemctl status` stays readable up to here; systemd takes 4096 bytes for the whole message.
const STATUS_CHARS: usize = 500;

/// A message did not get through.
#[derive(Debug, thiserror::Error)]
#[error("cannot tell systemd {what}")]
pub struct NotifyError {
    /// What was to be said.
    what: &'static str,
    #[source]
    source: SdError,
}

/// The service manager that started this process, if one did and listens.
///
/// Every message returns whether anybody was told: a program run by hand has no `$NOTIFY_SOCKET`, and its status
/// belongs in the log then. The environment is left as it is.
#[derive(Debug, Clone)]
pub struct Notifier {
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Reads `$NOTIFY_SOCKET`, `$WATCHDOG_USEC` and `$WATCHDOG_PID`.
    pub fn from_env() -> Self {
        Self { watchdog: watchdog_enabled(false).filter(|interval| !interval.is_zero()) }
    }

    /// The time within which systemd wants each [`Self::watchdog`]; send it about twice as often.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The volume is up: `READY=1`.
    pub fn ready(&self) -> Result<bool, NotifyError> {
        self.send("that the service is ready", &[NotifyState::Ready])
    }

    /// What goes on now: `STATUS=`.
    pub fn status(&self, text: &str) -> Result<bool, NotifyError> {
        self.send("the status", &[NotifyState::Status(status_line(text))])
    }

    /// The service is going down: `STOPPING=1`.
    pub fn stopping(&self) -> Result<bool, NotifyError> {
        self.send("that the service is stopping", &[NotifyState::Stopping])
    }

    /// Start-up or stop takes at least `time` more from now: `EXTEND_TIMEOUT_USEC=`. Say it again before it runs out.
    pub fn extend_timeout(&self, time: Duration) -> Result<bool, NotifyError> {
        let state = NotifyState::Other(format!("EXTEND_TIMEOUT_USEC={}", time.as_micros()));
        self.send("to wait longer", &[state])
    }

    /// Still alive: `WATCHDOG=1`.
    pub fn watchdog(&self) -> Result<bool, NotifyError> {
        self.send("that the service is alive", &[NotifyState::Watchdog])
    }

    #[expect(clippy::unused_self, reason = "libsystemd reads the socket's name from the environment each time")]
    fn send(&self, what: &'static str, states: &[NotifyState]) -> Result<bool, NotifyError> {
        notify(false, states).map_err(|source| NotifyError { what, source })
    }
}

/// One line: a second one would be another assignment of the message.
fn status_line(text: &str) -> String {
    let line = text.split(|c: char| c.is_control() || c == ' ').filter(|word| !word.is_empty());
    let line = line.collect::<Vec<_>>().join(" ");
    if line.chars().count() <= STATUS_CHARS {
        return line;
    }
    let mut short: String = line.chars().take(STATUS_CHARS - 1).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_short_line() {
        assert_eq!(status_line("fetching\nREADY=1\n\tthe key "), "fetching READY=1 the key");
        assert_eq!(status_line(""), "");
        let long = status_line(&"ä".repeat(600));
        assert_eq!(long.chars().count(), STATUS_CHARS);
        assert!(long.ends_with("ä…"));
    }
}
