//! The file system, its mount and the encryption below it, checked.

use std::ops::Range;

use toml::Spanned;

use super::{Checker, swap};
use crate::config::{Filesystem, FilesystemType, Integrity, Luks, RootDirectory, Wipe, written};

/// The longest number of a user or group that is one: the last of 32 bits stands for "none" (chown(2)).
const ID_MAX: u32 = u32::MAX - 1;

/// The longest name of a user or group (`LOGIN_NAME_MAX` of limits.h, without its end).
const NAME_MAX: usize = 255;

/// Permissions and the sticky bit; the daemon's sandbox has `RestrictSUIDSGID=`.
const MODE_MAX: u32 = 0o1777;

/// Mount options that would undo what secretfs promises, with the cure.
const UNFIT_MOUNT_OPTIONS: [(&[&str], &str); 7] = [
    (&["_netdev"], "take it out: secretfs adds it where it is needed"),
    (
        &["auto", "noauto", "nofail"],
        "take it out: whether the volume starts at boot is `auto`, and consumers must not run without it",
    ),
    (
        &["group", "owner", "user", "users"],
        "take it out: systemd mounts the volume; for the root directory use `owner` and `group` of `filesystem`",
    ),
    (&["ro"], "take it out; `ReadOnlyPaths=` in a consumer's unit keeps that consumer from writing"),
    (
        &[
            "bind",
            "rbind",
            "move",
            "remount",
            "loop",
            "offset",
            "sizelimit",
            "shared",
            "rshared",
            "private",
            "rprivate",
            "slave",
            "rslave",
            "unbindable",
            "runbindable",
            "subvol",
            "subvolid",
        ],
        "take it out: the whole file system of the volume is mounted, and nothing else",
    ),
    (
        &["device", "journal_dev", "journal_path", "logdev", "rtdev"],
        "take it out: all of the file system lies on the encrypted volume",
    ),
    (
        &["noload", "nologreplay", "norecovery"],
        "take it out: after a power cut the file system would be mounted without its last changes",
    ),
];

/// The length of a label in bytes, by the type of the file system (`EXT2_LABEL_LEN`, `XFSLABEL_MAX`, `BTRFS_LABEL_SIZE`
/// and `SWAP_LABEL_LENGTH` without their ends).
fn label_max(kind: FilesystemType) -> usize {
    match kind {
        FilesystemType::Ext4 => 16,
        FilesystemType::Xfs => 12,
        FilesystemType::Btrfs => 255,
        FilesystemType::Swap => 15,
    }
}

