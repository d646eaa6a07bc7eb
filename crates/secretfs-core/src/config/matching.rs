//! Disks by what they are: the `match`, `layout` and `stripe-size` of a backing, and warnings about names that move.

use std::fmt;
use std::ops::Range;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::quantity::parse_size;
use super::{Backing, ConfigError, Source, written};
use crate::name::VolumeName;

/// LVM stripes over at most 128 physical volumes (`lvcreate --stripes`, lvm2 2.03).
const COUNT_MAX: u32 = 128;

/// A page and a sector of the encryption.
const STRIPE_MIN: u64 = 4 << 10;

/// LVM takes no stripe larger than an extent, and its extents have 4 MiB.
const STRIPE_MAX: u64 = 4 << 20;

/// LVM's own default.
const STRIPE_DEFAULT: u64 = 64 << 10;

/// What a disk has to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceMatch {
    /// Its model, as `lsblk --output MODEL` shows it.
    pub model: Vec<Pattern>,
    /// Its serial number.
    pub serial: Vec<Pattern>,
    /// A name of it in `/dev/disk/by-id`.
    pub by_id: Vec<Pattern>,
    /// Its world wide name.
    pub wwn: Vec<Pattern>,
    /// The EBS volume it is, `vol-…`.
    pub ebs_volume: Vec<Pattern>,
    /// The fewest bytes it has.
    pub min_size: Option<u64>,
    /// The most bytes it has.
    pub max_size: Option<u64>,
    /// How many there are; none for all that there are.
    pub count: Option<u32>,
}

/// A text that may have `*` at its beginning and at its end, for anything or nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern(String);

impl Pattern {
    fn new(text: &str) -> Result<Self, &'static str> {
        let middle = text.strip_prefix('*').unwrap_or(text);
        let middle = middle.strip_suffix('*').unwrap_or(middle);
        match middle {
            "" if text.is_empty() => Err("it is empty"),
            "" => Err("it would match everything"),
            _ if middle.contains('*') => Err("a `*` stands in the middle"),
            _ => Ok(Self(text.to_owned())),
        }
    }

    /// Whether it is all of `text`. Blanks around `text` do not count: devices pad their names with them.
    pub fn matches(&self, text: &str) -> bool {
        let text = text.trim();
        match (self.0.strip_prefix('*'), self.0.strip_suffix('*')) {
            (None, None) => text == self.0,
            (Some(end), None) => text.ends_with(end),
            (None, Some(begin)) => text.starts_with(begin),
            (Some(end), Some(_)) => text.contains(&end[..end.len() - 1]),
        }
    }

    /// Whether it stands for one text only.
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl DeviceMatch {
    /// The conditions on names, by the words of the configuration.
    pub fn names(&self) -> [(&'static str, &[Pattern]); 5] {
        [
            ("model", self.model.as_slice()),
            ("serial", &self.serial),
            ("by-id", &self.by_id),
            ("wwn", &self.wwn),
            ("ebs-volume", &self.ebs_volume),
        ]
    }

    /// The list that names single disks one by one, if there is one.
    pub fn listed(&self) -> Option<(&'static str, &[Pattern])> {
        let exact = |(key, patterns): &(&str, &[Pattern])| {
            *key != "model" && !patterns.is_empty() && patterns.iter().all(Pattern::is_exact)
        };
        self.names().into_iter().find(exact)
    }
}

impl fmt::Display for DeviceMatch {
    /// `model "A", serial "B" or "C"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |(key, patterns): (&str, &[Pattern])| {
            let quoted: Vec<String> = patterns.iter().map(|pattern| format!("{:?}", pattern.as_str())).collect();
            (!quoted.is_empty()).then(|| format!("{key} {}", quoted.join(" or ")))
        };
        let mut parts: Vec<String> = self.names().into_iter().filter_map(name).collect();
        parts.extend(self.min_size.map(|size| format!("at least {size} bytes")));
        parts.extend(self.max_size.map(|size| format!("at most {size} bytes")));
        f.write_str(&parts.join(", "))
    }
}

/// How disks become one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// There is one disk.
    Single,
    /// One disk behind the other, by LVM.
    Linear,
    /// In stripes over all disks, by LVM.
    Striped {
        /// Bytes on one disk before the next has its turn.
        stripe_size: u64,
    },
}

