//! Running one of the distribution's programs.

use std::io;
use std::process::{Command, Output, Stdio};

/// Where the distribution keeps what is run here; a caller's own `PATH` has no say.
pub(crate) const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be started.
    #[error("cannot run {program}")]
    Start {
        /// The program.
        program: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It said no.
    #[error("{program}: {words} ({status})")]
    Failed {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it wrote on its standard error, in one line.
        words: String,
    },
}

/// Runs `program` to its end with a clean environment and nothing on its standard input, so that it can't ask.
pub(crate) fn run(program: &'static str, arguments: &[&str]) -> Result<String, ToolError> {
    let Output { status, stdout, stderr } = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ToolError::Start { program, source })?;
    // mkfs.xfs puts a page of options after its message.
    let words = String::from_utf8_lossy(&stderr);
    let words = words.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let words = words.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    if !status.success() {
        return Err(ToolError::Failed { program, status, words });
    }
    if !words.is_empty() {
        tracing::debug!(program, %words, "a program had something to say");
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
