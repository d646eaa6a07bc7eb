//! One configured volume as it is on this machine now: what the daemon decides by, and what the command shows.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use secretfs_core::cause::{Cause, Failure};
use secretfs_core::chain::{self, ChainFault, Expected, InUse, Link, Mapping, Verified};
use secretfs_core::claim::lvm::Plan;
use secretfs_core::claim::{DiskFacts, Member, Standing, choose, describe};
use secretfs_core::config::{Backing, Layout, Lifecycle, Target, Volume, Wipe};
use secretfs_core::forecast::Disks;
use secretfs_core::machine::Contents;
use secretfs_core::name::VolumeName;
use secretfs_core::paths::RUNTIME_DIR;
use secretfs_core::progress::Progress;

use crate::claim::Claims;
use crate::device::{self, DevicePath, SWAPS};
use crate::note::{self, system};
use crate::{Outcome, backing, disks, inspect, loops, luks, lvm, mapping};

/// The mounts as PID 1 sees them; a sandboxed daemon has a few more of its own.
pub const MOUNTINFO: &str = "/proc/1/mountinfo";

/// There as long as udev has events to handle (systemd-udevd).
const UDEV_QUEUE: &str = "/run/udev/queue";

/// The backing device, if it is there and, for a file or several disks, attached.
pub fn backing_device(volume: &Volume) -> Result<Option<DevicePath>, Failure> {
    match &volume.backing {
        Backing::File { path, .. } => loops::find_loop(Path::new(path)).map_err(|error| error.failure()),
        Backing::Device { path } => match device::resolve(Path::new(path)) {
            Ok(device) => Ok(Some(device)),
            Err(device::DeviceError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.failure()),
        },
        Backing::Match { layout: Layout::Single, .. } => match members(volume) {
            Ok(members) => members.first().map(node).transpose(),
            Err(failure) if failure.cause == Cause::BackingMissing => Ok(None),
            Err(failure) => Err(failure),
        },
        Backing::Match { .. } => lvm::active(&volume.name),
    }
}

/// The disks that the volume claims; none for a file or a device that is named.
///
/// Nothing is guessed: too few are [`Cause::BackingMissing`] and too many are refused.
pub fn members(volume: &Volume) -> Result<Vec<Member>, Failure> {
    match &volume.backing {
        Backing::File { .. } | Backing::Device { .. } => Ok(Vec::new()),
        Backing::Match { device_match, .. } => {
            choose(device_match, &disks::enumerate(Path::new("/")), &Claims::default().known(&volume.name)?)
        }
    }
}

/// What the volume lies on, by names that outlast a boot: what [`Claims`] remembers.
pub fn identities(volume: &Volume) -> Result<Vec<String>, Failure> {
    match volume.backing.path() {
        Some(path) => Ok(vec![path.to_owned()]),
        None => Ok(members(volume)?.into_iter().map(|member| member.identity).collect()),
    }
}

/// How what is there compares with what was there when the volume was last up, if nothing is there yet.
pub fn standing_of_nothing(volume: &Volume) -> Result<Standing, Failure> {
    Claims::default().standing(volume, &identities(volume)?, &Contents::Blank, None)
}

/// Has the one device there that the claimed disks are or make.
pub fn attach_members(volume: &Volume, layout: Layout) -> Result<DevicePath, Failure> {
    let members = members(volume)?;
    if layout == Layout::Single {
        let member = members.first().ok_or_else(|| Failure::new(Cause::BackingMissing, volume.backing.to_string()))?;
        return node(member);
    }
    lvm::Lvm::default().attach(&volume.name, layout, &members, &Claims::default())?;
    let missing = || Failure::new(Cause::LvmFailed, format!("{} did not appear", volume.backing));
    lvm::active(&volume.name)?.ok_or_else(missing)
}

/// Takes down what [`attach_members`] made.
pub fn detach_members(volume: &Volume) -> Result<(), Failure> {
    // Disks that are gone meanwhile are no reason to leave the rest.
    let members = members(volume).unwrap_or_default();
    lvm::Lvm::default().detach(&volume.name, &members)
}

/// What there is to say of several disks before they are attached.
pub fn disks(volume: &Volume) -> Result<Disks, Failure> {
    let Backing::Match { layout: layout @ (Layout::Linear | Layout::Striped { .. }), .. } = &volume.backing else {
        return Ok(Disks::Settled);
    };
    if lvm::active(&volume.name)?.is_some() {
        return Ok(Disks::Settled);
    }
    let found = members(volume).and_then(|members| {
        let begun = Claims::default().begun(&volume.name)?;
        let plan = lvm::Lvm::default().examine(&volume.name, *layout, &members, &begun)?;
        if let Plan::Create { blank, .. } = &plan {
            blank.iter().try_for_each(lvm::prove_blank)?;
        }
        Ok((plan, describe(&members)))
    });
    match found {
        Ok((Plan::Activate, disks)) => Ok(Disks::Inactive(disks)),
        Ok((Plan::Create { .. } | Plan::CreateData, disks)) => Ok(Disks::Makeable(disks)),
        Err(failure) if failure.cause == Cause::BackingMissing => Ok(Disks::Missing(named(volume, failure)?)),
        Err(failure) => Err(failure),
    }
}

