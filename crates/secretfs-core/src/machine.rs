//! The life of one volume: events in, actions out. Nothing here waits or acts, and time comes with each event.

mod decide;
mod event;
mod step;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use self::decide::{Contents, Opening, decide_opening};
pub use self::event::{Action, Event, Exit, Story};
pub use self::step::Step;
use crate::cause::{Cause, Failure, Retry};
use crate::chain::Link;
use crate::config::{Filesystem, FilesystemType, Lifecycle, Volume};
use crate::key::Kdf;
use crate::retry::Schedule;

/// How long an unmount that fails is tried again while stopping; well within `TimeoutStopSec=`.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(30);

/// What the daemon is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Aim {
    /// Bringing the volume up.
    Start,
    /// Waiting to try again.
    Wait,
    /// Keeping it up.
    Hold,
    /// Lost; waiting for systemd's stop.
    Lost,
    /// Taking it down, to end like this.
    Stop(Exit),
    /// Ended.
    Over,
}

/// What there is to take down again, as far as is known: better once too often than left behind.
#[derive(Debug, Default)]
struct Left {
    attached: bool,
    mapped: bool,
    mounted: bool,
}

/// The state machine of one volume.
#[derive(Debug)]
pub struct Machine {
    name: String,
    lifecycle: Lifecycle,
    filesystem: Filesystem,
    start_timeout: Duration,
    seed: u64,
    schedule: Schedule,
    aim: Aim,
    running: Option<Step>,
    opening: Opening,
    /// How a format derives its key, once there is one.
    kdf: Kdf,
    left: Left,
    /// Whether the volume was found running.
    adopted: bool,
    /// Whether the free space is being zeroed, as far as was told.
    zeroing: bool,
    /// Whether the mounts changed since the last look at them began.
    mounts_changed: bool,
    /// Until when an unmount that fails is tried again.
    unmount_until: Option<Duration>,
}

impl Machine {
    /// A machine for `volume`; `seed` differs from host to host and spreads the retries.
    pub fn new(volume: &Volume, seed: u64) -> Self {
        Self {
            name: volume.name.to_string(),
            lifecycle: volume.lifecycle,
            filesystem: volume.filesystem.clone(),
            start_timeout: volume.start_timeout,
            seed,
            schedule: Schedule::new(seed, volume.start_timeout),
            aim: Aim::Start,
            running: None,
            opening: Opening::Unlock,
            kdf: Kdf::Argon2id,
            left: Left::default(),
            adopted: false,
            zeroing: false,
            mounts_changed: false,
            unmount_until: None,
        }
    }

    /// Takes one event at `now`, a monotonic time since the daemon began, and says what to do.
    pub fn on_event(&mut self, now: Duration, event: Event) -> Vec<Action> {
        if self.aim == Aim::Over {
            return Vec::new();
        }
        self.note_progress(&event);
        match event {
            Event::StopRequested => self.on_stop(),
            Event::Woke => self.on_woke(),
            Event::DeviceAppeared if self.aim == Aim::Wait => self.on_woke(),
            Event::DeviceAppeared => Vec::new(),
            Event::MountsChanged => {
                self.mounts_changed = true;
                self.look_again()
            }
            event => match self.aim.clone() {
                Aim::Start => self.on_start_event(now, event),
                Aim::Hold | Aim::Lost => self.on_hold_event(event),
                Aim::Stop(exit) => self.on_stop_event(now, exit, event),
                Aim::Wait | Aim::Over => Vec::new(),
            },
        }
    }

