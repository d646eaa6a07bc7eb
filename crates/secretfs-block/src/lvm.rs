//! Several disks as one device, by the distribution's LVM.

use std::fs;
use std::path::Path;

use secretfs_core::cause::{Cause, Failure};
use secretfs_core::claim::lvm::{
    DATA, PV_COLUMNS, PhysicalVolume, Plan, SEGMENT_COLUMNS, Segment, TAG, decide, group, mapper, parse_report,
};
use secretfs_core::claim::{Member, describe};
use secretfs_core::config::Layout;
use secretfs_core::name::VolumeName;

use crate::claim::Claims;
use crate::device::{self, DevicePath};
use crate::inspect::{self, Contents};
use crate::mapping;
use crate::tool::{self, ToolError};

/// Copies of its metadata below `/etc/lvm` would be out of the sandbox's reach; every disk has a copy.
const CONFIG: &str = "backup { backup = 0 archive = 0 }";

/// LVM, and how it is told to behave.
#[derive(Debug, Clone, Default)]
pub struct Lvm {
    /// Further settings, in the form of lvm.conf(5).
    config: String,
    /// Whether it is to keep away from device-mapper, so that nothing is activated.
    detached: bool,
}

impl Lvm {
    /// LVM without device-mapper and with its locks in another directory; for tests on machines that have none.
    pub fn detached(locks: &Path) -> Self {
        Self { config: format!("global {{ locking_dir = \"{}\" }}", locks.display()), detached: true }
    }

    /// Looks at what LVM knows of `members`, and at nothing but them.
    pub fn examine(
        &self,
        volume: &VolumeName,
        layout: Layout,
        members: &[Member],
        begun: &[String],
    ) -> Result<Plan, Failure> {
        let report = self.run("pvs", members, &["--reportformat", "json", "--options", PV_COLUMNS])?;
        let mut physical: Vec<PhysicalVolume> = parse_report(&report, "pv")?;
        for row in &mut physical {
            // LVM may prefer one of a device's other names.
            if let Ok(path) = fs::canonicalize(&row.pv_name) {
                row.pv_name = path.to_string_lossy().into_owned();
            }
        }
        let group = group(volume);
        let segments: Vec<Segment> = if physical.iter().any(|row| row.vg_name == group) {
            let options = ["--segments", "--units", "b", "--nosuffix", "--reportformat", "json", "--all", "--options"];
            let report = self.run("lvs", members, &[&options, [SEGMENT_COLUMNS, &group].as_slice()].concat())?;
            parse_report(&report, "seg")?
        } else {
            Vec::new()
        };
        decide(volume, layout, members, begun, &physical, &segments)
    }

    /// Has the logical volume there and active. Only what is proven blank is made part of it.
    pub fn attach(
        &self,
        volume: &VolumeName,
        layout: Layout,
        members: &[Member],
        claims: &Claims,
    ) -> Result<(), Failure> {
        let plan = self.examine(volume, layout, members, &claims.begun(volume)?)?;
        if let Plan::Create { blank, .. } = &plan {
            for member in blank {
                prove_blank(member)?;
            }
            let identities: Vec<String> = members.iter().map(|member| member.identity.clone()).collect();
            claims.begin(volume, &identities)?;
            self.create_group(volume, members)?;
        }
        if plan != Plan::Activate {
            self.create_data(volume, layout, members)?;
        }
        if !self.detached {
            let options = ["--activate", "y", &group(volume)];
            self.run("vgchange", members, &options)?;
        }
        claims.end(volume)
    }

    fn create_group(&self, volume: &VolumeName, members: &[Member]) -> Result<(), Failure> {
        let group = group(volume);
        // Its own service activates it, when its turn has come.
        let mut options = vec!["--setautoactivation", "n", "--addtag", TAG, &group];
        options.extend(members.iter().map(|member| member.path.as_str()));
        self.run("vgcreate", members, &options).map(drop)
    }

