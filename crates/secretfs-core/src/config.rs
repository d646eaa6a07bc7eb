//! The configuration: TOML as written in, validated volumes out, with a place and a cure for everything refused.

mod error;
mod filesystem;
mod matching;
mod quantity;
mod relations;
mod salvage;
mod validate;
mod wipe;
mod written;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub use self::error::{ConfigError, Place};
pub use self::filesystem::{Filesystem, FilesystemType, Integrity, Luks, RootDirectory};
pub use self::matching::{DeviceMatch, Layout, Pattern};
pub use self::wipe::Wipe;
use crate::key::KeySource;
use crate::name::{MountPoint, UnitName, VolumeName};
use crate::paths::{CONFIG_DIR, CONFIG_FILE};

/// One configuration file: its path, for messages, and its text.
#[derive(Debug, Clone)]
pub struct Source {
    /// The path, as it is to stand in messages.
    pub path: String,
    /// The whole text.
    pub text: String,
}

/// What all the configuration files together say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Settings of the AWS clients.
    pub aws: Aws,
    /// The volumes that can be had.
    pub volumes: BTreeMap<VolumeName, Volume>,
    /// The volumes that can't, each with what is wrong; one whose name is at fault is here under a stand-in.
    pub refused: BTreeMap<VolumeName, Refused>,
    /// What is wrong outside of any volume; the volumes are not affected.
    pub errors: Vec<ConfigError>,
    /// What is accepted and yet likely to be regretted, with what to write instead.
    pub warnings: Vec<ConfigError>,
}

/// Settings of the AWS clients; everything left out comes from the SDK's own sources.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aws {
    /// The region.
    pub region: Option<String>,
}

/// One volume, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: VolumeName,
    /// The file that defines it.
    pub source_path: String,
    /// The line on which its definition begins, from 1.
    pub line: usize,
    /// Where it is used.
    pub target: Target,
    /// How long its data lives.
    pub lifecycle: Lifecycle,
    /// What lies below the encryption.
    pub backing: Backing,
    /// The file system on it.
    pub filesystem: Filesystem,
    /// How its encryption is set up.
    pub luks: Luks,
    /// What a format does about what was on the backing before.
    pub wipe: Wipe,
    /// Where its key comes from.
    pub key: KeySource,
    /// Units that run only while the volume is there.
    pub consumers: Vec<UnitName>,
    /// Whether it is started at boot.
    pub auto: bool,
    /// How long a start may wait for a transient failure to pass.
    pub start_timeout: Duration,
}

/// A volume that was refused, with what could be read of it: enough to keep its dependents from running without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The file that defines it.
    pub source_path: String,
    /// Where it was to be used, if that much is sound.
    pub target: Option<Target>,
    /// The consumers that are sound.
    pub consumers: Vec<UnitName>,
    /// Whether it was to be started at boot.
    pub auto: bool,
    /// What is wrong; at least one.
    pub errors: Vec<ConfigError>,
}

impl Volume {
    /// The mount or swap unit that puts it to use.
    pub fn unit(&self) -> UnitName {
        self.target.unit(&self.name)
    }
}

/// Where a volume is used; swap space is exactly what has the file system type `swap`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Mounted, here.
    Mount(MountPoint),
    /// By the kernel, as swap space.
    Swap,
}

impl Target {
    /// The mount point, if there is one.
    pub fn mount(&self) -> Option<&MountPoint> {
        match self {
            Self::Mount(mount) => Some(mount),
            Self::Swap => None,
        }
    }

    /// The unit that puts the volume `name` to use.
    pub fn unit(&self, name: &VolumeName) -> UnitName {
        match self {
            Self::Mount(mount) => mount.unit(),
            Self::Swap => name.mapper().swap_unit(),
        }
    }
}

/// How long a volume's data lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lifecycle {
    /// Freshly formatted at the first start of each boot.
    Ephemeral,
    /// Kept; formatted only when proven blank.
    Persistent,
}

impl Lifecycle {
    /// The word for it in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ephemeral => "ephemeral",
            Self::Persistent => "persistent",
        }
    }
}

/// What lies below the encryption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// A sparse file, attached to a loop device.
    File {
        /// Its absolute path.
        path: String,
        /// Its size in bytes; it is made that large when absent.
        size: u64,
    },
    /// A whole block device or partition.
    Device {
        /// A path below `/dev` that names it by identity.
        path: String,
    },
    /// Disks that are found by what they are.
    Match {
        /// What they have to be.
        device_match: DeviceMatch,
        /// How they become one device.
        layout: Layout,
    },
}

impl Backing {
    /// The path of the file or device; disks that are to be found have none.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::File { path, .. } | Self::Device { path } => Some(path),
            Self::Match { .. } => None,
        }
    }
}

