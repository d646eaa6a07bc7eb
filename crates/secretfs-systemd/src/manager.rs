//! systemd's manager: jobs and states of units.
//!
//! [`Manager::private`] talks to PID 1 over its own socket, which is there from the first to the last moment of the
//! system: dbus.service stops before the volumes do. [`Manager::system_bus`] is for callers without privileges.
//!
//! Every operation makes a connection of its own, so there is nothing to go stale, and survives the loss of that
//! connection: PID 1 drops the connections of its private socket when it re-executes itself. Then the operation
//! connects again and looks at where the unit is now. Every operation has a time limit.

mod error;
mod facts;
mod peer;
mod wire;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secretfs_core::name::UnitName;
use tokio::time::{Instant, sleep, timeout};
use zbus::{Connection, OwnedObjectPath};

pub use self::error::{ManagerError, Task};
pub use self::facts::UnitFacts;
use self::wire::{JobProxy, ManagerProxy, Signals, UnitProxy};

/// Where PID 1 listens for root (`manager_setup_private` of systemd; systemctl uses it as well).
const PRIVATE_SOCKET: &str = "/run/systemd/private";

/// How long a peer may be out of reach before an operation gives up. A re-executing PID 1 is back in well under a
/// second on hardware, and in a few under full emulation.
const UNREACHABLE_GRACE: Duration = Duration::from_secs(10);

/// Pause before connecting again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// While waiting for a job, look at the unit this often too, should its signal ever be missed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// A job's signal is sent before any reply that no longer shows the job; this is the time to read it from the queue.
const SIGNAL_GRACE: Duration = Duration::from_millis(100);

/// How a job ended (`JobRemoved` of org.freedesktop.systemd1(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobResult {
    /// It was carried out. A start is also `Done` when a `Condition…=` of the unit kept it from starting, so look at
    /// what should be there.
    Done,
    /// It was cancelled, or another job of the same unit took its place.
    Canceled,
    /// It ran into the job's own time-out.
    Timeout,
    /// The unit failed.
    Failed,
    /// Something the unit requires failed.
    Dependency,
    /// There was nothing to do for it, or the unit was in no state for it.
    Skipped,
    /// It ended while systemd could not be heard, and the unit is not in the wished state.
    Lost,
    /// Another word of systemd's: `invalid`, `assert`, `unsupported`, `collected`, `once`, ….
    Other(String),
}

impl JobResult {
    fn parse(word: &str) -> Self {
        match word {
            "done" => Self::Done,
            "canceled" => Self::Canceled,
            "timeout" => Self::Timeout,
            "failed" => Self::Failed,
            "dependency" => Self::Dependency,
            "skipped" => Self::Skipped,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for JobResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Canceled => "canceled",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
            Self::Dependency => "dependency",
            Self::Skipped => "skipped",
            Self::Lost => "lost",
            Self::Other(word) => word,
        })
    }
}

/// The way to systemd's manager; holds no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manager {
    reach: Reach,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Reach {
    /// A socket with the manager itself at its other end.
    Peer(PathBuf),
    SystemBus,
}

impl Manager {
    /// PID 1 over its private socket; for root only.
    pub fn private() -> Self {
        Self::at(Path::new(PRIVATE_SOCKET))
    }

    /// A manager that listens on the socket `path`.
    pub fn at(path: &Path) -> Self {
        Self { reach: Reach::Peer(path.to_owned()) }
    }

    /// PID 1 over the system bus; reading is allowed to everybody.
    pub fn system_bus() -> Self {
        Self { reach: Reach::SystemBus }
    }

    /// Starts `unit` and waits for the job to end.
    pub async fn start_unit(&self, unit: &UnitName, limit: Duration) -> Result<JobResult, ManagerError> {
        let mut patience = Patience::of(&self.reach);
        let outcome = timeout(limit, self.run_job(Verb::Start, unit, &mut patience)).await;
        self.conclude(Task::Start, unit, limit, patience, outcome)
    }

    /// Stops `unit` and waits for the job to end. A unit that is not loaded is stopped already.
    ///
    /// What depends on it and runs is stopped before. What is to be started again, as in a restart of the volume's service,
    /// goes on waiting.
    pub async fn stop_unit(&self, unit: &UnitName, limit: Duration) -> Result<JobResult, ManagerError> {
        let mut patience = Patience::of(&self.reach);
        let outcome = timeout(limit, self.run_job(Verb::Stop, unit, &mut patience)).await;
        self.conclude(Task::Stop, unit, limit, patience, outcome)
    }

