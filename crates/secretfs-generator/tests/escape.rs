//! Our escaping of paths is `systemd-escape --path`'s, and the names we make are names to systemd.

#![forbid(unsafe_code)]

use std::process::Command;

use secretfs_core::name::{MountPoint, UnitName, VolumeName, escape_path};

/// What has gone wrong in other people's escaping.
const PATHS: &[&str] = &[
    "/",
    "/mnt",
    "/mnt/secretfs",
    "/mnt/secretfs/",
    "/.hidden",
    "/a/.hidden",
    "/...",
    "/-",
    "/a-b",
    "/-a-/-b-",
    "/a b",
    "/50%home",
    "/%i",
    "/Schlüssel",
    "/鍵/💾",
    "/it's",
    "/\"quoted\"",
    "/a\\b",
    "/a\\x20b",
    "/a:b_c.d",
    "/a@b",
    "/a;b,c&d|e#f!g?h*i[j]k{l}m(n)o<p>q=r+s~t^u`v$w",
    "/dev/mapper/secretfs-scratch",
    "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0",
    "/dev/disk/by-id/dm-uuid-CRYPT-LUKS2-0123",
    "/dev/disk/by-partlabel/a\\x2fb",
];

#[test]
fn paths_are_escaped_as_systemd_does() {
    let generated: Vec<String> = (0..200).map(generated_path).collect();
    let paths: Vec<&str> = PATHS.iter().copied().chain(generated.iter().map(String::as_str)).collect();
    let output = systemd_escape(&["--path"], &paths);
    let theirs: Vec<&str> = output.trim_end_matches('\n').split(' ').collect();
    let ours: Vec<String> = paths.iter().map(|path| escape_path(path)).collect();
    assert_eq!(theirs.len(), paths.len());
    for ((path, ours), theirs) in paths.iter().zip(&ours).zip(theirs) {
        assert_eq!(ours, theirs, "{path:?}");
    }
}

#[test]
fn volume_names_stand_unescaped_as_instances() {
    let names = ["a", "scratch", "9lives", "a.b_c-d", "a..b", "x-", &"x".repeat(38)];
    let services: Vec<String> = names.map(|name| VolumeName::new(name).unwrap().service().to_string()).to_vec();
    // An instance is taken as it is by `systemctl start secretfs@NAME`; systemd-escape leaves a valid unit name alone.
    let output = systemd_escape(&["--mangle"], &services.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(output.trim_end_matches('\n').split(' ').collect::<Vec<_>>(), services);
}

#[test]
fn unit_names_are_names_to_systemd() {
    let mounts = PATHS.iter().filter_map(|path| MountPoint::new(path).ok()).map(|mount| mount.unit().to_string());
    let devices = ["a", "a-b.c"].map(|name| VolumeName::new(name).unwrap().mapper().device_unit().to_string());
    let units = ["a@b.service", "a:b.timer", "my\\x2dapp.service", "-.slice", "a@b@c.target"];
    let units = units.map(|unit| UnitName::new(unit).unwrap().to_string());
    let names: Vec<String> = mounts.chain(devices).chain(units).collect();
    let output = systemd_escape(&["--mangle"], &names.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(output.trim_end_matches('\n').split(' ').collect::<Vec<_>>(), names);
}

fn systemd_escape(options: &[&str], texts: &[&str]) -> String {
    let output = Command::new("systemd-escape")
        .args(options)
        .arg("--")
        .args(texts)
        .output()
        .expect("systemd-escape is needed: install the package `systemd`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A path of odd characters, the same in every run.
fn generated_path(seed: u64) -> String {
    const CHARACTERS: [char; 24] = [
        'a', 'Z', '0', '9', '-', '_', '.', ':', '@', '%', ' ', '\\', '\'', '"', '/', '/', 'ü', 'ß', '鍵', '~', '$',
        '#', '=', '+',
    ];
    // Knuth's multiplicative generator (MMIX): what matters is variety, not chance.
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut path = String::from("/");
    for _ in 0..4 + seed % 24 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let next = CHARACTERS[usize::try_from((state >> 33) % 24).expect("less than 24")];
        if !(next == '/' && path.ends_with('/')) {
            path.push(next);
        }
    }
    // systemd-escape refuses paths that are not normalised: no part may be `.` or `..`.
    path.split('/')
        .map(|part| if part.chars().all(|c| c == '.') { part.replace('.', "x") } else { part.to_owned() })
        .collect::<Vec<_>>()
        .join("/")
}
