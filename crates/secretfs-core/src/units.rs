//! The unit plan: which unit files, drop-ins and links systemd shall see, as values.

mod render;

use std::time::Duration;

pub use self::render::{Entry, Section, UnitFile, Value};
use crate::config::{Backing, Config, Layout, Refused, Target, Volume};
use crate::name::{MountPoint, UnitName, VolumeName, escape_path};

/// The template that ships with the package; boot links point at it.
const TEMPLATE: &str = "/usr/lib/systemd/system/secretfs@.service";

/// The kinds of disks that can be matched, as `/proc/devices` names them: `NVMe` and partitions, SCSI and SATA, virtio, Xen.
const DISK_CLASSES: [&str; 4] = ["block-blkext", "block-sd", "block-virtblk", "block-xvd"];

/// What starts a volume at boot.
const BOOT_TARGET: &str = "multi-user.target";

/// How much longer than the volume's own start the device job may run: the daemon gives up first and says why.
const DEVICE_JOB_MARGIN: Duration = Duration::from_mins(1);

/// How long swapon and swapoff may take: swapoff reads back what was swapped out, and systemd's 90 seconds are soon over.
/// Less than the daemon waits for it (`Step::Unmount`).
const SWAP_TIMEOUT: Duration = Duration::from_mins(4);

/// How long a refused volume's device may be waited for: its service fails at once.
const REFUSED_DEVICE_JOB: Duration = Duration::from_secs(30);

/// Unit files and links, with paths relative to the generator's output directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitPlan {
    /// The unit files and drop-ins.
    pub files: Vec<UnitFile>,
    /// The links.
    pub links: Vec<Link>,
}

/// A symbolic link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Where it stands, relative to the output directory.
    pub path: String,
    /// What it points at.
    pub target: String,
}

/// Plans the units of every volume.
///
/// A refused volume gets the same units as far as it could be read. Its service then fails and says why, and whatever
/// depends on its mount point fails with it instead of writing to the directory below.
pub fn plan(config: &Config) -> UnitPlan {
    let mut plan = UnitPlan::default();
    for volume in config.volumes.values() {
        plan.files.push(target_unit(&volume.name, &volume.target, &volume.source_path, Some(volume)));
        plan.files.push(device_drop_in(&volume.name, &volume.source_path, volume.start_timeout + DEVICE_JOB_MARGIN));
        plan.files.push(service_drop_in(volume));
        plan_dependents(&mut plan, &volume.name, Some(&volume.target), &volume.consumers);
        plan_boot(&mut plan, &volume.name, volume.auto);
    }
    for (name, refused) in &config.refused {
        if let Some(target) = &refused.target {
            let file = target_unit(name, target, &refused.source_path, None);
            // Of two volumes on one mount point the first keeps the mount unit; the services of both fail.
            if !plan.files.iter().any(|other| other.path == file.path) {
                plan.files.push(file);
            }
            plan.files.push(device_drop_in(name, &refused.source_path, REFUSED_DEVICE_JOB));
        }
        plan.files.push(refused_drop_in(name, refused));
        plan_dependents(&mut plan, name, refused.target.as_ref(), &refused.consumers);
        plan_boot(&mut plan, name, refused.auto);
    }
    plan
}

/// The unit that puts the volume to use; of a refused volume, one that can't succeed.
fn target_unit(name: &VolumeName, target: &Target, source_path: &str, volume: Option<&Volume>) -> UnitFile {
    match target {
        Target::Mount(mount) => mount_unit(name, mount, source_path, volume),
        Target::Swap => swap_unit(name, source_path, volume),
    }
}

