//! Swap space in the place of a file system, checked.

use toml::Spanned;

use super::Checker;
use super::filesystem::discard_fault;
use crate::config::{ConfigError, Lifecycle, Luks, Source, Target, written};
use crate::name::VolumeName;

/// The priorities that swapon(8) takes; -1 leaves the choice to the kernel.
const PRIORITIES: std::ops::RangeInclusive<i32> = -1..=32767;

impl Checker<'_> {
    /// Refuses what only a mounted file system has.
    pub(super) fn swap_target(&mut self, written: &written::Volume) -> Target {
        let mut unfit = |key: &str, text: Option<&Spanned<String>>, message: &str, hint: &str| {
            if let Some(text) = text {
                self.refuse(key, text.span(), message, hint);
            }
        };
        unfit(
            "mount",
            written.mount.as_ref(),
            "swap space is not mounted",
            "take it out, or choose another `type` of `filesystem`",
        );
        let persistent = |text: &&Spanned<String>| text.get_ref() == Lifecycle::Persistent.as_str();
        unfit(
            "lifecycle",
            written.lifecycle.as_ref().filter(persistent),
            "swap space is not kept from one boot to the next",
            "take it out, or write \"ephemeral\"; secretfs does not support hibernation, and nothing else would read it",
        );
        if let Some(filesystem) = written.filesystem.as_ref().map(Spanned::get_ref) {
            let hint = "take it out: owner, group and mode are those of a mounted root directory";
            for (key, text) in [
                ("filesystem.owner", &filesystem.owner),
                ("filesystem.group", &filesystem.group),
                ("filesystem.mode", &filesystem.mode),
            ] {
                unfit(key, text.as_ref(), "swap space is nobody's", hint);
            }
        }
        Target::Swap
    }
}

/// What keeps `option` from being one of swapon's, and the cure. There are so few that all others are refused.
pub(super) fn option_fault(option: &str, luks: &Luks) -> Option<(String, &'static str)> {
    if option.contains(',') {
        let hint = "write each option by itself: [\"pri=10\", \"discard\"]";
        return Some((format!("{option:?} is more than one option"), hint));
    }
    if let Some(priority) = option.strip_prefix("pri=") {
        let fit = priority.parse().is_ok_and(|priority| PRIORITIES.contains(&priority));
        let hint = "give a number from -1 to 32767: \"pri=10\"; swap space of a higher priority is used first";
        return (!fit).then(|| (format!("{option:?} is not a priority"), hint));
    }
    if matches!(option, "discard" | "discard=once" | "discard=pages") {
        return discard_fault(option, luks);
    }
    let hint = match option.split('=').next().unwrap_or(option) {
        "auto" | "noauto" | "nofail" => {
            "take it out: whether the volume starts at boot is `auto`, and consumers must not run without it"
        }
        "_netdev" => "take it out: the volume is started after the network where its key needs it",
        name if name.starts_with("x-") => {
            "such options are for /etc/fstab; write a drop-in for the swap unit, see systemd.swap(5)"
        }
        _ => "swap space takes: pri=NUMBER, discard, discard=once, discard=pages",
    };
    Some((format!("{option:?} can't be given here"), hint))
}

/// A warning for swap space over a file.
pub(in crate::config) fn warning(source: &Source, name: &VolumeName, volume: &written::Volume) -> Option<ConfigError> {
    let kind = volume.filesystem.as_ref()?.get_ref().kind.as_ref()?;
    let file = volume.backing.as_ref()?.get_ref().file.as_ref()?;
    (kind.get_ref() == "swap").then(|| {
        let message = "swap space over a file may stall when memory is short: its file system needs memory to write";
        let hint = "put it on a disk: backing = { device = \"/dev/disk/by-id/…\" } or { match = { … } }";
        ConfigError::new(source, &format!("volume.{name}.backing.file"), file.span(), message).with_hint(hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let discards = Luks { discard: true, ..Luks::default() };
        for option in ["pri=-1", "pri=0", "pri=32767", "discard", "discard=once", "discard=pages"] {
            assert_eq!(option_fault(option, &discards), None, "{option}");
        }
        for option in [
            "",
            "pri",
            "pri=",
            "pri=-2",
            "pri=32768",
            "pri=x",
            "discard=all",
            "nofail",
            "noauto",
            "_netdev",
            "sw",
            "defaults",
            "pri=1,nofail",
            "pri=1 ",
            "x-systemd.makefs",
            "noatime",
        ] {
            assert!(option_fault(option, &discards).is_some(), "{option}");
        }
        for option in ["discard", "discard=pages"] {
            assert!(option_fault(option, &Luks::default()).is_some(), "{option}");
        }
    }
}
