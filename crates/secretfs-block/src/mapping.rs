//! An open mapping, as the kernel shows it: what the chain from mount to backing is verified by.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use secretfs_core::cause::{Cause, Failure};
use secretfs_core::chain::{Integrity, Mapping};
use secretfs_core::name::MapperName;

use crate::device::names_in;
use crate::tool::{self, ToolError};

/// Why a mapping could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// sysfs could not be read.
    #[error("cannot read {}", path.display())]
    Sysfs {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// dmsetup did not print the table.
    #[error("cannot read the table of {mapper}")]
    Table {
        /// The mapping.
        mapper: MapperName,
        /// What dmsetup said.
        #[source]
        source: ToolError,
    },
}

impl MappingError {
    /// The row of the cause table, and the particulars.
    pub fn failure(&self) -> Failure {
        let cause = match self {
            Self::Table { source: ToolError::Start { .. }, .. } => Cause::Internal,
            Self::Sysfs { .. } | Self::Table { .. } => Cause::System,
        };
        Failure::new(cause, crate::chain(self))
    }
}

/// Reads what is mapped under the name; nothing when nothing is.
pub fn active(mapper: &MapperName) -> Result<Option<Mapping>, MappingError> {
    let Some(nodes) = find(mapper)? else { return Ok(None) };
    let integrity = integrity_below(Path::new("/sys/block"), mapper, &nodes)?;
    let Nodes { uuid, devno, .. } = nodes;
    // Never with --showkeys.
    match tool::run("dmsetup", &["table", mapper.as_str()]) {
        Ok(table) => {
            let btrfs = btrfs_devices(Path::new("/sys/fs/btrfs"), &devno);
            Ok(Some(Mapping { devno, uuid, table: table.trim_end().to_owned(), btrfs, integrity }))
        }
        // It may have been closed between the two looks.
        Err(_) if find(mapper)?.is_none() => Ok(None),
        Err(source) => Err(MappingError::Table { mapper: mapper.clone(), source }),
    }
}

/// The numbers of all the devices of the mounted btrfs that the device `devno` belongs to, as sysfs has them
/// (btrfs(5), "FILESYSTEM FEATURES": `/sys/fs/btrfs/UUID/devices`); none if there is no such file system.
fn btrfs_devices(filesystems: &Path, devno: &str) -> Vec<String> {
    for filesystem in names_in(filesystems, |entry| entry.join("devices").is_dir()) {
        let devices = filesystems.join(filesystem).join("devices");
        let numbers = names_in(&devices, |_| true).into_iter().map(|name| {
            // One that can't be read is gone, and counts as another device all the same.
            fs::read_to_string(devices.join(&name).join("dev")).map_or(name, |number| number.trim_end().to_owned())
        });
        let numbers: Vec<String> = numbers.collect();
        if numbers.iter().any(|number| number == devno) {
            return numbers;
        }
    }
    Vec::new()
}

/// The dm-integrity device that `nodes`, the mapping `mapper`, lies on: libcryptsetup calls it `MAPPER_dif`.
fn integrity_below(block: &Path, mapper: &MapperName, nodes: &Nodes) -> Result<Option<Integrity>, MappingError> {
    let below = find_below(block, &integrity_name(mapper))?;
    Ok(below.filter(|below| nodes.slaves == [below.devno.as_str()]).and_then(
        |Nodes { uuid, devno, slaves, .. }| {
            let [backing] = <[String; 1]>::try_from(slaves).ok()?;
            Some(Integrity { devno, uuid, backing })
        },
    ))
}

/// The name of the dm-integrity device below a mapping.
pub(crate) fn integrity_name(mapper: &MapperName) -> String {
    format!("{mapper}_dif")
}

/// The number of the one device that the mapping lies on, below any dm-integrity of its own.
pub(crate) fn backing_number(mapper: &MapperName, nodes: &Nodes) -> Result<Option<String>, MappingError> {
    Ok(match (integrity_below(Path::new("/sys/block"), mapper, nodes)?, nodes.slaves.as_slice()) {
        (Some(integrity), _) => Some(integrity.backing),
        (None, [backing]) => Some(backing.clone()),
        (None, _) => None,
    })
}

/// The device-mapper uuid of what is mapped under any name; nothing when nothing is.
pub(crate) fn uuid(name: &str) -> Result<Option<String>, MappingError> {
    Ok(find_below(Path::new("/sys/block"), name)?.map(|nodes| nodes.uuid))
}

/// What sysfs alone says of a mapping.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Nodes {
    pub(crate) uuid: String,
    pub(crate) devno: String,
    pub(crate) slaves: Vec<String>,
    /// Whether reads and writes wait.
    pub(crate) suspended: bool,
}

pub(crate) fn find(mapper: &MapperName) -> Result<Option<Nodes>, MappingError> {
    find_below(Path::new("/sys/block"), mapper.as_str())
}

