//! What volumes must not be to each other: on one mount point, on one backing, one on the other's device, or each waiting for the other.

use std::collections::{BTreeMap, BTreeSet};

use super::{Backing, Config, ConfigError, Place, Refused, Target, Volume};
use crate::name::{MountPoint, VolumeName};

/// Refuses every volume that can't be had together with the others.
///
/// Both of a pair are refused: nothing tells which of them is meant.
pub(super) fn check(config: &mut Config) {
    let mut faults: BTreeMap<VolumeName, Vec<(&'static str, String, &'static str)>> = BTreeMap::new();
    for (name, volume) in &config.volumes {
        if volume.backing.path() == Some(&name.mapper().device()) {
            let message = format!("{} is the volume itself", volume.backing);
            let hint = "give the device that is to be encrypted";
            faults.entry(name.clone()).or_default().push(("backing", message, hint));
        }
        for (other_name, other) in config.volumes.iter().filter(|(other_name, _)| *other_name != name) {
            let mut fault = |key, message, hint| faults.entry(name.clone()).or_default().push((key, message, hint));
            if let Some(mount) = volume.target.mount().filter(|mount| other.target.mount() == Some(*mount)) {
                let message = format!("volume {other_name} is mounted on {mount} too");
                fault("mount", message, "give each volume a mount point of its own");
            }
            if volume.backing.path() == Some(&other.name.mapper().device()) {
                let (what, hint) = match &other.target {
                    Target::Mount(_) => (
                        " and carries its file system",
                        "use a file below that volume's mount point, or another device",
                    ),
                    Target::Swap => (", which is swap space", "give the device that is to be encrypted"),
                };
                fault("backing", format!("{} is volume {other_name}{what}", volume.backing), hint);
            }
            if is_one(&volume.backing, &other.backing) {
                let message = format!("volume {other_name} uses {} too", other.backing);
                fault("backing", message, "give each volume a backing of its own");
            }
        }
        for (other_name, other) in &config.refused {
            let other = other.target.as_ref().and_then(Target::mount);
            if let Some(mount) = other.filter(|mount| volume.target.mount() == Some(*mount)) {
                let message = format!("volume {other_name}, which is refused, is mounted on {mount} too");
                let hint = "put that volume right, or give each a mount point of its own";
                faults.entry(name.clone()).or_default().push(("mount", message, hint));
            }
        }
        // Nothing lies below swap space, so only what is mounted can be part of a circle.
        if let Target::Mount(mount) = &volume.target
            && needs_itself(name, &config.volumes)
        {
            let message =
                format!("with its backing on {} and its mount on {mount}, it would wait for itself", volume.backing);
            let hint = "a volume can't lie on or below a volume that in turn needs it; move one of the two";
            faults.entry(name.clone()).or_default().push(("mount", message, hint));
        }
    }
    for (name, faults) in faults {
        let Some(volume) = config.volumes.remove(&name) else { continue };
        let place = Place { path: volume.source_path.clone(), line: volume.line, column: 1 };
        let errors = faults
            .into_iter()
            .map(|(key, message, hint)| ConfigError {
                place: place.clone(),
                key: format!("volume.{name}.{key}"),
                message,
                hint: Some(hint.to_owned()),
            })
            .collect();
        config.refused.insert(name, Refused::from_volume(volume, errors));
    }
}

/// Whether two backings are the same file, device or disks.
fn is_one(one: &Backing, other: &Backing) -> bool {
    match (one, other) {
        (Backing::Match { device_match: one, .. }, Backing::Match { device_match: other, .. }) => one == other,
        _ => one.path().is_some() && one.path() == other.path(),
    }
}

/// Whether `name` is reached from itself by following what each volume needs to be there first.
fn needs_itself(name: &VolumeName, volumes: &BTreeMap<VolumeName, Volume>) -> bool {
    let mut seen = BTreeSet::new();
    let mut ahead: Vec<&VolumeName> = needs(&volumes[name], volumes);
    while let Some(next) = ahead.pop() {
        if next == name {
            return true;
        }
        if seen.insert(next) {
            ahead.extend(needs(&volumes[next], volumes));
        }
    }
    false
}

/// The volumes whose mount lies above this one's mount point or backing file.
fn needs<'a>(volume: &Volume, volumes: &'a BTreeMap<VolumeName, Volume>) -> Vec<&'a VolumeName> {
    let lies_on = |other: &MountPoint| match &volume.backing {
        Backing::File { path, .. } => path.strip_prefix(other.as_str()).is_some_and(|rest| rest.starts_with('/')),
        Backing::Device { .. } | Backing::Match { .. } => false,
    };
    let is_below = |other: &MountPoint| volume.target.mount().is_some_and(|mount| mount.is_below(other));
    volumes
        .iter()
        .filter(|(_, other)| other.target.mount().is_some_and(|other| is_below(other) || lies_on(other)))
        .map(|(name, _)| name)
        .collect()
}