fn mount_unit(name: &VolumeName, mount: &MountPoint, source_path: &str, volume: Option<&Volume>) -> UnitFile {
    let mapper = name.mapper();
    let mut mount_entries =
        vec![Entry::new("What", Value::Text(mapper.device())), Entry::new("Where", Value::Text(mount.to_string()))];
    if let Some(volume) = volume {
        let filesystem = &volume.filesystem;
        mount_entries.push(Entry::new("Type", Value::Text(filesystem.kind.as_str().to_owned())));
        let network = volume.key.needs_network().then_some("_netdev");
        let options: Vec<&str> =
            network.into_iter().chain(filesystem.mount_options.iter().map(String::as_str)).collect();
        if !options.is_empty() {
            let entry = Entry::new("Options", Value::Text(options.join(",")));
            mount_entries.push(match network {
                Some(_) => entry.because("The key comes over the network, so this is none of the local file systems."),
                None => entry,
            });
        }
    }
    UnitFile {
        path: mount.unit().to_string(),
        sections: vec![
            Section {
                name: "Unit",
                entries: vec![
                    Entry::new("Description", Value::Text(format!("File system of the encrypted volume {name}"))),
                    Entry::new("Documentation", Value::Text("man:secretfs-generator(8)".to_owned())),
                    Entry::new("SourcePath", Value::Text(source_path.to_owned())),
                    Entry::new("DefaultDependencies", Value::Flag(false)).because(
                        "The volume's service unmounts this, after its consumers stopped; umount.target would not wait for them.",
                    ),
                    Entry::new("BindsTo", Value::Units(vec![mapper.device_unit()])),
                    Entry::new("After", Value::Units(vec![mapper.device_unit()])).because(
                        "The device pulls the volume's service in. Not after the service: it waits for this mount.",
                    ),
                ],
            },
            Section { name: "Mount", entries: mount_entries },
        ],
    }
}

fn swap_unit(name: &VolumeName, source_path: &str, volume: Option<&Volume>) -> UnitFile {
    let mapper = name.mapper();
    let mut swap_entries = vec![Entry::new("What", Value::Text(mapper.device()))];
    if let Some(options) = volume.map(|volume| &volume.filesystem.mount_options).filter(|options| !options.is_empty()) {
        swap_entries.push(Entry::new("Options", Value::Text(options.join(","))));
    }
    swap_entries.push(
        Entry::new("TimeoutSec", Value::Duration(SWAP_TIMEOUT)).because("swapoff reads back what was swapped out."),
    );
    UnitFile {
        path: mapper.swap_unit().to_string(),
        sections: vec![
            Section {
                name: "Unit",
                entries: vec![
                    Entry::new("Description", Value::Text(format!("Swap space of the encrypted volume {name}"))),
                    Entry::new("Documentation", Value::Text("man:secretfs-generator(8)".to_owned())),
                    Entry::new("SourcePath", Value::Text(source_path.to_owned())),
                    Entry::new("DefaultDependencies", Value::Flag(false)).because(
                        "The volume's service starts after swap.target, which would wait for this, and takes it out of use itself.",
                    ),
                    Entry::new("BindsTo", Value::Units(vec![mapper.device_unit()])),
                    Entry::new("After", Value::Units(vec![mapper.device_unit()])).because(
                        "The device pulls the volume's service in. Not after the service: it waits for this swap unit.",
                    ),
                ],
            },
            Section { name: "Swap", entries: swap_entries },
        ],
    }
}

fn device_drop_in(name: &VolumeName, source_path: &str, job_timeout: Duration) -> UnitFile {
    UnitFile {
        path: format!("{}.d/50-secretfs.conf", name.mapper().device_unit()),
        sections: vec![Section {
            name: "Unit",
            entries: vec![
                Entry::new("SourcePath", Value::Text(source_path.to_owned())),
                Entry::new("Wants", Value::Units(vec![name.service()])).because(
                    "Not Requires=: stopping the service would queue the unmount before its consumers have stopped.",
                ),
                Entry::new("JobRunningTimeoutSec", Value::Duration(job_timeout))
                    .because("The service gives up first and says why; it then cancels this job."),
            ],
        }],
    }
}

