//! One volume as written, checked into the form the rest of the code sees.

mod filesystem;
mod mkfs;
mod swap;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

pub(super) use self::swap::warning as swap_warning;
use super::error::suggestion;
use super::quantity::{parse_duration, parse_size};

use super::{Backing, ConfigError, FilesystemType, Lifecycle, Place, Source, Target, Volume, matching, written};
use crate::key::{KeySource, PLACEHOLDERS, placeholders};
use crate::name::{MountPoint, NameError, UnitName, VolumeName, escape_path, path_fault};

/// A LUKS2 header takes 16 MiB (cryptsetup's default), and a file system needs some room behind it.
const SMALLEST_FILE: u64 = 32 << 20;

/// mkfs.xfs refuses less than 300 MiB (xfsprogs 5.19 and later), and the LUKS2 header comes before it.
const SMALLEST_FILE_XFS: u64 = 320 << 20;

/// mkfs.btrfs refuses less than 109 MiB with its usual profiles (btrfs-progs 6.2), and what is as small is full of
/// metadata at once; the LUKS2 header comes before it.
const SMALLEST_FILE_BTRFS: u64 = 160 << 20;

/// File sizes are whole sectors of the encryption, so that 4096-byte sectors can be used.
const SIZE_STEP: u64 = 4096;

/// How long a start waits for transient failures unless told otherwise: long enough for a zone's outage of minutes,
/// short enough that a boot is not held for ever.
const START_TIMEOUT: Duration = Duration::from_mins(10);

/// KMS takes an encryption context of at most 8192 bytes (AWS KMS quotas); what is longer is a mistake.
const CONTEXT_MAX: usize = 8192;

/// systemd takes a unit name of at most 255 bytes (`UNIT_NAME_MAX`).
const DEVICE_UNIT_MAX: usize = 255 - ".device".len();

/// What a volume's service starts after, at whatever remove: these can't in turn wait for a volume.
const NEEDED_FIRST: [&str; 19] = [
    "-.mount",
    "-.slice",
    "basic.target",
    "dbus.service",
    "local-fs-pre.target",
    "local-fs.target",
    "network-online.target",
    "network-pre.target",
    "network.target",
    "paths.target",
    "slices.target",
    "sockets.target",
    "swap.target",
    "sysinit.target",
    "system.slice",
    "systemd-journald.service",
    "systemd-udevd.service",
    "tmp.mount",
    "var.mount",
];

/// Collects the errors of one volume, so that an administrator sees them all at once.
struct Checker<'a> {
    source: &'a Source,
    at: String,
    span: &'a Range<usize>,
    errors: Vec<ConfigError>,
}

/// Checks one volume; `span` is where its table begins.
pub(super) fn volume(
    source: &Source,
    name: &VolumeName,
    span: &Range<usize>,
    written: &written::Volume,
) -> Result<Volume, Vec<ConfigError>> {
    let mut check = Checker { source, at: format!("volume.{name}"), span, errors: Vec::new() };
    let filesystem = check.filesystem_type(written.filesystem.as_ref());
    let target = if filesystem == Some(FilesystemType::Swap) {
        Some(check.swap_target(written))
    } else {
        let mount = check.required("mount", "\"/mnt/secretfs\"", written.mount.as_ref());
        mount.and_then(|path| check.named("mount", path, MountPoint::new)).map(Target::Mount)
    };
    let lifecycle = check.one_of(
        "lifecycle",
        written.lifecycle.as_ref(),
        if target == Some(Target::Swap) { Lifecycle::Ephemeral } else { Lifecycle::Persistent },
        &[Lifecycle::Ephemeral, Lifecycle::Persistent].map(|value| (value.as_str(), value)),
    );
    let example = "{ file = \"/var/lib/secretfs/scratch.img\", size = \"2GiB\" }";
    let backing = check.required("backing", example, written.backing.as_ref());
    let backing = backing.and_then(|backing| check.backing(backing, filesystem.unwrap_or(FilesystemType::Ext4)));
    let luks = check.luks(written.luks.as_ref());
    let wipe = check.wipe(written, filesystem, &luks);
    let filesystem = check.filesystem(filesystem, written.filesystem.as_ref(), &luks);
    let example = "{ source = \"s3+kms\", bucket = \"…\", object = \"…\", kms-key = \"alias/…\" }";
    let key = check.required("key", example, written.key.as_ref());
    let key = key.and_then(|key| check.key(key));
    let consumers = check.consumers(name, target.as_ref(), &written.consumers);
    let start_timeout = check.start_timeout(written.start_timeout.as_ref());
    match (target, backing, filesystem, key) {
        (Some(target), Some(backing), Some(filesystem), Some(key)) if check.errors.is_empty() => Ok(Volume {
            name: name.clone(),
            source_path: source.path.clone(),
            line: Place::new(source, span.clone()).line,
            target,
            lifecycle,
            backing,
            filesystem,
            luks,
            wipe,
            key,
            consumers,
            auto: written.auto.unwrap_or(true),
            start_timeout,
        }),
        _ => Err(check.errors),
    }
}

