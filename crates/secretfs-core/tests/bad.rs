//! Every refusal of the configuration: `bad/NAME.toml` gives exactly the messages of `bad/NAME.txt`.
//!
//! `UPDATE_GOLDEN=1 cargo test -p secretfs-core --test bad` rewrites the messages.

// The core itself opens no file; what tests it may.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use secretfs_core::config::{Config, Source};

#[test]
fn bad_configurations_are_refused_with_place_and_cure() {
    let names = names();
    assert!(names.len() > 20, "tests/bad is not where it was");
    let mut differences = String::new();
    for name in names {
        let said = messages(&name);
        assert!(!said.is_empty(), "{name}.toml is not refused");
        let path = directory().join(format!("{name}.txt"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(path, said).unwrap();
            continue;
        }
        let expected = fs::read_to_string(path).unwrap_or_default();
        if said != expected {
            let _ = write!(differences, "{name}:\n--- expected\n{expected}--- said\n{said}\n");
        }
    }
    assert!(differences.is_empty(), "the messages differ\n\n{differences}");
}

#[test]
fn every_refusal_has_a_hint() {
    for name in names() {
        let config = parse(&name);
        for error in config.all_errors() {
            assert!(error.hint.is_some(), "{name}: {error}");
        }
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad")
}

fn names() -> BTreeSet<String> {
    fs::read_dir(directory())
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".toml")?.to_owned()))
        .collect()
}

fn parse(name: &str) -> Config {
    let text = fs::read_to_string(directory().join(format!("{name}.toml"))).unwrap();
    Config::parse(&[Source { path: format!("{name}.toml"), text }])
}

fn messages(name: &str) -> String {
    let mut text = String::new();
    for error in parse(name).all_errors() {
        let _ = writeln!(text, "{error}");
        let _ = writeln!(text, "    hint: {}", error.hint.as_deref().unwrap_or("(none)"));
    }
    text
}
