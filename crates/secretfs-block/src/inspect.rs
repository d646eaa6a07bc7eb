//! What is on a device: the proof that it is blank, or the name of what is there.

use std::fs::File;
use std::io;
use std::iter;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use libblkid_rs::{
    BlkidErr, BlkidProbe, BlkidProbeRet, BlkidSafeprobeRet, BlkidSublks as Field, BlkidSublksFlags as Fields,
};
use rustix::fs::{Advice, OFlags};
use secretfs_core::cause::{Cause, Failure};

use crate::device::{self, DevicePath};
use crate::luks::LuksFacts;

const MIB: u64 = 1 << 20;

/// The first and the last MiB are read whole: labels and tables of all kinds sit there.
const END: u64 = MIB;

/// What is read between them.
const SAMPLES: u64 = 256;

/// How much of each sample: a file system that lost its superblocks still has inode tables and data this dense.
const SAMPLE: u64 = 64 * 1024;

/// Direct input/output wants memory, offsets and lengths that are multiples of this.
const ALIGNMENT: u64 = 4096;

/// What a device holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// No signature, and every byte that was read, twice, is zero.
    Blank,
    /// A LUKS header. libblkid looks no further: what lies below it may be left over from before.
    Luks(LuksFacts),
    /// A signature known to libblkid: somebody's data.
    Signature {
        /// Its name there: `ext4`, `LVM2_member`, `gpt`; several are joined by ` and `.
        kind: String,
        /// What such a thing is for.
        usage: Usage,
    },
    /// No signature, but bytes that are not zero.
    Unknown {
        /// Where the first of the sampled ones is.
        offset: u64,
    },
}

impl Contents {
    /// The failure for a device that was to be blank or one of ours; nothing for [`Contents::Blank`] and
    /// [`Contents::Luks`].
    pub fn refusal(&self, device: &DevicePath) -> Option<Failure> {
        match self {
            Self::Blank | Self::Luks(_) => None,
            Self::Signature { kind, usage } => {
                Some(Failure::new(Cause::ForeignSignature, format!("{device} carries {kind}{}", usage.words())))
            }
            Self::Unknown { offset } => Some(Failure::new(
                Cause::NotBlank,
                format!("{device} has no signature that is known, but data at byte {offset}"),
            )),
        }
    }
}

/// What a signature stands for, as libblkid sorts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// A file system.
    Filesystem,
    /// A member of an array or of a volume group.
    Raid,
    /// Encryption other than LUKS.
    Crypto,
    /// A partition table.
    PartitionTable,
    /// Swap space and the like, or several signatures.
    Other,
}

impl Usage {
    fn words(self) -> &'static str {
        match self {
            Self::Filesystem => ", a file system",
            Self::Raid => ", a member of an array or a volume group",
            Self::Crypto => ", which is encrypted",
            Self::PartitionTable => ", a partition table",
            Self::Other => "",
        }
    }
}

/// Why it can't be told what a device holds.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It could not be opened or read.
    #[error("cannot read {device}")]
    Read {
        /// The device.
        device: DevicePath,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// libblkid failed.
    #[error("cannot look for signatures on {device}")]
    Probe {
        /// The device.
        device: DevicePath,
        /// What libblkid said.
        #[source]
        source: BlkidErr,
    },
    /// Two reads gave two answers.
    #[error("{device} reads differently each time: first {first}, then {second}")]
    Unstable {
        /// The device.
        device: DevicePath,
        /// The first answer.
        first: String,
        /// The second.
        second: String,
    },
    /// It has no bytes at all.
    #[error("{device} is empty: its size is 0")]
    Empty {
        /// The device.
        device: DevicePath,
    },
}

impl InspectError {
    /// The row of the cause table, and the particulars.
    pub fn failure(&self) -> Failure {
        let cause = match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Cause::BackingMissing,
            Self::Read { .. } | Self::Probe { .. } | Self::Unstable { .. } => Cause::System,
            Self::Empty { .. } => Cause::BackingMismatch,
        };
        Failure::new(cause, crate::chain(self))
    }
}