fn find_below(block: &Path, mapper: &str) -> Result<Option<Nodes>, MappingError> {
    for name in names_in(block, |entry| entry.join("dm").is_dir()) {
        let device = block.join(name);
        // One that vanishes meanwhile is not the one.
        if fs::read_to_string(device.join("dm/name")).is_ok_and(|name| name.trim_end() == mapper) {
            let read = |path: PathBuf| match fs::read_to_string(&path) {
                Ok(text) => Ok(text.trim_end().to_owned()),
                Err(source) => Err(MappingError::Sysfs { path, source }),
            };
            let slaves = device.join("slaves");
            return Ok(Some(Nodes {
                uuid: read(device.join("dm/uuid"))?,
                devno: read(device.join("dev"))?,
                suspended: read(device.join("dm/suspended"))? == "1",
                slaves: names_in(&slaves, |_| true)
                    .into_iter()
                    .map(|slave| read(slaves.join(slave).join("dev")))
                    .collect::<Result<_, _>>()?,
            }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use secretfs_core::name::VolumeName;

    use super::*;
    use crate::testing::Scratch;

    fn put(scratch: &Scratch, path: &str, text: &str) {
        let path = scratch.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// What the kernel shows of an active mapping that lies on one device.
    fn put_mapping(scratch: &Scratch, node: &str, [name, kind, devno]: [&str; 3], [slave, slave_devno]: [&str; 2]) {
        put(scratch, &format!("{node}/dm/name"), &format!("{name}\n"));
        put(scratch, &format!("{node}/dm/uuid"), &format!("CRYPT-{kind}-0123-{name}\n"));
        put(scratch, &format!("{node}/dm/suspended"), "0\n");
        put(scratch, &format!("{node}/dev"), &format!("{devno}\n"));
        put(scratch, &format!("{node}/slaves/{slave}/dev"), &format!("{slave_devno}\n"));
    }

    #[test]
    fn a_mapping_is_found_by_its_name() {
        let scratch = Scratch::new();
        put(&scratch, "dm-0/dm/name", "other\n");
        put_mapping(&scratch, "dm-1", ["secretfs-scratch", "LUKS2", "254:1"], ["loop0", "7:0"]);
        put(&scratch, "loop0/dev", "7:0\n");
        let mapper = VolumeName::new("scratch").unwrap().mapper();
        let wanted = Nodes {
            uuid: "CRYPT-LUKS2-0123-secretfs-scratch".to_owned(),
            devno: "254:1".to_owned(),
            slaves: vec!["7:0".to_owned()],
            suspended: false,
        };
        assert_eq!(find_below(&scratch.path(""), mapper.as_str()).unwrap(), Some(wanted));
        let mapper = VolumeName::new("data").unwrap().mapper();
        assert_eq!(find_below(&scratch.path(""), mapper.as_str()).unwrap(), None);
        assert_eq!(find_below(&scratch.path("none"), mapper.as_str()).unwrap(), None);
    }

    #[test]
    fn an_integrity_device_is_seen_through() {
        let scratch = Scratch::new();
        put_mapping(&scratch, "dm-0", ["secretfs-scratch_dif", "INTEGRITY", "254:0"], ["loop0", "7:0"]);
        put_mapping(&scratch, "dm-1", ["secretfs-scratch", "LUKS2", "254:1"], ["dm-0", "254:0"]);
        let mapper = VolumeName::new("scratch").unwrap().mapper();
        let nodes = find_below(&scratch.path(""), mapper.as_str()).unwrap().unwrap();
        let integrity = integrity_below(&scratch.path(""), &mapper, &nodes).unwrap().unwrap();
        assert_eq!((integrity.devno.as_str(), integrity.backing.as_str()), ("254:0", "7:0"));
        // One of that name that the mapping does not lie on is none of its own.
        let nodes = Nodes { slaves: vec!["7:0".to_owned()], ..nodes };
        assert_eq!(integrity_below(&scratch.path(""), &mapper, &nodes).unwrap(), None);
    }

    #[test]
    fn a_btrfs_is_found_by_any_of_its_devices() {
        let scratch = Scratch::new();
        put(&scratch, "features/mixed_groups", "1\n");
        put(&scratch, "0123/devices/dm-0/dev", "254:0\n");
        put(&scratch, "4567/devices/dm-1/dev", "254:1\n");
        put(&scratch, "4567/devices/sdb/dev", "8:16\n");
        put(&scratch, "4567/devices/sdc/size", "1\n");
        let found = |devno| btrfs_devices(&scratch.path(""), devno);
        assert_eq!(found("254:0"), ["254:0"]);
        assert_eq!(found("254:1"), ["254:1", "8:16", "sdc"]);
        assert_eq!(found("254:2"), Vec::<String>::new());
        assert_eq!(btrfs_devices(&scratch.path("none"), "254:0"), Vec::<String>::new());
    }
}
