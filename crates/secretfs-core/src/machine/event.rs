//! What the state machine is told, and what it says.

use std::time::Duration;

use super::{Contents, Step};
use crate::cause::Failure;
use crate::chain::Link;
use crate::key::KeyForm;
use crate::progress::Progress;

/// How the daemon ends; the numbers are from sysexits(3) and stand in secretfsd(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The volume was stopped: 0.
    Stopped,
    /// A failure that may pass did not pass in time: 75, and systemd starts the daemon again.
    Transient,
    /// A failure that somebody has to see to: 77, and systemd leaves it at that.
    Permanent,
}

impl Exit {
    /// The exit status.
    pub fn status(self) -> u8 {
        match self {
            Self::Stopped => 0,
            Self::Transient => 75,
            Self::Permanent => 77,
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The daemon has started.
    Begin,
    /// [`Step::Survey`] is done.
    Surveyed {
        /// What is mapped under the volume's name.
        mapping: Link,
        /// What is mounted on its mount point; or whether it is in use as swap space.
        mount: Link,
    },
    /// [`Step::Attach`] is done: the backing device is there.
    Attached {
        /// What is on it.
        contents: Contents,
        /// Whether this boot has formatted it already.
        formatted_this_boot: bool,
        /// Whether its header says how far the zeroing came that a format was interrupted in.
        wipe_begun: bool,
    },
    /// [`Step::FetchKey`] is done: the daemon holds the key.
    KeyFetched {
        /// What kind of key it is.
        form: KeyForm,
        /// Its length in bytes.
        length: usize,
    },
    /// [`Step::Inspect`] is done.
    Inspected {
        /// What is on the opened mapping.
        contents: Contents,
        /// Whether the header still carries the marker of an unfinished format.
        unfinished: bool,
        /// Whether the mapping is to be zeroed before anything is made on it, and is not yet.
        wipe_due: bool,
    },
    /// How far the zeroing has come, before the volume is ready or beside it.
    Wiping(Progress),
    /// The zeroing of the free space beside a ready volume has ended.
    WipeEnded(Result<(), Failure>),
    /// One of the steps without a result is done.
    Done(Step),
    /// A step failed.
    Failed(Step, Failure),
    /// A step was abandoned, as [`Action::Abandon`] asked.
    Abandoned(Step),
    /// The time of [`Action::WakeAt`] has come.
    Woke,
    /// systemd knows of a device that it did not know of, as [`Action::WatchDevices`] asked to be told.
    DeviceAppeared,
    /// The kernel's table of mounts, or of swap space, changed.
    MountsChanged,
    /// systemd asks the daemon to end.
    StopRequested,
}

/// What the daemon is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Run one step; its end comes back as an event. Never more than one at a time.
    Run(Step),
    /// Abandon the step that is running, if it can be; its end comes back as an event either way.
    Abandon,
    /// Zero the key.
    DropKey,
    /// Say this in `STATUS=`.
    Status(String),
    /// Send [`Event::Woke`] at this time of the machine's clock.
    WakeAt(Duration),
    /// Tell of new devices with [`Event::DeviceAppeared`], until another step runs.
    WatchDevices,
    /// Say `READY=1`.
    Ready,
    /// Zero the free space beside all else, if the header says that it is still to be done; or give up what was begun, if
    /// the configuration does not ask for it any more.
    WipeFreeSpace,
    /// Say `STOPPING=1`.
    Stopping,
    /// Have systemd stop the volume's own unit, and so its consumers before it.
    StopSelf,
    /// Fail the jobs that wait for the volume's device.
    FailWaiting,
    /// Tell the journal.
    Tell(Story),
    /// End the process.
    Exit(Exit),
}

/// A turn of events that the journal tells, each under a message id of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Story {
    /// The volume is ready.
    Ready {
        /// Whether it was found running and taken over.
        adopted: bool,
    },
    /// A step failed and will be tried again.
    Waiting {
        /// Which.
        step: Step,
        /// Why.
        failure: Failure,
        /// How often it failed so far.
        attempt: u32,
        /// How long until the next try.
        wait: Duration,
    },
    /// A step failed for good.
    Failed {
        /// Which.
        step: Step,
        /// Why.
        failure: Failure,
    },
    /// The backing device was formatted.
    Formatted,
    /// The mount or the swap space went away, or is not the volume's any more.
    Lost(Failure),
    /// The volume is stopped: out of use, closed, detached.
    Stopped,
}
