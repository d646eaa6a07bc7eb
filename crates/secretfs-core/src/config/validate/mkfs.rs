//! Which words a configuration may pass on to mkfs: options that are known, so that no word can be taken for a device.

use std::slice;

use toml::Spanned;

use super::Checker;
use crate::config::FilesystemType;
use crate::config::error::suggestion;

/// Options of one mkfs.
struct Known {
    /// Those that stand alone.
    alone: &'static [&'static str],
    /// Those that take a value.
    valued: &'static [&'static str],
}

/// mke2fs(8).
const EXT4: Known =
    Known { alone: &["-v"], valued: &["-b", "-C", "-E", "-G", "-g", "-I", "-i", "-J", "-m", "-N", "-O", "-T"] };

/// mkfs.xfs(8).
const XFS: Known = Known { alone: &[], valued: &["-b", "-d", "-i", "-l", "-m", "-n", "-s"] };

/// mkfs.btrfs(8).
const BTRFS: Known = Known {
    alone: &["-M", "--mixed", "-v", "--verbose"],
    valued: &[
        "-d",
        "--data",
        "-m",
        "--metadata",
        "-n",
        "--nodesize",
        "-s",
        "--sectorsize",
        "-O",
        "--features",
        "-R",
        "--runtime-features",
        "--csum",
        "--checksum",
    ],
};

/// mkswap(8).
const SWAP: Known = Known { alone: &["-c", "--check", "--verbose"], valued: &["-U", "--uuid"] };

/// Options that mean the same to all of them, and are not for the configuration to give.
const TAKEN: [(&[&str], &str); 3] = [
    (&["-L", "--label"], "use `label`"),
    (&["-t"], "use `type`"),
    (
        &["-f", "-F", "--force"],
        "take it out: a file system is made only where nothing is, so that nothing needs forcing",
    ),
];

/// Parts of an option's value that can't be: they put a part of the file system elsewhere, or it can't be found again.
const UNFIT_PARTS: [(&[&str], &str); 3] = [
    (
        &["device", "file", "journal_dev", "logdev", "name", "rtdev"],
        "take it out: all of the file system lies on the encrypted volume",
    ),
    (&["offset"], "take it out: the file system begins where the volume does, or it would not be found again"),
    (&["^has_journal"], "take it out: without a journal a power cut leaves a file system that nobody has checked"),
];

impl Checker<'_> {
    /// The words for mkfs. The first that can't be passed on is refused; what follows it may be its value.
    pub(super) fn mkfs_options(&mut self, kind: FilesystemType, written: &[Spanned<String>]) -> Vec<String> {
        let mut words = written.iter();
        while let Some(word) = words.next() {
            if let Err((message, hint)) = check_option(kind, word.get_ref(), &mut words) {
                self.refuse("filesystem.mkfs-options", word.span(), message, hint);
                break;
            }
        }
        written.iter().map(|word| word.get_ref().clone()).collect()
    }
}

/// Checks the option that begins with `word`, and takes its value from `words` if it is there.
fn check_option(
    kind: FilesystemType,
    word: &str,
    words: &mut slice::Iter<'_, Spanned<String>>,
) -> Result<(), (String, String)> {
    let (known, program) = match kind {
        FilesystemType::Ext4 => (EXT4, "mkfs.ext4"),
        FilesystemType::Xfs => (XFS, "mkfs.xfs"),
        FilesystemType::Btrfs => (BTRFS, "mkfs.btrfs"),
        FilesystemType::Swap => (SWAP, "mkswap"),
    };
    let Some((option, attached)) = split(word) else {
        let hint = "begin with an option and let its value follow, such as [\"-m\", \"0\"]; secretfs names the device";
        return Err((format!("{word:?} is not an option of {program}"), hint.to_owned()));
    };
    if let Some((_, cure)) = TAKEN.iter().find(|(options, _)| options.contains(&option)) {
        return Err((format!("{option:?} can't be given here"), (*cure).to_owned()));
    }
    if known.alone.contains(&option) && attached.is_none() {
        return Ok(());
    }
    if !known.valued.contains(&option) {
        let options = [known.alone, known.valued].concat();
        return Err((format!("{word:?} is not taken here for {program}"), suggestion(option, &options)));
    }
    let value = attached.or_else(|| words.next().map(|word| word.get_ref().as_str()));
    let Some(value) = value.filter(|value| !value.is_empty() && !value.starts_with('-')) else {
        return Err((format!("{option:?} lacks its value"), format!("write [\"{option}\", \"…\"]")));
    };
    if value.contains('/') || value.chars().any(char::is_control) {
        let hint = "take it out: all of the file system lies on the encrypted volume";
        return Err((format!("{value:?} can't be the value of {option:?}"), hint.to_owned()));
    }
    for part in value.split(',') {
        let name = part.split('=').next().unwrap_or(part);
        if let Some((_, cure)) = UNFIT_PARTS.iter().find(|(names, _)| names.contains(&name)) {
            return Err((format!("{part:?} can't be part of {option:?}"), (*cure).to_owned()));
        }
    }
    Ok(())
}

