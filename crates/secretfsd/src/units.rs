//! What the daemon asks of systemd: its volume's units, and what goes on with the system.

use std::sync::Arc;
use std::time::Duration;

use secretfs_core::cause::{Cause, Failure};
use secretfs_core::config::{Target, Volume};
use secretfs_core::machine::{Event, Step};
use secretfs_core::name::{UnitName, VolumeName};
use secretfs_systemd::manager::{JobResult, Manager};

use crate::steps;
use crate::worker::Worker;

/// systemd answers at once; the loop stands still for this long at most, when the volume is lost already.
pub const ASK_LIMIT: Duration = Duration::from_secs(5);

/// How systemd refuses a unit of which it has no file (org.freedesktop.systemd1(5)).
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// Starts the volume's mount or swap unit.
pub async fn mount(manager: &Manager, volume: Arc<Volume>, worker: &Worker) -> Event {
    let unit = volume.unit();
    let target = volume.target.clone();
    match worker.run(move || steps::show(&volume)).await {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => return Event::Failed(Step::Mount, failure),
        Err(_) => return Event::Failed(Step::Mount, Failure::new(Cause::Internal, "showing the mapping panicked")),
    }
    match manager.start_unit(&unit, Step::Mount.limit()).await {
        Ok(JobResult::Done) => Event::Done(Step::Mount),
        Ok(result) => {
            let cause = match target {
                Target::Mount(_) => Cause::MountFailed,
                Target::Swap => Cause::SwapFailed,
            };
            let failure = Failure::new(cause, format!("the job of {unit} ended with: {result}"));
            Event::Failed(Step::Mount, failure)
        }
        // The configuration was changed, and systemd has not read the units that come of it.
        Err(error) if error.refusal() == Some(NO_SUCH_UNIT) => {
            Event::Failed(Step::Mount, Failure::new(Cause::UnitsMissing, unit.to_string()))
        }
        Err(error) => Event::Failed(Step::Mount, error.failure()),
    }
}

/// Stops the volume's mount or swap unit, and looks whether that has had its effect.
pub async fn unmount(manager: &Manager, volume: Arc<Volume>, worker: &Worker) -> Event {
    let unit = volume.unit();
    let (cause, state) = match volume.target {
        Target::Mount(_) => (Cause::UnmountFailed, "mounted"),
        Target::Swap => (Cause::SwapoffFailed, "in use"),
    };
    let result = match manager.stop_unit(&unit, Step::Unmount.limit()).await {
        // A job can be done because systemd knew of no mount; what counts is the kernel's table.
        Ok(JobResult::Done) => match worker.run(move || steps::is_mounted(&volume)).await {
            Ok(Ok(false)) => Ok(()),
            Ok(Ok(true)) => Err(Failure::new(cause, format!("{unit} is stopped, yet it is {state}"))),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::new(Cause::Internal, "the look at the kernel's table panicked")),
        },
        Ok(result) => Err(Failure::new(cause, format!("the job of {unit} ended with: {result}"))),
        Err(error) => Err(error.failure()),
    };
    match result {
        Ok(()) => Event::Done(Step::Unmount),
        Err(failure) => Event::Failed(Step::Unmount, failure),
    }
}

/// Whether the system goes down; by what systemd itself tells it by.
pub async fn is_going_down(manager: &Manager) -> bool {
    let shutdown = UnitName::new("shutdown.target").expect("a unit name");
    let facts = manager.unit_facts(&shutdown, ASK_LIMIT).await;
    facts.is_ok_and(|facts| facts.is_active() || facts.job_pending)
}

/// Fails what waits for the volume's device, so that nobody waits for a volume that will not come.
pub async fn fail_waiting(manager: &Manager, name: &VolumeName) {
    let device = name.mapper().device_unit();
    if let Err(error) = manager.cancel_job_of(&device, ASK_LIMIT).await {
        let failure = error.failure();
        tracing::warn!(volume = %name, unit = %device, "what waits for {device} goes on waiting: {failure}");
    }
}

/// Waits for a new device; says whether there is one, or else that systemd can't be heard.
pub async fn watch_devices(manager: Manager) -> bool {
    match manager.device_appeared().await {
        Ok(unit) => {
            tracing::debug!(%unit, "a device appeared");
            true
        }
        Err(error) => {
            tracing::debug!("new devices are not heard of: {error}");
            false
        }
    }
}
