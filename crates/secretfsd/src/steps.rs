//! The blocking steps: what the state machine asks for, done with `secretfs-block`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use secretfs_block::device::{self, DevicePath};
use secretfs_block::inspect::{self, inspect};
use secretfs_block::luks::{self, FormatOptions, OpenFlags};
use secretfs_block::{Passphrase, backing, filesystem, loops, mapping};
use secretfs_core::cause::{Cause, Failure};
use secretfs_core::chain::{self, ChainFault, Expected, Mapping};
use secretfs_core::config::{Backing, Volume};
use secretfs_core::key::Kdf;
use secretfs_core::machine::{Contents, Event, Step};
use secretfs_core::paths::RUNTIME_DIR;

use crate::mounts;

/// Looks at what is mapped and mounted under the volume's names.
pub fn survey(volume: &Volume) -> Result<Event, Failure> {
    look(volume, |expected, mountinfo, mapping| Event::Surveyed {
        mapping: chain::survey_mapping(expected, mapping),
        mount: chain::survey_mount(expected, mountinfo, mapping),
    })
}

/// Reads the whole chain back.
pub fn verify(volume: &Volume) -> Result<Event, Failure> {
    let verified = look(volume, chain::verify)?;
    match verified {
        Ok(_) => Ok(Event::Done(Step::Verify)),
        Err(fault @ ChainFault::NotMounted(_)) => Err(Failure::new(Cause::MountLost, fault.to_string())),
        Err(fault @ ChainFault::Foreign(_)) => Err(Failure::new(Cause::ChainBroken, fault.to_string())),
    }
}

