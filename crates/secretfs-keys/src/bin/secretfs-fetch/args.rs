//! The command line, which never holds anything secret.

use std::ffi::OsString;

/// The first descriptor after the standard ones.
const DEFAULT_KEY_FD: i32 = 3;

/// What `--help` says.
pub(crate) const USAGE: &str = "\
usage: secretfs-fetch [--key-fd N]

Fetches one key for secretfsd. The request is read as JSON from standard input,
the report is written as one line of JSON to standard output, and the key goes
to descriptor N (default 3): an inherited pipe, socket or memfd.

exit status: 0 fetched, 75 failed and may be tried again, 77 failed until
somebody changes something, 64 wrong usage";

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// The job itself.
    Fetch {
        /// Where the key goes.
        key_fd: i32,
    },
    /// `--help`.
    Help,
    /// `--version`.
    Version,
}

/// Reads the arguments after the program's name.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut key_fd = DEFAULT_KEY_FD;
    let mut args = args.into_iter().map(|arg| arg.to_string_lossy().into_owned());
    while let Some(arg) = args.next() {
        let number = match arg.as_str() {
            "--help" | "-h" => return Ok(Command::Help),
            "--version" | "-V" => return Ok(Command::Version),
            "--key-fd" => args.next().ok_or("--key-fd takes a number")?,
            other => match other.strip_prefix("--key-fd=") {
                Some(number) => number.to_owned(),
                None => return Err(format!("unknown argument {other:?}")),
            },
        };
        key_fd = number.parse().map_err(|_| format!("--key-fd takes a number, not {number:?}"))?;
    }
    if key_fd <= 2 {
        return Err(format!("--key-fd {key_fd}: 0, 1 and 2 carry request, report and log"));
    }
    Ok(Command::Fetch { key_fd })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Command, String> {
        parse(args.iter().map(OsString::from))
    }

    #[test]
    fn arguments_are_understood() {
        assert_eq!(parsed(&[]), Ok(Command::Fetch { key_fd: 3 }));
        assert_eq!(parsed(&["--key-fd", "7"]), Ok(Command::Fetch { key_fd: 7 }));
        assert_eq!(parsed(&["--key-fd=7"]), Ok(Command::Fetch { key_fd: 7 }));
        assert_eq!(parsed(&["--help"]), Ok(Command::Help));
        assert_eq!(parsed(&["-V"]), Ok(Command::Version));
    }

    #[test]
    fn nonsense_is_refused() {
        let refused: &[&[&str]] =
            &[&["--key-fd"], &["--key-fd", "x"], &["--key-fd=-1"], &["--key-fd", "1"], &["key"], &["--key"]];
        for args in refused {
            assert!(parsed(args).is_err(), "{args:?}");
        }
    }
}