fn service_drop_in(volume: &Volume) -> UnitFile {
    let description = match &volume.target {
        Target::Mount(mount) => format!("Encrypted volume {} at {mount}", volume.name),
        Target::Swap => format!("Encrypted volume {}, swap space", volume.name),
    };
    let mut unit = vec![
        Entry::new("Description", Value::Text(description)),
        Entry::new("SourcePath", Value::Text(volume.source_path.clone())),
    ];
    if volume.key.needs_network() {
        let target = || Value::Units(vec![UnitName::new("network-online.target").expect("a unit name")]);
        unit.push(Entry::new("Wants", target()).because("The key comes over the network."));
        unit.push(Entry::new("After", target()));
    }
    let above = volume.target.mount().map(|mount| parent(mount.as_str()));
    let mut service = Vec::new();
    if let Some(above) = &above {
        service.push(
            Entry::new("ReadWritePaths", Value::Paths(vec![format!("-{above}")]))
                .because("The mount point is made there, and kept unwritable while the volume is locked."),
        );
    }
    let mounts_for = |file: Option<&str>| {
        let reason = match (&above, file) {
            (Some(_), Some(_)) => "The file systems that hold the mount point and the backing file.",
            (Some(_), None) => "The file system that holds the mount point.",
            (None, _) => "The file system that holds the backing file.",
        };
        let paths: Vec<String> = above.iter().cloned().chain(file.map(parent)).collect();
        (!paths.is_empty()).then(|| Entry::new("RequiresMountsFor", Value::Paths(paths)).because(reason))
    };
    match &volume.backing {
        Backing::File { path, .. } => {
            unit.extend(mounts_for(Some(path)));
            service.push(
                Entry::new("ReadWritePaths", Value::Paths(vec![format!("-{}", parent(path))]))
                    .because("The directory of the backing file."),
            );
        }
        Backing::Device { path } => {
            let device = || Value::Words(vec![format!("{}.device", escape_path(path))]);
            unit.extend(mounts_for(None));
            unit.push(
                Entry::new("Wants", device()).because("The backing device; when it never comes, the service says so."),
            );
            unit.push(Entry::new("After", device()));
            service.push(
                Entry::new("DeviceAllow", Value::DeviceAccess(path.clone(), "rw")).because("The backing device."),
            );
            service
                .extend(disk_access("Disks of every kind: systemd passes over a device that comes after the service."));
        }
        Backing::Match { layout, .. } => {
            unit.extend(mounts_for(None));
            service.extend(disk_access("Disks of every kind: which of them match shows only when they are there."));
            if *layout != Layout::Single {
                service.push(
                    Entry::new("RuntimeDirectory", Value::Paths(vec!["lvm".to_owned(), "lock/lvm".to_owned()]))
                        .because("LVM's own, with its locks; all of LVM meets there."),
                );
            }
        }
    }
    UnitFile {
        path: service_drop_in_path(&volume.name),
        sections: [Section { name: "Unit", entries: unit }, Section { name: "Service", entries: service }].into(),
    }
}

/// Access to disks that are known only when they are there.
fn disk_access(reason: &'static str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = DISK_CLASSES
        .iter()
        .map(|class| Entry::new("DeviceAllow", Value::DeviceAccess((*class).to_owned(), "rw")))
        .collect();
    entries[0].reason = Some(reason);
    entries
}

fn refused_drop_in(name: &VolumeName, refused: &Refused) -> UnitFile {
    let why = refused.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
    UnitFile {
        path: service_drop_in_path(name),
        sections: vec![Section {
            name: "Unit",
            entries: vec![
                Entry::new("Description", Value::Text(format!("Encrypted volume {name}, refused{why}"))),
                Entry::new("SourcePath", Value::Text(refused.source_path.clone())),
            ],
        }],
    }
}

fn plan_dependents(plan: &mut UnitPlan, name: &VolumeName, target: Option<&Target>, consumers: &[UnitName]) {
    for consumer in consumers {
        let mut after = vec![name.service()];
        let mut entries = vec![Entry::new("Requires", Value::Units(vec![name.service()]))];
        if let Some(target) = target {
            let unit = target.unit(name);
            entries.push(Entry::new("BindsTo", Value::Units(vec![unit.clone()])).because(match target {
                Target::Mount(_) => "When the mount goes away behind systemd's back, so do these.",
                Target::Swap => "When the swap space goes away behind systemd's back, so do these.",
            }));
            after.push(unit);
        }
        entries.push(Entry::new("After", Value::Units(after)));
        plan.files.push(UnitFile {
            path: format!("{consumer}.d/50-secretfs-{name}.conf"),
            sections: vec![Section { name: "Unit", entries }],
        });
    }
}

fn plan_boot(plan: &mut UnitPlan, name: &VolumeName, auto: bool) {
    if auto {
        plan.links.push(Link { path: format!("{BOOT_TARGET}.wants/{}", name.service()), target: TEMPLATE.to_owned() });
    }
}

fn service_drop_in_path(name: &VolumeName) -> String {
    format!("{}.d/50-volume.conf", name.service())
}

/// The directory that holds `path`, which is absolute and normalised.
fn parent(path: &str) -> String {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/".to_owned(),
        Some((above, _)) => above.to_owned(),
    }
}