/// Reads the facts of the chain, and lets `judge` judge them.
fn look<T>(volume: &Volume, judge: impl FnOnce(Expected<'_>, &str, Option<&Mapping>) -> T) -> Result<T, Failure> {
    let mapper = volume.name.mapper();
    let backing = match present_backing(volume)? {
        Some(device) => Some(device::facts(&device).map_err(|error| error.failure())?.number.to_string()),
        None => None,
    };
    let mapping = mapping::active(&mapper).map_err(|error| error.failure())?;
    let mountinfo = mounts::read().map_err(|error| system("/proc/1/mountinfo", &error))?;
    let expected = Expected { mount: &volume.mount, mapper: &mapper, backing: backing.as_deref() };
    Ok(judge(expected, &mountinfo, mapping.as_ref()))
}

/// The backing device, if it is there already.
fn present_backing(volume: &Volume) -> Result<Option<DevicePath>, Failure> {
    match &volume.backing {
        Backing::File { path, .. } => loops::find_loop(Path::new(path)).map_err(|error| error.failure()),
        Backing::Device { path } => match device::resolve(Path::new(path)) {
            Ok(device) => Ok(Some(device)),
            Err(error) if error.failure().cause == Cause::BackingMissing => Ok(None),
            Err(error) => Err(error.failure()),
        },
    }
}

/// Has the backing device there, makes sure that nobody else uses it, and looks at what is on it.
pub fn attach(volume: &Volume) -> Result<(DevicePath, Event), Failure> {
    let device = match &volume.backing {
        Backing::File { path, size } => {
            let path = Path::new(path);
            backing::ensure(path, *size).map_err(|error| error.failure())?;
            loops::attach_loop(path).map_err(|error| error.failure())?.0
        }
        Backing::Device { path } => device::resolve(Path::new(path)).map_err(|error| error.failure())?,
    };
    let facts = device::facts(&device).map_err(|error| error.failure())?;
    if let Some(users) = facts.users() {
        return Err(Failure::new(Cause::DeviceBusy, format!("{device} {users}")));
    }
    let contents = contents_of(volume, &device)?;
    let formatted_this_boot = matches!(contents, Contents::Luks { .. }) && formatted_in_this_boot(volume, &device)?;
    Ok((device, Event::Attached { contents, formatted_this_boot }))
}

/// Makes a LUKS header that is marked as unfinished.
pub fn format(volume: &Volume, device: &DevicePath, kdf: Kdf, key: &Passphrase) -> Result<Event, Failure> {
    let options = FormatOptions { mapper: &volume.name.mapper(), kdf };
    luks::format(device, options, key).map_err(|error| error.failure())?;
    Ok(Event::Done(Step::Format(kdf)))
}

/// Opens the mapping.
pub fn unlock(volume: &Volume, device: &DevicePath, key: &Passphrase) -> Result<Event, Failure> {
    luks::open(device, &volume.name.mapper(), key, OpenFlags::default()).map_err(|error| error.failure())?;
    Ok(Event::Done(Step::Unlock))
}

/// Looks at what is on the mapping, and whether the header says that a format was not finished.
pub fn inspect_mapping(volume: &Volume) -> Result<Event, Failure> {
    let contents = contents_of(volume, &mapped_device(volume)?)?;
    let header = luks::header(&backing_device(volume)?).map_err(|error| error.failure())?;
    let unfinished = header.is_some_and(|header| header.is_interrupted(&volume.name.mapper()));
    Ok(Event::Inspected { contents, unfinished })
}

/// Makes the file system on the mapping of an unfinished format.
pub fn make_filesystem(volume: &Volume) -> Result<Event, Failure> {
    filesystem::make(&mapped_device(volume)?, volume.filesystem, None).map_err(|error| error.failure())?;
    Ok(Event::Done(Step::MakeFilesystem))
}

/// Takes the mark of an unfinished format away, and remembers for this boot that the volume was formatted in it.
pub fn finish_format(volume: &Volume) -> Result<Event, Failure> {
    let device = backing_device(volume)?;
    let path = boot_note(volume);
    fs::write(&path, luks_uuid(&device)?).map_err(|error| system(&path.display().to_string(), &error))?;
    luks::mark_complete(&device, &volume.name.mapper()).map_err(|error| error.failure())?;
    Ok(Event::Done(Step::FinishFormat))
}

/// Closes the mapping.
pub fn close(volume: &Volume) -> Result<Event, Failure> {
    luks::close(&volume.name.mapper()).map_err(|error| error.failure())?;
    Ok(Event::Done(Step::Close))
}

/// Detaches the loop device of a backing file; a device stays as it is.
pub fn detach(volume: &Volume) -> Result<Event, Failure> {
    if let Backing::File { path, .. } = &volume.backing
        && let Some(device) = loops::find_loop(Path::new(path)).map_err(|error| error.failure())?
    {
        loops::detach_loop(&device).map_err(|error| error.failure())?;
    }
    Ok(Event::Done(Step::Detach))
}

/// Whether the volume's file system is mounted anywhere after an unmount.
pub fn is_mounted(volume: &Volume) -> Result<bool, Failure> {
    let event = survey(volume)?;
    Ok(matches!(event, Event::Surveyed { mount: chain::Link::Ours, .. }))
}

/// What is on `device`, in the terms of the core.
fn contents_of(volume: &Volume, device: &DevicePath) -> Result<Contents, Failure> {
    let mapper = volume.name.mapper();
    Ok(match inspect(device).map_err(|error| error.failure())? {
        inspect::Contents::Blank => Contents::Blank,
        inspect::Contents::Luks(header) => {
            Contents::Luks { ours: header.is_ours(&mapper), unfinished: header.is_interrupted(&mapper) }
        }
        inspect::Contents::Signature { kind, .. } => Contents::Signature(kind),
        inspect::Contents::Unknown { .. } => Contents::Unknown,
    })
}

fn backing_device(volume: &Volume) -> Result<DevicePath, Failure> {
    present_backing(volume)?.ok_or_else(|| Failure::new(Cause::BackingMissing, volume.backing.path()))
}

fn mapped_device(volume: &Volume) -> Result<DevicePath, Failure> {
    device::resolve(Path::new(&volume.name.mapper().device())).map_err(|error| error.failure())
}

/// Where the LUKS uuid of a volume stands that was formatted in this boot; `/run` is empty after a reboot.
fn boot_note(volume: &Volume) -> PathBuf {
    Path::new(RUNTIME_DIR).join(format!("{}.formatted", volume.name))
}

fn formatted_in_this_boot(volume: &Volume, device: &DevicePath) -> Result<bool, Failure> {
    let path = boot_note(volume);
    match fs::read_to_string(&path) {
        Ok(uuid) => Ok(uuid == luks_uuid(device)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(system(&path.display().to_string(), &error)),
    }
}

fn luks_uuid(device: &DevicePath) -> Result<String, Failure> {
    let header = luks::header(device).map_err(|error| error.failure())?;
    let header = header.ok_or_else(|| Failure::new(Cause::HeaderBroken, format!("{device} has no LUKS header")))?;
    Ok(header.uuid)
}

fn system(subject: &str, error: &io::Error) -> Failure {
    Failure::new(Cause::System, format!("{subject}: {error}"))
}