/// A failure for want of disks that names those the volume had, which LVM knows by its own uuids only.
fn named(volume: &Volume, failure: Failure) -> Result<Failure, Failure> {
    let there: Vec<String> = disks::enumerate(Path::new("/")).iter().filter_map(DiskFacts::identity).collect();
    let mut missing = Claims::default().known(&volume.name)?;
    missing.retain(|identity| !there.contains(identity) && !failure.detail.contains(identity.as_str()));
    if missing.is_empty() {
        return Ok(failure);
    }
    Ok(Failure::new(failure.cause, format!("{}; missing: {}", failure.detail, missing.join(", "))))
}

/// Refuses to take as many disks as there are while udev still finds some.
pub fn wait_for_udev(volume: &Volume) -> Result<(), Failure> {
    match &volume.backing {
        Backing::Match { device_match, .. } if device_match.count.is_none() && Path::new(UDEV_QUEUE).exists() => {
            Err(Failure::new(Cause::BackingMissing, "udev is still at work on new devices"))
        }
        _ => Ok(()),
    }
}

fn node(member: &Member) -> Result<DevicePath, Failure> {
    device::resolve(Path::new(&member.path)).map_err(|error| error.failure())
}

/// The kernel's table to watch for the volume's mount or swap space.
pub fn table(volume: &Volume) -> &'static str {
    match volume.target {
        Target::Mount(_) => MOUNTINFO,
        Target::Swap => SWAPS,
    }
}

/// Looks at what is mapped under the volume's name, and at what is mounted on its mount point; or whether it is in use as
/// swap space.
pub fn survey(volume: &Volume) -> Result<(Link, Link), Failure> {
    look(volume, |expected, in_use, mapping| {
        (chain::survey_mapping(expected, mapping), chain::survey_mount(expected, in_use, mapping))
    })
}

/// Reads the whole chain back, from the mount or the swap space to the backing device.
pub fn verify(volume: &Volume) -> Result<Verified, Failure> {
    let verified = look(volume, chain::verify)?;
    verified.map_err(|fault| {
        let cause = match fault {
            ChainFault::NotMounted(_) => Cause::MountLost,
            ChainFault::NotSwappedTo(_) => Cause::SwapLost,
            ChainFault::Foreign(_) => Cause::ChainBroken,
        };
        Failure::new(cause, fault.to_string())
    })
}

/// Reads the facts of the chain, and lets `judge` judge them.
fn look<T>(volume: &Volume, judge: impl FnOnce(Expected<'_>, InUse<'_>, Option<&Mapping>) -> T) -> Result<T, Failure> {
    let mapper = volume.name.mapper();
    let backing = match backing_device(volume)? {
        Some(device) => Some(device::facts(&device).map_err(|error| error.failure())?.number.to_string()),
        None => None,
    };
    let mapping = mapping::active(&mapper).map_err(|error| error.failure())?;
    let (mut mountinfo, mut swaps) = (String::new(), Vec::new());
    match volume.target {
        Target::Mount(_) => {
            mountinfo = fs::read_to_string(MOUNTINFO).map_err(|error| system(MOUNTINFO.as_ref(), &error))?;
        }
        Target::Swap => swaps = device::swaps().map_err(|error| system(SWAPS.as_ref(), &error))?,
    }
    let in_use = InUse { mountinfo: &mountinfo, swaps: &swaps };
    let expected = Expected { target: &volume.target, mapper: &mapper, backing: backing.as_deref() };
    Ok(judge(expected, in_use, mapping.as_ref()))
}

/// What is on `device`, the volume's backing or its mapping, in the terms of the core.
pub fn contents(volume: &Volume, device: &DevicePath) -> Result<Contents, Failure> {
    let mapper = volume.name.mapper();
    Ok(match inspect::inspect(device).map_err(|error| error.failure())? {
        inspect::Contents::Blank => Contents::Blank,
        // One that is another volume's is nobody else's to open or to overwrite, whatever key fits.
        inspect::Contents::Luks(header) if header.is_of_another(&mapper) => {
            Contents::Signature(format!("the LUKS header of the volume {}", header.label))
        }
        // Whatever this machine remembers of it, or does not.
        inspect::Contents::Luks(header) if volume.lifecycle == Lifecycle::Ephemeral && header.is_kept() => {
            Contents::Signature(format!("the LUKS header of the persistent volume {}", header.label))
        }
        inspect::Contents::Luks(header) => {
            Contents::Luks { ours: header.is_ours(&mapper), unfinished: header.is_interrupted(&mapper) }
        }
        inspect::Contents::Signature { kind, .. } => Contents::Signature(kind),
        inspect::Contents::Unknown { offset } => Contents::Unknown { offset },
    })
}

