//! The blocking steps: what the state machine asks for, done with `secretfs-block`.

use std::fs;
use std::io;
use std::path::Path;

use nix::unistd::{Group, User};
use secretfs_block::claim::Claims;
use secretfs_block::luks::{self, FormatOptions, OpenFlags};
use secretfs_block::volume::{Found, backing_device, contents, note_format};
use secretfs_block::{
    DevicePath, Outcome, Passphrase, backing, device, filesystem, loops, mountpoint, volume as facts,
};
use secretfs_core::cause::{Cause, Failure};
use secretfs_core::chain::Link;
use secretfs_core::claim::Standing;
use secretfs_core::config::{Backing, Layout, Lifecycle, Luks, RootDirectory, Volume};
use secretfs_core::forecast::Disks;
use secretfs_core::key::Kdf;
use secretfs_core::machine::{Contents, Event, Opening, Step, decide_opening};
use secretfs_core::name::{MapperName, MountPoint};

/// Looks at what is mapped and mounted, or in use as swap space, under the volume's names.
pub fn survey(volume: &Volume) -> Result<Event, Failure> {
    // What a daemon that was killed left of it.
    facts::note_progress(volume, None)?;
    luks::finish_show(&volume.name.mapper()).map_err(|error| error.failure())?;
    let (mapping, mount) = facts::survey(volume)?;
    Ok(Event::Surveyed { mapping, mount })
}

/// Reads the whole chain back; `attached` is what this daemon has made it from, if it has.
pub fn verify(volume: &Volume, attached: Option<&Attached>) -> Result<Event, Failure> {
    let verified = facts::verify(volume)?;
    remember(volume, &verified.luks_uuid, attached);
    Ok(Event::Done(Step::Verify))
}

/// Remembers what the volume is made of, for the next start to compare. A volume that is up is not given up for that.
///
/// What was taken over nobody has compared: if it is remembered it stays remembered as it was, whatever the configuration
/// and the disks say meanwhile.
fn remember(volume: &Volume, luks_uuid: &str, attached: Option<&Attached>) {
    let claims = Claims::default();
    let members = match attached {
        Some(attached) => Ok(Some(attached.members.clone())),
        None => claims
            .knows(&volume.name, luks_uuid)
            .and_then(|known| if known { Ok(None) } else { facts::identities(volume).map(Some) }),
    };
    let written = members.and_then(|members| {
        members.map_or(Ok(Outcome::Unchanged), |members| claims.write(volume, luks_uuid, &members))
    });
    if let Err(failure) = written {
        tracing::warn!(volume = %volume.name, step = %Step::Verify, "volume {}: its claim is not remembered: {failure}", volume.name);
    }
}

/// Makes the mount point unwritable for as long as nothing is mounted on it. A file system that can't do that is no
/// reason to have no volume; it is said.
pub fn guard(volume: &Volume) -> Result<Event, Failure> {
    match mountpoint::guard(Path::new(mount_point(volume, Step::Guard)?.as_str())) {
        Ok(_) => {}
        Err(error) if error.is_unsupported() => {
            let failure = error.failure();
            tracing::warn!(volume = %volume.name, step = %Step::Guard, "{}; going on unguarded", failure.detail);
        }
        Err(error) => return Err(error.failure()),
    }
    Ok(Event::Done(Step::Guard))
}

/// A volume's backing, from [`attach`] on.
#[derive(Debug, Clone)]
pub struct Attached {
    /// The device.
    pub device: DevicePath,
    /// What it lies on, by names that outlast a boot.
    pub members: Vec<String>,
}

