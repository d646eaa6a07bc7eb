//! What a volume was made of when it was last up, and what a start finds instead.

use serde::{Deserialize, Serialize};

use crate::cause::{Cause, Failure};
use crate::config::Lifecycle;
use crate::machine::Contents;

/// The memory of a claim: written when a volume is up and verified, read at its next start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    /// The machine that the volume was up on (machine-id(5)): a copy of the root disk is another machine.
    pub machine_id: String,
    /// The EC2 instance that it was up on, if the firmware tells: an image keeps its machine-id in more cases than it should.
    #[serde(default)]
    pub instance_id: Option<String>,
    /// The boot that it was up in.
    pub boot_id: String,
    /// Whether its contents were to be kept.
    pub lifecycle: Lifecycle,
    /// Its LUKS header.
    pub luks_uuid: String,
    /// What it lay on: a path, or the identities of disks.
    pub members: Vec<String>,
}

/// The machine that a claim is looked at on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Host {
    /// Its machine-id(5).
    pub machine_id: String,
    /// The EC2 instance it is, if the firmware tells.
    #[serde(default)]
    pub instance_id: Option<String>,
}

impl Record {
    /// Whether the claim was made on this machine, and not on one that its root disk was copied from.
    pub fn is_of(&self, host: &Host) -> bool {
        let other_instance = matches!((&self.instance_id, &host.instance_id), (Some(was), Some(is)) if was != is);
        self.machine_id == host.machine_id && !other_instance
    }
}

/// What a start finds.
#[derive(Debug, Clone, Copy)]
pub struct Present<'a> {
    /// This machine.
    pub host: &'a Host,
    /// Whether the contents are to be kept.
    pub lifecycle: Lifecycle,
    /// What the volume lies on now.
    pub members: &'a [String],
    /// What is on it.
    pub contents: &'a Contents,
    /// The uuid of the LUKS header, if there is one.
    pub luks_uuid: Option<&'a str>,
}

/// How what is there compares with what was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// This machine never had the volume up.
    FirstTime,
    /// As before.
    SameDevices,
    /// An ephemeral volume whose disks are blank, as instance stores are after a stop and a start of the instance.
    NewBlankStore {
        /// The disks that were not there before.
        new: Vec<String>,
    },
    /// The volume is told by its header, or is ephemeral, and lies on other disks than before.
    MembersChanged {
        /// The disks that are gone.
        missing: Vec<String>,
        /// The disks that were not there before.
        new: Vec<String>,
    },
    /// A volume that is to be kept was there, and its backing is blank.
    HeaderGone {
        /// The header it had.
        luks_uuid: String,
    },
    /// A volume that is to be kept was there, and its backing has another header.
    OtherHeader {
        /// The header it had.
        was: String,
        /// The header that is there.
        now: String,
    },
    /// A volume that is to be kept was up, and its header says that its format was not finished.
    HeaderUnfinished,
    /// The volume was to be kept until now, and would be overwritten from now on.
    WasKept,
}

/// Compares what was with what is.
pub fn compare(record: Option<&Record>, present: Present<'_>) -> Standing {
    let Some(record) = record.filter(|record| record.is_of(present.host)) else {
        return Standing::FirstTime;
    };
    let blank = *present.contents == Contents::Blank;
    match (record.lifecycle, present.lifecycle) {
        (Lifecycle::Persistent, Lifecycle::Persistent) => match (present.contents, present.luks_uuid) {
            (Contents::Blank | Contents::Begun, _) => {
                return Standing::HeaderGone { luks_uuid: record.luks_uuid.clone() };
            }
            (Contents::Luks { .. }, Some(now)) if now != record.luks_uuid => {
                return Standing::OtherHeader { was: record.luks_uuid.clone(), now: now.to_owned() };
            }
            (Contents::Luks { unfinished: true, .. }, _) => return Standing::HeaderUnfinished,
            _ => {}
        },
        (Lifecycle::Persistent, Lifecycle::Ephemeral) if !blank => return Standing::WasKept,
        // What an ephemeral volume had is of no value.
        (Lifecycle::Ephemeral, Lifecycle::Persistent) => return Standing::FirstTime,
        _ => {}
    }
    let without = |all: &[String], some: &[String]| -> Vec<String> {
        all.iter().filter(|member| !some.contains(member)).cloned().collect()
    };
    let (missing, new) = (without(&record.members, present.members), without(present.members, &record.members));
    match (missing.is_empty() && new.is_empty(), blank) {
        (_, true) => Standing::NewBlankStore { new },
        (true, false) => Standing::SameDevices,
        (false, false) => Standing::MembersChanged { missing, new },
    }
}

impl Standing {
    /// Why the volume must not be touched, if it must not. Whether what is there may be formatted is another question.
    pub fn refusal(&self) -> Option<Failure> {
        Some(match self {
            Self::FirstTime | Self::SameDevices | Self::NewBlankStore { .. } | Self::MembersChanged { .. } => {
                return None;
            }
            Self::HeaderGone { luks_uuid } => Failure::new(
                Cause::HeaderGone,
                format!("it was a volume with the LUKS header {luks_uuid}, and its backing is absent or blank now"),
            ),
            Self::OtherHeader { was, now } => {
                Failure::new(Cause::ClaimChanged, format!("its LUKS header was {was}, and {now} is there now"))
            }
            Self::HeaderUnfinished => Failure::new(
                Cause::ClaimChanged,
                "its LUKS header says that the format was not finished, but it was up with that header",
            ),
            Self::WasKept => Failure::new(
                Cause::ClaimChanged,
                "it was persistent when it was last up, and as an ephemeral volume it would be overwritten",
            ),
        })
    }

    /// Whether somebody should see it, although the start goes on.
    pub fn is_remarkable(&self) -> bool {
        matches!(self, Self::NewBlankStore { .. } | Self::MembersChanged { .. })
    }

    /// What there is to say of it.
    pub fn words(&self) -> String {
        let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        match self {
            Self::FirstTime => "this machine has not had it up before".to_owned(),
            Self::SameDevices => "it lies on the same devices as before".to_owned(),
            Self::NewBlankStore { new } if new.is_empty() => {
                "its disks are the same and blank, as after a stop and start of the instance".to_owned()
            }
            Self::NewBlankStore { new } => {
                format!("its disks are new and blank, as after a stop and start of the instance: {}", list(new))
            }
            Self::MembersChanged { missing, new } => {
                format!("it lies on other devices than before; gone: {}; new: {}", list(missing), list(new))
            }
            Self::HeaderGone { .. } | Self::OtherHeader { .. } | Self::HeaderUnfinished | Self::WasKept => {
                self.refusal().map_or_else(String::new, |failure| failure.detail)
            }
        }
    }
}
