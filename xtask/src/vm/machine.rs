//! One virtual machine: power, and a shell inside.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::accel::{self, Accel};
use super::image::Image;
use crate::process::{POLL, Service, capture};

/// A boot to ssh takes about 20 s under emulation on an idle machine; other work may share it.
const BOOT_LIMIT: Duration = Duration::from_mins(3);

/// One attempt to connect; the guest's key exchange takes a second or two.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// A power-off with a volume that hangs until its time-outs would still end before this.
const POWER_OFF_LIMIT: Duration = Duration::from_mins(3);

/// No single command of a scenario takes longer; a guest that hangs must not hang the run.
const COMMAND_LIMIT_SECONDS: &str = "240";

/// Size of each spare disk; the files are sparse.
const SPARE_DISK_BYTES: u64 = 512 << 20;

/// Size of the small ones: their checksums are taken many times.
const SMALL_DISK_BYTES: u64 = 128 << 20;

/// Serial number of the spare virtio disk, `/dev/disk/by-id/virtio-…`.
pub(crate) const DISK_A: &str = "secretfs-disk-a";

/// Serial number of the spare `NVMe` disk, `/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_…`.
pub(crate) const DISK_B: &str = "secretfs-disk-b";

/// Serial numbers of the small spare `NVMe` disks.
pub(crate) const DISK_C: &str = "secretfs-disk-c";
pub(crate) const DISK_D: &str = "secretfs-disk-d";

/// Serial numbers of further small ones, which no machine has until a scenario puts them in.
pub(crate) const DISK_E: &str = "secretfs-disk-e";
pub(crate) const DISK_F: &str = "secretfs-disk-f";

/// The instance that the firmware says the machine is, as on EC2.
pub(crate) const INSTANCE_ID: &str = "i-0123456789abcdef0";

/// The `NVMe` disks of a machine, in the order in which its kernel finds them.
const NVME: [&str; 3] = [DISK_B, DISK_C, DISK_D];

/// What a command in the guest left.
pub(crate) struct Output {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

/// A machine with a fresh copy of the image and blank spare disks; it ends when dropped.
pub(crate) struct Machine {
    directory: PathBuf,
    image: Image,
    accel: Accel,
    ssh_port: u16,
    nvme: Vec<&'static str>,
    qemu: Option<Service>,
    ssh: Option<Service>,
}

impl Machine {
    /// Makes the disks below `directory` and switches the machine on; `wait_for_ssh` waits until it can be used.
    pub(crate) fn start(directory: PathBuf, image: Image) -> Result<Self> {
        let accel = accel::choose(&image)?;
        capture(
            Command::new("cp")
                .args(["--sparse=always", "--reflink=auto"])
                .arg(&image.disk)
                .arg(directory.join("root.raw")),
        )?;
        for serial in [DISK_A, DISK_B] {
            File::create(directory.join(format!("{serial}.raw")))?.set_len(SPARE_DISK_BYTES)?;
        }
        for serial in [DISK_C, DISK_D, DISK_E, DISK_F] {
            File::create(directory.join(format!("{serial}.raw")))?.set_len(SMALL_DISK_BYTES)?;
        }
        let (ssh_port, nvme) = (free_port()?, NVME.to_vec());
        let mut machine = Self { directory, image, accel, ssh_port, nvme, qemu: None, ssh: None };
        machine.power_on()?;
        Ok(machine)
    }

