//! The daemon's loop: waits for what happens, asks the state machine, and carries out what it says.

use std::future::{self, Future};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use secretfs_block::{Passphrase, volume as facts};
use secretfs_core::cause::{Cause, Failure};
use secretfs_core::config::{Aws, Target, Volume};
use secretfs_core::key::{AuditTrail, FetchRequest};
use secretfs_core::machine::{Action, Event, Exit, Machine, Step};
use secretfs_core::name::VolumeName;
use secretfs_core::progress::Progress;
use secretfs_systemd::manager::Manager;
use secretfs_systemd::notify::{Notifier, NotifyError};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::steps::Attached;
use crate::worker::Worker;
use crate::{config, fetch, mounts, steps, tell, units, wipe};

/// What `TimeoutStartSec=` is extended by beyond a step's own limit, for the daemon to say that it failed.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(20);

/// What came of a step besides the event for the state machine.
struct Ended {
    event: Event,
    attached: Option<Attached>,
    key: Option<Passphrase>,
    trail: Option<AuditTrail>,
}

impl From<Event> for Ended {
    fn from(event: Event) -> Self {
        Self { event, attached: None, key: None, trail: None }
    }
}

/// A step under way.
struct Running {
    step: Step,
    /// Whether dropping the future ends the step; a blocking call goes on.
    abandonable: bool,
    future: Pin<Box<dyn Future<Output = Ended>>>,
}

struct Daemon {
    volume: Arc<Volume>,
    aws: Aws,
    machine: Machine,
    manager: Manager,
    notifier: Notifier,
    worker: Worker,
    began: Instant,
    running: Option<Running>,
    wake: Option<Instant>,
    /// The next new device, while one is waited for.
    device_watch: Option<Pin<Box<dyn Future<Output = bool>>>>,
    key: Option<Arc<Passphrase>>,
    attached: Option<Attached>,
    trail: AuditTrail,
    /// How far the zeroing has come.
    progress: watch::Sender<Option<Progress>>,
    /// Ends the zeroing, before the volume is ready or beside it; nothing goes on after that but the way down.
    cancel: wipe::Cancel,
    /// The end of the zeroing beside a ready volume.
    zeroing: Option<oneshot::Receiver<Result<(), Failure>>>,
    /// Whether `READY=1` was said.
    ready: bool,
}

/// Runs the volume `name` until systemd stops it or it fails.
pub async fn run(name: &VolumeName) -> Exit {
    let notifier = Notifier::from_env();
    let manager = Manager::private();
    let failure = match config::read(name) {
        Ok((volume, aws)) => match Daemon::new(volume, aws, manager.clone(), notifier.clone()) {
            Ok((daemon, signals)) => return daemon.run(signals).await,
            Err(error) => Failure::new(Cause::System, format!("the daemon cannot start: {error}")),
        },
        Err(failure) => failure,
    };
    say(&notifier.status(&format!("Failed: {failure}. Hint: {}", failure.cause.row().hint)));
    tell::failed(name.as_str(), "configuration", &failure, None);
    units::fail_waiting(&manager, name).await;
    Exit::Permanent
}