/// Whether the volume is to be zeroed before it is used, and the header on `device`, of a format that is `unfinished`, says
/// how far that came.
pub fn wipe_begun(volume: &Volume, device: &DevicePath, unfinished: bool) -> Result<bool, Failure> {
    let due = unfinished && volume.wipe == (Wipe::Zero { before_ready: true });
    Ok(due && luks::zeroed(device).map_err(|error| error.failure())?.is_some())
}

/// A volume's backing before a start touches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it is, by names that outlast a boot.
    pub members: Vec<String>,
    /// What is on it.
    pub contents: Contents,
    /// Whether this boot has formatted it already.
    pub formatted_this_boot: bool,
    /// See [`wipe_begun`].
    pub wipe_begun: bool,
    /// How it compares with what the volume was when it was last up.
    pub standing: Standing,
}

/// Looks at the volume's backing device.
pub fn examine(volume: &Volume, device: &DevicePath) -> Result<Found, Failure> {
    let claims = Claims::default();
    let members = identities(volume)?;
    let contents = match contents(volume, device)? {
        Contents::Unknown { .. } if claims.format_begun(&volume.name, &members)? => Contents::Begun,
        contents => contents,
    };
    let luks_uuid = if contents.is_luks() { Some(luks_uuid(device)?) } else { None };
    Ok(Found {
        formatted_this_boot: luks_uuid.as_deref().map_or(Ok(false), |uuid| formatted_this_boot(volume, uuid))?,
        wipe_begun: wipe_begun(volume, device, contents.is_unfinished())?,
        standing: claims.standing(volume, &members, &contents, luks_uuid.as_deref())?,
        members,
        contents,
    })
}

/// Looks at the volume's backing file while it is not attached; nothing when there is no such file.
pub fn examine_file(volume: &Volume, path: &Path) -> Result<Option<Found>, Failure> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.len() == 0 => Ok(Some(Found {
            members: identities(volume)?,
            contents: Contents::Blank,
            formatted_this_boot: false,
            wipe_begun: false,
            standing: standing_of_nothing(volume)?,
        })),
        Ok(_) => examine(volume, &DevicePath::at(path.to_string_lossy())).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(system(path, &error)),
    }
}

/// Makes the backing file as large as it is configured, and its loop device with it.
///
/// Only a file with a LUKS header is made larger; what to say of any other is [`backing::ensure`]'s business, and so is a
/// file that is larger already. A device is as large as it is, and a volume with integrity tags stays as it is.
pub fn grow_backing(volume: &Volume) -> Result<Outcome, Failure> {
    let Backing::File { path, size } = &volume.backing else { return Ok(Outcome::Unchanged) };
    let path = Path::new(path);
    if volume.luks.integrity.is_some() {
        return Ok(Outcome::Unchanged);
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() && (1..*size).contains(&metadata.len()) => {
            let header = luks::header(&DevicePath::at(path.to_string_lossy())).map_err(|error| error.failure())?;
            if header.is_some() {
                backing::extend(path, *size).map_err(|error| error.failure())?;
            }
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Outcome::Unchanged),
        Err(error) => return Err(system(path, &error)),
    }
    backing::ensure(path, *size).map_err(|error| error.failure())?;
    loops::refresh(path).map_err(|error| error.failure())
}

/// Notes for this boot that the volume was formatted in it; `/run` is empty after a reboot.
pub fn note_format(volume: &Volume, device: &DevicePath) -> Result<(), Failure> {
    let path = boot_note(volume);
    fs::write(&path, luks_uuid(device)?).map_err(|error| system(&path, &error))
}

/// Whether the LUKS header of this uuid was made in this boot.
fn formatted_this_boot(volume: &Volume, luks_uuid: &str) -> Result<bool, Failure> {
    let path = boot_note(volume);
    match fs::read_to_string(&path) {
        Ok(uuid) => Ok(uuid == luks_uuid),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(system(&path, &error)),
    }
}

/// Leaves word of how far long work on the volume has come, for [`progress`] of another process; with nothing, that there
/// is none.
pub fn note_progress(volume: &Volume, progress: Option<&Progress>) -> Result<(), Failure> {
    let path = progress_note(&volume.name);
    match progress {
        Some(progress) => note::write(&path, progress),
        None => note::remove(&path),
    }
}

/// How far long work on the volume has come, if there is any and it may be read.
pub fn progress(name: &VolumeName) -> Option<Progress> {
    note::read(&progress_note(name), Cause::System).ok()?
}

fn progress_note(name: &VolumeName) -> PathBuf {
    Path::new(RUNTIME_DIR).join(format!("{name}.wipe.json"))
}

fn boot_note(volume: &Volume) -> PathBuf {
    Path::new(RUNTIME_DIR).join(format!("{}.formatted", volume.name))
}

/// The uuid of the LUKS header that has to be on `device`.
pub fn luks_uuid(device: &DevicePath) -> Result<String, Failure> {
    let header = luks::header(device).map_err(|error| error.failure())?;
    let header = header.ok_or_else(|| Failure::new(Cause::HeaderBroken, format!("{device} has no LUKS header")))?;
    Ok(header.uuid)
}
