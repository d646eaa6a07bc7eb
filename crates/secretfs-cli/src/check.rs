//! `secretfs check`: is the configuration sound, and what comes of it?

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use secretfs_core::config::{Config, Source};
use secretfs_core::units;

/// Reads the installed configuration or `file`, prints its errors and its units.
pub fn run(file: Option<&Path>) -> io::Result<ExitCode> {
    let config = match file {
        None => secretfs_generator::read_config(Path::new("/")),
        Some(path) => {
            let text = fs::read_to_string(path)
                .map_err(|error| io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display())))?;
            Config::parse(&[Source { path: path.display().to_string(), text }])
        }
    };
    let mut out = io::stdout().lock();
    out.write_all(render_units(&config).as_bytes())?;
    out.flush()?;
    let errors = config.all_errors();
    let mut err = io::stderr().lock();
    let messages = errors.iter().map(|error| ("", *error));
    for (kind, error) in messages.chain(config.warnings.iter().map(|warning| ("warning: ", warning))) {
        writeln!(err, "{kind}{error}")?;
        if let Some(hint) = &error.hint {
            writeln!(err, "  hint: {hint}")?;
        }
    }
    let volumes = config.volumes.len();
    writeln!(err, "{volumes} volume{} sound, {} refused", if volumes == 1 { "" } else { "s" }, config.refused.len())?;
    Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The units as `systemctl cat` would show them: the path in a comment, then the text.
fn render_units(config: &Config) -> String {
    let plan = units::plan(config);
    let mut text = String::new();
    for file in &plan.files {
        let _ = write!(text, "# {}\n{}\n", file.path, file.render());
    }
    for link in &plan.links {
        let _ = writeln!(text, "# {} -> {}", link.path, link.target);
    }
    text
}
