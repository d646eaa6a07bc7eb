//! Manual pages and completion scripts, from the command line's own definition; packaging runs this.

use std::io;
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::Cli;

/// Writes secretfs(8) and a page for each verb.
pub fn man(directory: &Path) -> io::Result<()> {
    let command = Cli::command();
    let name = command.get_name().to_owned();
    let verbs: Vec<_> = command.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned().collect();
    page(command, &name, directory)?;
    for verb in verbs {
        let full = format!("{name}-{}", verb.get_name());
        page(verb, &full, directory)?;
    }
    Ok(())
}

fn page(command: clap::Command, name: &str, directory: &Path) -> io::Result<()> {
    let command = command.name(name.to_owned()).disable_help_flag(true).disable_version_flag(true);
    let mut text = Vec::new();
    clap_mangen::Man::new(command).section("8").manual("secretfs").render(&mut text)?;
    std::fs::write(directory.join(format!("{name}.8")), text)
}

/// Prints a completion script.
pub fn completions(shell: Shell) {
    clap_complete::generate(shell, &mut Cli::command(), "secretfs", &mut io::stdout());
}