impl fmt::Display for Backing {
    /// The path, or what the disks are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, .. } | Self::Device { path } => f.write_str(path),
            Self::Match { device_match, layout: Layout::Single } => write!(f, "the disk with {device_match}"),
            Self::Match { device_match, layout } => write!(f, "the {} disks with {device_match}", layout.as_str()),
        }
    }
}

/// The bytes that a configuration file may have. None comes near it; a larger one is a mistake, and reading it would hold
/// up the boot.
pub const FILE_MAX: usize = 1 << 20;

/// What was found below `/etc`.
#[derive(Debug, Default)]
struct Gathered {
    sources: Vec<Source>,
    /// What can't be read as it should be, as far as it can.
    damaged: Vec<(Source, ConfigError)>,
    errors: Vec<ConfigError>,
}

/// Gathers the configuration files: [`CONFIG_FILE`], if it is there, then the `*.toml` of [`CONFIG_DIR`] by name.
fn gather(
    list: impl FnOnce(&str) -> io::Result<Vec<String>>,
    mut read: impl FnMut(&str) -> io::Result<Vec<u8>>,
) -> Gathered {
    let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let mut gathered = Gathered::default();
    let mut names = list(CONFIG_DIR).unwrap_or_else(|error| {
        if !absent(&error) {
            gathered.errors.push(ConfigError::unreadable(CONFIG_DIR, &error));
        }
        Vec::new()
    });
    names.retain(|name| name.strip_suffix(".toml").is_some_and(|stem| !stem.is_empty() && !stem.starts_with('.')));
    names.sort();
    for path in [CONFIG_FILE.to_owned()].into_iter().chain(names.iter().map(|name| format!("{CONFIG_DIR}/{name}"))) {
        let (text, error) = match read(&path) {
            Ok(bytes) if bytes.len() > FILE_MAX => {
                let error = io::Error::other("it is larger than 1 MiB");
                (String::from_utf8_lossy(&bytes[..FILE_MAX]).into_owned(), error)
            }
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => {
                    gathered.sources.push(Source { path, text });
                    continue;
                }
                Err(error) => {
                    let fault = io::Error::other(error.utf8_error());
                    (String::from_utf8_lossy(error.as_bytes()).into_owned(), fault)
                }
            },
            // What is listed and yet not there is a link that leads nowhere, and says nothing to nobody.
            Err(error) if absent(&error) && path == CONFIG_FILE => continue,
            Err(error) => (String::new(), error),
        };
        let error = ConfigError::unreadable(&path, &error);
        gathered.damaged.push((Source { path, text }, error));
    }
    gathered
}

impl Config {
    /// Reads the configuration files, of which `list` gives the names in a directory and `read` the bytes, more than
    /// [`FILE_MAX`] for one that is too large.
    ///
    /// A file that can't be read is an error, and a stand-in keeps from running what it names; a file or directory that is
    /// not there is none.
    pub fn read(
        list: impl FnOnce(&str) -> io::Result<Vec<String>>,
        read: impl FnMut(&str) -> io::Result<Vec<u8>>,
    ) -> Self {
        let Gathered { sources, damaged, errors } = gather(list, read);
        let mut config = Self::parse(&sources);
        config.errors.splice(..0, errors);
        for (source, error) in damaged {
            config.stand_in(salvage::file(&source, error));
        }
        config
    }

    /// Refuses what has no name of its own, unless its name is taken.
    fn stand_in(&mut self, (name, refused): (VolumeName, Refused)) {
        if self.volumes.contains_key(&name) || self.refused.contains_key(&name) {
            self.errors.extend(refused.errors);
        } else {
            self.refused.insert(name, refused);
        }
    }

    /// Reads configuration files in their order.
    ///
    /// Never fails as a whole: what is wrong with a volume refuses that volume, and what is wrong elsewhere is listed
    /// in [`Config::errors`]. A file with a syntax error gives no volume at all, for what is left of it may not mean
    /// what it says; the volumes it names are refused, and so is a stand-in for those that can't be seen any more.
    pub fn parse(sources: &[Source]) -> Self {
        let mut config = Self::default();
        let mut unnamed = Vec::new();
        for source in sources {
            parse_file(source, &mut config, &mut unnamed);
        }
        for refused in unnamed {
            config.stand_in(refused);
        }
        relations::check(&mut config);
        config
    }

    /// Every error there is, those of refused volumes included, once each and in the order of their places.
    pub fn all_errors(&self) -> Vec<&ConfigError> {
        let mut errors: Vec<&ConfigError> =
            self.errors.iter().chain(self.refused.values().flat_map(|refused| &refused.errors)).collect();
        errors.sort_by_key(|error| (&error.place, &error.key));
        errors.dedup();
        errors
    }
}

