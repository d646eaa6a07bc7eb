//! The manager's client against a manager that is played here, over a private socket as PID 1 has one.

#![expect(
    clippy::unused_self,
    reason = "methods and properties of a D-Bus object take self, whether they need it or not"
)]

use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use secretfs_core::name::UnitName;
use secretfs_systemd::manager::{JobResult, Manager, ManagerError, UnitFacts};
use tokio::net::UnixListener;
use tokio::time::{Instant, sleep, timeout};
use zbus::connection::Builder;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, DBusError, Guid, OwnedObjectPath, interface};

const MANAGER: &str = "/org/freedesktop/systemd1";
const UNIT: &str = "/org/freedesktop/systemd1/unit/mnt_2dsecretfs_2emount";
const JOB: &str = "/org/freedesktop/systemd1/job/7";
const OTHER_JOB: &str = "/org/freedesktop/systemd1/job/8";

/// Enough for any test that goes well.
const LIMIT: Duration = Duration::from_secs(20);

/// What the manager does when it is asked for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Play {
    /// Ends the job with this word before it even replies.
    AtOnce(&'static str),
    /// Ends the job with this word a little after the reply.
    Later(&'static str),
    /// Closes the connection instead of replying.
    CloseUnheard,
    /// Replies, and closes the connection a little later.
    CloseAfterReply,
    /// Replies, and the job stays.
    Stay,
    /// Does not reply.
    Hang,
    NoSuchUnit,
    Destructive,
}

#[derive(Debug)]
struct State {
    /// The play for each job that is asked for, in turn.
    plays: Vec<Play>,
    active: &'static str,
    job: Option<&'static str>,
    /// What was asked, in turn.
    asked: Vec<String>,
    connections: u32,
    required_by: &'static [&'static str],
    bound_by: &'static [&'static str],
    /// The units that appear a little after each connection.
    appear: &'static [&'static str],
}

type Shared = Arc<Mutex<State>>;

#[derive(Debug, DBusError)]
#[zbus(prefix = "org.freedesktop.systemd1")]
enum Refusal {
    #[zbus(error)]
    ZBus(zbus::Error),
    NoSuchUnit(String),
    TransactionIsDestructive(String),
}

struct FakeManager(Shared);

impl FakeManager {
    async fn job(
        &self,
        verb: &str,
        name: &str,
        mode: &str,
        connection: &Connection,
        emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Refusal> {
        let play = {
            let mut state = self.0.lock().unwrap();
            state.asked.push(format!("{verb} {name} {mode}"));
            state.plays.remove(0)
        };
        let emitter = emitter.to_owned();
        match play {
            Play::AtOnce(word) => end_job(&emitter, name, word).await?,
            Play::Later(word) => {
                let name = name.to_owned();
                tokio::spawn(async move {
                    sleep(Duration::from_millis(50)).await;
                    end_job(&emitter, &name, word).await.unwrap();
                });
            }
            Play::CloseUnheard => {
                connection.clone().close().await?;
                pending::<()>().await;
            }
            Play::CloseAfterReply => {
                let connection = connection.clone();
                tokio::spawn(async move {
                    sleep(Duration::from_millis(50)).await;
                    connection.close().await.unwrap();
                });
            }
            Play::Stay => {}
            Play::Hang => pending().await,
            Play::NoSuchUnit => return Err(Refusal::NoSuchUnit(format!("Unit {name} not loaded."))),
            Play::Destructive => {
                return Err(Refusal::TransactionIsDestructive("Transaction is destructive.".to_owned()));
            }
        }
        Ok(JOB.try_into().unwrap())
    }
}

/// The end of another unit's job, and then of ours.
async fn end_job(emitter: &SignalEmitter<'_>, name: &str, word: &str) -> zbus::Result<()> {
    FakeManager::job_removed(emitter, 8, OTHER_JOB.try_into()?, "other.service", "failed").await?;
    FakeManager::job_removed(emitter, 7, JOB.try_into()?, name, word).await
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl FakeManager {
    async fn start_unit(
        &self,
        name: &str,
        mode: &str,
        #[zbus(connection)] connection: &Connection,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Refusal> {
        self.job("start", name, mode, connection, emitter).await
    }

    async fn stop_unit(
        &self,
        name: &str,
        mode: &str,
        #[zbus(connection)] connection: &Connection,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Refusal> {
        self.job("stop", name, mode, connection, emitter).await
    }

    async fn reload_unit(
        &self,
        name: &str,
        mode: &str,
        #[zbus(connection)] connection: &Connection,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Refusal> {
        self.job("reload", name, mode, connection, emitter).await
    }

    fn get_unit(&self, name: &str) -> Result<OwnedObjectPath, Refusal> {
        self.0.lock().unwrap().asked.push(format!("get {name}"));
        if name == "mnt-secretfs.mount" {
            Ok(UNIT.try_into().unwrap())
        } else {
            Err(Refusal::NoSuchUnit(format!("Unit {name} not loaded.")))
        }
    }

    fn load_unit(&self, name: &str) -> OwnedObjectPath {
        self.0.lock().unwrap().asked.push(format!("load {name}"));
        UNIT.try_into().unwrap()
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn unit_new(emitter: &SignalEmitter<'_>, id: &str, unit: OwnedObjectPath) -> zbus::Result<()>;
}

struct FakeUnit(Shared);

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl FakeUnit {
    #[zbus(property)]
    fn load_state(&self) -> &'static str {
        "loaded"
    }

    #[zbus(property)]
    fn active_state(&self) -> &'static str {
        self.0.lock().unwrap().active
    }

    #[zbus(property)]
    fn required_by(&self) -> &'static [&'static str] {
        self.0.lock().unwrap().required_by
    }

    #[zbus(property)]
    fn bound_by(&self) -> &'static [&'static str] {
        self.0.lock().unwrap().bound_by
    }

