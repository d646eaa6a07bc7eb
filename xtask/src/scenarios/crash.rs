//! Crashes at every action of a volume's life: `kill -9` of the daemon, and a power cut of the machine.
//!
//! The actions are enumerated, not sampled: of each life there are more volumes than it has actions, the Nth volume
//! crashes at the Nth action, and the last ones find nothing more to crash at. They hang at their actions all at once, so
//! that one power cut serves them all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::guest::Volume;
use crate::process::run;
use crate::vm::Rig;
use crate::workspace;

/// What a volume goes through when it crashes.
struct Life {
    name: &'static str,
    /// What it is before.
    before: Before,
    /// What the library counts.
    counts: &'static str,
    /// More than there are actions.
    volumes: usize,
    /// Fewer actions would mean that they were not seen.
    at_least: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Before {
    /// Nothing is there.
    Blank,
    /// It has data, and is stopped.
    Stopped,
    /// It has data, and is up.
    Up,
}

const LIVES: [Life; 5] = [
    Life { name: "format", before: Before::Blank, counts: "step", volumes: 16, at_least: 15 },
    Life { name: "luks", before: Before::Blank, counts: "luks", volumes: 10, at_least: 8 },
    Life { name: "mkfs", before: Before::Blank, counts: "mkfs", volumes: 5, at_least: 4 },
    Life { name: "open", before: Before::Stopped, counts: "step", volumes: 13, at_least: 12 },
    Life { name: "stop", before: Before::Up, counts: "step", volumes: 6, at_least: 5 },
];

/// What is announced before the first action after which a new volume may be mounted.
const MOUNTING: &str = "STATUS=Mounting";

/// What happens to one volume in the guest.
const SCRIPT: &str = include_str!("../../rig/crash.sh");

/// How many volumes are worked on at the same time: emulated, all at once would run into each other's time-outs, and a
/// volume that is up looks at every change of the mounts.
const AT_ONCE: usize = 5;

/// How many volumes one command in the guest sees to; it has a time limit.
const AT_A_TIME: usize = 20;

/// A consumer of the volume that the unit is named after. It writes without asking whether anything is mounted, and runs
/// when that is on the disk.
const CONSUMER: &str = "
[Service]
ExecStartPre=/bin/sh -c 'echo ran >/mnt/%i/consumer && sync /mnt/%i/consumer'
ExecStart=/bin/sleep infinity
";

/// From here on the page cache goes to the disk when somebody asks for that, and not by itself.
const NO_WRITEBACK: &str = "sync
sysctl --quiet vm.dirty_writeback_centisecs=0 vm.dirty_expire_centisecs=360000
mount -o remount,commit=3600 /";

/// One volume, and the action that it crashes at.
struct Subject {
    life: &'static Life,
    number: usize,
    volume: Volume,
}

impl Subject {
    fn name(&self) -> &str {
        &self.volume.name
    }
}

/// What was seen of one volume when it was up.
struct Report {
    /// What it was about to do when it crashed, if it did.
    action: Option<String>,
    /// What its daemon says.
    status: String,
    /// Device and type of what is mounted.
    mounted: String,
    /// Checksum of its data.
    data: String,
    /// Whether what a consumer wrote is there.
    consumer: bool,
}

/// By the volumes' names.
type ByName<T> = BTreeMap<String, T>;

/// What came of one crash.
struct Seen {
    action: String,
    /// How the volume was up again afterwards.
    after: String,
}

/// What was seen of a volume's consumers while it hung.
struct Dark {
    /// Whether one ran, and so had written.
    wrote: bool,
    words: String,
}

pub(super) fn at_every_action(rig: &mut Rig) -> Result<()> {
    let subjects = subjects();
    install(rig)?;
    rig.configure(&subjects.iter().map(|subject| &subject.volume).collect::<Vec<_>>())?;
    let has_data = |subject: &Subject| subject.life.before != Before::Blank;
    let kept = reports(&for_each(rig, &subjects, "write", has_data)?)?;
    let killed = kill(rig, &subjects, &kept)?;
    let (cut, consumers) = cut_power(rig, &subjects, &kept)?;
    print_table(&subjects, &killed, &cut, &consumers)
}

fn subjects() -> Vec<Subject> {
    let of_life = |life: &'static Life| {
        (1..=life.volumes).map(move |number| {
            let name = format!("{}{number}", life.name);
            let volume = Volume {
                mount: format!("/mnt/{name}"),
                lifecycle: "persistent".into(),
                backing: format!(r#"{{ file = "/var/lib/secretfs/{name}.img", size = "32MiB" }}"#),
                // With an owner there is one action more to crash at.
                filesystem_extra: r#", owner = "nobody", mode = "0750""#.into(),
                extra: "auto = false".into(),
                name,
                ..Volume::scratch()
            };
            Subject { life, number, volume }
        })
    };
    LIVES.iter().flat_map(of_life).collect()
}

/// Builds the library that crashes the daemon, has the guest's daemons load it, and writes the consumers' units.
fn install(rig: &Rig) -> Result<()> {
    let library = workspace().join("target/rig/crash.so");
    let mut gcc = Command::new("gcc");
    gcc.args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&library);
    run(gcc.arg(workspace().join("xtask/rig/crash.c")))?;
    rig.vm.put_file("/usr/local/lib/rig-crash.so", fs::read(&library)?)?;
    rig.vm.put_file("/usr/local/bin/rig-crash", SCRIPT)?;
    // What hangs is to hang until the power is cut, and not until systemd ends it.
    let drop_in = "[Service]\nEnvironment=LD_PRELOAD=/usr/local/lib/rig-crash.so\n\
                   WatchdogSec=0\nTimeoutStartSec=infinity\nTimeoutStopSec=infinity\n";
    rig.vm.put_file("/etc/systemd/system/secretfs@.service.d/rig-crash.conf", drop_in)?;
    let app = format!("[Unit]\nRequires=secretfs@%i.service\nAfter=secretfs@%i.service\n{CONSUMER}");
    rig.vm.put_file("/etc/systemd/system/rig-app@.service", app)?;
    let mount = format!("[Unit]\nRequiresMountsFor=/mnt/%i\n{CONSUMER}");
    rig.vm.put_file("/etc/systemd/system/rig-mount@.service", mount)
}