fn parse_file(source: &Source, config: &mut Config, unnamed: &mut Vec<(VolumeName, Refused)>) {
    let (table, syntax_errors) = DeTable::parse_recoverable(&source.text);
    // The parser goes on as well as it can, but what it finds after the first error is mostly that error's echo.
    let syntax_error = syntax_errors
        .iter()
        .map(|error| ConfigError::from_toml(source, "", error))
        .min_by_key(|error| error.place.clone())
        .map(|error| error.with_hint("nothing of this file is used until it is valid TOML"));
    for (key, value) in table.into_inner() {
        match key.get_ref().as_ref() {
            // What stands outside of volumes keeps nothing from running; of this file, nothing is used.
            other if other != "volume" && syntax_error.is_some() => {}
            "aws" => match written::read::<written::Aws>(source, "aws", value) {
                Ok(aws) => config.aws.region = aws.region.or(config.aws.region.take()),
                Err(error) => config.errors.push(error),
            },
            "volume" => parse_volumes(source, value, syntax_error.as_ref(), config, unnamed),
            other => {
                let error = ConfigError::unknown_key(source, other, key.span(), &["aws", "volume"]);
                unnamed.extend(salvage::misplaced(source, other, &value, &error));
                config.errors.push(error);
            }
        }
    }
    unnamed.extend(syntax_error.map(|error| salvage::file(source, error)));
}

fn parse_volumes(
    source: &Source,
    value: Spanned<DeValue<'_>>,
    syntax_error: Option<&ConfigError>,
    config: &mut Config,
    unnamed: &mut Vec<(VolumeName, Refused)>,
) {
    let span = value.span();
    if !matches!(value.get_ref(), DeValue::Table(_)) {
        let error = not_a_table(source, "volume", span.clone());
        unnamed.extend(salvage::misplaced(source, "volume", &value, &error));
        config.errors.push(error);
    }
    let DeValue::Table(volumes) = value.into_inner() else { return };
    for (key, value) in volumes {
        let at = format!("volume.{}", key.get_ref());
        let name = match VolumeName::new(key.get_ref()) {
            Ok(name) => name,
            Err(error) => {
                let errors = vec![ConfigError::from_name(source, &at, key.span(), &error)];
                let name = VolumeName::stand_in(key.get_ref());
                let salvaged = salvage::volume(source, &name, &value);
                unnamed.push((name, Refused { errors, ..salvaged }));
                continue;
            }
        };
        if config.volumes.contains_key(&name) || config.refused.contains_key(&name) {
            let error = ConfigError::new(source, &at, key.span(), "this volume is defined in another file too")
                .with_hint("keep one of the two definitions");
            refuse_twin(config, &name, error, salvage::volume(source, &name, &value));
            continue;
        }
        let salvaged = salvage::volume(source, &name, &value);
        let result = match syntax_error {
            None if !matches!(value.get_ref(), DeValue::Table(_)) => Err(vec![not_a_table(source, &at, value.span())]),
            None => {
                written::read::<written::Volume>(source, &at, value).map_err(|error| vec![error]).and_then(|written| {
                    config.warnings.extend(matching::warning(source, &name, &written));
                    config.warnings.extend(validate::swap_warning(source, &name, &written));
                    validate::volume(source, &name, &key.span(), &written)
                })
            }
            Some(error) => Err(vec![error.clone()]),
        };
        match result {
            Ok(volume) => {
                config.volumes.insert(name, volume);
            }
            Err(errors) => {
                config.refused.insert(name, Refused { errors, ..salvaged });
            }
        }
    }
}

fn not_a_table(source: &Source, at: &str, span: Range<usize>) -> ConfigError {
    ConfigError::new(source, at, span, "a table is expected here")
        .with_hint("begin each volume with a line such as [volume.scratch]")
}

/// Refuses a volume that was defined before; the consumers of both definitions are without it.
fn refuse_twin(config: &mut Config, name: &VolumeName, error: ConfigError, twin: Refused) {
    if let Some(volume) = config.volumes.remove(name) {
        config.refused.insert(name.clone(), Refused::from_volume(volume, Vec::new()));
    }
    if let Some(refused) = config.refused.get_mut(name) {
        refused.errors.push(error);
        refused.consumers.extend(twin.consumers);
        refused.consumers.sort();
        refused.consumers.dedup();
        refused.target = refused.target.take().or(twin.target);
        refused.auto |= twin.auto;
    }
}

impl Refused {
    /// A sound volume that something else keeps from being had.
    fn from_volume(volume: Volume, errors: Vec<ConfigError>) -> Self {
        Self {
            source_path: volume.source_path,
            target: Some(volume.target),
            consumers: volume.consumers,
            auto: volume.auto,
            errors,
        }
    }
}

#[cfg(test)]
mod tests;