    /// Says which `NVMe` disks the machine has, in this order, when it is switched on the next time.
    pub(crate) fn set_nvme(&mut self, serials: &[&'static str]) {
        self.nvme = serials.to_vec();
    }

    /// Gives the machine the `NVMe` disks it began with, if it has others, and switches it off and on for that; the others
    /// are blank when a scenario puts them in the next time.
    pub(crate) fn reset_nvme(&mut self) -> Result<()> {
        if self.nvme == NVME {
            return Ok(());
        }
        self.set_nvme(&NVME);
        // A scenario may have failed with the machine switched off.
        let _ = self.power_cut();
        for serial in [DISK_E, DISK_F] {
            File::create(self.directory.join(format!("{serial}.raw")))?.set_len(SMALL_DISK_BYTES)?;
        }
        self.boot()
    }

    /// Switches the machine on with the disks it has.
    pub(crate) fn power_on(&mut self) -> Result<()> {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.current_dir(&self.directory);
        qemu.args(["-machine", "q35", "-accel", self.accel.accel, "-cpu", self.accel.cpu, "-smp", "2", "-m", "2048"]);
        // A reset ends QEMU as a power-off does, and each boot is a new QEMU: then it is certain that the old boot is over.
        qemu.args([
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-chardev",
            "file,id=console,path=console.log,append=on",
        ]);
        qemu.args(["-serial", "chardev:console"]);
        qemu.arg("-kernel").arg(&self.image.kernel).arg("-initrd").arg(&self.image.initrd);
        qemu.args(["-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off quiet"]);
        qemu.args(["-smbios", &format!("type=2,asset={INSTANCE_ID}")]);
        // The disks are thrown away after the run: their cache need not reach the host's.
        for file in ["root", DISK_A].iter().chain(&self.nvme) {
            qemu.arg("-drive").arg(format!("file={file}.raw,format=raw,if=none,id={file},cache=unsafe,discard=unmap"));
        }
        qemu.args(["-device", "virtio-blk-pci,drive=root"]);
        qemu.args(["-device", &format!("virtio-blk-pci,drive={DISK_A},serial={DISK_A}")]);
        for serial in &self.nvme {
            qemu.args(["-device", &format!("nvme,drive={serial},serial={serial}")]);
        }
        // A port that a disk can be attached to while the machine runs.
        qemu.args(["-device", "pcie-root-port,id=slot1", "-qmp", "unix:qmp.socket,server,nowait"]);
        qemu.arg("-netdev").arg(format!("user,id=net,hostfwd=tcp:127.0.0.1:{}-:22", self.ssh_port));
        qemu.args(["-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"]);
        self.qemu = Some(Service::spawn("qemu", &qemu, &self.directory.join("qemu.log"))?);
        Ok(())
    }

    /// Waits for the guest's ssh daemon and opens the one connection that all commands share.
    pub(crate) fn wait_for_ssh(&mut self) -> Result<()> {
        let deadline = Instant::now() + BOOT_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.qemu.as_mut().context("the machine is off")?.ended()? {
                bail!("qemu ended with {status}: {}", fs::read_to_string(self.directory.join("qemu.log"))?);
            }
            if self.connect()? {
                return Ok(());
            }
        }
        let console = fs::read_to_string(self.directory.join("console.log"))?;
        bail!("the machine did not answer within {} s; its console:\n{console}", BOOT_LIMIT.as_secs())
    }

    /// Starts the connection's master; says whether it stands.
    fn connect(&mut self) -> Result<bool> {
        self.ssh = None;
        // A master that was killed leaves its socket, and the next would then not share its connection.
        match fs::remove_file(self.directory.join("ssh.socket")) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let mut ssh = self.ssh_command();
        ssh.args(["-M", "-N", "root@127.0.0.1"]);
        let mut master = Service::spawn("ssh", &ssh, &self.directory.join("ssh.log"))?;
        let deadline = Instant::now() + CONNECT_LIMIT;
        while master.ended()?.is_none() && Instant::now() < deadline {
            if self.ssh_command().args(["-O", "check", "root@127.0.0.1"]).stderr(Stdio::null()).status()?.success() {
                self.ssh = Some(master);
                return Ok(true);
            }
            sleep(POLL);
        }
        sleep(POLL);
        Ok(false)
    }

    fn ssh_command(&self) -> Command {
        let mut ssh = Command::new("ssh");
        // The socket's name is relative since a socket's whole path may have 107 bytes only.
        ssh.current_dir(&self.directory).args([
            "-F",
            "none",
            "-S",
            "ssh.socket",
            "-p",
            &self.ssh_port.to_string(),
            "-i",
        ]);
        ssh.arg(&self.image.ssh_key);
        // The host key is new with each image and the address is this machine's own.
        for option in [
            "BatchMode=yes",
            "ConnectTimeout=2",
            "LogLevel=ERROR",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
        ] {
            ssh.args(["-o", option]);
        }
        ssh
    }

    /// Runs a bash script as root in the guest.
    pub(crate) fn sh(&self, script: &str) -> Result<Output> {
        self.feed(script, &[])
    }