/// Kills the daemon of each volume at its action, has the volume up, and stops it.
fn kill(rig: &Rig, subjects: &[Subject], kept: &ByName<Report>) -> Result<ByName<Seen>> {
    let mut text = for_each(rig, subjects, "kill-start", |subject| subject.life.before != Before::Up)?;
    text += &for_each(rig, subjects, "kill-stop", |subject| subject.life.before == Before::Up)?;
    check_gone(rig)?;
    rig.vm.ok("systemctl reset-failed")?;
    let after = reports(&text)?;
    let actions = after.iter().filter_map(|(name, report)| Some((name.clone(), report.action.clone()?))).collect();
    judge(subjects, actions, &after, kept)
}

/// Has each volume hang at its action, cuts the power, has all of them up, and stops them. Tells of their consumers, too.
fn cut_power(rig: &mut Rig, subjects: &[Subject], kept: &ByName<Report>) -> Result<(ByName<Seen>, ByName<Dark>)> {
    for_each(rig, subjects, "forget", |subject| subject.life.before == Before::Blank)?;
    rig.vm.ok(NO_WRITEBACK)?;
    for_each(rig, subjects, "hang-start", |subject| subject.life.before != Before::Up)?;
    for_each(rig, subjects, "hang-stop", |subject| subject.life.before == Before::Up)?;
    let mut actions = BTreeMap::new();
    for line in rig.vm.ok("cd /run/secretfs/crash; grep --max-count=1 '' *")?.lines() {
        let (name, text) = line.split_once(':').with_context(|| format!("neither order nor action: {line}"))?;
        if !text.starts_with("hang ") {
            actions.insert(name.to_owned(), text.to_owned());
        }
    }
    let consumers = check_dark(rig, subjects, &actions)?;
    rig.vm.power_cut()?;
    rig.vm.boot()?;
    let after = reports(&for_each(rig, subjects, "recover", |_| true)?)?;
    check_gone(rig)?;
    for (name, seen) in &consumers {
        ensure!(!seen.wrote || after[name].consumer, "{name}: what its consumer wrote is lost");
    }
    Ok((judge(subjects, actions, &after, kept)?, consumers))
}