    fn create_data(&self, volume: &VolumeName, layout: Layout, members: &[Member]) -> Result<(), Failure> {
        let (stripes, size, group) = (members.len().to_string(), stripe_size(layout), group(volume));
        // What is on it is looked at before it is used, and LVM is to change nothing of that.
        let mut options = vec!["--activate", "n", "--zero", "n", "--wipesignatures", "n", "--extents", "100%FREE"];
        match layout {
            Layout::Striped { .. } => {
                options.extend(["--type", "striped", "--stripes", &stripes, "--stripesize", &size]);
            }
            Layout::Single | Layout::Linear => options.extend(["--type", "linear"]),
        }
        options.extend(["--name", DATA, &group]);
        self.run("lvcreate", members, &options).map(drop)
    }

    /// Deactivates the logical volume.
    pub fn detach(&self, volume: &VolumeName, members: &[Member]) -> Result<(), Failure> {
        if active(volume)?.is_none() {
            return Ok(());
        }
        let (group, mapper) = (group(volume), mapper(volume));
        let Err(failure) = self.run("vgchange", members, &["--activate", "n", &group]) else { return Ok(()) };
        // Without its disks LVM does not know the group any more; device-mapper still does.
        match tool::run("dmsetup", &["remove", "--retry", &mapper]) {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::new(failure.cause, format!("{}; {}", failure.detail, crate::chain(&error)))),
        }
    }

    fn run(&self, command: &str, members: &[Member], options: &[&str]) -> Result<String, Failure> {
        let devices = members.iter().map(|member| member.path.as_str()).collect::<Vec<_>>().join(",");
        let config = format!("{CONFIG} {}", self.config);
        let mut arguments = vec![command, "--config", &config];
        if !devices.is_empty() {
            arguments.extend(["--devices", &devices]);
        }
        if self.detached {
            arguments.extend(["--driverloaded", "n"]);
        }
        arguments.extend(options);
        tool::run("lvm", &arguments).map_err(|error| {
            let words = match &error {
                ToolError::Start { .. } => crate::chain(&error),
                ToolError::Failed { .. } => format!("{command}: {}", crate::chain(&error)),
            };
            Failure::new(Cause::LvmFailed, words)
        })
    }
}

/// In the form that `--stripesize` takes.
fn stripe_size(layout: Layout) -> String {
    match layout {
        Layout::Striped { stripe_size } => format!("{stripe_size}b"),
        Layout::Single | Layout::Linear => String::new(),
    }
}

/// The volume's logical volume, if it is active.
pub fn active(volume: &VolumeName) -> Result<Option<DevicePath>, Failure> {
    let name = mapper(volume);
    let Some(uuid) = mapping::uuid(&name).map_err(|error| error.failure())? else { return Ok(None) };
    if !uuid.starts_with("LVM-") {
        return Err(Failure::new(Cause::ChainBroken, format!("{name} is mapped and no logical volume: {uuid:?}")));
    }
    device::resolve(&Path::new("/dev/mapper").join(&name)).map(Some).map_err(|error| error.failure())
}

/// Fails unless the disk is nobody's and blank.
pub(crate) fn prove_blank(member: &Member) -> Result<(), Failure> {
    let device = device::resolve(Path::new(&member.path)).map_err(|error| error.failure())?;
    let facts = device::facts(&device).map_err(|error| error.failure())?;
    if let Some(users) = facts.users() {
        return Err(Failure::new(Cause::DeviceBusy, format!("{} {users}", describe(std::slice::from_ref(member)))));
    }
    match inspect::inspect(&device).map_err(|error| error.failure())? {
        Contents::Blank => Ok(()),
        Contents::Luks(header) => Err(Failure::new(
            Cause::ForeignSignature,
            format!("{device} carries the LUKS{} header {}", header.version, header.uuid),
        )),
        other => Err(other.refusal(&device).unwrap_or_else(|| Failure::new(Cause::NotBlank, device.as_str()))),
    }
}

#[cfg(test)]
mod tests;
