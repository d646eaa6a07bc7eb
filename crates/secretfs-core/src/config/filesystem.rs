//! What a volume's file system and encryption are made with, checked.

/// The file system on a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    /// Its type.
    pub kind: FilesystemType,
    /// Its label.
    pub label: Option<String>,
    /// More words for mkfs, each option followed by its value if it takes one; none names a device.
    pub mkfs_options: Vec<String>,
    /// Options of the mount or of swapon(8); none has a comma.
    pub mount_options: Vec<String>,
    /// Who owns its root directory.
    pub root: RootDirectory,
}

impl Filesystem {
    /// A file system of which nothing but the type was chosen.
    pub fn of(kind: FilesystemType) -> Self {
        Self { kind, label: None, mkfs_options: Vec::new(), mount_options: Vec::new(), root: RootDirectory::default() }
    }
}

/// The type of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilesystemType {
    /// ext4, with a journal and hashed directories.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs, on this one device.
    Btrfs,
    /// Swap space, which is no file system and is chosen in its place.
    Swap,
}

impl FilesystemType {
    /// Every type there is.
    pub const ALL: [Self; 4] = [Self::Ext4, Self::Xfs, Self::Btrfs, Self::Swap];

    /// Its name, in the configuration, in `Type=` of a mount unit and in what libblkid says.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Swap => "swap",
        }
    }
}

/// Owner, group and mode of a mounted file system's root directory; what is not given stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootDirectory {
    /// A user's name or number.
    pub owner: Option<String>,
    /// A group's name or number.
    pub group: Option<String>,
    /// Permissions, at most 0o1777.
    pub mode: Option<u32>,
}

impl RootDirectory {
    /// Whether there is anything to see to.
    pub fn is_configured(&self) -> bool {
        *self != Self::default()
    }
}

/// How the encryption is set up; all of it is off, or chosen by secretfs, unless it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Luks {
    /// Whether discards go through to the backing, which shows it what is in use.
    pub discard: bool,
    /// Whether reads are decrypted at once instead of in a work queue.
    pub no_read_workqueue: bool,
    /// Whether writes are encrypted at once instead of in a work queue.
    pub no_write_workqueue: bool,
    /// Bytes in one encryption sector, for a format.
    pub sector_size: Option<u32>,
    /// What tells a sector that was changed behind the encryption's back, for a format.
    pub integrity: Option<Integrity>,
}

/// What the tags of the sectors are made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Integrity {
    /// HMAC with SHA-256: 32 bytes for each sector.
    HmacSha256,
}
