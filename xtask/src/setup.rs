//! `cargo xtask setup`: installs what building, packaging and the rig need on Debian 12.

use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{capture, run};

/// Debian packages, by what needs them.
const PACKAGES: &[(&str, &[&str])] = &[
    (
        "building",
        &[
            "gcc",
            "libblkid-dev",
            "libc6-dev",
            "libclang-common-14-dev",
            "libclang1-14",
            "libcryptsetup-dev",
            "pkg-config",
        ],
    ),
    ("packaging", &["dpkg-dev", "gzip"]),
    ("unit and golden tests", &["btrfs-progs", "cryptsetup-bin", "dmsetup", "mount", "systemd", "xfsprogs"]),
    ("the machine image", &["e2fsprogs", "mmdebstrap"]),
    ("the machine", &["openssh-client", "qemu-system-x86", "util-linux"]),
    ("the emulator", &["ca-certificates", "python3", "python3-venv"]),
];

/// Installs the missing packages. With nothing missing it neither needs the network nor root.
pub(crate) fn setup() -> Result<()> {
    let installed = installed()?;
    let mut missing = Vec::new();
    for (purpose, packages) in PACKAGES {
        let absent: Vec<&str> =
            packages.iter().copied().filter(|name| !installed.iter().any(|have| have == name)).collect();
        if !absent.is_empty() {
            println!("setup: {purpose} needs {}", absent.join(" "));
            missing.extend(absent);
        }
    }
    if missing.is_empty() {
        println!("setup: every Debian package is installed");
        return Ok(());
    }
    if capture(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("run this as root, or install first: apt-get install {}", missing.join(" "));
    }
    // A backported qemu-utils breaks Debian 12's own emulator, and has to go back to the release's version with it.
    if missing.contains(&"qemu-system-x86") && installed.iter().any(|have| have == "qemu-utils") {
        missing.push("qemu-utils/bookworm");
    }
    run(Command::new("apt-get").args(["-q", "update"]))?;
    run(Command::new("apt-get")
        .args(["-q", "-y", "install", "--no-install-recommends", "--allow-downgrades"])
        .args(missing)
        .env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Names of the packages that dpkg has fully installed.
fn installed() -> Result<Vec<String>> {
    let text = capture(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Abbrev} ${Package}\n"]))?;
    Ok(text.lines().filter_map(|line| line.strip_prefix("ii ")).map(|name| name.trim().to_owned()).collect())
}