impl Layout {
    /// The word for it in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Linear => "linear",
            Self::Striped { .. } => "striped",
        }
    }
}

/// One text, or a list of them.
#[derive(Debug)]
pub(super) struct Words(Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;

        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<Words, E> {
                Ok(Words(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Words, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = list.next_element()? {
                    words.push(word);
                }
                Ok(Words(words))
            }
        }

        deserializer.deserialize_any(OneOrMore)
    }
}

/// Finds out what is wrong with one backing; `Refuse` takes the key below the volume, the place, the message and the cure.
struct Checker<'a, Refuse> {
    refuse: &'a mut Refuse,
    sound: bool,
}

/// Checks a backing with a `match`.
pub(super) fn backing(
    backing: &written::Backing,
    matching: &Spanned<written::Match>,
    mut refuse: impl FnMut(&str, Range<usize>, String, String),
) -> Option<Backing> {
    let mut check = Checker { refuse: &mut refuse, sound: true };
    let written = matching.get_ref();
    let mut device_match = DeviceMatch {
        model: check.patterns("model", written.model.as_ref()),
        serial: check.patterns("serial", written.serial.as_ref()),
        by_id: check.patterns("by-id", written.by_id.as_ref()),
        wwn: check.patterns("wwn", written.wwn.as_ref()),
        ebs_volume: check.patterns("ebs-volume", written.ebs_volume.as_ref()),
        min_size: check.size("match.min-size", written.min_size.as_ref()),
        max_size: check.size("match.max-size", written.max_size.as_ref()),
        count: check.count(written.count.as_ref()),
    };
    for id in device_match.ebs_volume.iter().filter(|id| !is_volume_id(id.as_str())) {
        let span = written.ebs_volume.as_ref().map_or(matching.span(), Spanned::span);
        let message = format!("{:?} is not the id of an EBS volume", id.as_str());
        check.refuse("match.ebs-volume", span, message, "write it as AWS shows it: \"vol-0123456789abcdef0\"");
    }
    if device_match.names().iter().all(|(_, patterns)| patterns.is_empty()) && check.sound {
        let sizes = written.min_size.is_some() || written.max_size.is_some() || written.count.is_some();
        let message = if sizes { "a size is no identity" } else { "there is nothing to match by" };
        let hint =
            "add `model`, `serial`, `by-id`, `wwn` or `ebs-volume`; `lsblk --output NAME,MODEL,SERIAL,WWN` shows them";
        check.refuse("match", matching.span(), message, hint);
    }
    if let (Some(min), Some(max)) = (device_match.min_size, device_match.max_size)
        && min > max
    {
        let span = written.max_size.as_ref().map_or(matching.span(), Spanned::span);
        check.refuse(
            "match.max-size",
            span,
            "it is less than `min-size`",
            "no disk can be both; change one of the two",
        );
    }
    let layout = check.layout(backing);
    if let Some(layout) = layout {
        check.counted(&mut device_match, layout, written.count.as_ref().unwrap_or(&Spanned::new(matching.span(), 0)));
    }
    check.sound.then(|| Backing::Match { device_match, layout: layout.unwrap_or(Layout::Single) })
}

