//! Reads the configuration below a root, has the core plan its units, and writes them: all that the generator does.

#![forbid(unsafe_code)]

mod kmsg;
mod write;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use secretfs_core::config::{Config, ConfigError, FILE_MAX};
use secretfs_core::units;

pub use self::kmsg::{LINE_MAX, Priority, record};
pub use self::write::{WriteError, write_plan};

/// What a run has to say. Nothing in it means that all is well.
#[derive(Debug, Default)]
pub struct Report {
    /// What is wrong with the configuration. Everything else of it was written.
    pub errors: Vec<ConfigError>,
    /// What of it is accepted and likely to be regretted.
    pub warnings: Vec<ConfigError>,
    /// What could not be written. Everything else was.
    pub unwritten: Vec<WriteError>,
}

/// Writes the units of the configuration below `root` (`/` on a real machine) into the directory `out`.
pub fn generate(root: &Path, out: &Path) -> Report {
    let config = read_config(root);
    Report {
        errors: config.all_errors().into_iter().cloned().collect(),
        unwritten: write_plan(&units::plan(&config), out),
        warnings: config.warnings,
    }
}

/// Reads the configuration below `root`. What can't be read is among its errors.
pub fn read_config(root: &Path) -> Config {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    Config::read(|path| list(&below(path)), |path| read(&below(path)))
}

fn list(directory: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Looked at before it is opened: a FIFO in this place would never open, and the boot would stand.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