    #[zbus(property)]
    fn sub_state(&self) -> &'static str {
        "mounted"
    }

    #[zbus(property)]
    fn active_enter_timestamp(&self) -> u64 {
        1_700_000_000_000_000
    }

    #[zbus(property, name = "InvocationID")]
    fn invocation_id(&self) -> Vec<u8> {
        vec![0xab; 16]
    }

    #[zbus(property)]
    fn job(&self) -> (u32, OwnedObjectPath) {
        match self.0.lock().unwrap().job {
            Some(path) => (path.rsplit('/').next().unwrap().parse().unwrap(), path.try_into().unwrap()),
            None => (0, "/".try_into().unwrap()),
        }
    }
}

struct FakeMount;

#[interface(name = "org.freedesktop.systemd1.Mount")]
impl FakeMount {
    #[zbus(property)]
    fn result(&self) -> &'static str {
        "success"
    }
}

struct FakeJob(Shared);

#[interface(name = "org.freedesktop.systemd1.Job")]
impl FakeJob {
    fn cancel(&self) {
        self.0.lock().unwrap().asked.push("cancel".to_owned());
    }

    #[zbus(property)]
    fn job_type(&self) -> &'static str {
        "start"
    }
}

struct Fake {
    directory: PathBuf,
    state: Shared,
}

impl Fake {
    fn new(name: &str, active: &'static str, job: Option<&'static str>, plays: &[Play]) -> Self {
        let directory = std::env::temp_dir().join(format!("secretfs-manager-{}-{name}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let state = State {
            plays: plays.to_vec(),
            active,
            job,
            asked: Vec::new(),
            connections: 0,
            required_by: &["absent.service"],
            bound_by: &["mnt-secretfs.mount"],
            appear: &[],
        };
        let fake = Self { directory, state: Arc::new(Mutex::new(state)) };
        let listener = UnixListener::bind(fake.socket()).unwrap();
        tokio::spawn(serve(listener, fake.state.clone()));
        fake
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("private")
    }

    fn manager(&self) -> Manager {
        Manager::at(&self.socket())
    }

    fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }

