//! `cargo xtask dist`: builds the programs and makes the Debian package.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{capture, lock, run};
use crate::workspace;

/// The one list of what is installed, and where.
const TABLE: &str = include_str!("../../packaging/files.table");

/// Control file of the package, with `@VERSION@` and the like to fill in.
const CONTROL: &str = include_str!("../../packaging/deb/control");

/// The crates that hold the four programs.
const CRATES: &[&str] = &["secretfs-cli", "secretfs-generator", "secretfs-keys", "secretfsd"];

/// Shells with completions.
const SHELLS: &[&str] = &["bash", "fish", "zsh"];

/// How cargo builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    /// Small and slow to build
    Release,
    /// Quick to build
    Dev,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "dev",
        }
    }

    /// Cargo's directory for the profile.
    fn directory(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "debug",
        }
    }
}

/// Builds everything and gives the path of the package.
pub(crate) fn dist(profile: Profile) -> Result<PathBuf> {
    let mut build = Command::new("cargo");
    build.current_dir(workspace()).args(["build", "--locked", "--profile", profile.name()]);
    run(build.args(CRATES.iter().flat_map(|name| ["--package", name])))?;

    let _lock = lock("dist")?;
    let programs = workspace().join("target").join(profile.directory());
    let stage = workspace().join("target/dist/stage");
    let generated = workspace().join("target/dist/generated");
    for directory in [&stage, &generated] {
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::create_dir_all(directory)?;
    }
    generate(&programs.join("secretfs"), &generated)?;

    let sources = BTreeMap::from([("program", programs), ("generated", generated), ("file", workspace().to_owned())]);
    let mut elf = Vec::new();
    for entry in parse_table(TABLE)? {
        let from =
            sources.get(entry.kind).with_context(|| format!("packaging/files.table: unknown kind `{}`", entry.kind))?;
        for (source, destination) in entry.expand(from)? {
            let target = stage.join(destination.strip_prefix("/")?);
            fs::create_dir_all(target.parent().expect("a file has a directory"))?;
            fs::copy(&source, &target).with_context(|| format!("cannot copy {}", source.display()))?;
            fs::set_permissions(&target, fs::Permissions::from_mode(entry.mode))?;
            if entry.kind == "program" {
                elf.push(target);
            } else if destination.starts_with("/usr/share/man") {
                run(Command::new("gzip").args(["--best", "--no-name"]).arg(&target))?;
            }
        }
    }
    pack(&stage, &elf)
}

/// Has the administrator's program write its own manual pages and completions.
fn generate(secretfs: &Path, generated: &Path) -> Result<()> {
    let man = generated.join("man");
    fs::create_dir(&man)?;
    run(Command::new(secretfs).arg("man").arg(man))?;
    let completions = generated.join("completions");
    fs::create_dir(&completions)?;
    for shell in SHELLS {
        let text = capture(Command::new(secretfs).args(["completions", shell]))?;
        fs::write(completions.join(shell), text)?;
    }
    Ok(())
}

/// One line of the table.
struct Entry<'a> {
    kind: &'a str,
    source: &'a str,
    destination: &'a str,
    mode: u32,
}

fn parse_table(text: &str) -> Result<Vec<Entry<'_>>> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [kind, source, destination, mode] = fields[..] else {
                bail!("packaging/files.table: not `KIND SOURCE DESTINATION MODE`: {line}");
            };
            let mode =
                u32::from_str_radix(mode, 8).with_context(|| format!("packaging/files.table: mode in {line}"))?;
            Ok(Entry { kind, source, destination, mode })
        })
        .collect()
}

impl Entry<'_> {
    /// Source and destination of each file. A source whose name is `*.EXTENSION` stands for all such files, at least one.
    fn expand(&self, from: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
        let source = from.join(self.source);
        let Some(extension) = self.source.rsplit('/').next().and_then(|name| name.strip_prefix("*.")) else {
            if !source.is_file() {
                bail!("packaging/files.table lists {}, which is not there", source.display());
            }
            return Ok(vec![(source, PathBuf::from(self.destination))]);
        };
        let mut files = Vec::new();
        let directory = source.parent().expect("the name was joined");
        for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|have| have == extension) {
                let name = path.file_name().expect("a listed file has a name").to_owned();
                files.push((path, Path::new(self.destination).join(name)));
            }
        }
        if files.is_empty() {
            bail!("packaging/files.table lists {}, of which there is none", source.display());
        }
        Ok(files)
    }
}

/// Makes the package of the staged tree.
fn pack(stage: &Path, programs: &[PathBuf]) -> Result<PathBuf> {
    let version = env!("CARGO_PKG_VERSION");
    let control = stage.join("DEBIAN");
    fs::create_dir(&control)?;
    let text = CONTROL.replace("@VERSION@", version).replace("@LIBRARIES@", &libraries(programs)?);
    fs::write(control.join("control"), text)?;
    for script in ["postinst", "postrm", "prerm"] {
        fs::copy(workspace().join("packaging/deb").join(script), control.join(script))?;
        fs::set_permissions(control.join(script), fs::Permissions::from_mode(0o755))?;
    }
    let package = workspace().join(format!("target/dist/secretfs_{version}_amd64.deb"));
    run(Command::new("dpkg-deb").args(["--root-owner-group", "-Zzstd", "--build"]).arg(stage).arg(&package))?;
    Ok(package)
}

/// The packages of the shared libraries that the programs are linked with.
fn libraries(programs: &[PathBuf]) -> Result<String> {
    // dpkg-shlibdeps wants a source package around it and reads nothing but the package's name there.
    let work = workspace().join("target/dist/shlibdeps");
    fs::create_dir_all(work.join("debian"))?;
    fs::write(work.join("debian/control"), "Source: secretfs\n\nPackage: secretfs\nArchitecture: amd64\n")?;
    let output = capture(Command::new("dpkg-shlibdeps").current_dir(&work).arg("-O").args(programs))?;
    let list = output.trim().strip_prefix("shlibs:Depends=").context("dpkg-shlibdeps gave no dependencies")?;
    Ok(list.to_owned())
}
