//! The state of a unit, as `secretfs status` shows it.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use secretfs_core::name::UnitName;
use zbus::{Connection, OwnedVariant};

use super::wire;

/// Where a unit stands (org.freedesktop.systemd1(5)). What its kind of unit does not have is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitFacts {
    /// `loaded`, `not-found`, `bad-setting`, `error`, `masked`, ….
    pub load_state: String,
    /// `active`, `activating`, `deactivating`, `inactive`, `failed`, ….
    pub active_state: String,
    /// The state in the words of the unit's kind: `running`, `auto-restart`, `mounted`, ….
    pub sub_state: String,
    /// Whether files changed since systemd read them, so that a daemon-reload is due.
    pub need_daemon_reload: bool,
    /// Whether a job of the unit waits or runs.
    pub job_pending: bool,
    /// When the unit became active; stays after it stopped.
    pub active_enter: Option<SystemTime>,
    /// When the state last changed.
    pub state_change: Option<SystemTime>,
    /// The id of the unit's last run, `_SYSTEMD_INVOCATION_ID` of its journal records.
    pub invocation_id: Option<String>,
    /// How the last run ended, for services and mounts: `success`, `exit-code`, `timeout`, ….
    pub result: Option<String>,
    /// The `STATUS=` of a service.
    pub status_text: Option<String>,
    /// The main process of a service, while it has one.
    pub main_pid: Option<u32>,
    /// The exit status of a service's last main process, or the signal that ended it.
    pub exec_main_status: Option<i32>,
    /// How often systemd restarted a service by itself.
    pub restarts: Option<u32>,
}

impl UnitFacts {
    /// Whether the unit is up.
    pub fn is_active(&self) -> bool {
        self.active_state == "active"
    }

    fn new(unit: &Properties, kind: Option<&Properties>) -> Self {
        Self {
            load_state: unit.get("LoadState").unwrap_or_default(),
            active_state: unit.get("ActiveState").unwrap_or_default(),
            sub_state: unit.get("SubState").unwrap_or_default(),
            need_daemon_reload: unit.get("NeedDaemonReload").unwrap_or_default(),
            job_pending: unit.get::<(u32, zbus::OwnedObjectPath)>("Job").is_some_and(|(id, _)| id != 0),
            active_enter: unit.time("ActiveEnterTimestamp"),
            state_change: unit.time("StateChangeTimestamp"),
            invocation_id: unit.get("InvocationID").and_then(|bytes: Vec<u8>| hex(&bytes)),
            result: kind.and_then(|kind| kind.get("Result")),
            status_text: kind.and_then(|kind| kind.get("StatusText")).filter(|text: &String| !text.is_empty()),
            main_pid: kind.and_then(|kind| kind.get("MainPID")).filter(|pid| *pid != 0),
            exec_main_status: kind.and_then(|kind| kind.get("ExecMainStatus")),
            restarts: kind.and_then(|kind| kind.get("NRestarts")),
        }
    }
}

/// Reads the facts of one unit.
pub(super) async fn read(connection: &Connection, unit: &UnitName) -> zbus::Result<UnitFacts> {
    let path = wire::load(connection, unit.as_str()).await?;
    let common = Properties(wire::properties(connection, &path, "org.freedesktop.systemd1.Unit").await?);
    let kind = match unit.as_str().rsplit_once('.') {
        Some((_, "service")) => Some("org.freedesktop.systemd1.Service"),
        Some((_, "mount")) => Some("org.freedesktop.systemd1.Mount"),
        _ => None,
    };
    let kind = match kind {
        Some(interface) => Some(Properties(wire::properties(connection, &path, interface).await?)),
        None => None,
    };
    Ok(UnitFacts::new(&common, kind.as_ref()))
}

struct Properties(HashMap<String, OwnedVariant>);

impl Properties {
    /// The value, if there is one and it is of this type.
    fn get<T: TryFrom<OwnedVariant>>(&self, name: &str) -> Option<T> {
        self.0.get(name)?.try_clone().ok()?.try_into().ok()
    }

    /// Microseconds since the epoch; 0 is never.
    fn time(&self, name: &str) -> Option<SystemTime> {
        let micros = self.get(name).filter(|micros: &u64| *micros != 0)?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(micros))
    }
}

fn hex(bytes: &[u8]) -> Option<String> {
    use std::fmt::Write as _;

    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").ok()?;
    }
    Some(text).filter(|text| !text.is_empty())
}
