//! Names that are checked once, when they are made: volumes, mappers, mount points, units.

use std::fmt::{self, Write as _};

/// A LUKS2 label holds 47 bytes (`LUKS2_LABEL_L` less its NUL, LUKS2 on-disk format 1.1) and carries the mapper name,
/// so this is what is left for the volume. Device-mapper (127) and unit names (255) then fit, even when escaped.
const VOLUME_NAME_MAX: usize = 47 - MAPPER_PREFIX.len();

/// systemd takes 255 bytes (`UNIT_NAME_MAX`, systemd.unit(5)), and so does a directory entry: the name of the unit's
/// drop-in directory has to fit too.
const UNIT_NAME_MAX: usize = 255 - ".d".len();

/// What is in use before a volume can be there: its service starts after basic.target, which requires the file systems of
/// /var and /var/tmp, and after early services that keep their state here.
const EARLY_DIRECTORIES: [&str; 17] = [
    "/bin",
    "/etc",
    "/lib",
    "/lib64",
    "/run",
    "/run/secretfs",
    "/sbin",
    "/tmp",
    "/usr",
    "/usr/lib",
    "/var",
    "/var/lib",
    "/var/lib/secretfs",
    "/var/lib/systemd",
    "/var/log",
    "/var/log/journal",
    "/var/tmp",
];

/// What is put before a volume's name to make its mapper name.
const MAPPER_PREFIX: &str = "secretfs-";

/// Why a text is not a name of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A volume name has characters that a unit instance or a mapper can't carry plainly.
    #[error("{name:?} cannot name a volume")]
    Volume {
        /// The refused text.
        name: String,
    },
    /// A mount point that is not an absolute, normalised path below `/`.
    #[error("{path:?} cannot be a mount point: {reason}")]
    MountPoint {
        /// The refused text.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A unit name systemd would refuse.
    #[error("{name:?} can't depend on a volume: {reason}")]
    Unit {
        /// The refused text.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
        /// How to put it right.
        hint: &'static str,
    },
}

impl NameError {
    /// How to put it right.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Volume { .. } => "use 1 to 38 letters, digits, `_`, `.` and `-`, beginning with a letter or a digit",
            Self::MountPoint { path, .. } if path_fault(path).is_none() => {
                "choose a directory of the volume's own, such as \"/mnt/secretfs\""
            }
            Self::MountPoint { .. } => {
                "give an absolute path such as \"/mnt/secretfs\", without `.`, `..`, `//` or a `/` at its end"
            }
            Self::Unit { hint, .. } => hint,
        }
    }
}

/// The name of a volume: the `NAME` of `secretfs@NAME.service` and of `[volume.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(String);

impl VolumeName {
    /// Checks `name`: letters, digits, `_`, `.`, `-`, beginning with a letter or a digit, so that it stands unescaped
    /// as a unit instance, and short enough for the mapper and the unit names made from it.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if plain && begins && name.len() <= VOLUME_NAME_MAX {
            Ok(Self(name.to_owned()))
        } else {
            Err(NameError::Volume { name: name.to_owned() })
        }
    }

    /// A name that stands in for one that can't be had, so that even such a volume has a service, which fails and
    /// says why.
    pub fn stand_in(name: &str) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' };
        Self(format!("refused-{name}").chars().map(plain).take(VOLUME_NAME_MAX).collect())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the volume's device-mapper device.
    pub fn mapper(&self) -> MapperName {
        MapperName(format!("{MAPPER_PREFIX}{}", self.0))
    }

    /// `secretfs@NAME.service`.
    pub fn service(&self) -> UnitName {
        UnitName(format!("secretfs@{}.service", self.0))
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a device below `/dev/mapper`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapperName(String);

impl MapperName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `/dev/mapper/NAME`.
    pub fn device(&self) -> String {
        format!("/dev/mapper/{}", self.0)
    }

    /// The device unit of `/dev/mapper/NAME`.
    pub fn device_unit(&self) -> UnitName {
        UnitName(format!("{}.device", escape_path(&self.device())))
    }

    /// The swap unit that systemd insists on for `/dev/mapper/NAME` (systemd.swap(5)).
    pub fn swap_unit(&self) -> UnitName {
        UnitName(format!("{}.swap", escape_path(&self.device())))
    }
}