/// Has the backing device there, makes sure that nobody else uses it, and looks at what is on it.
pub fn attach(volume: &Volume) -> Result<(Attached, Event), Failure> {
    // Before anything is made: what was there and is not any more must not be made anew.
    if lacks_device(volume)?
        && let Some(failure) = facts::standing_of_nothing(volume)?.refusal()
    {
        return Err(failure);
    }
    luks::remove_orphan(&volume.name.mapper()).map_err(|error| error.failure())?;
    let device = match &volume.backing {
        Backing::File { path, size } => {
            facts::grow_backing(volume)?;
            let path = Path::new(path);
            backing::ensure(path, *size).map_err(|error| error.failure())?;
            loops::attach_loop(path).map_err(|error| error.failure())?.0
        }
        Backing::Device { path } => device::resolve(Path::new(path)).map_err(|error| error.failure())?,
        Backing::Match { layout, .. } => facts::attach_members(volume, *layout)?,
    };
    let Found { members, contents, formatted_this_boot, wipe_begun, standing } = examine(volume, &device)?;
    tell_standing(volume, &standing);
    // Whatever a format left, something else is there now.
    if contents != Contents::Begun {
        Claims::default().end_format(&volume.name)?;
    }
    Ok((Attached { device, members }, Event::Attached { contents, formatted_this_boot, wipe_begun }))
}

/// Looks at the backing device, which nobody may use and which must be what it was.
fn examine(volume: &Volume, device: &DevicePath) -> Result<Found, Failure> {
    if let Some(users) = device::facts(device).map_err(|error| error.failure())?.users() {
        return Err(Failure::new(Cause::DeviceBusy, format!("{device} {users}")));
    }
    let found = facts::examine(volume, device)?;
    found.standing.refusal().map_or(Ok(found), Err)
}

/// Whether the backing file, or the device that several disks make, is still to be made.
fn lacks_device(volume: &Volume) -> Result<bool, Failure> {
    match &volume.backing {
        // An empty file is what a crash left; whatever else is wrong with it is said when it is opened.
        Backing::File { path, .. } => Ok(match fs::symlink_metadata(path) {
            Ok(metadata) => metadata.is_file() && metadata.len() == 0,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }),
        Backing::Device { .. } => Ok(false),
        Backing::Match { .. } => match facts::disks(volume)? {
            Disks::Settled | Disks::Inactive(_) => Ok(false),
            Disks::Makeable(_) => facts::wait_for_udev(volume).map(|()| true),
            Disks::Missing(failure) => Err(failure),
        },
    }
}

/// Says how what is there compares with what was.
fn tell_standing(volume: &Volume, standing: &Standing) {
    let (name, words) = (&volume.name, standing.words());
    match volume.backing {
        // A file that is gone was removed; it takes no stop of the instance.
        Backing::File { .. } => {}
        _ if standing.is_remarkable() => tracing::warn!(volume = %name, step = %Step::Attach, "volume {name}: {words}"),
        _ => tracing::info!(volume = %name, step = %Step::Attach, "volume {name}: {words}"),
    }
}

/// Makes a LUKS header that is marked as unfinished, if the device is still what it was before the key was fetched.
pub fn format(volume: &Volume, device: &DevicePath, kdf: Kdf, key: &Passphrase) -> Result<Event, Failure> {
    let changed = || Failure::new(Cause::BackingMissing, format!("{device} is not what it was a moment ago"));
    if present_device(volume)? != *device {
        return Err(changed());
    }
    let Found { members, contents, formatted_this_boot, wipe_begun, .. } = examine(volume, device)?;
    if decide_opening(volume.lifecycle, &contents, formatted_this_boot, wipe_begun)? == Opening::Unlock {
        return Err(changed());
    }
    let Luks { sector_size, integrity, .. } = volume.luks;
    let mapper = volume.name.mapper();
    let options = FormatOptions { mapper: &mapper, kdf, sector_size, integrity, wipe: volume.wipe };
    let claims = Claims::default();
    claims.begin_format(&volume.name, &members)?;
    luks::format(device, options, key).map_err(|error| error.failure())?;
    claims.end_format(&volume.name)?;
    Ok(Event::Done(Step::Format(kdf)))
}