    /// Reloads `unit`, which is running, and waits for the job to end. A stop that is queued already is not replaced.
    pub async fn reload_unit(&self, unit: &UnitName, limit: Duration) -> Result<JobResult, ManagerError> {
        let mut patience = Patience::of(&self.reach);
        let outcome = timeout(limit, self.run_job(Verb::Reload, unit, &mut patience)).await;
        self.conclude(Task::Reload, unit, limit, patience, outcome)
    }

    /// Queues the stop of `unit` and does not wait for it; so a service may stop itself.
    pub async fn stop_unit_no_wait(&self, unit: &UnitName, limit: Duration) -> Result<(), ManagerError> {
        let mut patience = Patience::of(&self.reach);
        let outcome = timeout(limit, self.queue_stop(unit, &mut patience)).await;
        self.conclude(Task::Stop, unit, limit, patience, outcome)
    }

    /// Cancels the start job of `unit` that waits or runs, so that what depends on it fails now and not at its
    /// time-out. Returns whether there was one.
    pub async fn cancel_job_of(&self, unit: &UnitName, limit: Duration) -> Result<bool, ManagerError> {
        let mut patience = Patience::of(&self.reach);
        let outcome = timeout(limit, self.cancel_start(unit, &mut patience)).await;
        self.conclude(Task::CancelStart, unit, limit, patience, outcome)
    }

    /// Reads where `unit` stands; one that does not exist has the load state `not-found`.
    pub async fn unit_facts(&self, unit: &UnitName, limit: Duration) -> Result<UnitFacts, ManagerError> {
        let mut patience = Patience::of(&self.reach);
        let outcome = timeout(limit, self.read_facts(unit, &mut patience)).await;
        self.conclude(Task::Read, unit, limit, patience, outcome)
    }

    /// Waits, without a limit, until systemd has a device unit that it did not have: udev is done with a new device then
    /// (systemd.device(5)). Returns its name. When systemd can't be heard any more, that is the error.
    pub async fn device_appeared(&self) -> Result<String, zbus::Error> {
        let connection = self.connect().await?;
        Signals::of_new_units(&connection).await?.unit(".device").await
    }