    /// Keeps book of what runs and of what there is to take down.
    fn note_progress(&mut self, event: &Event) {
        match event {
            Event::Surveyed { mapping, mount } => {
                self.left.mapped = *mapping == Link::Ours;
                self.left.mounted = self.left.mapped;
                self.adopted = self.left.mapped && *mount == Link::Ours;
                self.left.attached |= self.left.mapped;
            }
            // A step that fails half-way may leave what it was to make.
            Event::Attached { .. } | Event::Failed(Step::Attach, _) => self.left.attached = true,
            Event::Done(Step::Unlock) | Event::Failed(Step::Unlock, _) => {
                self.left.mapped = true;
                // systemd sees the mapping, and mounts it at once for whoever waits; unfinished ones it does not see.
                self.left.mounted = self.opening == Opening::Unlock;
            }
            Event::Done(Step::Mount) | Event::Failed(Step::Mount, _) | Event::Abandoned(Step::Mount) => {
                self.left.mounted = true;
            }
            Event::Done(Step::Unmount) => self.left.mounted = false,
            Event::Done(Step::Close) => (self.left.mapped, self.left.mounted) = (false, false),
            Event::Done(Step::Detach) => self.left.attached = false,
            _ => {}
        }
        let goes_on = matches!(
            event,
            Event::Begin
                | Event::Woke
                | Event::DeviceAppeared
                | Event::MountsChanged
                | Event::StopRequested
                | Event::Wiping(_)
                | Event::WipeEnded(_)
        );
        if !goes_on {
            self.running = None;
        }
    }

    fn run(&mut self, step: Step) -> Vec<Action> {
        self.running = Some(step);
        if step == Step::Verify {
            self.mounts_changed = false;
        }
        vec![Action::Run(step)]
    }

    fn run_saying(&mut self, step: Step) -> Vec<Action> {
        let mut actions = vec![Action::Status(step.status(self.filesystem.kind, self.adopted).to_owned())];
        actions.extend(self.run(step));
        actions
    }

    fn on_start_event(&mut self, now: Duration, event: Event) -> Vec<Action> {
        match event {
            Event::Begin => {
                self.schedule = Schedule::new(self.seed, now + self.start_timeout);
                self.run_saying(Step::Survey)
            }
            Event::Surveyed { mount: Link::Foreign(what), .. } => {
                self.on_failure(now, Step::Survey, Failure::new(Cause::MountPointBusy, what))
            }
            Event::Surveyed { mapping: Link::Foreign(what), .. } => {
                self.on_failure(now, Step::Survey, Failure::new(Cause::ChainBroken, what))
            }
            Event::Surveyed { mapping: Link::Ours, mount: Link::Ours } => self.run_saying(Step::Verify),
            // Swap space has no mount point to guard.
            Event::Surveyed { .. } if self.is_swap() => self.open(),
            Event::Surveyed { .. } => self.run_saying(Step::Guard),
            Event::Done(Step::Guard) => self.open(),
            Event::Attached { contents, formatted_this_boot, wipe_begun } => {
                match decide_opening(self.lifecycle, &contents, formatted_this_boot, wipe_begun) {
                    Ok(opening) => {
                        self.opening = opening;
                        self.run_saying(Step::FetchKey)
                    }
                    Err(failure) => self.on_failure(now, Step::Attach, failure),
                }
            }
            Event::KeyFetched { form, length } => {
                self.kdf = Kdf::for_key(form, length);
                match self.opening {
                    Opening::Format => self.run_saying(Step::Format(self.kdf)),
                    Opening::Unlock | Opening::Resume => self.run_saying(Step::Unlock),
                }
            }
            Event::Done(Step::Format(_)) => {
                let mut actions = vec![Action::Tell(Story::Formatted)];
                actions.extend(self.run_saying(Step::Unlock));
                actions
            }
            Event::Done(Step::Unlock) => {
                let mut actions = vec![Action::DropKey];
                actions.extend(self.run_saying(Step::Inspect));
                actions
            }
            Event::Inspected { wipe_due: true, .. } => self.run_saying(Step::Wipe),
            Event::Wiping(progress) => vec![Action::Status(format!("Zeroing the volume: {progress}"))],
            Event::Done(Step::Wipe) => self.run_saying(Step::Inspect),
            // The key was changed since; nothing was ever stored under the old one.
            Event::Failed(Step::Unlock, failure)
                if self.opening == Opening::Resume && failure.cause == Cause::WrongKey =>
            {
                self.opening = Opening::Format;
                self.run_saying(Step::Format(self.kdf))
            }
            // mkfs was interrupted, or finished and not noted: nobody has used it, and all of it is made anew.
            Event::Inspected { unfinished: true, contents: Contents::Signature(_), .. } => self.run_saying(Step::Close),
            Event::Done(Step::Close) => self.run_saying(Step::Survey),
            Event::Inspected { unfinished: true, .. } => self.run_saying(Step::MakeFilesystem),
            Event::Inspected { contents, unfinished: false, .. } => {
                match decide::check_filesystem(self.filesystem.kind, &contents) {
                    Ok(()) => self.run_saying(Step::Mount),
                    Err(failure) => self.on_failure(now, Step::Inspect, failure),
                }
            }
            Event::Done(Step::MakeFilesystem) => self.run_saying(Step::FinishFormat),
            Event::Done(Step::FinishFormat) => self.run_saying(Step::Mount),
            // Swap space has no file system to grow, and no root directory.
            Event::Done(Step::Mount) if self.is_swap() => self.run_saying(Step::Verify),
            Event::Done(Step::Mount) => self.run_saying(Step::Grow),
            Event::Done(Step::Grow) if self.filesystem.root.is_configured() => self.run_saying(Step::Own),
            Event::Done(Step::Grow | Step::Own) => self.run_saying(Step::Verify),
            Event::Done(Step::Verify) => self.hold(),
            Event::Failed(step, failure) => self.on_failure(now, step, failure),
            _ => Vec::new(),
        }
    }