/// `-m0` is `-m` and `0`, `--csum=xxhash` is `--csum` and `xxhash`.
fn split(word: &str) -> Option<(&str, Option<&str>)> {
    if word.starts_with("--") {
        let (option, value) = word.split_once('=').map_or((word, None), |(option, value)| (option, Some(value)));
        return (option.len() > 2).then_some((option, value));
    }
    let letter = word.strip_prefix('-')?.chars().next().filter(char::is_ascii_alphanumeric)?;
    let (option, value) = word.split_at(1 + letter.len_utf8());
    Some((option, (!value.is_empty()).then_some(value)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spanned(words: &[&str]) -> Vec<Spanned<String>> {
        words.iter().map(|word| Spanned::new(0..0, (*word).to_owned())).collect()
    }

    fn taken(kind: FilesystemType, words: &[&str]) -> bool {
        let words = spanned(words);
        let mut rest = words.iter();
        while let Some(word) = rest.next() {
            if check_option(kind, word.get_ref(), &mut rest).is_err() {
                return false;
            }
        }
        true
    }

    #[test]
    fn options_with_and_without_values() {
        use FilesystemType::{Btrfs, Ext4, Swap, Xfs};
        for (kind, words) in [
            (Ext4, ["-m", "0"].as_slice()),
            (Ext4, &["-m0", "-O", "^metadata_csum,bigalloc", "-E", "lazy_itable_init=0"]),
            (Xfs, &["-m", "reflink=0", "-l", "size=64m", "-dagcount=2"]),
            (Btrfs, &["--csum=xxhash", "--mixed", "-m", "single", "--nodesize", "4096"]),
            (Swap, &["--check", "-U", "random"]),
        ] {
            assert!(taken(kind, words), "{words:?}");
        }
        for (kind, words) in [
            (Ext4, ["/dev/sda"].as_slice()),
            (Ext4, &["-m", "0", "/dev/sda"]),
            (Ext4, &["-m", "0", "sda"]),
            (Ext4, &["-v", "sda"]),
            (Ext4, &["-m"]),
            (Ext4, &["-m", "-v"]),
            (Ext4, &["-J", "device=LABEL=journal"]),
            (Ext4, &["-O", "extent,^has_journal"]),
            (Ext4, &["-n"]),
            (Ext4, &["-t", "ext3"]),
            (Ext4, &["-"]),
            (Ext4, &["--"]),
            (Ext4, &[""]),
            (Xfs, &["-f"]),
            (Xfs, &["-l", "logdev=/dev/sda"]),
            (Xfs, &["-N"]),
            (Btrfs, &["--force"]),
            (Btrfs, &["--rootdir", "/etc"]),
            (Btrfs, &["--mixed=yes"]),
            (Swap, &["/dev/sda"]),
            (Swap, &["-c", "1024"]),
            (Swap, &["-f"]),
            (Swap, &["--file", "swap"]),
            (Swap, &["-L", "swap"]),
            (Swap, &["-p", "4096"]),
        ] {
            assert!(!taken(kind, words), "{words:?}");
        }
    }

    proptest! {
        /// Whatever is taken is an option or the value of the option before it.
        #[test]
        fn no_word_is_a_device(words in proptest::collection::vec("(-[a-zA-Z]|--[a-z]{1,6}|[a-z0-9=,]{0,4}|/dev/[a-z]{3})", 0..6)) {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            for kind in FilesystemType::ALL {
                if taken(kind, &words) {
                    let mut before = "";
                    for word in &words {
                        prop_assert!(!word.contains('/'));
                        prop_assert!(word.starts_with('-') || before.starts_with('-'), "{words:?}");
                        before = word;
                    }
                }
            }
        }
    }
}