    fn connections(&self) -> u32 {
        self.state.lock().unwrap().connections
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

async fn serve(listener: UnixListener, state: Shared) {
    loop {
        let stream = listener.accept().await.unwrap().0.into_std().unwrap();
        state.lock().unwrap().connections += 1;
        let connection = Builder::unix_stream(stream)
            .server(Guid::generate())
            .p2p()
            .serve_at(MANAGER, FakeManager(state.clone()))
            .serve_at(UNIT, FakeUnit(state.clone()))
            .serve_at(UNIT, FakeMount)
            .serve_at(JOB, FakeJob(state.clone()))
            .build()
            .await
            .unwrap();
        let appear = state.lock().unwrap().appear;
        tokio::spawn(async move {
            sleep(Duration::from_millis(50)).await;
            let emitter = SignalEmitter::new(&connection, MANAGER).unwrap();
            for name in appear {
                FakeManager::unit_new(&emitter, name, UNIT.try_into().unwrap()).await.unwrap();
            }
            connection.closed().await;
        });
    }
}

fn mount() -> UnitName {
    UnitName::new("mnt-secretfs.mount").unwrap()
}

fn absent() -> UnitName {
    UnitName::new("absent.mount").unwrap()
}

#[tokio::test]
async fn a_start_ends_with_the_word_of_its_own_job() {
    let words = [
        ("done", JobResult::Done),
        ("canceled", JobResult::Canceled),
        ("timeout", JobResult::Timeout),
        ("failed", JobResult::Failed),
        ("dependency", JobResult::Dependency),
        ("skipped", JobResult::Skipped),
        ("assert", JobResult::Other("assert".to_owned())),
    ];
    for (word, expected) in words {
        let fake = Fake::new(word, "inactive", None, &[Play::AtOnce(word), Play::Later(word)]);
        let manager = fake.manager();
        assert_eq!(manager.start_unit(&mount(), LIMIT).await.unwrap(), expected);
        assert_eq!(manager.start_unit(&mount(), LIMIT).await.unwrap(), expected);
        assert_eq!(fake.asked(), ["start mnt-secretfs.mount replace"; 2]);
    }
}

#[tokio::test]
async fn a_reload_ends_with_the_word_of_its_job_and_replaces_none() {
    let fake = Fake::new("reload", "active", None, &[Play::Later("done"), Play::AtOnce("failed")]);
    let manager = fake.manager();
    assert_eq!(manager.reload_unit(&mount(), LIMIT).await.unwrap(), JobResult::Done);
    assert_eq!(manager.reload_unit(&mount(), LIMIT).await.unwrap(), JobResult::Failed);
    assert_eq!(fake.asked(), ["reload mnt-secretfs.mount fail", "reload mnt-secretfs.mount fail"]);
}

#[tokio::test]
async fn a_lost_reply_is_asked_for_again() {
    let fake = Fake::new("unheard", "inactive", None, &[Play::CloseUnheard, Play::Later("done")]);
    assert_eq!(fake.manager().start_unit(&mount(), LIMIT).await.unwrap(), JobResult::Done);
    assert_eq!(fake.asked(), ["start mnt-secretfs.mount replace"; 2]);
    assert_eq!(fake.connections(), 2);
}

#[tokio::test]
async fn a_job_that_ended_unheard_is_judged_by_its_unit() {
    let table = [
        ("active", None, JobResult::Done),
        ("failed", None, JobResult::Failed),
        ("inactive", None, JobResult::Lost),
        ("activating", Some(OTHER_JOB), JobResult::Canceled),
    ];
    for (state, job, expected) in table {
        let fake = Fake::new(&format!("after-{state}"), state, job, &[Play::CloseAfterReply]);
        assert_eq!(fake.manager().start_unit(&mount(), LIMIT).await.unwrap(), expected);
        assert_eq!(fake.asked(), ["start mnt-secretfs.mount replace", "get mnt-secretfs.mount"]);
    }
}

#[tokio::test]
async fn a_job_that_outlives_the_connection_is_waited_for() {
    let fake = Fake::new("outlives", "activating", Some(JOB), &[Play::CloseAfterReply]);
    let state = fake.state.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(1)).await;
        let mut state = state.lock().unwrap();
        state.job = None;
        state.active = "active";
    });
    // No signal comes on the second connection: the look at the unit ends the wait.
    assert_eq!(fake.manager().start_unit(&mount(), LIMIT).await.unwrap(), JobResult::Done);
}

#[tokio::test]
async fn a_manager_that_comes_back_is_found() {
    let fake = Fake::new("away", "inactive", None, &[Play::Later("done")]);
    let (path, moved) = (fake.socket(), fake.directory.join("elsewhere"));
    std::fs::rename(&path, &moved).unwrap();
    tokio::spawn(async move {
        sleep(Duration::from_millis(500)).await;
        std::fs::rename(&moved, &path).unwrap();
    });
    assert_eq!(fake.manager().start_unit(&mount(), LIMIT).await.unwrap(), JobResult::Done);
}

#[tokio::test]
async fn deadlines_hold() {
    let limit = Duration::from_millis(300);
    for play in [Play::Hang, Play::Stay] {
        let fake = Fake::new(&format!("{play:?}"), "activating", Some(JOB), &[play]);
        let before = Instant::now();
        let error = fake.manager().start_unit(&mount(), limit).await.unwrap_err();
        assert!(before.elapsed() < limit * 10);
        assert_eq!(error.failure().detail, "systemd did not start mnt-secretfs.mount within 0.3 s");
    }
    let error = Manager::at(Path::new("/nonexistent/private")).stop_unit(&mount(), limit).await.unwrap_err();
    assert!(matches!(error, ManagerError::Deadline { source: Some(_), .. }), "{error:?}");
    assert!(error.failure().detail.ends_with("(os error 2)"), "{error:?}");
}

