//! The memory of claims, in [`STATE_DIR`]: what a volume was made of when it was last up.

use std::fs;
use std::path::{Path, PathBuf};

use secretfs_core::cause::{Cause, Failure};
use secretfs_core::claim::{Host, Present, Record, Standing, compare};
use secretfs_core::config::Volume;
use secretfs_core::machine::Contents;
use secretfs_core::name::VolumeName;
use secretfs_core::paths::STATE_DIR;

use crate::{Outcome, note};

const MACHINE_ID: &str = "/etc/machine-id";

/// Where EC2's Nitro hypervisor puts the instance id (Amazon EC2 User Guide, "Identify EC2 instances").
const INSTANCE_ID: &str = "/sys/class/dmi/id/board_asset_tag";

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Where the claims of all volumes are kept.
#[derive(Debug, Clone)]
pub struct Claims {
    directory: PathBuf,
}

impl Default for Claims {
    fn default() -> Self {
        Self { directory: STATE_DIR.into() }
    }
}

impl Claims {
    /// The claims below another directory.
    pub fn below(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// The volume's record. One that can't be read is no reason to take the volume for a new one.
    pub fn read(&self, volume: &VolumeName) -> Result<Option<Record>, Failure> {
        note::read(&self.record(volume), Cause::ClaimChanged)
    }

    /// Whether the volume is remembered, with this LUKS header, on this machine.
    pub fn knows(&self, volume: &VolumeName, luks_uuid: &str) -> Result<bool, Failure> {
        let host = host()?;
        Ok(self.read(volume)?.is_some_and(|record| record.is_of(&host) && record.luks_uuid == luks_uuid))
    }

    /// Remembers the volume as it is now.
    pub fn write(&self, volume: &Volume, luks_uuid: &str, members: &[String]) -> Result<Outcome, Failure> {
        let Host { machine_id, instance_id } = host()?;
        let record = Record {
            machine_id,
            instance_id,
            boot_id: id(BOOT_ID)?,
            lifecycle: volume.lifecycle,
            luks_uuid: luks_uuid.to_owned(),
            members: members.to_vec(),
        };
        if matches!(self.read(&volume.name), Ok(Some(known)) if known == record) {
            return Ok(Outcome::Unchanged);
        }
        note::write(&self.record(&volume.name), &record).map(|()| Outcome::Changed)
    }

    /// Compares what is there with what was.
    pub fn standing(
        &self,
        volume: &Volume,
        members: &[String],
        contents: &Contents,
        luks_uuid: Option<&str>,
    ) -> Result<Standing, Failure> {
        let record = self.read(&volume.name)?;
        let present = Present { host: &host()?, lifecycle: volume.lifecycle, members, contents, luks_uuid };
        Ok(compare(record.as_ref(), present))
    }

    /// The disks that the volume had on this machine, by what they are.
    pub fn known(&self, volume: &VolumeName) -> Result<Vec<String>, Failure> {
        let host = host()?;
        let record = self.read(volume)?.filter(|record| record.is_of(&host));
        Ok(record.map_or(Vec::new(), |record| record.members))
    }

    /// The disks that are proven blank and may have been written to since, by making one device of them.
    pub fn begun(&self, volume: &VolumeName) -> Result<Vec<String>, Failure> {
        note::read(&self.begun_path(volume), Cause::ClaimChanged).map(Option::unwrap_or_default)
    }

    /// Notes that these disks are proven blank and about to become one device.
    pub fn begin(&self, volume: &VolumeName, members: &[String]) -> Result<(), Failure> {
        note::write(&self.begun_path(volume), &members)
    }

    /// Notes that they are one device.
    pub fn end(&self, volume: &VolumeName) -> Result<(), Failure> {
        note::remove(&self.begun_path(volume))
    }

    /// Notes that a LUKS format begins on these devices: until it has written a header, nothing on them tells of it.
    pub fn begin_format(&self, volume: &VolumeName, members: &[String]) -> Result<(), Failure> {
        note::write(&self.format_path(volume), &(host()?, members))
    }

    /// Whether a LUKS format was begun on these devices by this machine, and had not come as far as a header.
    pub fn format_begun(&self, volume: &VolumeName, members: &[String]) -> Result<bool, Failure> {
        let begun: Option<(Host, Vec<String>)> = note::read(&self.format_path(volume), Cause::ClaimChanged)?;
        Ok(begun == Some((host()?, members.to_vec())))
    }

    /// Notes that the header tells of it now.
    pub fn end_format(&self, volume: &VolumeName) -> Result<(), Failure> {
        note::remove(&self.format_path(volume))
    }

    fn record(&self, volume: &VolumeName) -> PathBuf {
        self.directory.join(format!("{volume}.claim.json"))
    }

    fn begun_path(&self, volume: &VolumeName) -> PathBuf {
        self.directory.join(format!("{volume}.begun.json"))
    }

    fn format_path(&self, volume: &VolumeName) -> PathBuf {
        self.directory.join(format!("{volume}.format.json"))
    }
}

fn host() -> Result<Host, Failure> {
    // Other boards have a tag too, or none.
    let instance_id = fs::read_to_string(INSTANCE_ID).ok().map(|tag| tag.trim().to_owned());
    let instance_id = instance_id.filter(|tag| tag.starts_with("i-"));
    Ok(Host { machine_id: id(MACHINE_ID)?, instance_id })
}

fn id(path: &str) -> Result<String, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) => Err(note::system(path.as_ref(), &error)),
    }
}

