//! Every root of `tests/roots` gives its `expected` tree and its `errors` (and warnings), and systemd has nothing to say to that tree.
//!
//! `UPDATE_GOLDEN=1 cargo test -p secretfs-generator --test golden` rewrites both.

#![forbid(unsafe_code)]

mod support;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Node, Tree, diff, fresh_directory, read_tree, roots, update, write_tree};

/// Where systemd keeps its own units; the tests use them and no other unit of this machine.
const SYSTEM_UNITS: &str = "/usr/lib/systemd/system";

/// The units of the package.
const TEMPLATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../units/secretfs@.service");
const MODULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../units/secretfs-modules.service");

macro_rules! roots {
    ($($test:ident: $root:literal,)*) => {
        $(mod $test {
            #[test]
            fn gives_its_tree() {
                super::gives_its_tree($root);
            }

            #[test]
            fn satisfies_systemd() {
                super::satisfies_systemd($root);
            }
        })*

        #[test]
        fn every_root_is_tested() {
            let tested = BTreeSet::from([$($root.to_owned()),*]);
            let names = fs::read_dir(roots()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            assert_eq!(tested, names.collect::<BTreeSet<String>>());
        }
    };
}

roots! {
    bad_beside_good: "bad-beside-good",
    btrfs: "btrfs",
    consumers: "consumers",
    device_by_id: "device-by-id",
    device_odd_name: "device-odd-name",
    directory: "directory",
    empty: "empty",
    example: "example",
    filesystem_options: "filesystem-options",
    impossible_names: "impossible-names",
    integrity: "integrity",
    kernel_name: "kernel-name",
    matched: "match",
    nested_backing: "nested-backing",
    nested_mounts: "nested-mounts",
    not_at_boot: "not-at-boot",
    odd_paths: "odd-paths",
    one_backing: "one-backing",
    one_mount_point: "one-mount-point",
    persistent_context: "persistent-context",
    recipe: "recipe",
    swap: "swap",
    syntax_error: "syntax-error",
    two_volumes: "two-volumes",
    xfs: "xfs",
}

fn gives_its_tree(name: &str) {
    let root = roots().join(name);
    let out = fresh_directory(&format!("golden-{name}"));
    let report = secretfs_generator::generate(&root, &out);
    assert!(report.unwritten.is_empty(), "{:?}", report.unwritten);
    let written = read_tree(&out);
    let mut errors = String::new();
    let warnings = report.warnings.iter().map(|warning| ("warning: ", warning));
    for (kind, error) in report.errors.iter().map(|error| ("", error)).chain(warnings) {
        let _ = writeln!(errors, "{kind}{error}");
        let _ = writeln!(errors, "    hint: {}", error.hint.as_deref().unwrap_or("(none)"));
    }
    let expected_path = root.join("expected");
    let errors_path = root.join("errors");
    if update() {
        write_tree(&expected_path, &written);
        if errors.is_empty() {
            let _ = fs::remove_file(errors_path);
        } else {
            fs::write(errors_path, errors).unwrap();
        }
        return;
    }
    let difference = diff(&read_tree(&expected_path), &written);
    assert!(difference.is_empty(), "{name}: the tree differs (- expected, + written)\n\n{difference}");
    let expected = match fs::read_to_string(&errors_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read.unwrap(),
    };
    assert_eq!(errors, expected, "{name}: the messages differ\n\n--- written\n{errors}\n--- expected\n{expected}");
}

/// `systemd-analyze verify` exits with 0 for a cycle and for much else, so its silence is the test.
fn satisfies_systemd(name: &str) {
    let (succeeded, said) = verify(name, &read_tree(&roots().join(name).join("expected")));
    assert!(succeeded && said.is_empty(), "{name}: systemd-analyze says\n{said}");
}

/// Whether the silence above means anything.
#[test]
fn systemd_speaks_up() {
    let tree = read_tree(&roots().join("recipe/expected"));
    let device = "dev-mapper-secretfs\\x2dscratch.device.d/50-secretfs.conf";
    let mut unknown = tree.clone();
    unknown.insert(device.to_owned(), Node::File("[Unit]\nBogus=1\n".to_owned()));
    let (_, said) = verify("unknown-key", &unknown);
    assert!(said.contains("Unknown key 'Bogus'"), "{said}");

    // Why sockets are refused as consumers.
    let mut cycle = tree.clone();
    cycle.insert(
        "nginx.socket.d/50-secretfs-scratch.conf".to_owned(),
        tree["postgresql.service.d/50-secretfs-scratch.conf"].clone(),
    );
    let (_, said) = verify("cycle", &cycle);
    assert!(said.contains("ordering cycle"), "{said}");
}

/// Puts `tree` before systemd and gives its exit status and all that it says.
fn verify(name: &str, tree: &Tree) -> (bool, String) {
    let path = fresh_directory(&format!("verify-{name}"));
    write_tree(&path, tree);
    fs::write(path.join("secretfs@.service"), template()).unwrap();
    fs::copy(MODULES, path.join("secretfs-modules.service")).unwrap();
    for unit in consumers(tree) {
        write_stub(&path, &unit);
    }
    // With multi-user.target everything that is there at boot is ordered together, so that cycles show.
    let mut units: BTreeSet<String> = ["multi-user.target".to_owned()].into();
    for entry in tree.keys() {
        let top = entry.split('/').next().expect("split gives at least one part");
        units.insert(top.trim_end_matches(".d").trim_end_matches(".wants").to_owned());
    }
    let output = Command::new("systemd-analyze")
        // Our manual pages need not be installed here.
        .args(["verify", "--recursive-errors=yes", "--man=no", "--"])
        .args(&units)
        .env("SYSTEMD_UNIT_PATH", format!("{}:{SYSTEM_UNITS}", path.display()))
        .env("SYSTEMD_LOG_LEVEL", "info")
        .output()
        .expect("systemd-analyze is needed: install the package `systemd`");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.success(), said)
}

/// The package's template with a program that is there on every machine: systemd looks for those in `Exec…=`.
fn template() -> String {
    let text = fs::read_to_string(TEMPLATE).unwrap();
    let replaced: Vec<String> = text
        .lines()
        .map(|line| match line.split_once('=') {
            Some((key @ ("ExecStart" | "ExecReload"), _)) => format!("{key}=/bin/true"),
            _ => line.to_owned(),
        })
        .collect();
    replaced.join("\n") + "\n"
}

/// The units that drop-ins are made for and that are nobody's here.
fn consumers(tree: &Tree) -> BTreeSet<String> {
    let drop_ins = tree.iter().filter(|(_, node)| matches!(node, Node::File(_)));
    drop_ins.filter_map(|(path, _)| path.split_once(".d/50-secretfs-")).map(|(unit, _)| unit.to_owned()).collect()
}

/// Something for systemd to hang a consumer's drop-in on.
fn write_stub(path: &Path, unit: &str) {
    let text = match unit.rsplit_once('.').expect("a unit name has a type").1 {
        "service" => "[Service]\nExecStart=/bin/true\n",
        "timer" => "[Timer]\nOnCalendar=daily\nUnit=reboot.target\n",
        "mount" => "[Mount]\nWhat=/srv/data/export\nWhere=/srv/export\nOptions=bind,_netdev\n",
        "socket" => "[Socket]\nListenStream=/run/stub\nService=dbus.service\n",
        "target" | "slice" => "[Unit]\nDescription=Stub\n",
        other => panic!("no stub for {other}"),
    };
    fs::write(PathBuf::from(path).join(unit), text).unwrap();
}