/// Opens the mapping.
pub fn unlock(volume: &Volume, device: &DevicePath, key: &Passphrase) -> Result<Event, Failure> {
    let Luks { discard, no_read_workqueue, no_write_workqueue, .. } = volume.luks;
    let flags = OpenFlags { discard, no_read_workqueue, no_write_workqueue };
    let mapper = volume.name.mapper();
    luks::open(device, &mapper, key, flags).map_err(|error| error.failure())?;
    keep(volume, device, &mapper)?;
    Ok(Event::Done(Step::Unlock))
}

/// Marks the header of a persistent volume that was ephemeral until now; headers that were made elsewhere stay as they are.
fn keep(volume: &Volume, device: &DevicePath, mapper: &MapperName) -> Result<(), Failure> {
    if volume.lifecycle == Lifecycle::Ephemeral {
        return Ok(());
    }
    let header = luks::header(device).map_err(|error| error.failure())?;
    if header.is_some_and(|header| header.is_ours(mapper) && !header.is_interrupted(mapper)) {
        luks::mark_complete(device, mapper, volume.lifecycle).map_err(|error| error.failure())?;
    }
    Ok(())
}

/// Looks at what is on the mapping, and whether the header says that a format was not finished.
pub fn inspect_mapping(volume: &Volume) -> Result<Event, Failure> {
    let backing = present_device(volume)?;
    let header = luks::header(&backing).map_err(|error| error.failure())?;
    let unfinished = header.is_some_and(|header| header.is_interrupted(&volume.name.mapper()));
    let wipe_due = facts::wipe_begun(volume, &backing, unfinished)?;
    // What was never written reads as noise.
    let contents = if wipe_due { Contents::Unknown { offset: 0 } } else { contents(volume, &mapped_device(volume)?)? };
    Ok(Event::Inspected { contents, unfinished, wipe_due })
}

/// Makes the file system or the swap space on the mapping of an unfinished format.
pub fn make_filesystem(volume: &Volume) -> Result<Event, Failure> {
    filesystem::make(&mapped_device(volume)?, &volume.filesystem).map_err(|error| error.failure())?;
    Ok(Event::Done(Step::MakeFilesystem))
}

/// Takes the mark of an unfinished format away, and notes for this boot that the volume was formatted in it.
pub fn finish_format(volume: &Volume) -> Result<Event, Failure> {
    let device = present_device(volume)?;
    note_format(volume, &device)?;
    luks::mark_complete(&device, &volume.name.mapper(), volume.lifecycle).map_err(|error| error.failure())?;
    Ok(Event::Done(Step::FinishFormat))
}

/// Shows systemd the mapping, which is whole now, so that it can be mounted.
pub fn show(volume: &Volume) -> Result<(), Failure> {
    luks::show(&volume.name.mapper()).map(|_| ()).map_err(|error| error.failure())
}

/// Has the mounted file system fill its mapping. A volume that stays as small as it was is no reason to have none; it is
/// said.
pub fn grow(volume: &Volume) -> Event {
    if let Err(failure) = grow_filesystem(volume) {
        let hint = failure.cause.row().hint;
        tracing::warn!(volume = %volume.name, step = %Step::Grow, "{failure}; going on with what there is\nhint: {hint}");
    }
    Event::Done(Step::Grow)
}

/// Has the mounted file system fill its mapping.
pub fn grow_filesystem(volume: &Volume) -> Result<Outcome, Failure> {
    let mount = Path::new(mount_point(volume, Step::Grow)?.as_str());
    let outcome = filesystem::grow(&mapped_device(volume)?, mount, volume.filesystem.kind);
    let outcome = outcome.map_err(|error| error.failure())?;
    if outcome == Outcome::Changed {
        tracing::info!(volume = %volume.name, step = %Step::Grow, "volume {}: its file system was made larger", volume.name);
    }
    Ok(outcome)
}