#[cfg(test)]
mod tests {
    use secretfs_core::config::{Config, Source};

    use super::*;
    use crate::testing::Scratch;

    fn volume(lifecycle: &str) -> Volume {
        let text = format!(
            "[volume.v]\nmount = \"/mnt/v\"\nlifecycle = \"{lifecycle}\"\nbacking = {{ device = \"/dev/disk/by-id/v\" }}\n\
             key = {{ source = \"s3+kms\", bucket = \"b\", object = \"o\", kms-key = \"k\" }}\n"
        );
        Config::parse(&[Source { path: "test.toml".to_owned(), text }]).volumes.into_values().next().unwrap()
    }

    #[test]
    fn a_volume_is_remembered_and_its_blank_disk_refused() {
        let scratch = Scratch::new();
        let claims = Claims::below(&scratch.path(""));
        let members = ["A".to_owned()];
        let kept = volume("persistent");
        let standing = |uuid: Option<&str>| {
            let contents =
                if uuid.is_none() { Contents::Blank } else { Contents::Luks { ours: true, unfinished: false } };
            claims.standing(&kept, &members, &contents, uuid)
        };
        assert_eq!(standing(None), Ok(Standing::FirstTime));
        assert_eq!(claims.known(&kept.name), Ok(Vec::new()));
        assert_eq!(claims.write(&kept, "u", &members), Ok(Outcome::Changed));
        assert_eq!(claims.write(&kept, "u", &members), Ok(Outcome::Unchanged));
        assert_eq!(claims.known(&kept.name), Ok(members.to_vec()));
        assert_eq!(standing(Some("u")), Ok(Standing::SameDevices));
        assert_eq!(standing(None), Ok(Standing::HeaderGone { luks_uuid: "u".to_owned() }));
    }

    #[test]
    fn a_damaged_record_is_no_missing_one() {
        let scratch = Scratch::new();
        let claims = Claims::below(&scratch.path(""));
        fs::write(scratch.path("v.claim.json"), "{").unwrap();
        assert_eq!(claims.read(&volume("persistent").name).unwrap_err().cause, Cause::ClaimChanged);
    }

    #[test]
    fn a_volume_is_known_by_its_header() {
        let scratch = Scratch::new();
        let claims = Claims::below(&scratch.path(""));
        let kept = volume("persistent");
        assert_eq!(claims.knows(&kept.name, "u"), Ok(false));
        claims.write(&kept, "u", &["A".to_owned()]).unwrap();
        assert_eq!((claims.knows(&kept.name, "u"), claims.knows(&kept.name, "v")), (Ok(true), Ok(false)));
    }

    #[test]
    fn a_format_is_begun_on_certain_devices() {
        let scratch = Scratch::new();
        let claims = Claims::below(&scratch.path(""));
        let name = volume("ephemeral").name;
        let members = ["A".to_owned()];
        assert_eq!(claims.format_begun(&name, &members), Ok(false));
        claims.begin_format(&name, &members).unwrap();
        assert_eq!(claims.format_begun(&name, &members), Ok(true));
        assert_eq!(claims.format_begun(&name, &["B".to_owned()]), Ok(false));
        claims.end_format(&name).unwrap();
        assert_eq!(claims.format_begun(&name, &members), Ok(false));
    }

    #[test]
    fn what_was_begun_is_noted_until_it_ends() {
        let scratch = Scratch::new();
        let claims = Claims::below(&scratch.path(""));
        let name = volume("ephemeral").name;
        assert_eq!(claims.begun(&name), Ok(Vec::new()));
        claims.begin(&name, &["A".to_owned()]).unwrap();
        assert_eq!(claims.begun(&name), Ok(vec!["A".to_owned()]));
        claims.end(&name).unwrap();
        claims.end(&name).unwrap();
        assert_eq!(claims.begun(&name), Ok(Vec::new()));
    }
}