    fn feed(&self, script: &str, input: &[u8]) -> Result<Output> {
        let ssh = self.ssh_command();
        let mut child = Command::new("timeout")
            .current_dir(&self.directory)
            .arg(COMMAND_LIMIT_SECONDS)
            .arg(ssh.get_program())
            .args(ssh.get_args())
            .args(["root@127.0.0.1", &format!("set -euo pipefail\n{script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run ssh")?;
        child.stdin.take().expect("stdin is piped").write_all(input)?;
        let output = child.wait_with_output()?;
        Ok(Output {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a script that must succeed and gives its standard output.
    pub(crate) fn ok(&self, script: &str) -> Result<String> {
        expect_success(script, self.sh(script)?)
    }

    /// Runs a script that must fail and gives both its outputs.
    pub(crate) fn fails(&self, script: &str) -> Result<String> {
        let output = self.sh(script)?;
        let text = output.stdout + &output.stderr;
        if output.status.success() {
            bail!("`{script}` should have failed in the guest, but succeeded:\n{text}");
        }
        Ok(text)
    }

    /// Repeats a script until it succeeds.
    pub(crate) fn wait_until(&self, what: &str, script: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let output = self.sh(script)?;
            if output.status.success() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let Output { stdout, stderr, .. } = output;
                bail!("not within {} s: {what}\n`{script}` last gave:\n{stdout}{stderr}", limit.as_secs());
            }
            sleep(POLL);
        }
    }

    /// Writes a file in the guest, and its directory if that is missing.
    pub(crate) fn put_file(&self, path: &str, contents: impl AsRef<[u8]>) -> Result<()> {
        let script = format!("mkdir -p \"$(dirname '{path}')\" && cat > '{path}'");
        expect_success(&script, self.feed(&script, contents.as_ref())?).map(|_| ())
    }

    /// Attaches one more `NVMe` disk while the machine runs.
    pub(crate) fn attach_nvme(&mut self, serial: &'static str) -> Result<()> {
        let file = json!({ "driver": "file", "filename": format!("{serial}.raw") });
        let disk = json!({ "driver": "raw", "node-name": "late", "discard": "unmap", "file": file });
        let device = json!({ "driver": "nvme", "drive": "late", "serial": serial, "bus": "slot1" });
        self.nvme.push(serial);
        self.ask_qemu(&[("qmp_capabilities", json!({})), ("blockdev-add", disk), ("device_add", device)])
    }

    /// Gives QEMU commands by its machine protocol (QMP), and waits until each is carried out.
    fn ask_qemu(&self, commands: &[(&str, Value)]) -> Result<()> {
        let mut socket = UnixStream::connect(self.directory.join("qmp.socket"))?;
        let mut lines = BufReader::new(socket.try_clone()?).lines();
        lines.next().context("QEMU does not greet")??;
        for (command, arguments) in commands {
            writeln!(socket, "{}", json!({ "execute": command, "arguments": arguments }))?;
            let answer = loop {
                let line = lines.next().context("QEMU does not answer")??;
                let answer: Value = serde_json::from_str(&line)?;
                if answer.get("event").is_none() {
                    break answer;
                }
            };
            if answer.get("return").is_none() {
                bail!("QEMU refuses {command}: {answer}");
            }
        }
        Ok(())
    }

    /// Checksums of every byte of these disks, by what the host has in them.
    pub(crate) fn disk_sums(&self, serials: &[&str]) -> Result<String> {
        self.ok("sync")?;
        let files = serials.iter().map(|serial| format!("{serial}.raw"));
        let sums = capture(Command::new("sha256sum").current_dir(&self.directory).args(files))?;
        Ok(sums)
    }

    /// Reboots as an administrator does and waits until the new boot answers.
    pub(crate) fn reboot(&mut self) -> Result<()> {
        self.leave("systemctl reboot")?;
        self.boot()
    }

    /// Shuts down as an administrator does and waits until the machine is off.
    pub(crate) fn power_off(&mut self) -> Result<()> {
        self.leave("systemctl poweroff")
    }

    /// Takes the power away.
    pub(crate) fn power_cut(&mut self) -> Result<()> {
        self.ssh = None;
        self.qemu.take().context("the machine is off already")?.kill()
    }

    /// Switches a machine on that is off, and waits until it answers.
    pub(crate) fn boot(&mut self) -> Result<()> {
        self.power_on()?;
        self.wait_for_ssh()
    }

    /// Gives a last command, during which the connection may break, and waits until QEMU has ended.
    fn leave(&mut self, script: &str) -> Result<()> {
        let output = self.sh(script)?;
        // 255 is ssh's own: the guest closed the connection.
        if !output.status.success() && output.status.code() != Some(255) {
            bail!("`{script}` failed in the guest: {}{}", output.stdout, output.stderr);
        }
        self.ssh = None;
        self.qemu.take().context("the machine is off already")?.wait(POWER_OFF_LIMIT)?;
        Ok(())
    }

    /// Hands the terminal to a shell in the guest until it ends.
    pub(crate) fn shell(&self) -> Result<()> {
        // The exit status is that of the person's last command and means nothing here.
        self.ssh_command().args(["-t", "root@127.0.0.1"]).status()?;
        Ok(())
    }
}

fn expect_success(script: &str, output: Output) -> Result<String> {
    if !output.status.success() {
        let Output { status, stdout, stderr } = output;
        bail!("in the guest: {script}\n{status}\nstdout: {stdout}\nstderr: {stderr}");
    }
    Ok(output.stdout)
}

/// A port of the loopback device on which nobody listens.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
