//! The facts: from the configuration, from systemd, from the kernel.

use std::fs;
use std::time::{Duration, SystemTime};

use secretfs_block::volume::{backing_device, progress};
use secretfs_block::{device, mapping};
use secretfs_core::chain::{Mount, luks_uuid, parse_crypt_table, top_mount};
use secretfs_core::config::{Config, FilesystemType, Target, Volume};
use secretfs_core::name::VolumeName;
use secretfs_systemd::manager::{Manager, UnitFacts};

use super::{Report, Usage};

/// systemd answers at once, or is so busy that the rest is worth showing without it.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// Reports on the volume `only`, or on all of them, refused ones included.
pub async fn collect(config: &Config, only: Option<&str>) -> Vec<Report> {
    let manager = if rustix::process::geteuid().is_root() { Manager::private() } else { Manager::system_bus() };
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let wanted = |name: &VolumeName| only.is_none_or(|only| only == name.as_str());
    let mut reports = Vec::new();
    for volume in config.volumes.values().filter(|volume| wanted(&volume.name)) {
        let mut report = begin(&manager, &volume.name).await;
        add_volume(&mut report, volume);
        add_chain(&mut report, &volume.name, &volume.target, &mountinfo);
        reports.push(report);
    }
    for (name, refused) in config.refused.iter().filter(|(name, _)| wanted(name)) {
        let mut report = begin(&manager, name).await;
        report.state = "refused";
        report.errors = refused.errors.iter().map(ToString::to_string).collect();
        if let Some(target) = &refused.target {
            add_chain(&mut report, name, target, &mountinfo);
        }
        reports.push(report);
    }
    reports.sort_by(|one, other| one.name.cmp(&other.name));
    reports
}

/// What systemd says of the volume's service.
async fn begin(manager: &Manager, name: &VolumeName) -> Report {
    let unit = name.service();
    let (facts, error) = match manager.unit_facts(&unit, ASK_LIMIT).await {
        Ok(facts) => (facts, None),
        Err(error) => (UnitFacts::default(), Some(error.failure().to_string())),
    };
    let since = facts.state_change.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    Report {
        name: name.to_string(),
        state: state(&facts),
        status: facts.status_text.or(error),
        since: since.map(|since| since.as_secs()),
        unit: unit.to_string(),
        main_pid: facts.main_pid,
        mount: None,
        mounted: false,
        swap: None,
        filesystem: None,
        mapper: name.mapper().device(),
        cipher: None,
        key_bits: None,
        sector_size: None,
        luks_uuid: None,
        lifecycle: None,
        backing: None,
        backing_device: None,
        key_source: None,
        usage: None,
        zeroing: progress(name),
        errors: Vec::new(),
    }
}

/// The state of a volume, from that of its service.
fn state(facts: &UnitFacts) -> &'static str {
    match (facts.active_state.as_str(), facts.sub_state.as_str()) {
        // A volume is there while it grows, which is what a reload does.
        ("active" | "reloading", _) => "ready",
        ("activating", _) => "starting",
        ("deactivating", _) => "stopping",
        ("failed", _) => "failed",
        ("inactive", _) => "stopped",
        _ => "unknown",
    }
}

fn add_volume(report: &mut Report, volume: &Volume) {
    report.lifecycle = Some(volume.lifecycle.as_str());
    report.backing = Some(volume.backing.to_string());
    report.key_source = Some(volume.key.describe());
    report.backing_device = backing_device(volume).ok().flatten().map(|device| device.to_string());
}

/// What the kernel says of the mapping, and of the mount or the swap space.
fn add_chain(report: &mut Report, name: &VolumeName, target: &Target, mountinfo: &str) {
    report.mount = target.mount().map(ToString::to_string);
    report.swap = (*target == Target::Swap).then_some(false);
    let mapping = mapping::active(&name.mapper()).ok().flatten();
    if let Some(mapping) = &mapping {
        report.luks_uuid = luks_uuid(&mapping.uuid);
        if let Some(encryption) = parse_crypt_table(&mapping.table) {
            report.cipher = Some(encryption.cipher);
            report.key_bits = Some(encryption.key_bits);
            report.sector_size = Some(encryption.sector_size);
        }
    }
    let Ok(number) = fs::metadata(name.mapper().device()).map(|metadata| {
        use std::os::unix::fs::MetadataExt as _;
        device::DeviceNumber::from_raw(metadata.rdev()).to_string()
    }) else {
        return;
    };
    let mount = match target {
        Target::Mount(mount) => mount,
        Target::Swap => {
            let swaps = device::swaps().unwrap_or_default();
            if let Some(swap) = swaps.iter().find(|swap| swap.devno.as_ref() == Some(&number)) {
                report.swap = Some(true);
                report.filesystem = Some(FilesystemType::Swap.as_str().to_owned());
                let available = swap.size.saturating_sub(swap.used);
                report.usage = Some(Usage { size: swap.size, used: swap.used, available });
            }
            return;
        }
    };
    let ours = |mounted: &Mount| match &mapping {
        Some(mapping) => mounted.is_on(&name.mapper(), mapping),
        // The mapping's table is for root alone.
        None => mounted.devno == number,
    };
    if let Some(mounted) = top_mount(mountinfo, mount).filter(ours) {
        report.mounted = true;
        report.filesystem = Some(mounted.filesystem);
        report.usage = rustix::fs::statvfs(mount.as_str()).ok().map(|stat| Usage {
            size: stat.f_blocks * stat.f_frsize,
            used: (stat.f_blocks - stat.f_bfree) * stat.f_frsize,
            available: stat.f_bavail * stat.f_frsize,
        });
    }
}
