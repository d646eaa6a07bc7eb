//! Message ids: the records a reader or a program looks for, `journalctl MESSAGE_ID=…`.
//!
//! Each has an explanation in the catalog, `packaging/secretfs.catalog`, which names fields of the record: a record
//! with an id carries `volume`, and the fields given here. An id never changes and is never used for something else.

/// The volume is unlocked, mounted and verified.
pub const VOLUME_READY: &str = "0ff57d980793495b9801a2b5ec96373c";
/// The volume is unmounted and locked.
pub const VOLUME_STOPPED: &str = "afec7d40c8e4469283ffc1fd67af22e0";
/// The volume cannot be had until somebody changes something; with `secretfs_cause`.
pub const VOLUME_FAILED: &str = "279b356bb7e44efa91123fee3ca1d3b0";
/// A step failed for a reason that may pass; it will be tried again. With `secretfs_cause`.
pub const VOLUME_WAITING: &str = "3cb72847368d47d9a5aff91881ac0a1a";
/// The file system is not mounted any more, or something else is, although nobody stopped the volume; with
/// `secretfs_cause`.
pub const MOUNT_LOST: &str = "f5d8a72ed6134a97ac4bc5de1ad081a9";
/// A restarted daemon found the volume up and kept it so.
pub const VOLUME_ADOPTED: &str = "da7afc5464d44b18bc17655a8b2ba472";
/// The audit record: KMS was asked to decrypt the volume's key. With `aws_request_id`.
pub const KEY_USED: &str = "2b89c100500b44a7b2b52b09b716b6c7";
/// A new LUKS volume was made on the backing device.
pub const VOLUME_FORMATTED: &str = "56a58edd04684f8bac353ee709084e01";

/// Every id with its name.
pub const ALL: &[(&str, &str)] = &[
    ("VOLUME_READY", VOLUME_READY),
    ("VOLUME_STOPPED", VOLUME_STOPPED),
    ("VOLUME_FAILED", VOLUME_FAILED),
    ("VOLUME_WAITING", VOLUME_WAITING),
    ("MOUNT_LOST", MOUNT_LOST),
    ("VOLUME_ADOPTED", VOLUME_ADOPTED),
    ("KEY_USED", KEY_USED),
    ("VOLUME_FORMATTED", VOLUME_FORMATTED),
];

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use libsystemd::id128::Id128;

    use super::*;

    const CATALOG: &str = include_str!("../../../../packaging/secretfs.catalog");

    /// Entries of the catalog by id: a line `-- ID` begins one.
    fn entries() -> BTreeMap<&'static str, String> {
        let mut entries: BTreeMap<&str, String> = BTreeMap::new();
        let mut current = None;
        for line in CATALOG.lines() {
            if let Some(id) = line.strip_prefix("-- ") {
                assert!(entries.insert(id, String::new()).is_none(), "{id} twice");
                current = Some(id);
            } else if let Some(id) = current.filter(|_| !line.starts_with('#')) {
                entries.get_mut(id).expect("was just put in").extend([line, "\n"]);
            }
        }
        entries
    }

    #[test]
    fn ids_and_catalog_agree() {
        let ours: BTreeSet<&str> = ALL.iter().map(|(_, id)| *id).collect();
        assert_eq!(ours.len(), ALL.len());
        assert_eq!(entries().into_keys().collect::<BTreeSet<_>>(), ours);
    }

    #[test]
    fn ids_are_as_journald_takes_them() {
        for (name, id) in ALL {
            assert_eq!(Id128::parse_str(id).unwrap().lower_hex(), *id, "{name}");
        }
    }

    #[test]
    fn every_entry_is_whole() {
        for (id, text) in entries() {
            let (head, body) = text.split_once("\n\n").unwrap_or_else(|| panic!("{id} has no text"));
            let keys: Vec<_> = head.lines().filter_map(|line| line.split_once(": ")).map(|(key, _)| key).collect();
            assert_eq!(keys, ["Subject", "Defined-By", "Documentation"], "{id}");
            assert!(body.len() > 100 && head.contains("@VOLUME@"), "{id}");
        }
    }

    /// A field that a record lacks would be shown as its bare name, so only those that are always there.
    #[test]
    fn entries_use_fields_their_records_have() {
        let entries = entries();
        for (name, id) in ALL {
            let may: &[&str] = match *name {
                "VOLUME_FAILED" | "VOLUME_WAITING" | "MOUNT_LOST" => &["VOLUME", "SECRETFS_CAUSE"],
                "KEY_USED" => &["VOLUME", "AWS_REQUEST_ID"],
                _ => &["VOLUME"],
            };
            for field in fields(&entries[id]) {
                assert!(may.contains(&field), "{name} has no {field}");
            }
        }
    }

    /// As journalctl finds them: `@`, upper case letters and `_`, `@`; so `secretfs@@VOLUME@.service` holds one.
    fn fields(text: &str) -> impl Iterator<Item = &str> {
        text.match_indices('@').filter_map(|(at, _)| {
            let (name, _) = text[at + 1..].split_once('@')?;
            let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
            plain.then_some(name)
        })
    }
}