impl<Refuse: FnMut(&str, Range<usize>, String, String)> Checker<'_, Refuse> {
    fn refuse(&mut self, key: &str, span: Range<usize>, message: impl Into<String>, hint: impl Into<String>) {
        self.sound = false;
        (self.refuse)(&format!("backing.{key}"), span, message.into(), hint.into());
    }

    fn patterns(&mut self, key: &str, words: Option<&Spanned<Words>>) -> Vec<Pattern> {
        let Some(words) = words else { return Vec::new() };
        let key = format!("match.{key}");
        if words.get_ref().0.is_empty() {
            self.refuse(&key, words.span(), "the list is empty", "name a disk, or take the key out");
        }
        let mut patterns = Vec::new();
        for text in &words.get_ref().0 {
            // `by-id` takes the link's name; its whole path means the same.
            let name = text.trim();
            match Pattern::new(name.strip_prefix("/dev/disk/by-id/").unwrap_or(name)) {
                Ok(pattern) if patterns.contains(&pattern) => {
                    self.refuse(&key, words.span(), format!("{text:?} is there twice"), "name each disk once");
                }
                Ok(pattern) => patterns.push(pattern),
                Err(fault) => {
                    let hint = "give the text as `lsblk` or `udevadm info` shows it; a `*` may begin or end it";
                    self.refuse(&key, words.span(), format!("{text:?} can't be used: {fault}"), hint);
                }
            }
        }
        patterns
    }

    fn size(&mut self, key: &str, text: Option<&Spanned<String>>) -> Option<u64> {
        let text = text?;
        match parse_size(text.get_ref()) {
            Ok(size) => Some(size),
            Err(hint) => {
                self.refuse(key, text.span(), format!("{:?} is not a size", text.get_ref()), hint);
                None
            }
        }
    }

    fn count(&mut self, count: Option<&Spanned<i64>>) -> Option<u32> {
        let count = count?;
        let number = u32::try_from(*count.get_ref()).ok().filter(|number| (1..=COUNT_MAX).contains(number));
        if number.is_none() {
            let message = format!("{} disks can't be used", count.get_ref());
            self.refuse("match.count", count.span(), message, format!("give a number from 1 to {COUNT_MAX}"));
        }
        number
    }

    fn layout(&mut self, backing: &written::Backing) -> Option<Layout> {
        let (stripe, word) = (&backing.stripe_size, &backing.layout);
        let layout = match word.as_ref().map_or("single", |word| word.get_ref().as_str()) {
            "single" => Some(Layout::Single),
            "linear" => Some(Layout::Linear),
            "striped" => {
                let stripe_size = self.size("stripe-size", stripe.as_ref()).unwrap_or(STRIPE_DEFAULT);
                if !(stripe_size.is_power_of_two() && (STRIPE_MIN..=STRIPE_MAX).contains(&stripe_size))
                    && let Some(text) = stripe
                {
                    let message = format!("{:?} can't be a stripe", text.get_ref());
                    self.refuse("stripe-size", text.span(), message, "use a power of two from \"4KiB\" to \"4MiB\"");
                }
                return Some(Layout::Striped { stripe_size });
            }
            other => {
                let (message, span) =
                    (format!("{other:?} is not known here"), word.as_ref().map_or(0..0, Spanned::span));
                let hint = super::error::suggestion(other, &["single", "linear", "striped"]);
                self.refuse("layout", span, message, hint);
                None
            }
        };
        if let Some(text) = stripe.as_ref().filter(|_| layout.is_some()) {
            self.refuse(
                "stripe-size",
                text.span(),
                "only stripes have a size",
                "add: layout = \"striped\", or take it out",
            );
        }
        layout
    }

    /// Settles how many disks there are: as many as are listed, one for a single layout, else what `count` says.
    fn counted(&mut self, device_match: &mut DeviceMatch, layout: Layout, count: &Spanned<i64>) {
        let listed =
            device_match.listed().map(|(key, patterns)| (key, u32::try_from(patterns.len()).unwrap_or(u32::MAX)));
        let wanted = device_match.count.or(listed.map(|(_, length)| length));
        match (layout, wanted) {
            (Layout::Single, Some(2..)) => {
                let hint = "add: layout = \"linear\" or layout = \"striped\"";
                self.refuse("match", count.span(), "several disks are no volume without a layout", hint);
            }
            (Layout::Linear | Layout::Striped { .. }, Some(1)) => {
                let message = format!("{} takes two disks or more", layout.as_str());
                self.refuse("match", count.span(), message, "use layout = \"single\", or name more disks");
            }
            (Layout::Single, None) => device_match.count = Some(1),
            _ => device_match.count = wanted,
        }
        if let (Some((key, length)), Some(count_wanted)) = (listed, wanted)
            && length != count_wanted
            && self.sound
        {
            let message = format!("{count_wanted} disks are wanted and `{key}` lists {length}");
            self.refuse("match.count", count.span(), message, "take `count` out: the list says it");
        }
    }
}

/// `vol-` and 8 or 17 hexadecimal digits.
fn is_volume_id(text: &str) -> bool {
    text.strip_prefix("vol-").is_some_and(|digits| {
        matches!(digits.len(), 8 | 17) && digits.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
    })
}