/// What keeps `unit` from depending on the volume, if anything does.
pub(super) fn consumer_fault(volume: &VolumeName, target: Option<&Target>, unit: &UnitName) -> Option<&'static str> {
    if *unit == volume.service() || target.is_some_and(|target| *unit == target.unit(volume)) {
        Some("is the volume itself, which can't wait for itself")
    } else if NEEDED_FIRST.contains(&unit.as_str()) {
        Some("starts before any volume can")
    } else {
        None
    }
}

impl Checker<'_> {
    fn refuse(&mut self, key: &str, span: Range<usize>, message: impl Into<String>, hint: impl Into<String>) {
        let at = if key.is_empty() { self.at.clone() } else { format!("{}.{key}", self.at) };
        self.errors.push(ConfigError::new(self.source, &at, span, message).with_hint(hint));
    }

    fn required<'w, T>(&mut self, key: &str, example: &str, value: Option<&'w T>) -> Option<&'w T> {
        let span = self.span.clone();
        self.required_at(&span, key, example, value)
    }

    fn required_at<'w, T>(
        &mut self,
        span: &Range<usize>,
        key: &str,
        example: &str,
        value: Option<&'w T>,
    ) -> Option<&'w T> {
        if value.is_none() {
            let last = key.rsplit('.').next().unwrap_or(key);
            self.refuse("", span.clone(), format!("`{key}` is missing"), format!("add: {last} = {example}"));
        }
        value
    }

    fn named<T>(&mut self, key: &str, text: &Spanned<String>, new: fn(&str) -> Result<T, NameError>) -> Option<T> {
        new(text.get_ref()).map_err(|error| self.refuse(key, text.span(), error.to_string(), error.hint())).ok()
    }

    fn one_of<T: Copy>(
        &mut self,
        key: &str,
        text: Option<&Spanned<String>>,
        default: T,
        known: &[(&'static str, T)],
    ) -> T {
        let Some(text) = text else { return default };
        if let Some((_, value)) = known.iter().find(|(name, _)| name == text.get_ref()) {
            return *value;
        }
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let hint = suggestion(text.get_ref(), &names);
        self.refuse(key, text.span(), format!("{:?} is not known here", text.get_ref()), hint);
        default
    }

    fn path(&mut self, key: &str, text: &Spanned<String>) -> Option<String> {
        if let Some(fault) = path_fault(text.get_ref()) {
            let hint = "give an absolute path without `.`, `..` and `//`";
            self.refuse(key, text.span(), format!("{:?} can't be used: {fault}", text.get_ref()), hint);
            return None;
        }
        if text.get_ref() == "/" {
            self.refuse(key, text.span(), "\"/\" can't be used: it is the root directory", "give the path of a file");
            return None;
        }
        Some(text.get_ref().clone())
    }

    fn backing(&mut self, backing: &Spanned<written::Backing>, filesystem: FilesystemType) -> Option<Backing> {
        let written::Backing { file, size, device, matching, layout, stripe_size } = backing.get_ref();
        if let Some(matching) = matching {
            if file.is_some() || device.is_some() || size.is_some() {
                let hint = "keep `match`, or the file with its `size`, or the device";
                self.refuse("backing", backing.span(), "disks to match and a file or device are given", hint);
                return None;
            }
            return matching::backing(backing.get_ref(), matching, |key, span, message, hint| {
                self.refuse(key, span, message, hint);
            });
        }
        if let Some(text) = layout.as_ref().or(stripe_size.as_ref()) {
            let hint = "take it out, or write { match = { … }, layout = \"…\" }";
            self.refuse("backing", text.span(), "only disks to match have a layout", hint);
            return None;
        }
        match (file, size, device) {
            (Some(file), Some(size), None) => {
                let path = self.path("backing.file", file)?;
                if path.starts_with("/dev/") {
                    let hint = format!("for a block device write: backing = {{ device = {path:?} }}");
                    self.refuse("backing.file", file.span(), format!("{path:?} lies below /dev"), hint);
                    return None;
                }
                let size = self.file_size(size, filesystem)?;
                Some(Backing::File { path, size })
            }
            (None, None, Some(device)) => {
                let path = self.path("backing.device", device)?;
                if !path.starts_with("/dev/") {
                    let hint = format!("for a file write: backing = {{ file = {path:?}, size = \"2GiB\" }}");
                    self.refuse("backing.device", device.span(), format!("{path:?} is not below /dev"), hint);
                    return None;
                }
                if escape_path(&path).len() > DEVICE_UNIT_MAX {
                    let hint = "use a shorter link to it below /dev/disk";
                    self.refuse("backing.device", device.span(), "the name of its device unit would be too long", hint);
                    return None;
                }
                Some(Backing::Device { path })
            }
            (Some(_), _, Some(_)) => {
                let hint = "keep `file` with its `size`, or `device`";
                self.refuse("backing", backing.span(), "both a file and a device are given", hint);
                None
            }
            (None, Some(size), Some(_)) => {
                let hint = "take it out: a device is as large as it is";
                self.refuse("backing.size", size.span(), "a device takes no size", hint);
                None
            }
            (Some(_), None, None) => {
                self.refuse("backing", backing.span(), "a backing file needs its size", "add: size = \"2GiB\"");
                None
            }
            _ => {
                let hint = "write { file = \"…\", size = \"…\" }, { device = \"/dev/disk/by-id/…\" } or { match = { serial = \"…\" } }";
                self.refuse(
                    "backing",
                    backing.span(),
                    "a file with its size, a device or disks to match are needed",
                    hint,
                );
                None
            }
        }
    }

    fn file_size(&mut self, text: &Spanned<String>, filesystem: FilesystemType) -> Option<u64> {
        let smallest = match filesystem {
            FilesystemType::Ext4 | FilesystemType::Swap => SMALLEST_FILE,
            FilesystemType::Xfs => SMALLEST_FILE_XFS,
            FilesystemType::Btrfs => SMALLEST_FILE_BTRFS,
        };
        let size = match parse_size(text.get_ref()) {
            Ok(size) => size,
            Err(hint) => {
                self.refuse("backing.size", text.span(), format!("{:?} is not a size", text.get_ref()), hint);
                return None;
            }
        };
        if size < smallest {
            let message = format!("{:?} is too small for {}", text.get_ref(), filesystem.as_str());
            let hint = format!("use at least {} MiB", smallest >> 20);
            self.refuse("backing.size", text.span(), message, hint);
            return None;
        }
        if !size.is_multiple_of(SIZE_STEP) {
            let message = format!("{:?} is not a multiple of {SIZE_STEP} bytes", text.get_ref());
            self.refuse("backing.size", text.span(), message, "use KiB, MiB or GiB");
            return None;
        }
        Some(size)
    }

    fn key(&mut self, key: &Spanned<written::Key>) -> Option<KeySource> {
        let span = key.span();
        let key = key.get_ref();
        self.required_at(&span, "key.source", "\"s3+kms\"", key.source.as_ref())?;
        self.one_of("key.source", key.source.as_ref(), None, &[("s3+kms", Some(()))])?;
        let bucket = self.required_at(&span, "key.bucket", "\"my-bucket\"", key.bucket.as_ref());
        let object = self.required_at(&span, "key.object", "\"LuksInternalStorageKey\"", key.object.as_ref());
        let kms_key = self.required_at(&span, "key.kms-key", "\"alias/my-key\"", key.kms_key.as_ref());
        for (name, text) in [("key.bucket", bucket), ("key.object", object), ("key.kms-key", kms_key)] {
            if let Some(text) = text.filter(|text| text.get_ref().is_empty()) {
                self.refuse(name, text.span(), "it is empty", "give the name as AWS shows it");
            }
        }
        let context = self.context(&key.context, span);
        Some(KeySource::S3Kms {
            bucket: bucket?.get_ref().clone(),
            object: object?.get_ref().clone(),
            kms_key: kms_key?.get_ref().clone(),
            context,
        })
    }

    fn context(&mut self, context: &BTreeMap<String, Spanned<String>>, span: Range<usize>) -> BTreeMap<String, String> {
        for (name, value) in context {
            if name.is_empty() {
                let hint = "KMS takes no empty name in an encryption context";
                self.refuse("key.context", value.span(), "a name is empty", hint);
            }
            for placeholder in placeholders(value.get_ref()) {
                if !PLACEHOLDERS.contains(&placeholder.as_str()) {
                    let hint = format!("{} (a brace itself is written {{{{)", suggestion(&placeholder, PLACEHOLDERS));
                    let message = format!("{{{placeholder}}} is not known");
                    self.refuse(&format!("key.context.{name}"), value.span(), message, hint);
                }
            }
        }
        let length: usize = context.iter().map(|(name, value)| name.len() + value.get_ref().len()).sum();
        if length > CONTEXT_MAX {
            let hint = "KMS takes 8192 bytes; a context is a label, not a document";
            self.refuse("key.context", span, "the encryption context is too long", hint);
        }
        context.iter().map(|(name, value)| (name.clone(), value.get_ref().clone())).collect()
    }

    fn consumers(
        &mut self,
        volume: &VolumeName,
        target: Option<&Target>,
        written: &[Spanned<String>],
    ) -> Vec<UnitName> {
        let mut consumers: Vec<UnitName> = Vec::new();
        for text in written {
            let Some(unit) = self.named("consumers", text, UnitName::new) else { continue };
            if let Some(fault) = consumer_fault(volume, target, &unit) {
                self.refuse("consumers", text.span(), format!("\"{unit}\" {fault}"), "take it out of the list");
            } else if !consumers.contains(&unit) {
                consumers.push(unit);
            }
        }
        consumers
    }

    fn start_timeout(&mut self, text: Option<&Spanned<String>>) -> Duration {
        let Some(text) = text else { return START_TIMEOUT };
        match parse_duration(text.get_ref()) {
            Ok(timeout) if !timeout.is_zero() => timeout,
            Ok(_) => {
                self.refuse("start-timeout", text.span(), "no time at all", "give at least \"1s\"");
                START_TIMEOUT
            }
            Err(hint) => {
                self.refuse("start-timeout", text.span(), format!("{:?} is not a duration", text.get_ref()), hint);
                START_TIMEOUT
            }
        }
    }
}
