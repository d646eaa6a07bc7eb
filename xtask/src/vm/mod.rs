//! `cargo xtask vm`: the rig (a machine and an emulated AWS) and the runner of the scenarios.

mod accel;
pub(crate) mod image;
pub(crate) mod machine;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::dist::{self, Profile};
use crate::emulator::{Emulator, Kms, Role};
use crate::process::lock;
use crate::scenarios::{SCENARIOS, Scenario};
use crate::{rig_dir, setup};
use machine::Machine;

/// Which scenarios to run, and how.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run the scenarios whose name contains this; may be given more than once
    #[arg(long, value_name = "SUBSTRING")]
    only: Vec<String>,
    /// Print the names of the scenarios
    #[arg(long)]
    list: bool,
    /// Open a shell in the machine instead of running scenarios
    #[arg(long, conflicts_with = "only")]
    shell: bool,
    /// Install this package instead of building one
    #[arg(long, value_name = "FILE")]
    package: Option<PathBuf>,
    /// How to build what is installed in the machine
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
}

/// Runs `cargo xtask vm`.
pub(crate) fn vm(arguments: &Arguments) -> Result<()> {
    if arguments.list {
        for scenario in SCENARIOS {
            println!("{}", scenario.name);
        }
        return Ok(());
    }
    let chosen = choose(&arguments.only)?;
    setup::setup()?;
    let package = match &arguments.package {
        Some(package) => package.clone(),
        None => dist::dist(arguments.profile)?,
    };
    let mut rig = Rig::start(&package)?;
    if arguments.shell {
        return rig.vm.shell();
    }
    run(&mut rig, &chosen)
}

/// Runs every scenario; `cargo xtask test` has built the package already.
pub(crate) fn run_all(package: &Path) -> Result<()> {
    run(&mut Rig::start(package)?, &choose(&[])?)
}

fn choose(only: &[String]) -> Result<Vec<&'static Scenario>> {
    for part in only {
        if !SCENARIOS.iter().any(|scenario| scenario.name.contains(part)) {
            bail!("no scenario's name contains `{part}`; `cargo xtask vm --list` prints them");
        }
    }
    let wanted = |scenario: &&Scenario| only.is_empty() || only.iter().any(|part| scenario.name.contains(part));
    Ok(SCENARIOS.iter().filter(wanted).collect())
}

fn run(rig: &mut Rig, scenarios: &[&Scenario]) -> Result<()> {
    let mut failed = Vec::new();
    for (index, scenario) in scenarios.iter().enumerate() {
        println!("[{}/{}] {} ...", index + 1, scenarios.len(), scenario.name);
        let begun = Instant::now();
        let result = rig.clean().context("cannot clean up before the scenario").and_then(|()| (scenario.run)(rig));
        let seconds = begun.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("[{}/{}] {} ... ok ({seconds:.1} s)", index + 1, scenarios.len(), scenario.name),
            Err(error) => {
                println!("---- journal of the guest\n{}", rig.journal().unwrap_or_else(|error| format!("{error:#}")));
                println!("---- error\n{error:#}\n----");
                println!("[{}/{}] {} ... FAILED ({seconds:.1} s)", index + 1, scenarios.len(), scenario.name);
                failed.push(scenario.name);
            }
        }
    }
    for name in &failed {
        println!("FAILED: {name}");
    }
    println!("{} passed, {} failed", scenarios.len() - failed.len(), failed.len());
    if !failed.is_empty() {
        bail!("{} of {} scenarios failed", failed.len(), scenarios.len());
    }
    Ok(())
}

/// A machine with secretfs installed, and the AWS it talks to.
pub(crate) struct Rig {
    /// The machine.
    pub(crate) vm: Machine,
    /// The AWS side.
    pub(crate) aws: Emulator,
    /// Held as long as the rig lives: two rigs would share a directory.
    _lock: File,
    /// Guest's clock at the begin of the scenario, for `journalctl --since`.
    since: String,
}

/// Leaves nothing of a scenario behind; fails if something cannot be removed.
const CLEAN: &str = include_str!("../../rig/clean.sh");

/// A consumer that is hard to stop: it holds a file and its working directory and takes its time.
const CONSUMER: &str = include_str!("../../rig/consumer.sh");

impl Rig {
    /// Boots a fresh machine beside a fresh account and installs the package.
    pub(crate) fn start(package: &Path) -> Result<Self> {
        let lock = lock("rig")?;
        let directory = rig_dir().join("run");
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        let image = image::image()?;
        let begun = Instant::now();
        println!("vm: booting (console, ssh and emulator logs are in target/rig/run)");
        let mut vm = Machine::start(directory.clone(), image)?;
        // The account is set up while the machine boots.
        let aws = Emulator::start(directory)?;
        println!("emulator: ready ({:.1} s)", begun.elapsed().as_secs_f64());
        vm.wait_for_ssh()?;
        println!("vm: up ({:.1} s)", begun.elapsed().as_secs_f64());
        vm.put_file("/root/secretfs.deb", fs::read(package)?)?;
        vm.ok("dpkg --install /root/secretfs.deb")?;
        vm.put_file("/usr/local/bin/rig-consumer", CONSUMER)?;
        vm.ok("chmod 0755 /usr/local/bin/rig-consumer")?;
        println!("vm: package installed ({:.1} s)", begun.elapsed().as_secs_f64());
        let rig = Self { vm, aws, _lock: lock, since: String::new() };
        rig.use_kms(Kms::Iam)?;
        Ok(rig)
    }

    /// Brings machine and account to the state in which every scenario begins.
    fn clean(&mut self) -> Result<()> {
        self.aws.start_aws()?;
        self.aws.set_role(Role::Reader)?;
        self.vm.reset_nvme()?;
        if let Err(error) = self.vm.ok(CLEAN) {
            println!(
                "vm: taking the power away, since the scenario before left something that cannot be removed: {error:#}"
            );
            self.vm.power_cut()?;
            self.vm.boot()?;
            self.vm.ok(CLEAN)?;
        }
        self.use_kms(Kms::Iam)?;
        let now = self.vm.ok("date +%s.%N")?;
        now.trim().clone_into(&mut self.since);
        Ok(())
    }

    /// Leads secretfs in the guest to one of the two KMS.
    pub(crate) fn use_kms(&self, kms: Kms) -> Result<()> {
        self.vm.put_file("/etc/default/secretfs", self.aws.guest_environment(kms))
    }

    /// The guest's journal since the scenario began, over all its boots.
    pub(crate) fn journal(&self) -> Result<String> {
        self.vm.ok(&format!("journalctl --no-pager --quiet --output=short-precise --since=@{}", self.since))
    }

    /// What a unit said since the scenario began.
    pub(crate) fn journal_of(&self, unit: &str) -> Result<String> {
        self.vm.ok(&format!("journalctl --no-pager --quiet --output=cat --unit='{unit}' --since=@{}", self.since))
    }
}