impl Checker<'_> {
    /// The type of the file system; nothing when it is not known.
    pub(super) fn filesystem_type(&mut self, written: Option<&Spanned<written::Filesystem>>) -> Option<FilesystemType> {
        let known = FilesystemType::ALL.map(|kind| (kind.as_str(), Some(kind)));
        match written.and_then(|filesystem| filesystem.get_ref().kind.as_ref()) {
            None => Some(FilesystemType::Ext4),
            kind => self.one_of("filesystem.type", kind, None, &known),
        }
    }

    /// All but the type, as far as it does not depend on a type that is not known.
    pub(super) fn filesystem(
        &mut self,
        kind: Option<FilesystemType>,
        written: Option<&Spanned<written::Filesystem>>,
        luks: &Luks,
    ) -> Option<Filesystem> {
        let Some(written) = written.map(Spanned::get_ref) else { return kind.map(Filesystem::of) };
        let root = RootDirectory {
            owner: written.owner.as_ref().and_then(|name| self.account("filesystem.owner", name)),
            group: written.group.as_ref().and_then(|name| self.account("filesystem.group", name)),
            mode: written.mode.as_ref().and_then(|text| self.mode(text)),
        };
        let mount_options = self.mount_options(kind, &written.mount_options, luks);
        let kind = kind?;
        let label = written.label.as_ref().and_then(|text| self.label(kind, text));
        let mkfs_options = self.mkfs_options(kind, &written.mkfs_options);
        Some(Filesystem { kind, label, mkfs_options, mount_options, root })
    }

    fn label(&mut self, kind: FilesystemType, text: &Spanned<String>) -> Option<String> {
        let (label, max) = (text.get_ref(), label_max(kind));
        let (message, hint) = if label.is_empty() {
            ("it is empty".to_owned(), "leave it out, or give the file system a label".to_owned())
        } else if label.chars().any(char::is_control) {
            (format!("{label:?} has a control character"), "use letters, digits, `-` and `_`".to_owned())
        } else if label.len() > max {
            let message = format!("{label:?} has {} bytes", label.len());
            (message, format!("{} takes a label of at most {max} bytes", kind.as_str()))
        } else {
            return Some(label.clone());
        };
        self.refuse("filesystem.label", text.span(), message, hint);
        None
    }

    fn mount_options(&mut self, kind: Option<FilesystemType>, written: &[Spanned<String>], luks: &Luks) -> Vec<String> {
        let mut options: Vec<String> = Vec::new();
        for text in written {
            let option = text.get_ref();
            let fault = match kind {
                Some(FilesystemType::Swap) => swap::option_fault(option, luks),
                _ => mount_option_fault(option, luks),
            };
            match fault {
                Some((message, hint)) => {
                    self.refuse("filesystem.mount-options", text.span(), message, hint);
                }
                None if options.contains(option) => {}
                None => options.push(option.clone()),
            }
        }
        options
    }

    /// The name or number of a user or group; whether there is such a one is seen when the volume is mounted.
    fn account(&mut self, key: &str, text: &Spanned<String>) -> Option<String> {
        let name = text.get_ref();
        let number = name.chars().all(|c| c.is_ascii_digit());
        let unfit = |c: char| c.is_control() || c.is_whitespace() || ":/,%".contains(c);
        let (message, hint) = if name.is_empty() {
            ("it is empty".to_owned(), "leave it out, or give a name such as \"postgres\"")
        } else if number && name.parse::<u32>().is_ok_and(|id| id <= ID_MAX) {
            return Some(name.clone());
        } else if number || name.len() > NAME_MAX || name.starts_with('-') || name.contains(unfit) {
            (
                format!("{name:?} is not a name"),
                "give the name as it stands in /etc/passwd or /etc/group, or its number",
            )
        } else {
            return Some(name.clone());
        };
        self.refuse(key, text.span(), message, hint);
        None
    }

    fn mode(&mut self, text: &Spanned<String>) -> Option<u32> {
        let octal = text.get_ref().chars().all(|c| ('0'..='7').contains(&c));
        let mode = u32::from_str_radix(text.get_ref(), 8).ok().filter(|_| octal && text.get_ref().len() >= 3);
        let (message, hint) = match mode {
            Some(mode) if mode <= MODE_MAX => return Some(mode),
            Some(_) => (
                format!("{:?} sets more than permissions and the sticky bit", text.get_ref()),
                "the daemon's sandbox has no set-user-ID and set-group-ID; give such a mode to a directory below",
            ),
            None => (format!("{:?} is not an octal mode", text.get_ref()), "write it as chmod(1) takes it: \"0750\""),
        };
        self.refuse("filesystem.mode", text.span(), message, hint);
        None
    }

    /// How the encryption is set up.
    pub(super) fn luks(&mut self, written: Option<&Spanned<written::Luks>>) -> Luks {
        let Some(written) = written.map(Spanned::get_ref) else { return Luks::default() };
        let sector_size = written.sector_size.as_ref().and_then(|size| self.sector_size(*size.get_ref(), size.span()));
        let known = [("hmac-sha256", Some(Integrity::HmacSha256))];
        let integrity = self.one_of("luks.integrity", written.integrity.as_ref(), None, &known);
        let discard = written.discard.as_ref().filter(|discard| *discard.get_ref());
        if let Some(discard) = discard.filter(|_| integrity.is_some()) {
            let hint = "take one of the two out: dm-crypt passes no discard on where sectors have tags";
            self.refuse("luks.discard", discard.span(), "a volume with integrity tags can't discard", hint);
        }
        Luks {
            discard: discard.is_some(),
            no_read_workqueue: written.no_read_workqueue.unwrap_or(false),
            no_write_workqueue: written.no_write_workqueue.unwrap_or(false),
            sector_size,
            integrity,
        }
    }

    /// What a format does about what was there before.
    pub(super) fn wipe(&mut self, written: &written::Volume, kind: Option<FilesystemType>, luks: &Luks) -> Wipe {
        let before_ready = written.wipe_before_ready.as_ref();
        // A sector without a tag can't be read, by nobody.
        let (tags, default) = match luks.integrity {
            Some(_) => (true, Wipe::Zero { before_ready: true }),
            None => (false, Wipe::None),
        };
        let zero = Wipe::Zero { before_ready: before_ready.map_or(tags, |before| *before.get_ref()) };
        let known = [("none", Wipe::None), ("zero", zero), ("discard", Wipe::Discard)];
        let wipe = self.one_of("wipe", written.wipe.as_ref(), default, &known);
        let late = before_ready.filter(|before| !before.get_ref());
        match (wipe, &written.wipe, before_ready) {
            (Wipe::None | Wipe::Discard, Some(text), _) if tags => {
                let hint = "take it out: all of the volume is zeroed before it is ready, which makes the tags";
                self.refuse("wipe", text.span(), "a volume with integrity tags has to be zeroed", hint);
            }
            (_, _, _) if tags && late.is_some() => {
                let hint = "take it out: a sector that was never written has no tag, and can't be read";
                let span = late.map(Spanned::span).unwrap_or_default();
                self.refuse(
                    "wipe-before-ready",
                    span,
                    "integrity tags have to be there before the volume is ready",
                    hint,
                );
            }
            (Wipe::Zero { before_ready: false }, Some(text), _) => match kind {
                Some(FilesystemType::Btrfs) => {
                    let message = "the free space of a btrfs can't be zeroed while it is in use";
                    let hint =
                        "add: wipe-before-ready = true; a btrfs that is nearly full has no room for its metadata";
                    self.refuse("wipe", text.span(), message, hint);
                }
                Some(FilesystemType::Swap) => {
                    let message = "swap space can't be zeroed while it is in use";
                    self.refuse("wipe", text.span(), message, "add: wipe-before-ready = true");
                }
                _ => {}
            },
            (Wipe::None | Wipe::Discard, _, Some(before)) => {
                let hint = "write wipe = \"zero\" beside it, or take it out: nothing else takes long";
                self.refuse(
                    "wipe-before-ready",
                    before.span(),
                    "there is nothing to do before the volume is ready",
                    hint,
                );
            }
            _ => {}
        }
        wipe
    }

    fn sector_size(&mut self, size: i64, span: Range<usize>) -> Option<u32> {
        match size {
            512 => Some(512),
            4096 => Some(4096),
            _ => {
                let hint =
                    "write 4096, or 512 for a device whose size is no multiple of 4096; left out, secretfs chooses";
                self.refuse("luks.sector-size", span, format!("{size} is not a sector size"), hint);
                None
            }
        }
    }
}

