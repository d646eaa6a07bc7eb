//! systemd's D-Bus interfaces, as far as they are used (org.freedesktop.systemd1(5)).

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use zbus::connection::Builder;
use zbus::export::futures_core::Stream;
use zbus::message::Type;
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant, fdo, proxy};

use super::peer::PeerSocket;

const DESTINATION: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER_INTERFACE: &str = "org.freedesktop.systemd1.Manager";

/// At shutdown hundreds of jobs end within moments; a full queue would hold up the reply we wait for.
const SIGNALS_QUEUED: NonZeroUsize = NonZeroUsize::new(1024).expect("is not zero");

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
pub(super) trait Manager {
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn reload_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn subscribe(&self) -> zbus::Result<()>;
}

#[proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
pub(super) trait Unit {
    #[zbus(property(emits_changed_signal = "false"))]
    fn active_state(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn required_by(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn bound_by(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn job(&self) -> zbus::Result<(u32, OwnedObjectPath)>;
}

#[proxy(interface = "org.freedesktop.systemd1.Job", default_service = "org.freedesktop.systemd1")]
pub(super) trait Job {
    fn cancel(&self) -> zbus::Result<()>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn job_type(&self) -> zbus::Result<String>;
}

/// Connects to a manager that is itself at the other end of the socket.
pub(super) async fn connect_peer(path: &Path) -> zbus::Result<Connection> {
    Builder::socket(PeerSocket::connect(path).await?).p2p().build().await
}

/// The object of a unit, loaded if need be.
pub(super) async fn load(connection: &Connection, name: &str) -> zbus::Result<OwnedObjectPath> {
    ManagerProxy::new(connection).await?.load_unit(name).await
}

/// All properties of one interface of a unit.
pub(super) async fn properties(
    connection: &Connection,
    path: &OwnedObjectPath,
    interface: &str,
) -> zbus::Result<HashMap<String, OwnedVariant>> {
    let proxy = fdo::PropertiesProxy::builder(connection).destination(DESTINATION).path(path).build().await?;
    Ok(proxy.get_all(interface.try_into()?).await?)
}

/// The manager's signals of one name, from now on.
pub(super) struct Signals {
    stream: MessageStream,
}

impl Signals {
    /// Begins to listen to `JobRemoved`; call it before the job is made.
    pub(super) async fn of_removed_jobs(connection: &Connection) -> zbus::Result<Self> {
        Self::subscribe(connection, "JobRemoved").await
    }

    /// Begins to listen to `UnitNew`.
    pub(super) async fn of_new_units(connection: &Connection) -> zbus::Result<Self> {
        Self::subscribe(connection, "UnitNew").await
    }

    async fn subscribe(connection: &Connection, member: &'static str) -> zbus::Result<Self> {
        let mut rule =
            MatchRule::builder().msg_type(Type::Signal).path(MANAGER_PATH).interface(MANAGER_INTERFACE).member(member);
        if connection.is_bus() {
            // On the bus anybody can send a signal; on the private socket nobody else can.
            rule = rule.sender(DESTINATION);
        }
        let stream = MessageStream::for_match_rule(rule.build()?, connection, Some(SIGNALS_QUEUED)).await?;
        if connection.is_bus() {
            // Over its private socket systemd sends its signals unasked.
            ManagerProxy::new(connection).await?.subscribe().await?;
        }
        Ok(Self { stream })
    }

    async fn next(&mut self) -> zbus::Result<Message> {
        poll_fn(|context| Pin::new(&mut self.stream).poll_next(context))
            .await
            .unwrap_or_else(|| Err(zbus::Error::InputOutput(Arc::new(io::Error::from(io::ErrorKind::UnexpectedEof)))))
    }

    /// Waits until `job` is removed and returns systemd's word for how it ended.
    pub(super) async fn result_of(&mut self, job: &OwnedObjectPath) -> zbus::Result<String> {
        loop {
            let message = self.next().await?;
            let (_id, path, _unit, result): (u32, OwnedObjectPath, String, String) = message.body().deserialize()?;
            if path == *job {
                return Ok(result);
            }
        }
    }

    /// Waits for a new unit whose name ends like this, and returns its name.
    pub(super) async fn unit(&mut self, suffix: &str) -> zbus::Result<String> {
        loop {
            let message = self.next().await?;
            let (name, _path): (String, OwnedObjectPath) = message.body().deserialize()?;
            if name.ends_with(suffix) {
                return Ok(name);
            }
        }
    }
}

/// Whether the connection broke or could not be made, as against an answer we don't like.
pub(super) fn is_lost(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::InputOutput(_) | zbus::Error::Connection(..) | zbus::Error::Handshake(_) => true,
        zbus::Error::FDO(error) => {
            matches!(**error, fdo::Error::Disconnected(_) | fdo::Error::NoReply(_) | fdo::Error::NoServer(_))
        }
        _ => false,
    }
}

/// Whether the connection is denied, so that trying again is idle.
pub(super) fn is_forbidden(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::InputOutput(error) | zbus::Error::Connection(error, _) => {
            error.kind() == io::ErrorKind::PermissionDenied
        }
        _ => false,
    }
}

/// Whether systemd says that the unit is not loaded or not there at all.
pub(super) fn is_no_such_unit(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::MethodError(name, ..) if name.as_str() == "org.freedesktop.systemd1.NoSuchUnit")
}

/// Whether a job's object is gone.
pub(super) fn is_no_such_object(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::MethodError(name, ..) => name.as_str() == "org.freedesktop.systemd1.NoSuchJob",
        zbus::Error::FDO(error) => matches!(**error, fdo::Error::UnknownObject(_) | fdo::Error::UnknownMethod(_)),
        _ => false,
    }
}
