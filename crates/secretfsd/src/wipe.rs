//! The zeroing of a volume: all of it before it is ready, or its free space beside everything else.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use secretfs_block::wipe::Zeroing;
use secretfs_block::{luks, volume as facts};
use secretfs_core::cause::Failure;
use secretfs_core::config::{Volume, Wipe};
use secretfs_core::machine::{Event, Step};
use secretfs_core::progress::{Progress, size};
use tokio::sync::watch;

use crate::steps;

/// Between two words on how far it has come.
const BEAT: Duration = Duration::from_secs(2);

/// Between two notes in the header: what a crash makes be done once more.
const NOTE: Duration = Duration::from_secs(10);

/// Asks the zeroing to end early.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// It ends after the chunk that it is writing.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Writes zeros through the whole mapping, and notes in the header how far that is done: the next start goes on there.
pub fn whole(volume: &Volume, cancel: &Cancel, told: &watch::Sender<Option<Progress>>) -> Result<Event, Failure> {
    let device = steps::present_device(volume)?;
    let note = |bytes| luks::note_zeroed(&device, bytes).map_err(|error| error.failure());
    let begun = luks::zeroed(&device).map_err(|error| error.failure())?.unwrap_or(0);
    let mut zeroing = Zeroing::of_device(&steps::mapped_device(volume)?, begun).map_err(|error| error.failure())?;
    let mut noted = Instant::now();
    let whole = drive(volume, &mut zeroing, cancel, told, |zeroing, _| {
        if noted.elapsed() >= NOTE {
            zeroing.sync().map_err(|error| error.failure())?;
            note(Some(zeroing.done()))?;
            noted = Instant::now();
        }
        Ok(())
    })?;
    let bytes = zeroing.done();
    zeroing.finish().map_err(|error| error.failure())?;
    if !whole {
        note(Some(bytes))?;
        return Ok(Event::Abandoned(Step::Wipe));
    }
    note(None)?;
    tracing::info!(volume = %volume.name, step = %Step::Wipe, "volume {}: zeroed, {}", volume.name, size(bytes));
    Ok(Event::Done(Step::Wipe))
}

/// Zeroes the free space of a mounted volume, if the header says that this is still to be done; gives up what was begun if
/// the configuration does not ask for it any more.
pub fn free_space(volume: &Volume, cancel: &Cancel, told: &watch::Sender<Option<Progress>>) -> Result<(), Failure> {
    let result = try_free_space(volume, cancel, told);
    if let Err(failure) = &result {
        let hint = failure.cause.row().hint;
        tracing::warn!(volume = %volume.name, step = %Step::Wipe, secretfs_cause = failure.cause.code(), "volume {}: its free space is not zeroed: {failure}\nhint: {hint}", volume.name);
    }
    result
}

fn try_free_space(volume: &Volume, cancel: &Cancel, told: &watch::Sender<Option<Progress>>) -> Result<(), Failure> {
    let device = steps::present_device(volume)?;
    let note_end = || luks::note_zeroed(&device, None).map_err(|error| error.failure());
    let due = luks::zeroed(&device).map_err(|error| error.failure())?.is_some();
    let Some(mount) = volume.target.mount().filter(|_| due) else { return Ok(()) };
    // Nothing is to be filled but the volume, should it be gone already.
    if !steps::is_mounted(volume)? {
        return Ok(());
    }
    let mount = Path::new(mount.as_str());
    if !matches!(volume.wipe, Wipe::Zero { .. }) {
        Zeroing::give_up_free_space(mount).map_err(|error| error.failure())?;
        return note_end();
    }
    let mut zeroing = Zeroing::of_free_space(mount).map_err(|error| error.failure())?;
    // The volume's users come first: they have the disk for as long as each chunk took.
    let whole = drive(volume, &mut zeroing, cancel, told, |_, took| {
        thread::sleep(took);
        Ok(())
    })?;
    if whole {
        let bytes = zeroing.done();
        zeroing.finish().map_err(|error| error.failure())?;
        note_end()?;
        tracing::info!(volume = %volume.name, step = %Step::Wipe, "volume {}: its free space is zeroed, {}", volume.name, size(bytes));
    }
    Ok(())
}

/// Writes until all is written or `cancel` asks to end, and tells how far it has come; `after` each chunk gets the time
/// that it took. Says whether all is written.
fn drive(
    volume: &Volume,
    zeroing: &mut Zeroing,
    cancel: &Cancel,
    told: &watch::Sender<Option<Progress>>,
    mut after: impl FnMut(&Zeroing, Duration) -> Result<(), Failure>,
) -> Result<bool, Failure> {
    let (started, begun) = (Instant::now(), zeroing.done());
    let mut beat: Option<Instant> = None;
    let ended = loop {
        if beat.is_none_or(|last| last.elapsed() >= BEAT) {
            let total = zeroing.total().map_err(|error| error.failure())?;
            let progress = Progress::new(begun, zeroing.done(), total, started.elapsed());
            facts::note_progress(volume, Some(&progress))?;
            told.send_replace(Some(progress));
            beat = Some(Instant::now());
        }
        if cancel.is_asked() {
            break false;
        }
        let chunk = Instant::now();
        if !zeroing.step().map_err(|error| error.failure())? {
            break true;
        }
        after(zeroing, chunk.elapsed())?;
    };
    facts::note_progress(volume, None)?;
    Ok(ended)
}
