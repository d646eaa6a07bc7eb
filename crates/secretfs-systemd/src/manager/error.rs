//! What can go wrong between us and systemd.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use secretfs_core::cause::{Cause, Failure};
use secretfs_core::name::UnitName;

/// What was asked of systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Start a unit.
    Start,
    /// Stop a unit.
    Stop,
    /// Have a running unit read its configuration again.
    Reload,
    /// Cancel the pending start of a unit.
    CancelStart,
    /// Read the state of a unit.
    Read,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Reload => "reload",
            Self::CancelStart => "cancel the start of",
            Self::Read => "show",
        })
    }
}

/// Why an operation has no result.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// There is no connection, and connecting again did not help.
    #[error("cannot {task} {unit}: systemd is out of reach at {address}")]
    Unreachable {
        /// What was asked.
        task: Task,
        /// Of which unit.
        unit: UnitName,
        /// The socket, or the bus.
        address: String,
        /// The last attempt's error.
        #[source]
        source: zbus::Error,
    },
    /// systemd answered with an error.
    #[error("systemd refuses to {task} {unit}")]
    Refused {
        /// What was asked.
        task: Task,
        /// Of which unit.
        unit: UnitName,
        /// systemd's words.
        #[source]
        source: zbus::Error,
    },
    /// The time limit passed. The job, if there is one, goes on.
    #[error("systemd did not {task} {unit} within {} s", limit.as_secs_f32())]
    Deadline {
        /// What was asked.
        task: Task,
        /// Of which unit.
        unit: UnitName,
        /// The time limit.
        limit: Duration,
        /// The last lost connection on the way, if one was lost.
        #[source]
        source: Option<zbus::Error>,
    },
}

impl ManagerError {
    /// The row of the cause table, with the whole chain of errors as its detail.
    pub fn failure(&self) -> Failure {
        Failure::new(Cause::Systemd, chain(self))
    }

    /// systemd's name for its refusal, such as `org.freedesktop.systemd1.TransactionIsDestructive` when the system
    /// is on its way down.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refused { source: zbus::Error::MethodError(name, ..), .. } => Some(name.as_str()),
            _ => None,
        }
    }
}

/// An error and its sources on one line. zbus repeats a source's text in its own: those are said once.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_failure_tells_the_whole_chain_once() {
        let unit = UnitName::new("mnt-secretfs.mount").unwrap();
        let lost = zbus::Error::InputOutput(Arc::new(io::Error::other("Broken pipe")));
        let error = ManagerError::Deadline {
            task: Task::Start,
            unit: unit.clone(),
            limit: Duration::from_millis(1500),
            source: Some(lost.clone()),
        };
        assert_eq!(
            error.failure(),
            Failure::new(
                Cause::Systemd,
                "systemd did not start mnt-secretfs.mount within 1.5 s: I/O error: Broken pipe"
            )
        );
        let error = ManagerError::Unreachable { task: Task::Read, unit, address: "/run/x".to_owned(), source: lost };
        assert_eq!(
            error.failure().detail,
            "cannot show mnt-secretfs.mount: systemd is out of reach at /run/x: I/O error: Broken pipe"
        );
    }
}