/// The signals that ask the daemon to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Daemon {
    fn new(volume: Volume, aws: Aws, manager: Manager, notifier: Notifier) -> io::Result<(Self, Signals)> {
        let signals =
            Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
        let machine = Machine::new(&volume, seed(&volume.name));
        let daemon = Self {
            volume: Arc::new(volume),
            aws,
            machine,
            manager,
            notifier,
            worker: Worker::start()?,
            began: Instant::now(),
            running: None,
            wake: None,
            device_watch: None,
            key: None,
            attached: None,
            trail: AuditTrail::default(),
            progress: watch::Sender::new(None),
            cancel: wipe::Cancel::default(),
            zeroing: None,
            ready: false,
        };
        Ok((daemon, signals))
    }

    async fn run(mut self, mut signals: Signals) -> Exit {
        let mut mounts = mounts::Watch::new(facts::table(&self.volume));
        if let Err(error) = &mounts {
            warn_unwatched(&self.volume.name, error);
        }
        // Half the watchdog's time; also how often a held volume is looked at where the table can't be watched.
        let beat = self.notifier.watchdog_interval().map_or(Duration::from_secs(20), |limit| limit / 2);
        let mut beat = interval(beat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut progress = self.progress.subscribe();
        let mut next = Some(Event::Begin);
        loop {
            let event = if let Some(event) = next.take() {
                event
            } else {
                tokio::select! {
                    ended = finish(&mut self.running) => self.take(ended),
                    ended = zeroed(&mut self.zeroing) => Event::WipeEnded(ended),
                    Some(progress) = come_so_far(&mut progress) => {
                        if let Some(running) = self.running.as_ref().filter(|running| running.step == Step::Wipe) {
                            say(&self.notifier.extend_timeout(running.step.limit() + TIMEOUT_MARGIN));
                        }
                        Event::Wiping(progress)
                    }
                    appeared = appeared(&mut self.device_watch) => {
                        if !appeared {
                            // Then there is only the time to wake at.
                            continue;
                        }
                        Event::DeviceAppeared
                    }
                    () = sleep_or_never(self.wake) => {
                        self.wake = None;
                        Event::Woke
                    }
                    _ = signals.terminate.recv() => Event::StopRequested,
                    _ = signals.interrupt.recv() => Event::StopRequested,
                    change = mount_change(mounts.as_ref().ok()) => {
                        if let Err(error) = change {
                            warn_unwatched(&self.volume.name, &error);
                            mounts = Err(error);
                        }
                        Event::MountsChanged
                    }
                    _ = beat.tick() => {
                        say(&self.notifier.watchdog());
                        if mounts.is_ok() {
                            continue;
                        }
                        Event::MountsChanged
                    }
                }
            };
            for action in self.machine.on_event(self.began.elapsed(), event) {
                match self.act(action).await {
                    Some(Turn::Exit(exit)) => return exit,
                    Some(Turn::Event(event)) => next = Some(event),
                    None => {}
                }
            }
        }
    }

    /// Keeps what a step brought besides its event.
    fn take(&mut self, ended: Ended) -> Event {
        self.running = None;
        self.attached = ended.attached.or(self.attached.take());
        self.key = ended.key.map(Arc::new).or(self.key.take());
        if let Some(trail) = ended.trail {
            if matches!(ended.event, Event::KeyFetched { .. }) {
                tell::key_used(self.machine.name(), &trail);
            }
            self.trail = trail;
        }
        ended.event
    }

    async fn act(&mut self, action: Action) -> Option<Turn> {
        match action {
            Action::Run(step) => {
                (self.wake, self.device_watch) = (None, None);
                say(&self.notifier.extend_timeout(step.limit() + TIMEOUT_MARGIN));
                self.running = Some(self.start(step));
            }
            Action::Abandon => {
                self.cancel.ask();
                if let Some(running) = self.running.take_if(|running| running.abandonable) {
                    return Some(Turn::Event(Event::Abandoned(running.step)));
                }
            }
            Action::DropKey => self.key = None,
            Action::Status(text) => {
                if !say(&self.notifier.status(&text)) {
                    tracing::info!(volume = %self.volume.name, "{text}");
                }
            }
            Action::WakeAt(at) => {
                let at = self.began + at;
                say(&self.notifier.extend_timeout(at.saturating_duration_since(Instant::now()) + TIMEOUT_MARGIN));
                self.wake = Some(at);
            }
            Action::Ready => {
                self.ready = true;
                say(&self.notifier.ready());
            }
            Action::WatchDevices => self.device_watch = Some(Box::pin(units::watch_devices(self.manager.clone()))),
            Action::WipeFreeSpace => self.zeroing = self.start_zeroing(),
            Action::Stopping => {
                say(&self.notifier.stopping());
            }
            Action::StopSelf => {
                let service = self.volume.name.service();
                if let Err(error) = self.manager.stop_unit_no_wait(&service, units::ASK_LIMIT).await {
                    return Some(Turn::Event(Event::Failed(Step::Verify, error.failure())));
                }
            }
            Action::FailWaiting => units::fail_waiting(&self.manager, &self.volume.name).await,
            Action::Tell(story) => tell::tell(self.machine.name(), &story, &self.trail),
            Action::Exit(exit) => return Some(Turn::Exit(exit)),
        }
        None
    }

    /// Starts the zeroing of the free space on a thread of its own: the worker's has to be free for other steps.
    fn start_zeroing(&self) -> Option<oneshot::Receiver<Result<(), Failure>>> {
        let (volume, cancel, progress) = (Arc::clone(&self.volume), self.cancel.clone(), self.progress.clone());
        match Worker::start() {
            Ok(worker) => Some(worker.run(move || wipe::free_space(&volume, &cancel, &progress))),
            Err(error) => {
                tracing::warn!(volume = %self.volume.name, "its free space is not zeroed: no thread: {error}");
                None
            }
        }
    }

    fn start(&mut self, step: Step) -> Running {
        let volume = Arc::clone(&self.volume);
        match step {
            Step::FetchKey => Running {
                step,
                abandonable: true,
                future: Box::pin(fetch_key(fetch::request(&self.volume, &self.aws))),
            },
            Step::Mount => {
                let (manager, worker) = (self.manager.clone(), self.worker.clone());
                let future = async move { units::mount(&manager, volume, &worker).await.into() };
                Running { step, abandonable: true, future: Box::pin(future) }
            }
            Step::Unmount => {
                self.cancel.ask();
                let (manager, worker, zeroing) = (self.manager.clone(), self.worker.clone(), self.zeroing.take());
                let future = async move {
                    // It holds a file open there.
                    if let Some(zeroing) = zeroing {
                        let _ = zeroing.await;
                    }
                    units::unmount(&manager, volume, &worker).await.into()
                };
                Running { step, abandonable: false, future: Box::pin(future) }
            }
            Step::Verify if self.ready && volume.target == Target::Swap => {
                let look = self.start_blocking(step, volume);
                Running { future: Box::pin(forgive_shutdown(self.manager.clone(), look.future)), ..look }
            }
            _ => self.start_blocking(step, volume),
        }
    }

    /// Starts a step that `secretfs-block` does, on the worker's thread.
    fn start_blocking(&self, step: Step, volume: Arc<Volume>) -> Running {
        let attached = self.attached.clone();
        let key = self.key.clone();
        let (cancel, progress) = (self.cancel.clone(), self.progress.clone());
        let result = self.worker.run(move || match (step, attached, key) {
            (Step::Survey, _, _) => steps::survey(&volume).map(Ended::from),
            (Step::Guard, _, _) => steps::guard(&volume).map(Ended::from),
            (Step::Attach, _, _) => {
                steps::attach(&volume).map(|(attached, event)| Ended { attached: Some(attached), ..Ended::from(event) })
            }
            (Step::Format(kdf), Some(attached), Some(key)) => {
                steps::format(&volume, &attached.device, kdf, &key).map(Ended::from)
            }
            (Step::Unlock, Some(attached), Some(key)) => {
                steps::unlock(&volume, &attached.device, &key).map(Ended::from)
            }
            (Step::Inspect, _, _) => steps::inspect_mapping(&volume).map(Ended::from),
            (Step::Wipe, _, _) => wipe::whole(&volume, &cancel, &progress).map(Ended::from),
            (Step::MakeFilesystem, _, _) => steps::make_filesystem(&volume).map(Ended::from),
            (Step::FinishFormat, _, _) => steps::finish_format(&volume).map(Ended::from),
            (Step::Grow, _, _) => Ok(steps::grow(&volume).into()),
            (Step::Own, _, _) => steps::own(&volume).map(Ended::from),
            (Step::Verify, attached, _) => steps::verify(&volume, attached.as_ref()).map(Ended::from),
            (Step::Close, _, _) => steps::close(&volume).map(Ended::from),
            (Step::Detach, _, _) => steps::detach(&volume).map(Ended::from),
            (other, _, _) => Err(Failure::new(Cause::Internal, format!("{other} came before what it needs"))),
        });
        let future = async move {
            match result.await {
                Ok(Ok(ended)) => ended,
                Ok(Err(failure)) => Event::Failed(step, failure).into(),
                Err(_) => Event::Failed(step, Failure::new(Cause::Internal, format!("{step} panicked"))).into(),
            }
        };
        Running { step, abandonable: false, future: Box::pin(future) }
    }
}