    fn conclude<T>(
        &self,
        task: Task,
        unit: &UnitName,
        limit: Duration,
        patience: Patience,
        outcome: Result<zbus::Result<T>, tokio::time::error::Elapsed>,
    ) -> Result<T, ManagerError> {
        let unit = unit.clone();
        match outcome {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) if wire::is_lost(&source) => {
                Err(ManagerError::Unreachable { task, unit, address: self.reach.to_string(), source })
            }
            Ok(Err(source)) => Err(ManagerError::Refused { task, unit, source }),
            Err(_) => Err(ManagerError::Deadline { task, unit, limit, source: patience.last }),
        }
    }

    async fn connect(&self) -> zbus::Result<Connection> {
        match &self.reach {
            Reach::Peer(path) => wire::connect_peer(path).await,
            Reach::SystemBus => Connection::system().await,
        }
    }

    async fn run_job(&self, verb: Verb, unit: &UnitName, patience: &mut Patience) -> zbus::Result<JobResult> {
        let mut job = None;
        loop {
            match self.run_job_once(verb, unit, &mut job, patience).await {
                Ok(result) => return Ok(result),
                Err(error) => patience.after(error).await?,
            }
        }
    }

    /// One connection's worth of a job. `job` is the one systemd has acknowledged, on this connection or an earlier.
    async fn run_job_once(
        &self,
        verb: Verb,
        unit: &UnitName,
        job: &mut Option<OwnedObjectPath>,
        patience: &mut Patience,
    ) -> zbus::Result<JobResult> {
        let connection = self.connect().await?;
        patience.connected();
        let mut removals = Signals::of_removed_jobs(&connection).await?;
        let mine = if let Some(job) = job {
            if let Some(result) = verdict(verb, &standing(&connection, unit.as_str()).await?, job) {
                return Ok(result);
            }
            job.clone()
        } else {
            let manager = ManagerProxy::new(&connection).await?;
            let answer = match verb {
                Verb::Start => manager.start_unit(unit.as_str(), "replace").await,
                Verb::Stop => manager.stop_unit(unit.as_str(), stop_mode(&connection, unit).await?).await,
                Verb::Reload => manager.reload_unit(unit.as_str(), "fail").await,
            };
            match answer {
                Ok(path) => job.insert(path).clone(),
                Err(error) if verb == Verb::Stop && wire::is_no_such_unit(&error) => return Ok(JobResult::Done),
                Err(error) => return Err(error),
            }
        };
        loop {
            if let Ok(word) = timeout(LOOK_AGAIN, removals.result_of(&mine)).await {
                return Ok(JobResult::parse(&word?));
            }
            if let Some(result) = verdict(verb, &standing(&connection, unit.as_str()).await?, &mine) {
                let heard = timeout(SIGNAL_GRACE, removals.result_of(&mine)).await;
                return Ok(heard.ok().and_then(Result::ok).map_or(result, |word| JobResult::parse(&word)));
            }
        }
    }

    async fn queue_stop(&self, unit: &UnitName, patience: &mut Patience) -> zbus::Result<()> {
        loop {
            let answer = async {
                let connection = self.connect().await?;
                ManagerProxy::new(&connection).await?.stop_unit(unit.as_str(), "replace").await
            };
            match answer.await {
                Ok(_) => return Ok(()),
                Err(error) if wire::is_no_such_unit(&error) => return Ok(()),
                Err(error) => patience.after(error).await?,
            }
        }
    }

    async fn cancel_start(&self, unit: &UnitName, patience: &mut Patience) -> zbus::Result<bool> {
        loop {
            match self.cancel_start_once(unit).await {
                Ok(canceled) => return Ok(canceled),
                Err(error) => patience.after(error).await?,
            }
        }
    }

    async fn cancel_start_once(&self, unit: &UnitName) -> zbus::Result<bool> {
        let connection = self.connect().await?;
        let Some(path) = standing(&connection, unit.as_str()).await?.job else { return Ok(false) };
        let job = JobProxy::builder(&connection).path(path).build().await?;
        let canceled = async {
            if job.job_type().await? != "start" {
                return Ok(false);
            }
            job.cancel().await.map(|()| true)
        };
        match canceled.await {
            // It ended between the two questions.
            Err(error) if wire::is_no_such_object(&error) => Ok(false),
            other => other,
        }
    }

    async fn read_facts(&self, unit: &UnitName, patience: &mut Patience) -> zbus::Result<UnitFacts> {
        loop {
            let answer = async {
                let connection = self.connect().await?;
                facts::read(&connection, unit).await
            };
            match answer.await {
                Ok(facts) => return Ok(facts),
                Err(error) => patience.after(error).await?,
            }
        }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(path) => write!(f, "{}", path.display()),
            Self::SystemBus => f.write_str("the system bus"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Start,
    Stop,
    Reload,
}

/// How long to put up with lost connections.
struct Patience {
    grace: Duration,
    lost_since: Option<Instant>,
    last: Option<zbus::Error>,
}

impl Patience {
    fn of(reach: &Reach) -> Self {
        let grace = match reach {
            Reach::Peer(_) => UNREACHABLE_GRACE,
            // PID 1 never makes the bus go; when it is gone, it stays away.
            Reach::SystemBus => Duration::ZERO,
        };
        Self { grace, lost_since: None, last: None }
    }

    fn connected(&mut self) {
        self.lost_since = None;
    }

    /// Waits a little after a lost connection; returns any other error, and a loss that lasts too long.
    async fn after(&mut self, error: zbus::Error) -> zbus::Result<()> {
        let since = *self.lost_since.get_or_insert_with(Instant::now);
        if !wire::is_lost(&error) || wire::is_forbidden(&error) || since.elapsed() >= self.grace {
            return Err(error);
        }
        tracing::debug!(error = %error, "connection to systemd lost, connecting again");
        self.last = Some(error);
        sleep(RECONNECT_PAUSE).await;
        Ok(())
    }
}

/// Where a unit stands between two connections.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    active_state: String,
    job: Option<OwnedObjectPath>,
}

