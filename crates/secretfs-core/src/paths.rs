//! Where things live on an installed system, for every program that has to agree on it.

/// The configuration file; the generator's units name it in `SourcePath=`.
pub const CONFIG_FILE: &str = "/etc/secretfs.toml";

/// Further configuration files (`*.toml`), read in the order of their names after [`CONFIG_FILE`].
pub const CONFIG_DIR: &str = "/etc/secretfs.toml.d";

/// What the daemons leave for the time of one boot; a tmpfs, so a reboot empties it.
pub const RUNTIME_DIR: &str = "/run/secretfs";

/// What the daemons remember of their volumes from boot to boot: `NAME.claim.json`, and `NAME.begun.json` while several
/// disks become one device.
pub const STATE_DIR: &str = "/var/lib/secretfs";

/// The only program that talks to the network.
pub const FETCH_PROGRAM: &str = "/usr/lib/secretfs/secretfs-fetch";

/// The system user that [`FETCH_PROGRAM`] runs as (sysusers.d/secretfs.conf).
pub const FETCH_USER: &str = "secretfs";
