//! A unit plan put into files and links.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use secretfs_core::units::UnitPlan;

/// A file or link that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot be written", path.display())]
pub struct WriteError {
    /// Its path.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// Writes `plan` below the directory `out`, in place of what an earlier run left there.
///
/// Goes on after an error, so that one volume can't take the units of another with it.
pub fn write_plan(plan: &UnitPlan, out: &Path) -> Vec<WriteError> {
    let files = plan.files.iter().map(|file| (&file.path, write_file(out, &file.path, &file.render())));
    let links = plan.links.iter().map(|link| (&link.path, write_link(out, &link.path, &link.target)));
    files
        .chain(links)
        .filter_map(|(path, result)| Some(WriteError { path: out.join(path), source: result.err()? }))
        .collect()
}

fn write_file(out: &Path, path: &str, text: &str) -> io::Result<()> {
    let path = make_way(out, Path::new(path))?;
    OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?.write_all(text.as_bytes())
}

fn write_link(out: &Path, path: &str, target: &str) -> io::Result<()> {
    let path = make_way(out, Path::new(path))?;
    symlink(target, path)
}

/// Makes the directories of `out`/`path` and takes away what is in its place; follows no link below `out`.
fn make_way(out: &Path, path: &Path) -> io::Result<PathBuf> {
    if !path.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(io::Error::other("it would lie outside of the output directory"));
    }
    DirBuilder::new().mode(0o755).recursive(true).create(out)?;
    let mut directory = out.to_owned();
    for part in path.parent().into_iter().flat_map(Path::components) {
        directory.push(part);
        match DirBuilder::new().mode(0o755).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if !fs::symlink_metadata(&directory)?.is_dir() {
            return Err(io::Error::other(format!("{} is not a directory", directory.display())));
        }
    }
    let path = out.join(path);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(path),
    }
}
