//! A mapping that is kept from udev's rules while it is not whole.
//!
//! systemd takes a mapping for ready as soon as there is a file system on it, and mounts it for whoever waits
//! (`99-systemd.rules`). What is written then would be lost with the format if that is not finished after all.

use std::fs;

use secretfs_core::cause::{Cause, Failure};
use secretfs_core::name::MapperName;

use crate::Outcome;
use crate::mapping::{self, MappingError};
use crate::tool::{self, ToolError};

/// Why a mapping could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// The mappings could not be looked at.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// dmsetup failed.
    #[error("cannot show {mapper} to udev")]
    Tool {
        /// The mapping.
        mapper: MapperName,
        /// What dmsetup said.
        #[source]
        source: ToolError,
    },
}

impl ShowError {
    /// The row of the cause table, and the particulars.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Mapping(error) => error.failure(),
            Self::Tool { .. } => Failure::new(Cause::System, crate::chain(self)),
        }
    }
}

/// Shows a mapping that was opened hidden.
///
/// The flag goes with each activation of a table (`dmsetup udevflags`, 10-dm.rules), so the mapping, which nobody uses
/// yet, is suspended and resumed.
pub fn show(mapper: &MapperName) -> Result<Outcome, ShowError> {
    let Some(nodes) = mapping::find(mapper)?.filter(is_hidden) else { return Ok(Outcome::Unchanged) };
    if !nodes.suspended {
        dmsetup("suspend", mapper)?;
    }
    dmsetup("resume", mapper)?;
    Ok(Outcome::Changed)
}

/// Ends a [`show`] that was interrupted half-way: reads from what it left would wait for ever.
pub fn finish_show(mapper: &MapperName) -> Result<Outcome, ShowError> {
    match mapping::find(mapper)?.filter(|nodes| nodes.suspended && is_hidden(nodes)) {
        Some(_) => dmsetup("resume", mapper).map(|()| Outcome::Changed),
        None => Ok(Outcome::Unchanged),
    }
}

/// Whether udev's database says that the rules of others are off for the mapping.
fn is_hidden(nodes: &mapping::Nodes) -> bool {
    let database = fs::read_to_string(format!("/run/udev/data/b{}", nodes.devno)).unwrap_or_default();
    database.lines().any(|line| line == "E:DM_UDEV_DISABLE_OTHER_RULES_FLAG=1")
}

fn dmsetup(verb: &str, mapper: &MapperName) -> Result<(), ShowError> {
    let done = tool::run("dmsetup", &[verb, mapper.as_str()]);
    done.map(|_| ()).map_err(|source| ShowError::Tool { mapper: mapper.clone(), source })
}