impl fmt::Display for MapperName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An absolute, normalised path other than `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MountPoint(String);

impl MountPoint {
    /// Checks `path` and the length of the mount unit's name made from it.
    pub fn new(path: &str) -> Result<Self, NameError> {
        let refuse = |reason| Err(NameError::MountPoint { path: path.to_owned(), reason });
        if let Some(reason) = path_fault(path) {
            return refuse(reason);
        }
        if path == "/" {
            return refuse("it is the root directory");
        }
        if ["/proc", "/sys", "/dev", "/run/systemd"].iter().any(|api| is_at_or_below(path, api)) {
            return refuse("the kernel's and systemd's own trees can't carry a volume");
        }
        if EARLY_DIRECTORIES.contains(&path) {
            return refuse("the system needs this directory before a volume can be there");
        }
        let mount_point = Self(path.to_owned());
        if mount_point.unit().as_str().len() > UNIT_NAME_MAX {
            return refuse("the name of its mount unit would be too long");
        }
        Ok(mount_point)
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The mount unit that systemd insists on for this path (systemd.mount(5)).
    pub fn unit(&self) -> UnitName {
        UnitName(format!("{}.mount", escape_path(&self.0)))
    }

    /// Whether this path lies properly below `other`.
    pub fn is_below(&self, other: &Self) -> bool {
        self != other && is_at_or_below(&self.0, &other.0)
    }
}

impl fmt::Display for MountPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a systemd unit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitName(String);

impl UnitName {
    /// Checks the name of a unit that is to depend on a volume: a type that can start that late, the characters of
    /// systemd.unit(5), and no template without its instance.
    ///
    /// Sockets and paths are ready before basic.target and a volume's service comes after it, so one that waited for a
    /// volume would make a cycle, which systemd breaks by leaving something out.
    pub fn new(name: &str) -> Result<Self, NameError> {
        const TYPES: [&str; 5] = ["service", "mount", "timer", "target", "slice"];
        let refuse = |reason, hint| Err(NameError::Unit { name: name.to_owned(), reason, hint });
        let Some((stem, kind)) = name.rsplit_once('.').filter(|(stem, _)| !stem.is_empty()) else {
            return refuse("it is not a full unit name", "give it with its type, such as \"postgresql.service\"");
        };
        if matches!(kind, "socket" | "path") {
            return refuse("it is ready before any volume can be", "name the service that it starts instead");
        }
        if !TYPES.contains(&kind) {
            return refuse("it is of no type that can", "name a service, target, timer, slice or mount");
        }
        if !stem.chars().all(|c| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c)) || stem.starts_with('@') {
            return refuse(
                "systemd takes no such name",
                "give the name as `systemctl` shows it; systemd-escape(1) helps",
            );
        }
        if stem.ends_with('@') {
            return refuse("it is a template", "name an instance of it, such as \"postgresql@15-main.service\"");
        }
        if name.len() > UNIT_NAME_MAX {
            return refuse("it is too long", "253 bytes is what the name and its drop-in directory leave");
        }
        Ok(Self(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What keeps `path` from being an absolute, normalised path, if anything does.
pub fn path_fault(path: &str) -> Option<&'static str> {
    if !path.starts_with('/') {
        Some("it is not absolute")
    } else if path.chars().any(char::is_control) {
        Some("it has a control character")
    } else if path.ends_with(|c: char| c.is_whitespace() || c == '\\') {
        // systemd strips the one and takes the other for a continued line (systemd.syntax(7)).
        Some("it ends in white space or a backslash")
    } else if path != "/" && path[1..].split('/').any(|part| matches!(part, "" | "." | "..")) {
        Some("it is not normalised")
    } else {
        None
    }
}

/// Escapes a path for use in a unit name, as `systemd-escape --path` does (systemd.unit(5), "String escaping").
pub fn escape_path(path: &str) -> String {
    let trimmed = path.trim_matches('/');
    if trimmed.is_empty() {
        return "-".to_owned();
    }
    let mut escaped = String::with_capacity(trimmed.len());
    for (index, byte) in trimmed.bytes().enumerate() {
        match byte {
            b'/' => escaped.push('-'),
            b'.' if index == 0 => escaped.push_str("\\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => escaped.push(char::from(byte)),
            other => {
                let _ = write!(escaped, "\\x{other:02x}");
            }
        }
    }
    escaped
}

fn is_at_or_below(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_one_volume() {
        let volume = VolumeName::new("scratch").unwrap();
        assert_eq!(volume.mapper().device(), "/dev/mapper/secretfs-scratch");
        assert_eq!(volume.mapper().device_unit().as_str(), "dev-mapper-secretfs\\x2dscratch.device");
        assert_eq!(volume.mapper().swap_unit().as_str(), "dev-mapper-secretfs\\x2dscratch.swap");
        assert_eq!(volume.service().as_str(), "secretfs@scratch.service");
        assert_eq!(MountPoint::new("/mnt/secretfs").unwrap().unit().as_str(), "mnt-secretfs.mount");
    }

    #[test]
    fn refused_names() {
        for name in ["", "-a", "a b", "a/b", "ü", "a%i", "a@b", &"x".repeat(39)] {
            assert!(VolumeName::new(name).is_err(), "{name:?}");
        }
        for path in [
            "",
            "mnt",
            "/",
            "/mnt/",
            "/mnt//a",
            "/mnt/../a",
            "/mnt/a\nb",
            "/mnt/a ",
            "/mnt/a\\",
            "/proc/x",
            "/dev",
            "/run/systemd/x",
            "/var",
            "/tmp",
        ] {
            assert!(MountPoint::new(path).is_err(), "{path:?}");
        }
        for unit in
            ["", "postgresql", "a@.service", "@a.service", ".service", "a b.service", "x.device", "x.scope", "x.socket"]
        {
            assert!(UnitName::new(unit).is_err(), "{unit:?}");
        }
    }

    #[test]
    fn accepted_names() {
        for unit in ["postgresql@15-main.service", "multi-user.target", "srv-data.mount", "a\\x2db.service"] {
            assert_eq!(UnitName::new(unit).unwrap().as_str(), unit);
        }
        assert!(MountPoint::new("/procession").is_ok());
        assert!(MountPoint::new("/var/lib/postgresql").is_ok());
        assert!(MountPoint::new("/srv/50%home").is_ok());
    }

    proptest! {
        #[test]
        fn names_never_panic(text in ".{0,300}") {
            if let Ok(volume) = VolumeName::new(&text) {
                prop_assert!(volume.mapper().as_str().len() <= 47);
                prop_assert!(volume.mapper().device_unit().as_str().len() <= UNIT_NAME_MAX);
            }
            prop_assert!(VolumeName::new(VolumeName::stand_in(&text).as_str()).is_ok());
            let _ = UnitName::new(&text);
        }

        #[test]
        fn mount_units_fit(text in "/[a-z./ü%-]{0,300}") {
            if let Ok(mount_point) = MountPoint::new(&text) {
                prop_assert!(mount_point.unit().as_str().len() <= UNIT_NAME_MAX);
            }
        }
    }
}
