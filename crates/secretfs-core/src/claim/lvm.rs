//! Several disks as one device, by LVM: what its reports say, and what is to be done.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Member, describe};
use crate::cause::{Cause, Failure};
use crate::config::Layout;
use crate::name::VolumeName;

/// What marks a volume group as made by secretfs.
pub const TAG: &str = "secretfs";

/// The one logical volume in it.
pub const DATA: &str = "data";

/// A physical volume, as `pvs` reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct PhysicalVolume {
    /// Its device's path; a missing one has none.
    pub pv_name: String,
    /// Its uuid.
    pub pv_uuid: String,
    /// The volume group it belongs to, or nothing.
    pub vg_name: String,
    /// That group's uuid.
    pub vg_uuid: String,
    /// That group's tags, joined by commas.
    pub vg_tags: String,
    /// `missing`, or nothing.
    pub pv_missing: String,
}

/// A segment of a logical volume, as `lvs --segments` reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Segment {
    /// The logical volume.
    pub lv_name: String,
    /// `linear` or `striped`, for us.
    pub segtype: String,
    /// Over how many disks.
    pub stripes: String,
    /// Bytes of a stripe; 0 for a linear one.
    pub stripe_size: String,
}

/// The columns of [`PhysicalVolume`].
pub const PV_COLUMNS: &str = "pv_name,pv_uuid,vg_name,vg_uuid,vg_tags,pv_missing";

/// The columns of [`Segment`].
pub const SEGMENT_COLUMNS: &str = "lv_name,segtype,stripes,stripe_size";

/// The rows of a report: `{"report": [{"pv": [{…}, …]}]}`.
pub fn parse_report<T: DeserializeOwned>(text: &str, kind: &str) -> Result<Vec<T>, Failure> {
    let unreadable = |why: String| Failure::new(Cause::LvmFailed, format!("its report cannot be read: {why}"));
    let mut report: serde_json::Value = serde_json::from_str(text).map_err(|error| unreadable(error.to_string()))?;
    let rows = report["report"][0][kind].take();
    serde_json::from_value(rows).map_err(|error| unreadable(error.to_string()))
}

/// The volume group of a volume.
pub fn group(volume: &VolumeName) -> String {
    volume.mapper().to_string()
}

/// The name under which device-mapper has the group's logical volume: hyphens of the parts are doubled.
pub fn mapper(volume: &VolumeName) -> String {
    format!("{}-{DATA}", group(volume).replace('-', "--"))
}

/// What is to be done to have the logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Make the volume group and the logical volume.
    Create {
        /// The disks that have to be proven blank first; the others were begun by a creation that was interrupted.
        blank: Vec<Member>,
        /// Those others.
        begun: Vec<Member>,
    },
    /// Make the logical volume in the volume group that is there.
    CreateData,
    /// Activate what is there.
    Activate,
}

/// Decides from LVM's reports about `members`, and nothing but them.
///
/// `begun` are the identities of disks that an interrupted creation had proven blank and may have written to.
pub fn decide(
    volume: &VolumeName,
    layout: Layout,
    members: &[Member],
    begun: &[String],
    physical: &[PhysicalVolume],
    segments: &[Segment],
) -> Result<Plan, Failure> {
    let group = group(volume);
    let mismatch = |detail: String| Failure::new(Cause::BackingMismatch, detail);
    let ours: Vec<&PhysicalVolume> = physical.iter().filter(|row| row.vg_name == group).collect();
    if ours.is_empty() {
        return create(members, begun, physical);
    }
    if ours.iter().any(|row| !row.vg_tags.split(',').any(|tag| tag == TAG)) {
        let detail =
            format!("the volume group {group} is there and does not have the tag {TAG}; secretfs did not make it");
        return Err(Failure::new(Cause::ForeignSignature, detail));
    }
    let uuids: BTreeSet<&str> = ours.iter().map(|row| row.vg_uuid.as_str()).collect();
    if uuids.len() > 1 {
        let uuids: Vec<&str> = uuids.into_iter().collect();
        return Err(mismatch(format!("two volume groups are called {group}: {}", uuids.join(", "))));
    }
    let missing: Vec<&str> =
        ours.iter().filter(|row| !row.pv_missing.is_empty()).map(|row| row.pv_uuid.as_str()).collect();
    if !missing.is_empty() {
        let there: Vec<Member> =
            members.iter().filter(|member| ours.iter().any(|row| row.pv_name == member.path)).cloned().collect();
        let detail = format!(
            "the volume group {group} lacks the physical volume {}; of it are there: {}",
            missing.join(", "),
            describe(&there)
        );
        return Err(Failure::new(Cause::BackingMissing, detail));
    }
    let others: Vec<Member> =
        members.iter().filter(|member| !ours.iter().any(|row| row.pv_name == member.path)).cloned().collect();
    if !others.is_empty() {
        let detail = format!("these match and are not in the volume group {group}: {}", describe(&others));
        return Err(mismatch(detail));
    }
    if segments.is_empty() {
        return Ok(Plan::CreateData);
    }
    if let Some(other) = segments.iter().find(|segment| segment.lv_name != DATA) {
        return Err(mismatch(format!(
            "the volume group {group} has a logical volume {:?} of somebody else",
            other.lv_name
        )));
    }
    let wanted = |segment: &&Segment| match layout {
        Layout::Striped { stripe_size } => {
            segment.segtype == "striped"
                && segment.stripes == members.len().to_string()
                && segment.stripe_size == stripe_size.to_string()
        }
        Layout::Single | Layout::Linear => segment.segtype == "linear",
    };
    match segments.iter().find(|segment| !wanted(segment)) {
        None => Ok(Plan::Activate),
        Some(Segment { segtype, stripes, stripe_size, .. }) => Err(mismatch(format!(
            "the volume is {segtype} over {stripes} disks with stripes of {stripe_size} bytes; the configuration says {}{}",
            layout.as_str(),
            match layout {
                Layout::Striped { stripe_size } =>
                    format!(" over {} with stripes of {stripe_size} bytes", members.len()),
                Layout::Single | Layout::Linear => String::new(),
            }
        ))),
    }
}

/// No group of ours is there: nothing but blank disks, and those of an interrupted creation, may become one.
fn create(members: &[Member], begun: &[String], physical: &[PhysicalVolume]) -> Result<Plan, Failure> {
    let mut blank = Vec::new();
    let mut again = Vec::new();
    for member in members {
        match physical.iter().find(|row| row.pv_name == member.path) {
            None => blank.push(member.clone()),
            Some(row) if row.vg_name.is_empty() && begun.contains(&member.identity) => again.push(member.clone()),
            Some(row) => {
                let whose = match row.vg_name.as_str() {
                    "" => "no volume group".to_owned(),
                    name => format!("the volume group {name}"),
                };
                let detail = format!("{} is a physical volume of {whose}", describe(std::slice::from_ref(member)));
                return Err(Failure::new(Cause::ForeignSignature, detail));
            }
        }
    }
    Ok(Plan::Create { blank, begun: again })
}
