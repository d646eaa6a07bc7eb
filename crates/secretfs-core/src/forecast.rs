//! What a start would do, told beforehand by the same decisions.

use serde::Serialize;

use crate::cause::{Cause, Failure};
use crate::chain::Link;
use crate::claim::Standing;
use crate::config::{Backing, Target, Volume};
use crate::machine::{Contents, Opening, decide_opening};
use crate::progress::size;

/// What was found, by looking only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// What is mapped under the volume's name.
    pub mapping: Link,
    /// What is mounted on its mount point.
    pub mount: Link,
    /// What is on its backing; nothing when the backing is not there.
    pub contents: Option<Contents>,
    /// Who uses the backing device.
    pub users: Option<String>,
    /// Whether this boot has formatted it already.
    pub formatted_this_boot: bool,
    /// Whether its header says how far the zeroing came that a format was interrupted in.
    pub wipe_begun: bool,
    /// The size in bytes of the backing file that is there.
    pub file_size: Option<u64>,
    /// How the backing compares with what the volume was before, if there is a backing to compare.
    pub standing: Option<Standing>,
    /// What there is to say of a backing made of several disks.
    pub disks: Disks,
}

/// Several disks as one device, as far as looking shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disks {
    /// There is nothing to make or activate.
    Settled,
    /// They could be made one device.
    Makeable(String),
    /// They are one device, and what is on it shows only when it is activated.
    Inactive(String),
    /// Not all are there.
    Missing(Failure),
}

/// What a start would do with the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deed {
    /// Verify it and leave it as it is.
    TakeOver,
    /// Mount what is open already, or use it as swap space.
    Mount,
    /// Make the backing file, and format it.
    Create,
    /// Make one device of several disks, and format it.
    Combine,
    /// Format the backing.
    Format,
    /// Unlock what is there.
    Unlock,
    /// Unlock what was interrupted while it was zeroed, and go on with that.
    Resume,
    /// Activate the device that several disks make, and go by what is on it.
    Activate,
    /// Wait for the backing device.
    Wait,
    /// Touch nothing.
    Refuse,
}

/// A start, told beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forecast {
    /// What would be done.
    pub deed: Deed,
    /// Why that.
    pub why: String,
    /// How the backing compares with what the volume was before, if that was looked at.
    pub claim: Option<String>,
    /// Why nothing would be done, for [`Deed::Refuse`] and [`Deed::Wait`].
    pub failure: Option<Failure>,
}

