//! `cargo xtask demo`: the life of one volume, told by the commands an administrator would type.

use anyhow::{Result, bail};

use crate::dist::{self, Profile};
use crate::setup;
use crate::vm::Rig;
use crate::vm::machine::Machine;

/// What the administrator writes.
const CONFIGURATION: &str = include_str!("../rig/demo.toml");

/// A unit that depends on the volume.
const CONSUMER: &str = include_str!("../rig/demo-consumer.service");

const CONSUMER_PATH: &str = "/etc/systemd/system/demo-consumer.service";

/// From dark to dark: the account, the package, the volume, its consumer, and nothing left.
pub(crate) fn demo(profile: Profile) -> Result<()> {
    setup::setup()?;
    let package = dist::dist(profile)?;
    let rig = Rig::start(&package)?;
    let vm = &rig.vm;

    title("The key: a password, encrypted by KMS, as an object in S3 (by the real AWS CLI, on the host)");
    print!("{}", rig.aws.describe()?);

    title("The configuration");
    show_file(vm, "/etc/secretfs.toml", CONFIGURATION)?;
    show_file(vm, CONSUMER_PATH, CONSUMER)?;
    show(vm, "systemctl daemon-reload")?;
    show(vm, "secretfs check")?;

    title("Starting the volume, and a unit that depends on it");
    show(vm, "systemctl start secretfs@scratch")?;
    show(vm, "systemctl start demo-consumer")?;
    show(vm, "systemctl --no-pager --lines=0 status secretfs@scratch demo-consumer")?;

    title("What there is now");
    show(vm, "secretfs status")?;
    show(vm, "findmnt /mnt/secretfs")?;
    show(vm, "cryptsetup status secretfs-scratch")?;
    show(vm, "journalctl --no-pager --quiet --boot --unit=secretfs@scratch")?;

    title("Stopping: the consumer first, then unmount, close, detach");
    show(vm, "systemctl stop secretfs@scratch")?;
    show(vm, "systemctl is-active demo-consumer secretfs@scratch mnt-secretfs.mount || true")?;
    show(vm, "findmnt /mnt/secretfs || true")?;
    show(vm, "ls /dev/mapper")?;
    show(vm, "losetup --list")?;
    let left =
        vm.ok("findmnt -n /mnt/secretfs || true; ls /dev/mapper | grep secretfs || true; losetup --noheadings --list")?;
    if !left.is_empty() {
        bail!("something is left:\n{left}");
    }
    println!("\nNothing is left: no mount, no mapping, no loop device.");
    Ok(())
}

fn title(text: &str) {
    println!("\n=== {text}");
}

/// Runs a command in the guest as if it were typed there.
fn show(vm: &Machine, command: &str) -> Result<()> {
    println!("\n# {command}");
    print!("{}", vm.ok(&format!("{{\n{command}\n}} 2>&1"))?);
    Ok(())
}

fn show_file(vm: &Machine, path: &str, text: &str) -> Result<()> {
    vm.put_file(path, text)?;
    show(vm, &format!("cat {path}"))
}
