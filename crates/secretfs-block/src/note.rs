//! Small files that outlast the program: whole or not there at all.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use secretfs_core::cause::{Cause, Failure};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads what [`write`] wrote; nothing when there is no such file, and `damaged` when it can't be understood.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, damaged: Cause) -> Result<Option<T>, Failure> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| Failure::new(damaged, format!("{} cannot be understood: {error}", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(system(path, &error)),
    }
}

/// Writes the whole file or nothing of it, whenever the power goes.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), Failure> {
    let unfinished = path.with_extension("unfinished");
    let write = || {
        let mut file = File::create(&unfinished)?;
        serde_json::to_writer_pretty(&mut file, value)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(|error| system(path, &error))
}

/// Removes a file, if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(system(path, &error)),
        _ => Ok(()),
    }
}

/// What the system said of `path`.
pub(crate) fn system(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Cause::System, format!("{}: {error}", path.display()))
}