/// What an action leads to at once.
enum Turn {
    Event(Event),
    Exit(Exit),
}

async fn fetch_key(request: FetchRequest) -> Ended {
    let (result, trail) = fetch::fetch(request).await;
    match result {
        Ok(fetched) => {
            let event = Event::KeyFetched { form: fetched.form, length: fetched.key.len() };
            Ended { event, attached: None, key: Some(fetched.key), trail: Some(trail) }
        }
        Err(failure) => Ended { trail: Some(trail), ..Ended::from(Event::Failed(Step::FetchKey, failure)) },
    }
}

/// Takes swap space that went away while the system goes down for no loss.
///
/// systemd has a unit for each name of the device, made from `/proc/swaps`, and these conflict with umount.target. To stop
/// one is to stop them all (`swap_following_set` of systemd's `swap.c`), ours too, and before this service, which is
/// stopped in a moment.
async fn forgive_shutdown(manager: Manager, look: impl Future<Output = Ended>) -> Ended {
    let ended = look.await;
    match &ended.event {
        Event::Failed(step, failure) if failure.cause == Cause::SwapLost && units::is_going_down(&manager).await => {
            Event::Done(*step).into()
        }
        _ => ended,
    }
}

/// Waits for the end of [`units::watch_devices`], or for ever.
async fn appeared(watch: &mut Option<Pin<Box<dyn Future<Output = bool>>>>) -> bool {
    let Some(future) = watch else { return future::pending().await };
    let appeared = future.as_mut().await;
    *watch = None;
    appeared
}