/// Tells what a start of `volume` would do.
pub fn forecast(volume: &Volume, findings: Findings) -> Forecast {
    let claim = findings.standing.as_ref().map(Standing::words);
    let tell = |deed, why: &str| Forecast { deed, why: why.to_owned(), claim: claim.clone(), failure: None };
    let stop = |deed, failure: Failure| Forecast {
        deed,
        why: failure.to_string(),
        claim: claim.clone(),
        failure: Some(failure),
    };
    match (findings.mapping, findings.mount) {
        (_, Link::Foreign(what)) => return stop(Deed::Refuse, Failure::new(Cause::MountPointBusy, what)),
        (Link::Foreign(what), _) => return stop(Deed::Refuse, Failure::new(Cause::ChainBroken, what)),
        (Link::Ours, mount) => {
            let what = match volume.target {
                Target::Mount(_) => "mounted",
                Target::Swap => "in use as swap space",
            };
            return match mount {
                Link::Ours => tell(Deed::TakeOver, &format!("it is unlocked and {what}")),
                _ => tell(Deed::Mount, &format!("it is unlocked and not {what}")),
            };
        }
        (Link::Absent, _) => {}
    }
    if let Some(users) = findings.users {
        return stop(Deed::Refuse, Failure::new(Cause::DeviceBusy, users));
    }
    if let Some(failure) = findings.standing.as_ref().and_then(Standing::refusal) {
        return stop(Deed::Refuse, failure);
    }
    match findings.disks {
        Disks::Settled => {}
        Disks::Makeable(disks) => return tell(Deed::Combine, &format!("one device of {disks}")),
        Disks::Inactive(disks) => return tell(Deed::Activate, &format!("they are one device: {disks}")),
        Disks::Missing(failure) => return stop(Deed::Wait, failure),
    }
    let contents = match (findings.contents, &volume.backing) {
        (Some(contents), _) => contents,
        (None, Backing::File { .. }) => return tell(Deed::Create, "there is no such file yet"),
        (None, backing) => {
            return stop(Deed::Wait, Failure::new(Cause::BackingMissing, format!("{backing} is not there")));
        }
    };
    let why = match &contents {
        Contents::Blank => "it is proven blank",
        Contents::Begun | Contents::Luks { ours: true, unfinished: true } => "its last format was not finished",
        Contents::Luks { .. } if findings.formatted_this_boot => "this boot has formatted it",
        Contents::Luks { ours: true, .. } => "it carries a volume of this name",
        Contents::Luks { ours: false, .. } => "it carries a LUKS header that was made elsewhere",
        Contents::Signature(_) | Contents::Unknown { .. } => "",
    };
    match decide_opening(volume.lifecycle, &contents, findings.formatted_this_boot, findings.wipe_begun) {
        Ok(Opening::Format) => tell(Deed::Format, &format!("it is {}, and {why}", volume.lifecycle.as_str())),
        Ok(Opening::Resume) => tell(Deed::Resume, "its last format was interrupted while it was zeroed"),
        Ok(Opening::Unlock) => {
            let grows = match (findings.file_size, &volume.backing) {
                (Some(from), Backing::File { size: to, .. }) if from < *to => {
                    format!("; it grows from {} to {}", size(from), size(*to))
                }
                _ => String::new(),
            };
            tell(Deed::Unlock, &format!("it is {}, and {why}{grows}", volume.lifecycle.as_str()))
        }
        Err(failure) => stop(Deed::Refuse, failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Source};

    fn volume(lifecycle: &str, backing: &str) -> Volume {
        let text = format!(
            "[volume.v]\nmount = \"/mnt/v\"\nlifecycle = \"{lifecycle}\"\nbacking = {backing}\n\
             key = {{ source = \"s3+kms\", bucket = \"b\", object = \"o\", kms-key = \"k\" }}\n"
        );
        let config = Config::parse(&[Source { path: "test.toml".to_owned(), text }]);
        config.volumes.into_values().next().expect("the text above is a volume")
    }

    fn found(contents: Option<Contents>) -> Findings {
        Findings {
            mapping: Link::Absent,
            mount: Link::Absent,
            contents,
            users: None,
            formatted_this_boot: false,
            wipe_begun: false,
            file_size: None,
            standing: Some(Standing::FirstTime),
            disks: Disks::Settled,
        }
    }

    #[test]
    fn swap_space_is_in_use_or_not() {
        let text = "[volume.v]\nbacking = { device = \"/dev/disk/by-id/v\" }\nfilesystem = { type = \"swap\" }\n\
                    key = { source = \"s3+kms\", bucket = \"b\", object = \"o\", kms-key = \"k\" }\n";
        let config = Config::parse(&[Source { path: "test.toml".to_owned(), text: text.to_owned() }]);
        let volume = config.volumes.into_values().next().expect("the text above is a volume");
        let told = |mount| {
            let forecast = forecast(&volume, Findings { mapping: Link::Ours, mount, ..found(None) });
            (forecast.deed, forecast.why)
        };
        assert_eq!(told(Link::Ours), (Deed::TakeOver, "it is unlocked and in use as swap space".to_owned()));
        assert_eq!(told(Link::Absent), (Deed::Mount, "it is unlocked and not in use as swap space".to_owned()));
    }

    #[test]
    fn each_deed() {
        let file = volume("persistent", "{ file = \"/srv/v.img\", size = \"64MiB\" }");
        let disk = volume("ephemeral", "{ device = \"/dev/disk/by-id/v\" }");
        let ours = Contents::Luks { ours: true, unfinished: false };
        let interrupted = Contents::Luks { ours: true, unfinished: true };
        let busy = Findings { users: Some("is mounted on /srv".to_owned()), ..found(Some(ours.clone())) };
        let up = |mount| Findings { mapping: Link::Ours, mount, ..found(None) };
        let other = Link::Foreign("tmpfs".to_owned());
        let signature = Contents::Signature("xfs".to_owned());
        let gone = Standing::HeaderGone { luks_uuid: "uuid".to_owned() };
        let missing = Disks::Missing(Failure::new(Cause::BackingMissing, "1 of 2 disks"));
        let with = |disks| Findings { disks, ..found(None) };
        for (volume, findings, deed, cause) in [
            (&file, found(None), Deed::Create, None),
            (&file, found(Some(Contents::Blank)), Deed::Format, None),
            (&file, found(Some(ours.clone())), Deed::Unlock, None),
            (&file, up(Link::Ours), Deed::TakeOver, None),
            (&file, up(Link::Absent), Deed::Mount, None),
            (&file, up(other.clone()), Deed::Refuse, Some(Cause::MountPointBusy)),
            (&file, Findings { mapping: other, ..found(None) }, Deed::Refuse, Some(Cause::ChainBroken)),
            (&file, found(Some(signature)), Deed::Refuse, Some(Cause::ForeignSignature)),
            (&disk, found(None), Deed::Wait, Some(Cause::BackingMissing)),
            (&disk, found(Some(Contents::Unknown { offset: 7 })), Deed::Refuse, Some(Cause::NotBlank)),
            (&disk, found(Some(ours.clone())), Deed::Format, None),
            (&disk, Findings { formatted_this_boot: true, ..found(Some(ours)) }, Deed::Unlock, None),
            (&file, Findings { standing: Some(gone), ..found(None) }, Deed::Refuse, Some(Cause::HeaderGone)),
            (&disk, Findings { wipe_begun: true, ..found(Some(interrupted.clone())) }, Deed::Resume, None),
            (&disk, found(Some(interrupted)), Deed::Format, None),
            (&disk, with(missing), Deed::Wait, Some(Cause::BackingMissing)),
            (&disk, with(Disks::Makeable("two".to_owned())), Deed::Combine, None),
            (&disk, with(Disks::Inactive("two".to_owned())), Deed::Activate, None),
            (&disk, busy, Deed::Refuse, Some(Cause::DeviceBusy)),
        ] {
            let forecast = forecast(volume, findings.clone());
            let told = (forecast.deed, forecast.failure.map(|failure| failure.cause));
            assert_eq!(told, (deed, cause), "{findings:?}");
            assert!(!forecast.why.is_empty(), "{findings:?}");
        }
    }

    #[test]
    fn growth_is_told() {
        let file = volume("persistent", "{ file = \"/srv/v.img\", size = \"64MiB\" }");
        let ours = Contents::Luks { ours: true, unfinished: false };
        let told = |file_size| forecast(&file, Findings { file_size, ..found(Some(ours.clone())) }).why;
        assert!(told(Some(48 << 20)).ends_with("; it grows from 48.0 MiB to 64.0 MiB"), "{}", told(Some(48 << 20)));
        assert_eq!(told(Some(64 << 20)), told(None));
    }
}