/// What keeps `option` from being one of the mount's, and the cure.
fn mount_option_fault(option: &str, luks: &Luks) -> Option<(String, &'static str)> {
    let name = option.split('=').next().unwrap_or(option);
    if option.is_empty() {
        return Some(("an option is empty".to_owned(), "take it out"));
    }
    if option.contains(',') {
        let hint = "write each option by itself: [\"noatime\", \"nodev\"]";
        return Some((format!("{option:?} is more than one option"), hint));
    }
    if option.chars().any(|c| c.is_whitespace() || c.is_control() || "\"'\\".contains(c)) {
        return Some((format!("{option:?} has a blank, a quote or a backslash"), "mount(8) takes no such option here"));
    }
    if name.starts_with("x-") || name.starts_with("X-") {
        let hint = "such options are for /etc/fstab; write a drop-in for the mount unit, see systemd.mount(5)";
        return Some((format!("{option:?} can't be given here"), hint));
    }
    if let Some((_, cure)) = UNFIT_MOUNT_OPTIONS.iter().find(|(names, _)| names.contains(&name)) {
        return Some((format!("{option:?} can't be given here"), cure));
    }
    discard_fault(option, luks)
}

/// What keeps discards from reaching the backing, if `option` asks for them.
pub(super) fn discard_fault(option: &str, luks: &Luks) -> Option<(String, &'static str)> {
    (option.split('=').next() == Some("discard") && !luks.discard).then(|| {
        let hint = "add: luks = { discard = true }, or take the option out: the encryption would keep discards back";
        (format!("{option:?} has no effect"), hint)
    })
}