/// The mode of a stop (`StopUnit` of org.freedesktop.systemd1(5)).
///
/// With `replace` everything that requires the unit is stopped too, and its start cancelled, if one is queued. Where nothing
/// of that runs, only a start is to be lost: one of a bound unit may wait, since systemd looks once more whether what it is
/// bound to is there before it starts it. One of a unit that just requires this may not.
async fn stop_mode(connection: &Connection, unit: &UnitName) -> zbus::Result<&'static str> {
    let Some(unit) = loaded(connection, unit.as_str()).await? else { return Ok("replace") };
    for (dependents, may_wait) in [(unit.required_by().await?, false), (unit.bound_by().await?, true)] {
        for dependent in dependents {
            let Standing { active_state, job } = standing(connection, &dependent).await?;
            if !["inactive", "failed"].contains(&active_state.as_str()) || (job.is_some() && !may_wait) {
                return Ok("replace");
            }
        }
    }
    Ok("ignore-dependencies")
}

/// The unit, unless it is not loaded.
async fn loaded<'a>(connection: &Connection, unit: &str) -> zbus::Result<Option<UnitProxy<'a>>> {
    let manager = ManagerProxy::new(connection).await?;
    match manager.get_unit(unit).await {
        Ok(path) => UnitProxy::builder(connection).path(path).build().await.map(Some),
        Err(error) if wire::is_no_such_unit(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks for the unit's state and pending job; a unit that is not loaded is inactive.
async fn standing(connection: &Connection, unit: &str) -> zbus::Result<Standing> {
    let Some(unit) = loaded(connection, unit).await? else {
        return Ok(Standing { active_state: "inactive".to_owned(), job: None });
    };
    let (id, path) = unit.job().await?;
    Ok(Standing { active_state: unit.active_state().await?, job: (id != 0).then_some(path) })
}

/// What can be said of our job `mine` from where its unit stands; nothing while it is pending.
fn verdict(verb: Verb, standing: &Standing, mine: &OwnedObjectPath) -> Option<JobResult> {
    match &standing.job {
        Some(job) if job == mine => return None,
        Some(_) => return Some(JobResult::Canceled),
        None => {}
    }
    Some(match (verb, standing.active_state.as_str()) {
        (Verb::Start, "active" | "reloading" | "refreshing") | (Verb::Stop, "inactive" | "failed") => JobResult::Done,
        (Verb::Start, "failed") => JobResult::Failed,
        _ => JobResult::Lost,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(id: u32) -> OwnedObjectPath {
        OwnedObjectPath::try_from(format!("/org/freedesktop/systemd1/job/{id}")).unwrap()
    }

    #[test]
    fn verdicts() {
        let table = [
            (Verb::Start, "activating", Some(7), None),
            (Verb::Start, "active", Some(8), Some(JobResult::Canceled)),
            (Verb::Start, "active", None, Some(JobResult::Done)),
            (Verb::Start, "failed", None, Some(JobResult::Failed)),
            (Verb::Start, "inactive", None, Some(JobResult::Lost)),
            (Verb::Stop, "deactivating", Some(7), None),
            (Verb::Stop, "inactive", None, Some(JobResult::Done)),
            (Verb::Stop, "failed", None, Some(JobResult::Done)),
            (Verb::Stop, "active", None, Some(JobResult::Lost)),
            (Verb::Reload, "reloading", Some(7), None),
            // How a reload went can't be told from the unit's state.
            (Verb::Reload, "active", None, Some(JobResult::Lost)),
        ];
        for (verb, state, job, expected) in table {
            let standing = Standing { active_state: state.to_owned(), job: job.map(path) };
            assert_eq!(verdict(verb, &standing, &path(7)), expected, "{verb:?} {standing:?}");
        }
    }

    #[test]
    fn a_result_reads_as_systemd_writes_it() {
        for word in ["done", "canceled", "timeout", "failed", "dependency", "skipped", "assert", "frozen"] {
            assert_eq!(JobResult::parse(word).to_string(), word);
        }
    }

    /// The daemon may put an operation into a task of its own.
    #[test]
    fn operations_can_be_spawned() {
        fn check<T: Send>(_: &T) {}
        let (manager, unit) = (Manager::private(), UnitName::new("a.mount").unwrap());
        check(&manager.start_unit(&unit, Duration::ZERO));
        check(&manager.stop_unit_no_wait(&unit, Duration::ZERO));
        check(&manager.cancel_job_of(&unit, Duration::ZERO));
        check(&manager.unit_facts(&unit, Duration::ZERO));
    }
}