#[tokio::test]
async fn a_refusal_is_told_in_systemds_words() {
    let fake = Fake::new("refusal", "inactive", None, &[Play::Destructive]);
    let error = fake.manager().start_unit(&mount(), LIMIT).await.unwrap_err();
    assert_eq!(error.refusal(), Some("org.freedesktop.systemd1.TransactionIsDestructive"));
    assert_eq!(
        error.failure().detail,
        "systemd refuses to start mnt-secretfs.mount: \
         org.freedesktop.systemd1.TransactionIsDestructive: Transaction is destructive."
    );
}

#[tokio::test]
async fn stopping() {
    let plays = [Play::Later("done"), Play::NoSuchUnit, Play::CloseUnheard, Play::Stay, Play::NoSuchUnit];
    let fake = Fake::new("stop", "active", None, &plays);
    let manager = fake.manager();
    assert_eq!(manager.stop_unit(&mount(), LIMIT).await.unwrap(), JobResult::Done);
    assert_eq!(manager.stop_unit(&absent(), LIMIT).await.unwrap(), JobResult::Done);
    manager.stop_unit_no_wait(&mount(), LIMIT).await.unwrap();
    manager.stop_unit_no_wait(&absent(), LIMIT).await.unwrap();
    assert_eq!(
        fake.asked(),
        [
            "get mnt-secretfs.mount",
            "get absent.service",
            "get mnt-secretfs.mount",
            "stop mnt-secretfs.mount replace",
            "get absent.mount",
            "stop absent.mount replace",
            "stop mnt-secretfs.mount replace",
            "stop mnt-secretfs.mount replace",
            "stop absent.mount replace",
        ]
    );
}

/// A start of what is bound to the unit waits on; one of what just requires it would not notice that it is gone.
#[tokio::test]
async fn stopping_what_nobody_uses() {
    let fake = Fake::new("stop-alone", "inactive", Some(OTHER_JOB), &[Play::AtOnce("done"), Play::AtOnce("done")]);
    let stop = "stop mnt-secretfs.mount ignore-dependencies".to_owned();
    assert_eq!(fake.manager().stop_unit(&mount(), LIMIT).await.unwrap(), JobResult::Done);
    assert_eq!(fake.asked().last(), Some(&stop));
    fake.state.lock().unwrap().required_by = &["mnt-secretfs.mount"];
    assert_eq!(fake.manager().stop_unit(&mount(), LIMIT).await.unwrap(), JobResult::Done);
    assert_eq!(fake.asked().last().map(String::as_str), Some("stop mnt-secretfs.mount replace"));
}

#[tokio::test]
async fn cancelling() {
    let fake = Fake::new("cancel", "inactive", Some(JOB), &[]);
    let manager = fake.manager();
    assert!(manager.cancel_job_of(&mount(), LIMIT).await.unwrap());
    assert_eq!(fake.asked(), ["get mnt-secretfs.mount", "cancel"]);
    // A job that is gone by the time it is looked at.
    fake.state.lock().unwrap().job = Some(OTHER_JOB);
    assert!(!manager.cancel_job_of(&mount(), LIMIT).await.unwrap());
    fake.state.lock().unwrap().job = None;
    assert!(!manager.cancel_job_of(&mount(), LIMIT).await.unwrap());
    assert!(!manager.cancel_job_of(&absent(), LIMIT).await.unwrap());
}

#[tokio::test]
async fn facts_of_a_mount() {
    let fake = Fake::new("facts", "active", Some(JOB), &[]);
    let entered = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let expected = UnitFacts {
        load_state: "loaded".to_owned(),
        active_state: "active".to_owned(),
        sub_state: "mounted".to_owned(),
        job_pending: true,
        active_enter: Some(entered),
        invocation_id: Some("ab".repeat(16)),
        result: Some("success".to_owned()),
        ..UnitFacts::default()
    };
    assert_eq!(fake.manager().unit_facts(&mount(), LIMIT).await.unwrap(), expected);
}

#[tokio::test]
async fn a_new_device_is_told_from_other_units() {
    let fake = Fake::new("device", "inactive", None, &[]);
    fake.state.lock().unwrap().appear = &["a.service", "dev-nvme1n1.device", "b.device"];
    assert_eq!(fake.manager().device_appeared().await.unwrap(), "dev-nvme1n1.device");
    fake.state.lock().unwrap().appear = &["a.service"];
    assert!(timeout(Duration::from_millis(300), fake.manager().device_appeared()).await.is_err());
}