/// Gives the mounted root directory its owner, group and mode.
pub fn own(volume: &Volume) -> Result<Event, Failure> {
    let mount_point = mount_point(volume, Step::Own)?;
    // The directory below the mount is not meant; it is immutable besides.
    if !is_mounted(volume)? {
        return Err(Failure::new(Cause::MountLost, format!("nothing of it is mounted on {mount_point}")));
    }
    let RootDirectory { owner, group, mode } = &volume.filesystem.root;
    let owner = owner.as_deref().map(user_id).transpose()?;
    let group = group.as_deref().map(group_id).transpose()?;
    filesystem::own(Path::new(mount_point.as_str()), owner, group, *mode).map_err(|error| error.failure())?;
    Ok(Event::Done(Step::Own))
}

fn user_id(name: &str) -> Result<u32, Failure> {
    account_id(name, "user", |name| Ok(User::from_name(name)?.map(|user| user.uid.as_raw())))
}

fn group_id(name: &str) -> Result<u32, Failure> {
    account_id(name, "group", |name| Ok(Group::from_name(name)?.map(|group| group.gid.as_raw())))
}

/// The number of a user or group: itself, if it is one, or by the name services of this machine.
fn account_id(name: &str, kind: &str, find: impl FnOnce(&str) -> nix::Result<Option<u32>>) -> Result<u32, Failure> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    match find(name) {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(Failure::new(Cause::NoSuchOwner, format!("there is no {kind} {name}"))),
        Err(errno) => Err(Failure::new(Cause::System, format!("cannot look up the {kind} {name}: {errno}"))),
    }
}

/// Closes the mapping.
pub fn close(volume: &Volume) -> Result<Event, Failure> {
    luks::close(&volume.name.mapper()).map_err(|error| error.failure())?;
    Ok(Event::Done(Step::Close))
}

/// Detaches the loop device of a backing file, or the device that several disks make; a single one stays as it is.
pub fn detach(volume: &Volume) -> Result<Event, Failure> {
    match &volume.backing {
        Backing::File { .. } => {
            if let Some(device) = backing_device(volume)? {
                loops::detach_loop(&device).map_err(|error| error.failure())?;
            }
        }
        Backing::Match { layout: Layout::Linear | Layout::Striped { .. }, .. } => facts::detach_members(volume)?,
        Backing::Device { .. } | Backing::Match { .. } => {}
    }
    Ok(Event::Done(Step::Detach))
}

/// The mount point, which the steps that need one are asked for only where there is one.
fn mount_point(volume: &Volume, step: Step) -> Result<&MountPoint, Failure> {
    let none = || Failure::new(Cause::Internal, format!("{step} of what has no mount point"));
    volume.target.mount().ok_or_else(none)
}

/// Whether the volume's file system is mounted on its mount point, or the volume in use as swap space.
pub fn is_mounted(volume: &Volume) -> Result<bool, Failure> {
    Ok(facts::survey(volume)?.1 == Link::Ours)
}

/// The backing device, which has to be there.
pub fn present_device(volume: &Volume) -> Result<DevicePath, Failure> {
    backing_device(volume)?.ok_or_else(|| Failure::new(Cause::BackingMissing, volume.backing.to_string()))
}

/// The opened mapping, which has to be there.
pub fn mapped_device(volume: &Volume) -> Result<DevicePath, Failure> {
    device::resolve(Path::new(&volume.name.mapper().device())).map_err(|error| error.failure())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_by_name_and_by_number() {
        assert_eq!(user_id("root"), Ok(0));
        assert_eq!(group_id("root"), Ok(0));
        assert_eq!(user_id("4294967294"), Ok(4_294_967_294));
        let failure = Failure::new(Cause::NoSuchOwner, "there is no user no-such-user-here");
        assert_eq!(user_id("no-such-user-here"), Err(failure));
        assert_eq!(group_id("no-such-group-here").unwrap_err().cause, Cause::NoSuchOwner);
    }
}
