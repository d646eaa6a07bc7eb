//! `secretfsd --grow NAME`: a running volume follows a backing that became larger.
//!
//! This is what a reload of the unit runs, beside the daemon that holds the volume: systemd says how it ended to whoever
//! asked, and the daemon, which has no key any more, has nothing to do with it. What the daemon verifies does not change.

use secretfs_block::{Outcome, luks, volume as facts};
use secretfs_core::cause::{Cause, Failure, Retry};
use secretfs_core::config::{Aws, Target, Volume};
use secretfs_core::machine::{Exit, Step};
use secretfs_core::name::VolumeName;

use crate::{config, fetch, steps, tell};

/// Grows the volume `name` as far as its backing goes.
pub async fn run(name: &VolumeName) -> Exit {
    let result = match config::read(name) {
        Ok((volume, aws)) => grow(&volume, &aws).await,
        Err(failure) => Err(failure),
    };
    match result {
        Ok(Outcome::Changed) => {
            tracing::info!(volume = %name, step = %Step::Grow, "volume {name}: grown");
            Exit::Stopped
        }
        Ok(Outcome::Unchanged) => {
            tracing::info!(volume = %name, step = %Step::Grow, "volume {name}: as large as its backing already");
            Exit::Stopped
        }
        Err(failure) => {
            tell::not_grown(name.as_str(), &failure);
            match failure.cause.retry() {
                Retry::Transient => Exit::Transient,
                Retry::Permanent => Exit::Permanent,
            }
        }
    }
}

/// The calls block, and nothing else waits in this process.
async fn grow(volume: &Volume, aws: &Aws) -> Result<Outcome, Failure> {
    if volume.target == Target::Swap {
        return Err(Failure::new(Cause::SwapFixed, volume.unit().to_string()));
    }
    // Whatever else is mapped or mounted under the volume's names is not touched.
    let verified = facts::verify(volume)?;
    if verified.encryption.authenticated {
        return Err(Failure::new(Cause::GrowFailed, "LUKS2 cannot resize a volume with integrity tags"));
    }
    let backing = facts::grow_backing(volume)?;
    let mapping = grow_mapping(volume, aws).await?;
    let filesystem = steps::grow_filesystem(volume)?;
    let changed = [backing, mapping, filesystem].contains(&Outcome::Changed);
    Ok(if changed { Outcome::Changed } else { Outcome::Unchanged })
}

/// The key is fetched only when the mapping can become larger, and dropped as soon as it is.
async fn grow_mapping(volume: &Volume, aws: &Aws) -> Result<Outcome, Failure> {
    let mapper = volume.name.mapper();
    let device = steps::present_device(volume)?;
    let Some(room) = luks::room(&device, &mapper).map_err(|error| error.failure())? else {
        return Ok(Outcome::Unchanged);
    };
    let key = if room.needs_key {
        let (fetched, trail) = fetch::fetch(fetch::request(volume, aws)).await;
        let fetched = fetched?;
        tell::key_used(volume.name.as_str(), &trail);
        Some(fetched.key)
    } else {
        None
    };
    luks::resize(&mapper, room, key.as_ref()).map_err(|error| error.failure())?;
    Ok(Outcome::Changed)
}
