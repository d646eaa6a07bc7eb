//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueHint};
use clap_complete::Shell;

/// Encrypted volumes whose keys are held by AWS KMS.
///
/// A volume is started and stopped as a systemd unit: `systemctl start secretfs@NAME`. This command looks at volumes and
/// at their configuration; only `grow` changes anything.
#[derive(Debug, Parser)]
#[command(name = "secretfs", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show volumes: state, mount or swap space, mapping, cipher, backing, key source, usage
    ///
    /// The exit status is 0 when every shown volume is ready, 3 when one is not, 4 when there is no such volume. What
    /// needs root to be read (the mapping's table, how far a volume is zeroed) is left out for other users.
    Status {
        /// Show only this volume
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Follow a start, a stop or a zeroing to its end, with a bar on a terminal, and show the volume then
        #[arg(long, requires = "name", conflicts_with = "json")]
        watch: bool,
    },
    /// Tell what a start would do to which device, and why, changing nothing
    ///
    /// Needs root, to read the devices. The exit status is 1 when a volume would be refused, 4 when there is no such
    /// volume.
    Plan {
        /// Tell only of this volume
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Have a running volume follow a file or device that became larger
    ///
    /// A backing file is made as large as `size` in the configuration says, never smaller; a device is as large as it is.
    /// The mapping follows, for which the key is fetched once more, and then the file system. The volume stays in use. It
    /// is the same as `systemctl reload secretfs@NAME`; a volume that is not running grows when it is started. Swap space does not
    /// grow while it is in use.
    ///
    /// The exit status is 1 when it failed, and the volume goes on as it was; 4 when there is no such volume.
    Grow {
        /// The volume
        name: String,
    },
    /// Validate the configuration, and print the units it gives
    ///
    /// Without FILE, that is /etc/secretfs.toml and /etc/secretfs.toml.d/*.toml. Errors go to standard error, each with
    /// its place and a hint; the exit status is 1 if there are any.
    Check {
        /// Validate this file instead
        #[arg(value_hint = ValueHint::FilePath)]
        file: Option<PathBuf>,
    },
    /// Write the manual pages of this command into a directory
    #[command(hide = true)]
    Man {
        /// The directory, which must be there
        directory: PathBuf,
    },
    /// Print the completion script of a shell
    #[command(hide = true)]
    Completions {
        /// The shell
        shell: Shell,
    },
}