/// Runs one verb of the script for the chosen volumes.
fn for_each(rig: &Rig, subjects: &[Subject], verb: &str, chosen: impl Fn(&Subject) -> bool) -> Result<String> {
    let begun = Instant::now();
    let arguments: Vec<String> = subjects
        .iter()
        .filter(|subject| chosen(subject))
        .map(|Subject { life, number, volume }| format!("{} {} {number}", volume.name, life.counts))
        .collect();
    let mut output = String::new();
    for some in arguments.chunks(AT_A_TIME) {
        let lines = some.join("\n");
        let script =
            format!("xargs --max-procs={AT_ONCE} --max-args=3 bash /usr/local/bin/rig-crash {verb} <<<'{lines}'");
        output += &rig.vm.ok(&script)?;
    }
    println!("{verb}: {} volumes ({:.1} s)", arguments.len(), begun.elapsed().as_secs_f64());
    Ok(output)
}

/// Reads the lines that the script prints.
fn reports(text: &str) -> Result<ByName<Report>> {
    let report = |line: &str| {
        let [name, action, status, mounted, data, consumer] = line.split('\t').collect::<Vec<_>>()[..] else {
            bail!("this is no report: {line}");
        };
        let action = Some(action.to_owned()).filter(|action| !action.is_empty());
        let mounted = mounted.split_whitespace().collect::<Vec<_>>().join(" ");
        let (status, data) = (status.to_owned(), data.to_owned());
        Ok((name.to_owned(), Report { action, status, mounted, data, consumer: consumer == "wrote" }))
    };
    text.lines().map(report).collect()
}

/// Fails unless the first volumes of each life crashed, not all of them, and all of them were up again with their data.
fn judge(
    subjects: &[Subject],
    actions: ByName<String>,
    after: &ByName<Report>,
    kept: &ByName<Report>,
) -> Result<ByName<Seen>> {
    for life in &LIVES {
        let of_life = subjects.iter().filter(|subject| subject.life.name == life.name);
        let crashed: Vec<usize> =
            of_life.filter(|subject| actions.contains_key(subject.name())).map(|subject| subject.number).collect();
        println!("{}: {} volumes crashed, {} did not", life.name, crashed.len(), life.volumes - crashed.len());
        ensure!(crashed.iter().copied().eq(1..=crashed.len()), "{}: crashed at {crashed:?}", life.name);
        ensure!(crashed.len() >= life.at_least, "{}: only {} actions were seen", life.name, crashed.len());
        ensure!(crashed.len() < life.volumes, "{}: more actions than volumes", life.name);
    }
    let mut how = BTreeMap::new();
    for subject in subjects {
        let name = subject.name();
        let report = after.get(name).with_context(|| format!("nothing is known of {name}"))?;
        let mounted = format!("{} ext4", subject.volume.mapper());
        ensure!(report.mounted == mounted, "{name}: mounted is `{}`", report.mounted);
        let data = kept.get(name).map_or("", |kept| &kept.data);
        ensure!(report.data == data, "{name}: the checksum of its data is `{}`, was `{data}`", report.data);
        let (words, _) = report.status.split_once(';').with_context(|| format!("{name} says: {}", report.status))?;
        how.insert(name, if data.is_empty() { words.to_owned() } else { format!("{words}, data unchanged") });
    }
    let seen = |(name, action): (String, String)| {
        let after = how[name.as_str()].clone();
        let action = action.strip_prefix("STATUS=").unwrap_or(&action).to_owned();
        (name, Seen { action, after })
    };
    Ok(actions.into_iter().map(seen).collect())
}