/// Says what `device` holds. Nothing is written, and [`Contents::Blank`] is said only after two reads agreed.
pub fn inspect(device: &DevicePath) -> Result<Contents, InspectError> {
    let read = |source| InspectError::Read { device: device.clone(), source };
    let (file, bytes) = open(device)?;
    let first = probe(device, &file, bytes)?;
    if first.is_none() {
        let mut cached = Reader { file: &file, direct: None };
        if let Some(offset) = first_nonzero(bytes, |range| cached.read(range)).map_err(read)? {
            return Ok(Contents::Unknown { offset });
        }
    }
    // The second time past the cache, as far as the device lets us: one read that came back empty proves nothing.
    let direct = device::open(device, OFlags::DIRECT).ok().map(File::from);
    forget(&file, 0..bytes);
    let second = probe(device, &file, bytes)?;
    if first != second {
        let say = |contents: Option<Contents>| contents.map_or("nothing".to_owned(), |found| format!("{found:?}"));
        return Err(InspectError::Unstable { device: device.clone(), first: say(first), second: say(second) });
    }
    if let Some(found) = first {
        return Ok(found);
    }
    let mut uncached = Reader { file: &file, direct };
    match first_nonzero(bytes, |range| uncached.read(range)).map_err(read)? {
        Some(offset) => Ok(Contents::Unknown { offset }),
        None => Ok(Contents::Blank),
    }
}

/// The signature on `device` by one quick look; never [`Contents::Blank`] or [`Contents::Unknown`].
pub fn signature(device: &DevicePath) -> Result<Option<Contents>, InspectError> {
    let (file, bytes) = open(device)?;
    probe(device, &file, bytes)
}

pub(crate) fn size(device: &DevicePath) -> Result<u64, InspectError> {
    open(device).map(|(_, bytes)| bytes)
}

fn open(device: &DevicePath) -> Result<(File, u64), InspectError> {
    let read = |source| InspectError::Read { device: device.clone(), source };
    let file = File::from(device::open(device, OFlags::empty()).map_err(|errno| read(errno.into()))?);
    let bytes = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|errno| read(errno.into()))?;
    if bytes == 0 { Err(InspectError::Empty { device: device.clone() }) } else { Ok((file, bytes)) }
}

fn probe(device: &DevicePath, file: &File, bytes: u64) -> Result<Option<Contents>, InspectError> {
    probe_file(file, bytes).map_err(|source| {
        // libblkid has no words for a device that can't be read; the signatures are at both ends.
        let mut reader = Reader { file, direct: None };
        let ends = [0..bytes.min(END), bytes.saturating_sub(END)..bytes];
        match ends.into_iter().find_map(|end| reader.read(end).err()) {
            Some(source) => InspectError::Read { device: device.clone(), source },
            None => InspectError::Probe { device: device.clone(), source },
        }
    })
}

fn probe_file(file: &File, bytes: u64) -> Result<Option<Contents>, BlkidErr> {
    let mut probe = new_probe(file, bytes)?;
    match probe.do_safeprobe()? {
        BlkidSafeprobeRet::None => Ok(None),
        BlkidSafeprobeRet::Success => {
            let kinds: Vec<String> = [value(&probe, "TYPE")?, value(&probe, "PTTYPE")?].into_iter().flatten().collect();
            contents(&probe, &kinds).map(Some)
        }
        // Several that contradict each other: a second look, one signature at a time, to be able to name them.
        BlkidSafeprobeRet::Ambiguous => {
            let mut probe = new_probe(file, bytes)?;
            let mut kinds = Vec::new();
            while matches!(probe.do_probe()?, BlkidProbeRet::Success) {
                for kind in [value(&probe, "TYPE")?, value(&probe, "PTTYPE")?].into_iter().flatten() {
                    if !kinds.contains(&kind) {
                        kinds.push(kind);
                    }
                }
            }
            Ok(Some(Contents::Signature { kind: kinds.join(" and "), usage: Usage::Other }))
        }
    }
}

fn new_probe(file: &File, bytes: u64) -> Result<BlkidProbe, BlkidErr> {
    let mut probe = BlkidProbe::new()?;
    let size = bytes.try_into().map_err(|_| BlkidErr::InvalidConv)?;
    probe.set_device(file.as_raw_fd(), 0, size)?;
    probe.enable_superblocks(true)?;
    // A damaged superblock is somebody's data as much as a whole one.
    let fields = [Field::Label, Field::Uuid, Field::Type, Field::Usage, Field::Version, Field::Badcsum];
    probe.set_superblock_flags(Fields::new(fields.into()))?;
    probe.enable_partitions(true)?;
    Ok(probe)
}

