//! Reads the configuration and picks one volume from it.

use std::fs;

use secretfs_core::cause::{Cause, Failure};
use secretfs_core::config::{Aws, Config, ConfigError, Volume};
use secretfs_core::name::VolumeName;
use secretfs_core::paths::CONFIG_FILE;

/// Reads the configuration of the volume `name`.
pub fn read(name: &VolumeName) -> Result<(Volume, Aws), Failure> {
    let list = |directory: &str| {
        let names = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    };
    pick(Config::read(list, |path| fs::read(path)), name)
}

fn pick(mut config: Config, name: &VolumeName) -> Result<(Volume, Aws), Failure> {
    if let Some(volume) = config.volumes.remove(name) {
        return Ok((volume, config.aws));
    }
    let errors = config.refused.remove(name).map_or(config.errors, |refused| refused.errors);
    if errors.is_empty() {
        let known: Vec<&str> = config.volumes.keys().map(VolumeName::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(Failure::new(Cause::Config, format!("{CONFIG_FILE} has no volume {name}; it has: {known}")));
    }
    let described: Vec<String> = errors.iter().map(describe).collect();
    Err(Failure::new(Cause::Config, described.join("; ")))
}

fn describe(error: &ConfigError) -> String {
    error.hint.as_ref().map_or_else(|| error.to_string(), |hint| format!("{error} ({hint})"))
}

#[cfg(test)]
mod tests {
    use secretfs_core::config::Source;

    use super::*;

    #[test]
    fn a_volume_that_is_not_there_is_told_from_a_refused_one() {
        let text = "[volume.bad]\nmuont = \"/mnt/bad\"\n".to_owned();
        let pick_from = |name: &str| {
            let source = Source { path: "/etc/secretfs.toml".to_owned(), text: text.clone() };
            pick(Config::parse(&[source]), &VolumeName::new(name).unwrap()).unwrap_err()
        };
        assert_eq!(pick_from("other").detail, "/etc/secretfs.toml has no volume other; it has: none");
        assert_eq!(
            pick_from("bad").detail,
            "/etc/secretfs.toml:2:1: volume.bad.muont: there is no such key (did you mean `mount`?)"
        );
    }
}