/// A warning for a device that is named by the order in which the kernel found it.
pub(super) fn warning(source: &Source, name: &VolumeName, volume: &written::Volume) -> Option<ConfigError> {
    let device = volume.backing.as_ref()?.get_ref().device.as_ref()?;
    let path = device.get_ref();
    is_kernel_name(path.strip_prefix("/dev/")?).then(|| {
        let message = format!("{path:?} may be another disk after a reboot: the kernel numbers disks as it finds them");
        let hint = format!(
            "write device = \"/dev/disk/by-id/…\" (`find -L /dev/disk/by-id -samefile {path}` shows its names) or match = {{ serial = \"…\" }}"
        );
        ConfigError::new(source, &format!("volume.{name}.backing.device"), device.span(), message).with_hint(hint)
    })
}

/// Whether the kernel makes such a name by counting: `nvme1n1`, `sda2`, `xvdf`, `vdb`, `mmcblk0`, `dm-0`, `md127`.
fn is_kernel_name(name: &str) -> bool {
    let numbers = |rest: &str, letters: &str| {
        rest.starts_with(|c: char| c.is_ascii_digit())
            && rest.chars().all(|c| c.is_ascii_digit() || letters.contains(c))
    };
    let lettered = |rest: &str| {
        let partition = rest.trim_start_matches(|c: char| c.is_ascii_lowercase());
        partition.len() < rest.len() && partition.chars().all(|c| c.is_ascii_digit())
    };
    let after = |prefix: &str| name.strip_prefix(prefix);
    after("nvme").is_some_and(|rest| numbers(rest, "np"))
        || after("mmcblk").is_some_and(|rest| numbers(rest, "p"))
        || ["sd", "hd", "vd", "xvd"].into_iter().filter_map(after).any(lettered)
        || ["dm-", "md", "loop"].into_iter().filter_map(after).any(|rest| numbers(rest, "p"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn names_that_move() {
        for name in ["nvme0n1", "nvme1n1p2", "sda", "sdab3", "xvdf", "vdb", "mmcblk0p1", "dm-0", "md127", "loop3"] {
            assert!(is_kernel_name(name), "{name}");
        }
        for name in ["disk/by-id/nvme-x", "mapper/vg-data", "vg/data", "nvme", "sd", "sdA", "sda-x", "md/data", "mda"] {
            assert!(!is_kernel_name(name), "{name}");
        }
    }

    #[test]
    fn a_name_that_moves_is_accepted_with_a_warning() {
        let text = "[volume.data]\nmount = \"/srv/data\"\nbacking = { device = \"/dev/nvme1n1\" }\n\
                    key = { source = \"s3+kms\", bucket = \"b\", object = \"o\", kms-key = \"k\" }\n";
        let config = Config::parse(&[Source { path: "test.toml".to_owned(), text: text.to_owned() }]);
        assert_eq!((config.volumes.len(), config.all_errors().len(), config.warnings.len()), (1, 0, 1));
        assert_eq!(
            config.warnings[0].to_string(),
            "test.toml:3:22: volume.data.backing.device: \"/dev/nvme1n1\" may be another disk after a reboot: \
             the kernel numbers disks as it finds them"
        );
        let hint = config.warnings[0].hint.as_deref().unwrap_or_default();
        assert!(hint.contains("/dev/disk/by-id/") && hint.contains("samefile /dev/nvme1n1"), "{hint}");
    }

    #[test]
    fn patterns() {
        let matches = |pattern: &str, text: &str| Pattern::new(pattern).unwrap().matches(text);
        assert!(matches("Amazon EC2", " Amazon EC2   "));
        assert!(!matches("Amazon EC2", "Amazon EC2 NVMe"));
        assert!(matches("Amazon*", "Amazon EC2") && !matches("Amazon*", "An Amazon"));
        assert!(matches("*NVMe", "Amazon NVMe") && !matches("*NVMe", "NVMe disk"));
        assert!(matches("*EC2*", "Amazon EC2 NVMe") && matches("*EC2*", "EC2") && !matches("*EC2*", "EBS"));
        for text in ["", "*", "**", "a*b", "*a*b*"] {
            assert!(Pattern::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn volume_ids() {
        assert!(is_volume_id("vol-0123456789abcdef0") && is_volume_id("vol-1234abcd"));
        for text in ["vol0123456789abcdef0", "vol-", "vol-0123456789ABCDEF0", "vol-*", "snap-0123456789abcdef0"] {
            assert!(!is_volume_id(text), "{text}");
        }
    }
}
