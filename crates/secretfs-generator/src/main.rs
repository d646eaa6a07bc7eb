//! `secretfs-generator NORMAL [EARLY LATE]`: what systemd runs at boot and at every daemon-reload.
//!
//! secretfs-generator(8) says what it writes; systemd.generator(7) is what it keeps to.

#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};

use secretfs_core::config::ConfigError;
use secretfs_generator::{Priority, generate, record};

/// The kernel's log; journald takes it from there once it runs.
const KMSG: &str = "/dev/kmsg";

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    // The early and the late directory are systemd's to pass and nothing for us: our units neither go before the
    // administrator's nor after the distribution's.
    let ([normal] | [normal, _, _]) = arguments.as_slice() else {
        let _ = writeln!(std::io::stderr(), "Usage: secretfs-generator NORMAL [EARLY LATE]");
        return ExitCode::FAILURE;
    };
    let report = generate(Path::new("/"), normal);
    let mut lines = lines(&report.errors);
    lines.extend(report.unwritten.iter().map(|error| format!("{error}: {}", error.source)));
    log(Priority::Error, &lines);
    log(Priority::Warning, &self::lines(&report.warnings));
    // A refused volume is no reason to fail: its units explain themselves, and the others are written.
    if report.unwritten.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Each message, and its hint below it.
fn lines(errors: &[ConfigError]) -> Vec<String> {
    let hint = |error: &ConfigError| error.hint.as_ref().map(|hint| format!("hint: {hint}"));
    errors.iter().flat_map(|error| [Some(error.to_string()), hint(error)]).flatten().collect()
}

/// Writes each line to the kernel's log, or to standard error where that can't be had. Nobody hears if both fail.
fn log(priority: Priority, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let mut kmsg = OpenOptions::new().write(true).open(KMSG).ok();
    for line in lines {
        // One write is one record.
        let written =
            kmsg.as_mut().is_some_and(|kmsg| kmsg.write_all(record(priority, process::id(), line).as_bytes()).is_ok());
        if !written {
            let _ = writeln!(std::io::stderr(), "secretfs-generator: {line}");
        }
    }
}
