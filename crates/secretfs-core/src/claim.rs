//! Which disks a volume claims: by what they are, and never by a guess.

pub mod lvm;
mod record;

use std::collections::BTreeSet;

pub use self::record::{Host, Present, Record, Standing, compare};
use crate::cause::{Cause, Failure};
use crate::config::DeviceMatch;

/// The model that EBS volumes have on Nitro instances; their serial number is the volume's id without its hyphen.
const EBS_MODEL: &str = "Amazon Elastic Block Store";

/// What is known of a whole disk without reading it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskFacts {
    /// What the kernel calls it now, such as `nvme1n1`.
    pub name: String,
    /// Its model, or nothing.
    pub model: String,
    /// Its serial number, or nothing.
    pub serial: String,
    /// Its world wide names, in whatever forms they are known.
    pub wwns: Vec<String>,
    /// Its names in `/dev/disk/by-id`.
    pub by_id: Vec<String>,
    /// Its number among the `NVMe` namespaces of one controller, which share a serial number.
    pub namespace: Option<u32>,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether udev has looked at it: before that, not all of this may be known.
    pub settled: bool,
}

impl DiskFacts {
    /// What tells it from every other disk, on this machine and in all boots.
    pub fn identity(&self) -> Option<String> {
        let serial = (!self.serial.is_empty()).then(|| match self.namespace {
            Some(number @ 2..) => format!("{} {} namespace {number}", self.model, self.serial),
            _ => format!("{} {}", self.model, self.serial),
        });
        let identity = serial.or_else(|| self.wwns.first().cloned()).or_else(|| self.by_id.first().cloned())?;
        Some(identity.trim().to_owned())
    }

    /// Its node.
    pub fn path(&self) -> String {
        format!("/dev/{}", self.name)
    }

    fn ebs_volume(&self) -> Option<String> {
        let digits = (self.model == EBS_MODEL).then_some(&self.serial)?.strip_prefix("vol")?;
        Some(format!("vol-{}", digits.trim_start_matches('-')))
    }

    /// Whether every condition holds.
    pub fn is(&self, wanted: &DeviceMatch) -> bool {
        let ebs_volume = self.ebs_volume();
        wanted.names().into_iter().all(|(key, patterns)| {
            let texts: Vec<&str> = match key {
                "model" => vec![&self.model],
                "serial" => vec![&self.serial],
                "by-id" => self.by_id.iter().map(String::as_str).collect(),
                "wwn" => self.wwns.iter().map(String::as_str).collect(),
                _ => ebs_volume.as_deref().into_iter().collect(),
            };
            patterns.is_empty() || patterns.iter().any(|pattern| texts.iter().any(|text| pattern.matches(text)))
        }) && wanted.min_size.is_none_or(|min| self.bytes >= min)
            && wanted.max_size.is_none_or(|max| self.bytes <= max)
    }
}

/// A disk that was chosen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// What it is.
    pub identity: String,
    /// Where it is, in this boot.
    pub path: String,
}

/// Chooses the disks that `wanted` means, in the order of what they are.
///
/// `known` are those that the volume had before: when all of them are there it is these, whatever else matches by now.
/// Otherwise as many must match as are wanted; too few may still come ([`Cause::BackingMissing`]), too many are refused.
pub fn choose(wanted: &DeviceMatch, disks: &[DiskFacts], known: &[String]) -> Result<Vec<Member>, Failure> {
    // A disk that the volume had needs no udev to be known again: a volume that is up must not be lost for want of it.
    let settled = |disk: &DiskFacts| disk.settled || disk.identity().is_some_and(|identity| known.contains(&identity));
    let (matching, unsettled): (Vec<&DiskFacts>, Vec<&DiskFacts>) =
        disks.iter().filter(|disk| disk.is(wanted) || !settled(disk)).partition(|disk| settled(disk));
    let mut members = Vec::new();
    for disk in &matching {
        let Some(identity) = disk.identity() else {
            let detail = format!("{} has no serial number and no world wide name to be known by again", disk.path());
            return Err(Failure::new(Cause::BackingAmbiguous, detail));
        };
        members.push(Member { identity, path: disk.path() });
    }
    members.sort();
    if let Some(twins) = members.windows(2).find(|pair| pair[0].identity == pair[1].identity) {
        let detail = format!("{} and {} both say that they are {}", twins[0].path, twins[1].path, twins[0].identity);
        return Err(Failure::new(Cause::BackingAmbiguous, detail));
    }
    if !known.is_empty() && wanted.count.is_none_or(|count| usize::try_from(count) == Ok(known.len())) {
        let again: Vec<Member> = members.iter().filter(|member| known.contains(&member.identity)).cloned().collect();
        if again.len() == known.len() {
            return Ok(again);
        }
    }
    let absent = absent(wanted, &matching, &members, known);
    let there = describe(&members);
    match usize::try_from(wanted.count.unwrap_or(2)).unwrap_or(usize::MAX) {
        least if members.len() < least || (!absent.is_empty() && wanted.listed().is_some()) => {
            let mut detail = format!("{} of {least} disks with {wanted}: {there}", members.len());
            if !absent.is_empty() {
                detail = format!("{detail}; missing: {}", absent.join(", "));
            }
            if !unsettled.is_empty() {
                let paths: Vec<String> = unsettled.iter().map(|disk| disk.path()).collect();
                detail = format!("{detail}; udev is not done with {}", paths.join(", "));
            }
            Err(Failure::new(Cause::BackingMissing, detail))
        }
        most if members.len() > most && wanted.count.is_some() => {
            let detail = format!("{} disks have {wanted}, {most} wanted: {there}", members.len());
            Err(Failure::new(Cause::BackingAmbiguous, detail))
        }
        _ => Ok(members),
    }
}

/// Which of the listed or of the known disks are not there.
fn absent(wanted: &DeviceMatch, matching: &[&DiskFacts], members: &[Member], known: &[String]) -> Vec<String> {
    if let Some((key, listed)) = wanted.listed() {
        let alone = |pattern| match key {
            "serial" => DeviceMatch { serial: vec![pattern], ..DeviceMatch::default() },
            "by-id" => DeviceMatch { by_id: vec![pattern], ..DeviceMatch::default() },
            "wwn" => DeviceMatch { wwn: vec![pattern], ..DeviceMatch::default() },
            _ => DeviceMatch { ebs_volume: vec![pattern], ..DeviceMatch::default() },
        };
        let is_absent = |one: &DeviceMatch| !matching.iter().any(|disk| disk.is(one));
        return listed.iter().cloned().map(alone).filter(is_absent).map(|one| one.to_string()).collect();
    }
    let there: BTreeSet<&str> = members.iter().map(|member| member.identity.as_str()).collect();
    known.iter().filter(|identity| !there.contains(identity.as_str())).cloned().collect()
}

/// `/dev/nvme1n1 (MODEL SERIAL), …`.
pub fn describe(members: &[Member]) -> String {
    if members.is_empty() {
        return "none".to_owned();
    }
    members.iter().map(|member| format!("{} ({})", member.path, member.identity)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