/// While the volumes hang: no consumer runs without its volume, and nothing of one is on the root file system.
///
/// Gives what was seen, in words.
fn check_dark(rig: &Rig, subjects: &[Subject], actions: &ByName<String>) -> Result<ByName<Dark>> {
    let (apps, mounts) = (consumers(rig, subjects, "rig-app")?, consumers(rig, subjects, "rig-mount")?);
    let mounted = rig.vm.ok("findmnt --noheadings --list --output TARGET")?;
    let mounted: BTreeSet<&str> = mounted.lines().map(str::trim).collect();
    // The root file system without what is mounted on it; the name space ends with the command.
    let on_root = rig.vm.ok("unshare --mount sh -c 'mount --bind / /srv && find /srv/mnt -mindepth 2'")?;
    ensure!(on_root.is_empty(), "on the root file system, below the mount points:\n{on_root}");
    let mounting = |subject: &&Subject| {
        subject.life.name == "format" && actions.get(subject.name()).is_some_and(|action| action == MOUNTING)
    };
    let first_mounting = subjects.iter().find(mounting).context("no new volume hangs before it is mounted")?.number;
    let mut seen = BTreeMap::new();
    for (subject, (app, mount)) in subjects.iter().zip(apps.iter().zip(mounts)) {
        let name = subject.name();
        if !actions.contains_key(name) {
            continue;
        }
        // The one that names the service has to wait for READY=1, and ends before the service is asked to stop.
        // Of a unit that was stopped systemd soon forgets that it ever ran.
        let (app, mount) = match subject.life.before {
            Before::Up => (stopped(app), stopped(mount)),
            Before::Blank | Before::Stopped => (*app, mount),
        };
        let wanted = if subject.life.before == Before::Up { "stopped" } else { "never started" };
        ensure!(app == wanted, "{name} hangs, and rig-app@{name} is {app}");
        // For the other the mount is all that counts.
        let is_mounted = mounted.contains(subject.volume.mount.as_str());
        ensure!(mount == wanted || is_mounted, "{name} hangs without a mount, and rig-mount@{name} is {mount}");
        // What a consumer writes before the format is finished would be formatted again.
        let wrote = mount == "running";
        let is_whole = subject.life.name == "format" && subject.number > first_mounting;
        ensure!(
            !wrote || subject.life.before != Before::Blank || is_whole,
            "{name} hangs before its format is finished, and rig-mount@{name} is running"
        );
        let place = if wrote { " on the mount" } else { "" };
        let words = format!("{app} | {mount}{place} | {} files", on_root.lines().count());
        seen.insert(name.to_owned(), Dark { wrote, words });
    }
    Ok(seen)
}

fn stopped(state: &'static str) -> &'static str {
    if state == "running" { state } else { "stopped" }
}

/// What each volume's consumer `PREFIX@NAME.service` does, in their order.
fn consumers(rig: &Rig, subjects: &[Subject], prefix: &str) -> Result<Vec<&'static str>> {
    let units: Vec<String> = subjects.iter().map(|subject| format!("{prefix}@{}.service", subject.name())).collect();
    let property = |name: &str| -> Result<Vec<String>> {
        let text = rig.vm.ok(&format!("systemctl show --property={name} {}", units.join(" ")))?;
        let values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        Ok(values.map(str::to_owned).collect())
    };
    let (states, started) = (property("ActiveState")?, property("ExecMainStartTimestampMonotonic")?);
    ensure!(states.len() == units.len() && started.len() == units.len(), "not every {prefix}@ was shown");
    let what = |((state, started), subject): ((&String, &String), &Subject)| match (state.as_str(), started.as_str()) {
        // The script had it run before the stop; of such a unit that has ended, systemd forgets that it ever ran.
        ("inactive", _) if subject.life.before == Before::Up => "stopped",
        ("activating", _) => "running",
        (_, "0") => "never started",
        ("inactive" | "failed", _) => "stopped",
        _ => "running",
    };
    Ok(states.iter().zip(&started).zip(subjects).map(what).collect())
}

/// Fails if a mount, a mapping or a loop device is left.
fn check_gone(rig: &Rig) -> Result<()> {
    let left = rig.vm.ok("findmnt --noheadings --list --output TARGET | grep '^/mnt/' || true
         dmsetup ls | grep --invert-match '^No devices found$' || true
         losetup --noheadings --list --output NAME,BACK-FILE")?;
    ensure!(left.is_empty(), "of the volumes is left:\n{left}");
    Ok(())
}

fn print_table(
    subjects: &[Subject],
    killed: &ByName<Seen>,
    cut: &ByName<Seen>,
    consumers: &ByName<Dark>,
) -> Result<()> {
    let line = |[life, number, action, killed, cut, consumers]: [&str; 6]| {
        println!("{life:<6} | {number:>2} | {action:<58} | {killed:<38} | {cut:<38} | {consumers}");
    };
    let hung = "while it hung: Requires= consumer | RequiresMountsFor= consumer | on the root file system";
    line(["life", "N", "crashed when about to", "up after kill -9", "up after a power cut", hung]);
    for subject in subjects {
        match (killed.get(subject.name()), cut.get(subject.name())) {
            (Some(killed), Some(cut)) => {
                ensure!(killed.action == cut.action, "{}: {} and {}", subject.name(), killed.action, cut.action);
                let (number, consumers) = (subject.number.to_string(), &consumers[subject.name()].words);
                line([subject.life.name, &number, &killed.action, &killed.after, &cut.after, consumers]);
            }
            (None, None) => {}
            _ => bail!("{} crashed in one way only", subject.name()),
        }
    }
    println!("{} kills and {} power cuts: every volume recovered", killed.len(), cut.len());
    Ok(())
}
