//! Whether KVM can be used here.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::image::Image;

/// A kernel under a working KVM prints its banner within a second or two.
const PROBE_LIMIT: Duration = Duration::from_secs(6);

/// QEMU's `-accel` and `-cpu`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accel {
    /// Value of `-accel`.
    pub(crate) accel: &'static str,
    /// Value of `-cpu`.
    pub(crate) cpu: &'static str,
}

const KVM: Accel = Accel { accel: "kvm", cpu: "host" };
const TCG: Accel = Accel { accel: "tcg,thread=multi", cpu: "max" };

/// Chooses KVM if a guest kernel really gets to its banner under it, and emulation otherwise.
///
/// That the device opens proves nothing: on some hosts the guest then never runs an instruction.
pub(crate) fn choose(image: &Image) -> Result<Accel> {
    let chosen = if kvm_runs(image)? { KVM } else { TCG };
    println!("vm: accelerator {}", chosen.accel);
    Ok(chosen)
}

fn kvm_runs(image: &Image) -> Result<bool> {
    let mut qemu = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64", "-accel", KVM.accel, "-cpu", KVM.cpu])
        .args(["-machine", "q35", "-m", "256", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&image.kernel)
        .args(["-append", "console=ttyS0 panic=-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start qemu-system-x86_64")?;
    let mut serial = qemu.stdout.take().expect("stdout is piped");
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = serial.read(&mut buffer) {
            text.extend_from_slice(&buffer[..count]);
            if String::from_utf8_lossy(&text).contains("Linux version") {
                // The receiver is gone when the time was up.
                let _ = sender.send(());
                return;
            }
        }
    });
    // An error means that QEMU ended, or that the time was up, without the banner.
    let runs = receiver.recv_timeout(PROBE_LIMIT).is_ok();
    qemu.kill()?;
    qemu.wait()?;
    Ok(runs)
}