/// Waits for the end of the zeroing beside the volume, or for ever.
async fn zeroed(zeroing: &mut Option<oneshot::Receiver<Result<(), Failure>>>) -> Result<(), Failure> {
    let Some(receiver) = zeroing else { return future::pending().await };
    let ended = receiver.await;
    *zeroing = None;
    ended.unwrap_or_else(|_| Err(Failure::new(Cause::Internal, "the zeroing panicked")))
}

/// Waits for the next word on how far the zeroing has come.
async fn come_so_far(progress: &mut watch::Receiver<Option<Progress>>) -> Option<Progress> {
    // The sender is the daemon's own.
    progress.changed().await.ok()?;
    *progress.borrow_and_update()
}

/// Waits for the step under way, or for ever.
async fn finish(running: &mut Option<Running>) -> Ended {
    match running {
        Some(running) => running.future.as_mut().await,
        None => future::pending().await,
    }
}

fn warn_unwatched(name: &VolumeName, error: &io::Error) {
    tracing::warn!(volume = %name, "the kernel's table cannot be watched, only looked at from time to time: {error}");
}

async fn sleep_or_never(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => future::pending().await,
    }
}

async fn mount_change(watch: Option<&mounts::Watch>) -> io::Result<()> {
    match watch {
        Some(watch) => watch.changed().await,
        None => future::pending().await,
    }
}

/// Whether systemd was told; that it was not is no reason to fail a volume.
fn say(told: &Result<bool, NotifyError>) -> bool {
    match told {
        Ok(told) => *told,
        Err(error) => {
            tracing::warn!("{error}");
            false
        }
    }
}

/// A number that differs from host to host and from volume to volume.
fn seed(name: &VolumeName) -> u64 {
    let mut hasher = DefaultHasher::new();
    std::fs::read("/etc/machine-id").unwrap_or_default().hash(&mut hasher);
    name.hash(&mut hasher);
    hasher.finish()
}
