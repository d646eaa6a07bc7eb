//! What the writer does with a directory that is not as it expects, and the program with its arguments.

#![forbid(unsafe_code)]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use secretfs_core::units::{Link, UnitFile, UnitPlan};
use secretfs_generator::{LINE_MAX, Priority, generate, record, write_plan};
use support::{fresh_directory, read_tree, roots};

const GENERATOR: &str = env!("CARGO_BIN_EXE_secretfs-generator");

#[test]
fn no_configuration_gives_nothing() {
    let root = fresh_directory("nothing-root");
    let out = root.join("out");
    let report = generate(&root, &out);
    assert!(report.errors.is_empty() && report.unwritten.is_empty(), "{report:?}");
    assert!(!out.exists());
}

#[test]
fn a_second_run_gives_the_same() {
    let out = fresh_directory("twice");
    let root = roots().join("consumers");
    assert!(generate(&root, &out).unwritten.is_empty());
    let first = read_tree(&out);
    assert!(generate(&root, &out).unwritten.is_empty());
    assert_eq!(read_tree(&out), first);
    let mode = fs::metadata(out.join("srv-data.mount")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7133, 0, "{mode:o}");
}

#[test]
fn links_below_the_output_directory_lead_nowhere() {
    let out = fresh_directory("links-out");
    let elsewhere = fresh_directory("links-elsewhere");
    fs::write(elsewhere.join("kept"), "kept").unwrap();
    symlink(elsewhere.join("kept"), out.join("srv-data.mount")).unwrap();
    symlink(&elsewhere, out.join("multi-user.target.wants")).unwrap();
    let report = generate(&roots().join("xfs"), &out);
    // The link in place of a file is replaced; the one in place of a directory is refused, and the rest is written.
    let unwritten: Vec<&Path> = report.unwritten.iter().map(|error| error.path.strip_prefix(&out).unwrap()).collect();
    assert_eq!(unwritten, [Path::new("multi-user.target.wants/secretfs@data.service")]);
    assert!(out.join("srv-data.mount").symlink_metadata().unwrap().is_file());
    assert_eq!(fs::read_to_string(elsewhere.join("kept")).unwrap(), "kept");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1);
}

#[test]
fn nothing_is_written_outside() {
    let top = fresh_directory("outside");
    let out = top.join("out");
    let file = |path: &str| UnitFile { path: path.to_owned(), sections: Vec::new() };
    let plan = UnitPlan {
        files: vec![file("../escaped"), file("/escaped"), file("a/../../escaped"), file("good")],
        links: vec![Link { path: "../escaped".to_owned(), target: "x".to_owned() }],
    };
    assert_eq!(write_plan(&plan, &out).len(), 4);
    assert_eq!(read_tree(&top).keys().collect::<Vec<_>>(), ["out/good"]);
}

#[test]
fn what_can_not_be_read_is_said() {
    let root = fresh_directory("unreadable");
    let directory = root.join("etc/secretfs.toml.d");
    fs::create_dir_all(directory.join("10-directory.toml")).unwrap();
    symlink("nowhere", directory.join("20-dangling.toml")).unwrap();
    fs::write(directory.join("30-binary.toml"), b"\xff\xfe").unwrap();
    fs::write(directory.join("40-huge.toml"), vec![b'#'; (1 << 20) + 1]).unwrap();
    let errors = generate(&root, &root.join("out")).errors;
    let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "/etc/secretfs.toml.d/10-directory.toml:1:1: cannot be read: it is not a regular file",
            "/etc/secretfs.toml.d/20-dangling.toml:1:1: cannot be read: No such file or directory (os error 2)",
            "/etc/secretfs.toml.d/30-binary.toml:1:1: cannot be read: invalid utf-8 sequence of 1 bytes from index 0",
            "/etc/secretfs.toml.d/40-huge.toml:1:1: cannot be read: it is larger than 1 MiB",
        ]
    );
}

#[test]
fn records_fit_the_kernels_log() {
    assert_eq!(record(Priority::Error, 7, "a\nb"), "<3>secretfs-generator[7]: a b");
    let long = record(Priority::Warning, u32::MAX, &"ü".repeat(1000));
    assert!(long.len() <= LINE_MAX && long.ends_with("ü…"), "{} bytes", long.len());
}

#[test]
fn wrong_arguments_are_refused() {
    for arguments in [&[][..], &["a", "b"], &["a", "b", "c", "d"]] {
        let output = Command::new(GENERATOR).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert_eq!(output.stderr, b"Usage: secretfs-generator NORMAL [EARLY LATE]\n");
    }
}