fn contents(probe: &BlkidProbe, kinds: &[String]) -> Result<Contents, BlkidErr> {
    if kinds == ["crypto_LUKS"] {
        let text = |name| Ok::<_, BlkidErr>(value(probe, name)?.unwrap_or_default());
        return Ok(Contents::Luks(LuksFacts {
            version: text("VERSION")?.parse().unwrap_or(0),
            uuid: text("UUID")?,
            label: text("LABEL")?,
            subsystem: text("SUBSYSTEM")?,
        }));
    }
    let usage = match (value(probe, "USAGE")?.as_deref(), kinds.len()) {
        (Some("filesystem"), 1) => Usage::Filesystem,
        (Some("raid"), 1) => Usage::Raid,
        (Some("crypto"), 1) => Usage::Crypto,
        (None, 1) => Usage::PartitionTable,
        _ => Usage::Other,
    };
    // libblkid found something without a name of its own; that is not nothing.
    let kind = if kinds.is_empty() { "an unnamed signature".to_owned() } else { kinds.join(" and ") };
    Ok(Contents::Signature { kind, usage })
}

fn value(probe: &BlkidProbe, name: &str) -> Result<Option<String>, BlkidErr> {
    if probe.has_value(name)? { probe.lookup_value(name).map(Some) } else { Ok(None) }
}

/// What is read of a device of `bytes` bytes: both ends and samples between, in order, none twice.
fn regions(bytes: u64) -> Vec<Range<u64>> {
    if bytes <= 2 * END + SAMPLES * SAMPLE {
        return (0..bytes).step_by(1 << 20).map(|from| from..bytes.min(from + MIB)).collect();
    }
    let last = (bytes - END) / ALIGNMENT * ALIGNMENT;
    let stride = (last - END) / SAMPLES;
    let samples = (0..SAMPLES).map(|number| {
        // In the middle of its share of the device.
        let from = (END + number * stride + (stride - SAMPLE) / 2) / ALIGNMENT * ALIGNMENT;
        from..from + SAMPLE
    });
    iter::once(0..END).chain(samples).chain(iter::once(last..bytes)).collect()
}

fn first_nonzero(bytes: u64, mut read: impl FnMut(Range<u64>) -> io::Result<Option<u64>>) -> io::Result<Option<u64>> {
    for region in regions(bytes) {
        if let Some(offset) = read(region)? {
            return Ok(Some(offset));
        }
    }
    Ok(None)
}

struct Reader<'a> {
    file: &'a File,
    /// The same device, past the cache.
    direct: Option<File>,
}

impl Reader<'_> {
    /// The first byte of `range` that is not zero.
    fn read(&mut self, range: Range<u64>) -> io::Result<Option<u64>> {
        let length = usize::try_from(range.end - range.start).expect("a region has at most 1 MiB and a page");
        let alignment = usize::try_from(ALIGNMENT).expect("a page fits");
        let mut memory = vec![0xff_u8; length + alignment];
        let skip = memory.as_ptr().align_offset(alignment);
        let buffer = &mut memory[skip..skip + length];
        // A length that is not whole sectors, or a file system without direct input/output: the cache it is.
        let read = self.direct.as_ref().map(|direct| direct.read_exact_at(buffer, range.start));
        match read {
            Some(Ok(())) => {}
            Some(Err(error)) if !matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof) => {
                return Err(error);
            }
            refused => {
                if refused.is_some() {
                    forget(self.file, range.clone());
                }
                self.file.read_exact_at(buffer, range.start)?;
            }
        }
        Ok(buffer.iter().position(|byte| *byte != 0).map(|at| range.start + at as u64))
    }
}

/// Asks the kernel to drop what it has cached, so that the next read asks the device.
fn forget(file: &File, range: Range<u64>) {
    // Advice that is not taken leaves the first answer standing, no more.
    let _ = rustix::fs::fadvise(file, range.start, (range.end - range.start).try_into().ok(), Advice::DontNeed);
}

#[cfg(test)]
mod tests;