    fn is_swap(&self) -> bool {
        self.filesystem.kind == FilesystemType::Swap
    }

    /// Begins to open the mapping, or goes on with the one that is open.
    fn open(&mut self) -> Vec<Action> {
        let step = if self.left.mapped { Step::Inspect } else { Step::Attach };
        self.run_saying(step)
    }

    fn hold(&mut self) -> Vec<Action> {
        self.aim = Aim::Hold;
        let mut actions = vec![
            Action::Status(format!("{}; holding the volume", self.how())),
            Action::Ready,
            Action::Tell(Story::Ready { adopted: self.adopted }),
            Action::WipeFreeSpace,
        ];
        actions.extend(self.look_again());
        actions
    }

    fn how(&self) -> &'static str {
        match (self.adopted, self.is_swap()) {
            (true, _) => "Taken over and verified",
            (false, true) => "In use as swap space and verified",
            (false, false) => "Mounted and verified",
        }
    }

    /// Verifies a held volume again, if the mounts changed since the last look.
    fn look_again(&mut self) -> Vec<Action> {
        let due = self.aim == Aim::Hold && self.running.is_none() && self.mounts_changed;
        if due { self.run(Step::Verify) } else { Vec::new() }
    }

    fn on_woke(&mut self) -> Vec<Action> {
        match self.aim {
            Aim::Wait => {
                self.aim = Aim::Start;
                self.run_saying(Step::Survey)
            }
            Aim::Stop(exit) if self.running.is_none() => self.take_down(exit),
            _ => Vec::new(),
        }
    }

    fn on_hold_event(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Done(Step::Verify) => self.look_again(),
            Event::Wiping(progress) if self.aim == Aim::Hold => {
                self.zeroing = true;
                vec![Action::Status(format!("{}; holding the volume, zeroing its free space: {progress}", self.how()))]
            }
            // Mostly there is nothing to do.
            Event::WipeEnded(Ok(())) if !self.zeroing => Vec::new(),
            Event::WipeEnded(result) if self.aim == Aim::Hold => {
                let note = match result {
                    Ok(()) => String::new(),
                    Err(failure) => format!("; its free space is not zeroed: {failure}"),
                };
                vec![Action::Status(format!("{}; holding the volume{note}", self.how()))]
            }
            Event::Failed(Step::Verify, failure) if self.aim == Aim::Hold => {
                if failure.cause.retry() == Retry::Transient {
                    // Reading the chain failed, which says nothing of the chain; the next change looks again.
                    let how = if self.is_swap() { "In use as swap space" } else { "Mounted" };
                    return vec![Action::Status(format!("{how}; the last check could not be made: {failure}"))];
                }
                self.aim = Aim::Lost;
                let hint = failure.cause.row().hint;
                vec![
                    Action::Status(format!("Lost: {failure}; its consumers are stopped. Hint: {hint}")),
                    Action::Tell(Story::Lost(failure)),
                    Action::StopSelf,
                ]
            }
            // systemd could not be asked; ending is what is left, and the consumers' BindsTo= sees to them.
            Event::Failed(_, _) if self.aim == Aim::Lost => self.begin_stop(Exit::Permanent),
            _ => Vec::new(),
        }
    }

    /// A step of the start failed: wait and start over, or give up.
    fn on_failure(&mut self, now: Duration, step: Step, failure: Failure) -> Vec<Action> {
        let hint = failure.cause.row().hint;
        let transient = failure.cause.retry() == Retry::Transient;
        if transient && let Some(wait) = self.schedule.next(now) {
            self.aim = Aim::Wait;
            let attempt = self.schedule.attempt();
            let watch = (failure.cause == Cause::BackingMissing).then_some(Action::WatchDevices);
            let mut actions = vec![
                Action::DropKey,
                Action::Status(format!(
                    "Waiting: {failure}; next try in {} s, giving up in {}. Hint: {hint}",
                    wait.as_secs_f32().ceil(),
                    minutes(self.schedule.deadline().saturating_sub(now)),
                )),
                Action::Tell(Story::Waiting { step, failure, attempt, wait }),
                Action::WakeAt(now + wait),
            ];
            actions.extend(watch);
            return actions;
        }
        let exit = if transient { Exit::Transient } else { Exit::Permanent };
        let mut actions = vec![
            Action::DropKey,
            Action::Status(format!("Failed: {failure}. Hint: {hint}")),
            Action::Tell(Story::Failed { step, failure }),
        ];
        // What waits for the device fails now, instead of at its own time-out.
        if exit == Exit::Permanent {
            actions.push(Action::FailWaiting);
        }
        // What was found running and could not be verified is somebody else's, or evidence; it stays as it is.
        if self.adopted {
            self.aim = Aim::Over;
            actions.push(Action::Exit(exit));
        } else {
            self.aim = Aim::Stop(exit);
            actions.extend(self.take_down(exit));
        }
        actions
    }

    fn on_stop(&mut self) -> Vec<Action> {
        match self.aim {
            Aim::Stop(_) => Vec::new(),
            Aim::Lost => self.begin_stop(Exit::Permanent),
            _ => self.begin_stop(Exit::Stopped),
        }
    }

    fn begin_stop(&mut self, exit: Exit) -> Vec<Action> {
        self.aim = Aim::Stop(exit);
        let mut actions = vec![Action::Stopping, Action::DropKey];
        if self.running.is_some() {
            actions.push(Action::Abandon);
        } else {
            actions.extend(self.take_down(exit));
        }
        actions
    }

    /// The next step down: unmount, close, detach, end.
    fn take_down(&mut self, exit: Exit) -> Vec<Action> {
        // What went wrong stays in `STATUS=` while everything is taken down.
        let failed = exit != Exit::Stopped;
        let quietly = |machine: &mut Self, step| if failed { machine.run(step) } else { machine.run_saying(step) };
        if self.left.mounted {
            quietly(self, Step::Unmount)
        } else if self.left.mapped {
            quietly(self, Step::Close)
        } else if self.left.attached {
            quietly(self, Step::Detach)
        } else {
            self.aim = Aim::Over;
            let mut actions = Vec::new();
            if !failed {
                actions.push(Action::Tell(Story::Stopped));
            }
            actions.push(Action::Exit(exit));
            actions
        }
    }

    fn on_stop_event(&mut self, now: Duration, exit: Exit, event: Event) -> Vec<Action> {
        match event {
            Event::Failed(step @ (Step::Unmount | Step::Close | Step::Detach), failure) => {
                let until = *self.unmount_until.get_or_insert(now + UNMOUNT_PATIENCE);
                if step == Step::Unmount && now < until {
                    return vec![
                        Action::Status(format!("Not yet: {failure}; trying again")),
                        Action::WakeAt(now + Duration::from_secs(1)),
                    ];
                }
                self.aim = Aim::Over;
                vec![
                    Action::Status(format!("Failed: {failure}. Hint: {}", failure.cause.row().hint)),
                    Action::Tell(Story::Failed { step, failure }),
                    Action::Exit(Exit::Permanent),
                ]
            }
            Event::Wiping(_) | Event::WipeEnded(_) => Vec::new(),
            // Whatever was under way when the stop came has ended, one way or the other.
            _ => self.take_down(exit),
        }
    }

    /// The volume's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn minutes(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 120 { format!("{seconds} s") } else { format!("{} min", seconds / 60) }
}
