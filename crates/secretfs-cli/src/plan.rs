//! `secretfs plan`: what a start would do to which device, and why; looks only.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use secretfs_block::{DevicePath, device, volume as facts};
use secretfs_core::cause::Failure;
use secretfs_core::config::{Backing, Config, Target, Volume};
use secretfs_core::forecast::{Deed, Disks, Findings, Forecast, forecast};
use serde::Serialize;

/// What would happen to one volume, as `--json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Plan {
    name: String,
    deed: Deed,
    /// The backing file or device, as it is configured.
    backing: Option<String>,
    /// The device behind it, if it is there.
    device: Option<String>,
    mount: Option<String>,
    /// Whether it is used as swap space instead of being mounted.
    swap: bool,
    why: String,
    /// How the backing compares with what the volume was when it was last up.
    claim: Option<String>,
    /// The cause's code, where nothing would be done.
    cause: Option<&'static str>,
    hint: Option<String>,
}

/// Tells what a start of the volume `only`, or of each, would do.
pub fn run(only: Option<&str>, json: bool) -> io::Result<ExitCode> {
    let config = secretfs_generator::read_config(Path::new("/"));
    let plans = plan_all(&config, only);
    if plans.is_empty() {
        eprintln!("secretfs: there is no such volume\nhint: `secretfs status` shows all");
        return Ok(ExitCode::from(crate::NO_SUCH_VOLUME));
    }
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &plans)?;
        writeln!(out)?;
    } else {
        out.write_all(plans.iter().map(render).collect::<String>().as_bytes())?;
    }
    out.flush()?;
    let refused = plans.iter().any(|plan| plan.deed == Deed::Refuse);
    Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn plan_all(config: &Config, only: Option<&str>) -> Vec<Plan> {
    let wanted = |name: &str| only.is_none_or(|only| only == name);
    let sound = config.volumes.values().filter(|volume| wanted(volume.name.as_str())).map(plan);
    let refused = config.refused.iter().filter(|(name, _)| wanted(name.as_str())).map(|(name, refused)| Plan {
        name: name.to_string(),
        deed: Deed::Refuse,
        backing: None,
        device: None,
        mount: refused.target.as_ref().and_then(Target::mount).map(ToString::to_string),
        swap: refused.target == Some(Target::Swap),
        why: refused.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        claim: None,
        cause: Some(secretfs_core::cause::Cause::Config.code()),
        hint: refused.errors.first().and_then(|error| error.hint.clone()),
    });
    sound.chain(refused).collect()
}

fn plan(volume: &Volume) -> Plan {
    let (device, forecast) = match look(volume) {
        Ok((device, findings)) => (device, forecast(volume, findings)),
        Err(failure) => {
            (None, Forecast { deed: Deed::Refuse, why: failure.to_string(), claim: None, failure: Some(failure) })
        }
    };
    Plan {
        name: volume.name.to_string(),
        deed: forecast.deed,
        backing: Some(volume.backing.to_string()),
        device: device.map(|device| device.to_string()),
        mount: volume.target.mount().map(ToString::to_string),
        swap: volume.target == Target::Swap,
        why: forecast.why,
        claim: forecast.claim,
        cause: forecast.failure.as_ref().map(|failure| failure.cause.code()),
        hint: forecast.failure.map(|failure| failure.cause.row().hint.to_owned()),
    }
}

fn look(volume: &Volume) -> Result<(Option<DevicePath>, Findings), Failure> {
    let (mapping, mount) = facts::survey(volume)?;
    let disks = facts::disks(volume)?;
    let device = facts::backing_device(volume)?;
    let mut users = None;
    let found = match (&device, &volume.backing) {
        (Some(device), _) => {
            users = device::facts(device).map_err(|error| error.failure())?.users();
            Some(facts::examine(volume, device)?)
        }
        (None, Backing::File { path, .. }) => facts::examine_file(volume, Path::new(path))?,
        (None, Backing::Device { .. } | Backing::Match { .. }) => None,
    };
    let makeable = matches!(volume.backing, Backing::File { .. }) || matches!(disks, Disks::Makeable(_));
    let standing = match &found {
        Some(found) => Some(found.standing.clone()),
        None if makeable => Some(facts::standing_of_nothing(volume)?),
        None => None,
    };
    let file = volume.backing.path().and_then(|path| fs::metadata(path).ok()).filter(fs::Metadata::is_file);
    let findings = Findings {
        mapping,
        mount,
        users: users.zip(device.as_ref()).map(|(users, device)| format!("{device} {users}")),
        formatted_this_boot: found.as_ref().is_some_and(|found| found.formatted_this_boot),
        wipe_begun: found.as_ref().is_some_and(|found| found.wipe_begun),
        contents: found.map(|found| found.contents),
        file_size: file.map(|file| file.len()),
        standing,
        disks,
    };
    Ok((device, findings))
}

fn render(plan: &Plan) -> String {
    let name = &plan.name;
    let backing = plan.backing.as_deref().unwrap_or("its backing");
    let device = plan.device.as_ref().filter(|device| Some(*device) != plan.backing.as_ref());
    let backing = device.map_or_else(|| backing.to_owned(), |device| format!("{backing} ({device})"));
    let mount = plan.mount.as_deref().unwrap_or("its mount point");
    let (used, use_it) = if plan.swap {
        ("the swap space that is in use".to_owned(), "use it as swap space".to_owned())
    } else {
        (format!("what is mounted at {mount}"), format!("mount it at {mount}"))
    };
    let why = &plan.why;
    let mut text = match plan.deed {
        Deed::TakeOver => format!("{name}: take over {used}, changing nothing: {why}\n"),
        Deed::Mount => format!("{name}: {use_it}: {why}\n"),
        Deed::Create => format!("{name}: make {backing}, FORMAT it and {use_it}: {why}\n"),
        Deed::Combine => format!("{name}: make {why}, FORMAT it and {use_it}: all are proven blank\n"),
        Deed::Format => format!("{name}: FORMAT {backing} and {use_it}: {why}\n"),
        Deed::Activate => format!("{name}: activate {backing}, and format or unlock it by what is on it: {why}\n"),
        Deed::Unlock => format!("{name}: unlock {backing} and {use_it}: {why}\n"),
        Deed::Resume => format!("{name}: unlock {backing}, go on zeroing it and {use_it}: {why}\n"),
        Deed::Wait => format!("{name}: wait for {backing}: {why}\n"),
        Deed::Refuse => format!("{name}: refuse to touch {backing}: {why}\n"),
    };
    // A refusal for its sake says it already.
    if let Some(claim) = plan.claim.as_ref().filter(|claim| !plan.why.contains(claim.as_str())) {
        let _ = writeln!(text, "  claim: {claim}");
    }
    if let Some(hint) = &plan.hint {
        let _ = writeln!(text, "  hint: {hint}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_and_what_is_swapped_to() {
        let mounted = Plan {
            name: "v".to_owned(),
            deed: Deed::Format,
            backing: Some("/dev/disk/by-id/x".to_owned()),
            device: Some("/dev/sda".to_owned()),
            mount: Some("/mnt/v".to_owned()),
            swap: false,
            why: "it is blank".to_owned(),
            claim: None,
            cause: None,
            hint: None,
        };
        assert_eq!(render(&mounted), "v: FORMAT /dev/disk/by-id/x (/dev/sda) and mount it at /mnt/v: it is blank\n");
        let swap = Plan { mount: None, swap: true, ..mounted };
        assert_eq!(render(&swap), "v: FORMAT /dev/disk/by-id/x (/dev/sda) and use it as swap space: it is blank\n");
    }
}
