//! The AWS side, played by foreign programs: `ministack` (S3, KMS, IAM, STS) and `roto` (a strict KMS). The metadata
//! service is the rig's own, over the emulator's STS.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{POLL, Service, capture};
use crate::vm::machine::free_port;
use crate::{rig_dir, workspace};

/// The host as the guest's user-mode network shows it.
const HOST_IN_GUEST: &str = "10.0.2.2";

const REGION: &str = "us-east-1";

/// A Python program of this size starts within a second on an idle machine.
const START_LIMIT: Duration = Duration::from_mins(1);

/// The instance's role: what it may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// May read the bucket and decrypt with the key.
    Reader,
    /// May read the bucket only.
    Denied,
    /// No role is attached.
    None,
}

/// Which KMS the guest is led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kms {
    /// The one that knows IAM.
    Iam,
    /// The one whose ciphertext is authenticated; it asks nobody's permission.
    Strict,
}

/// The running emulators; they end when dropped.
pub(crate) struct Emulator {
    directory: PathBuf,
    python: PathBuf,
    aws_port: u16,
    strict_kms_port: u16,
    metadata_port: u16,
    aws: Option<Service>,
    _strict_kms: Service,
    _metadata: Service,
}

impl Emulator {
    /// Installs what is missing, starts all three and sets the account up. State and logs go below `directory`.
    pub(crate) fn start(directory: PathBuf) -> Result<Self> {
        let python = install()?;
        let (aws_port, strict_kms_port, metadata_port) = (free_port()?, free_port()?, free_port()?);

        let mut roto = Command::new(python.join("roto-server"));
        roto.args(["--ephemeral", "--port", &strict_kms_port.to_string()]);
        let strict_kms = Service::spawn("roto", &roto, &directory.join("roto.log"))?;

        let mut imds = Command::new(python.join("python3"));
        imds.arg(workspace().join("xtask/rig/imds.py")).args(["--port", &metadata_port.to_string()]);
        imds.args(["--emulator", &format!("http://127.0.0.1:{aws_port}"), "--region", REGION]);
        imds.arg("--role-file").arg(directory.join("role"));
        let metadata = Service::spawn("metadata service", &imds, &directory.join("imds.log"))?;

        let mut emulator = Self {
            directory,
            python,
            aws_port,
            strict_kms_port,
            metadata_port,
            aws: None,
            _strict_kms: strict_kms,
            _metadata: metadata,
        };
        emulator.set_role(Role::Reader)?;
        emulator.start_aws()?;
        for (name, port) in [("roto", strict_kms_port), ("the metadata service", metadata_port)] {
            wait_for_port(name, port)?;
        }
        capture(emulator.cli("bash").arg(workspace().join("xtask/rig/provision.sh")))
            .context("cannot set up the account")?;
        Ok(emulator)
    }

    /// Attaches another role to the instance.
    pub(crate) fn set_role(&self, role: Role) -> Result<()> {
        let name = match role {
            Role::Reader => "secretfs-reader",
            Role::Denied => "secretfs-denied",
            Role::None => "",
        };
        Ok(fs::write(self.directory.join("role"), name)?)
    }

    /// Starts S3, KMS, IAM and STS with the state they had.
    pub(crate) fn start_aws(&mut self) -> Result<()> {
        if self.aws.is_some() {
            return Ok(());
        }
        let state = self.directory.join("state");
        let mut ministack = Command::new(self.python.join("ministack"));
        ministack.envs([("AUTH", "true"), ("CLOUDTRAIL_RECORDING", "1"), ("PERSIST_STATE", "1"), ("S3_PERSIST", "1")]);
        ministack.envs([("BIND_HOST", "127.0.0.1"), ("MINISTACK_HOST", "127.0.0.1")]);
        ministack.env("GATEWAY_PORT", self.aws_port.to_string());
        ministack.env("STATE_DIR", &state).env("S3_DATA_DIR", state.join("s3"));
        self.aws = Some(Service::spawn("ministack", &ministack, &self.directory.join("ministack.log"))?);
        wait_for_port("ministack", self.aws_port)
    }

    /// Stops S3, KMS, IAM and STS: connections are refused. The metadata service stays, as on an instance.
    pub(crate) fn stop_aws(&mut self) -> Result<()> {
        self.aws.take().context("ministack is not running")?.terminate()
    }

    /// Text of `/etc/default/secretfs` that leads the SDK's own settings here.
    pub(crate) fn guest_environment(&self, kms: Kms) -> String {
        let url = |port| format!("http://{HOST_IN_GUEST}:{port}");
        let kms_port = match kms {
            Kms::Iam => self.aws_port,
            Kms::Strict => self.strict_kms_port,
        };
        format!(
            "AWS_REGION={REGION}
AWS_EC2_METADATA_SERVICE_ENDPOINT={}
AWS_ENDPOINT_URL={}
AWS_ENDPOINT_URL_KMS={}
",
            url(self.metadata_port),
            url(self.aws_port),
            url(kms_port)
        )
    }

    /// Shows the recipe's key and object with the AWS CLI.
    pub(crate) fn describe(&self) -> Result<String> {
        let commands = [
            "kms describe-key --key-id alias/EncFSForEC2InternalStorageKey",
            "s3api head-object --bucket an-internalstoragekeybucket --key LuksInternalStorageKey",
        ];
        let show = |arguments: &str| -> Result<String> {
            Ok(format!("\n$ aws {arguments}\n{}", capture(self.cli("aws").args(arguments.split(' ')))?))
        };
        commands.into_iter().map(show).collect()
    }

    /// A command with the account's root credentials and the real AWS CLI in its path.
    fn cli(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("PATH", format!("{}:/usr/bin:/bin", self.python.display()));
        command.envs([
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_DEFAULT_REGION", REGION),
        ]);
        command.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.aws_port));
        command.env("STRICT_KMS_URL", format!("http://127.0.0.1:{}", self.strict_kms_port));
        command
    }
}

/// Makes the virtual environment from the pinned requirements and gives its directory of programs.
fn install() -> Result<PathBuf> {
    let requirements = workspace().join("xtask/rig/requirements.txt");
    let wanted = fs::read_to_string(&requirements)?;
    let venv = rig_dir().join("venv");
    let stamp = venv.join("installed-requirements.txt");
    if !fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        println!("emulator: installing ministack, roto and the AWS CLI from PyPI");
        capture(Command::new("/usr/bin/python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        let mut pip = Command::new(venv.join("bin/pip"));
        pip.args(["install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--requirement"]);
        capture(pip.arg(&requirements))?;
        fs::write(&stamp, wanted)?;
    }
    Ok(venv.join("bin"))
}

fn wait_for_port(name: &str, port: u16) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    while Instant::now() < deadline {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(());
        }
        sleep(POLL);
    }
    bail!("{name} does not listen on port {port} after {} s", START_LIMIT.as_secs())
}
