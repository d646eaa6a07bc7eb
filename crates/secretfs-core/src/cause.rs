//! The one table of what can go wrong: retry policy, exit status, `STATUS=`, journal and `doctor` all read it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether trying the same again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The world may change by itself: an outage, a throttle, a device that is still appearing.
    Transient,
    /// Somebody has to change something first.
    Permanent,
}

/// What a cause means; one row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The stable code, as it stands in messages, in `SECRETFS_CAUSE=` of the journal and in `--json`.
    pub code: &'static str,
    /// Whether to try again.
    pub retry: Retry,
    /// What happened, in a few words that follow the volume's name.
    pub summary: &'static str,
    /// The IAM action whose absence gives this cause.
    pub iam_action: Option<&'static str>,
    /// What to do about it.
    pub hint: &'static str,
}

macro_rules! causes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $retry:ident, $summary:literal, $action:expr, $hint:literal;)*) => {
        /// Why a step failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Cause {
            $($(#[$doc])* #[serde(rename = $code)] $name,)*
        }

        impl Cause {
            /// Every cause, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The cause's row of the table.
            pub const fn row(self) -> Row {
                match self {
                    $(Self::$name => Row {
                        code: $code,
                        retry: Retry::$retry,
                        summary: $summary,
                        iam_action: $action,
                        hint: $hint,
                    },)*
                }
            }
        }
    };
}

causes! {
    // Configuration and this machine's own parts.
    /// The configuration of the volume was refused.
    Config = "config", Permanent, "its configuration is wrong", None,
        "put /etc/secretfs.toml right, see `secretfs check`, then run `systemctl daemon-reload`";
    /// A program, library or kernel part of secretfs itself does not work.
    Internal = "internal", Permanent, "a part of secretfs failed", None,
        "see the journal of the unit; is the package complete and the kernel's dm-crypt there?";
    /// A system resource ran out or an input/output error occurred.
    System = "system", Transient, "the system refused", None,
        "see the journal of the unit and `dmesg`";
    /// systemd did not do what was asked of it.
    Systemd = "systemd", Transient, "systemd could not be asked", None,
        "see `systemctl list-jobs` and `journalctl -b _PID=1`";
    /// systemd has no mount or swap unit for the volume.
    UnitsMissing = "units-missing", Permanent, "systemd does not know its units", None,
        "run `systemctl daemon-reload`, so that the units are made from the configuration as it is now";
    /// The mount unit failed.
    MountFailed = "mount-failed", Permanent, "the mount unit failed", None,
        "see `systemctl status` of the mount unit; is the mount point busy or not a directory?";
    /// The mount unit could not be stopped.
    UnmountFailed = "unmount-failed", Permanent, "it cannot be unmounted", None,
        "find the user with `fuser --mount` or `lsof`, end it, then stop the volume again";
    /// The file system is not mounted any more although nobody stopped the volume.
    MountLost = "mount-lost", Permanent, "its mount went away", None,
        "something unmounted it; `systemctl start` the volume's service to have it back";
    /// The swap unit failed.
    SwapFailed = "swap-failed", Permanent, "the swap unit failed", None,
        "see `systemctl status` of the swap unit, and `dmesg`";
    /// The swap unit could not be stopped.
    SwapoffFailed = "swapoff-failed", Permanent, "its swap space cannot be taken out of use", None,
        "what is in it has to fit into memory: see `swapon --show` and `free`, end what takes most, then stop the volume again";
    /// The swap space is not in use any more although nobody stopped the volume.
    SwapLost = "swap-lost", Permanent, "its swap space was taken out of use", None,
        "something ran swapoff; `systemctl start` the volume's service to have it back";
    /// What is mounted is not the volume it should be.
    ChainBroken = "chain-broken", Permanent, "what is mounted is not this encrypted volume", None,
        "something else is mounted or mapped under the volume's names; unmount it and start again";
    /// The mount point is already used by another file system.
    MountPointBusy = "mount-point-busy", Permanent, "something else is mounted on its mount point", None,
        "unmount it, or give the volume another mount point";

    /// The mount point is no directory, and can't be made one.
    MountPointUnfit = "mount-point-unfit", Permanent, "its mount point cannot be used", None,
        "make it a directory, or give the volume another mount point";

    // Backing devices.
    /// The backing file or device is not there.
    BackingMissing = "backing-missing", Transient, "its backing device is not there", None,
        "attach the device, or correct `backing` in the configuration";
    /// The backing is there, but it is not of the configured kind, size or owner.
    BackingMismatch = "backing-mismatch", Permanent, "its backing is not what the configuration says", None,
        "compare `backing` in the configuration with what is there; secretfs changes neither";
    /// It can't be told which disks are meant.
    BackingAmbiguous = "backing-ambiguous", Permanent, "it cannot be told which disks are meant", None,
        "make `match` narrower, with `serial`, `ebs-volume` or `by-id`; secretfs does not guess";
    /// A volume that is to be kept has a blank backing.
    HeaderGone = "header-gone", Permanent, "its LUKS header is gone", None,
        "is it the right disk, and was it wiped or restored? If its data may go, remove its claim below /var/lib/secretfs and start it again";
    /// What the volume lies on is not what it lay on.
    ClaimChanged = "claim-changed", Permanent, "it is not the volume that it was", None,
        "compare its claim below /var/lib/secretfs with `lsblk` and `cryptsetup luksDump`; if the change is meant, remove the claim and start it again";
    /// LVM did not do what was asked of it.
    LvmFailed = "lvm-failed", Permanent, "LVM failed", None,
        "see LVM's own message in the journal of the unit; is lvm2 installed?";
    /// There is no room to make the backing file.
    BackingNoSpace = "backing-no-space", Permanent, "there is no room for its backing file", None,
        "make room, or choose a smaller `size`";
    /// The device is mounted, mapped or otherwise held by somebody else.
    DeviceBusy = "device-busy", Permanent, "its backing device is in use", None,
        "find the user with `lsblk` and `fuser`; secretfs touches no device that somebody holds";
    /// The device carries something that is not ours.
    ForeignSignature = "foreign-signature", Permanent, "its backing device carries foreign data", None,
        "if the data may go, clear it with `wipefs --all` yourself; secretfs never does";
    /// The device has no signature but is not blank either.
    NotBlank = "not-blank", Permanent, "its backing device is not blank", None,
        "if the data may go, clear the device with `blkdiscard` or `dd` yourself; secretfs never does";
    /// A LUKS header is there, but it is not usable.
    HeaderBroken = "header-broken", Permanent, "its LUKS header cannot be used", None,
        "restore it with `cryptsetup luksHeaderRestore` from a backup, or see `cryptsetup repair`";
    /// The key opens no key slot.
    WrongKey = "wrong-key", Permanent, "the key opens no key slot of the volume", None,
        "does the object still hold the key this volume was formatted with?";
    /// The mapping is open, but holds no file system that is known.
    FilesystemMissing = "filesystem-missing", Permanent, "the opened volume holds no such file system", None,
        "compare `filesystem` in the configuration with `blkid` on the mapping; secretfs formats nothing that was in use";
    /// mkfs failed.
    MkfsFailed = "mkfs-failed", Permanent, "its file system could not be made", None,
        "see mkfs's own message in the journal of the unit; is the program installed and the volume large enough?";
    /// The device was to be discarded, and can't be.
    DiscardFailed = "discard-failed", Permanent, "its backing could not be discarded", None,
        "not every device can; write wipe = \"zero\" or \"none\" instead of \"discard\" in the configuration";
    /// Zeros could not be written through the mapping or into the free space.
    WipeFailed = "wipe-failed", Permanent, "it could not be zeroed", None,
        "see the kernel's log for errors of the device; the next start goes on where this one ended";
    /// The owner or group configured for the root directory does not exist.
    NoSuchOwner = "no-such-owner", Permanent, "the owner or group of its root directory does not exist", None,
        "make the user or group, with systemd-sysusers or useradd, or correct `owner` and `group` in the configuration";
    /// Swap space has the size it was made with.
    SwapFixed = "swap-fixed", Permanent, "swap space does not grow while it is in use", None,
        "it is made as large as its backing at its first start in the next boot";
    /// The mapping or its file system could not be made larger.
    GrowFailed = "grow-failed", Permanent, "it cannot be made larger", None,
        "see the tool's own message; the volume is as it was, and `secretfs grow` tries again";

    // The way to AWS.
    /// No answer from an endpoint: no route, no DNS, connection refused or reset, time-out.
    AwsUnreachable = "aws-unreachable", Transient, "AWS does not answer", None,
        "check routes, DNS, security groups and VPC endpoints for S3 and KMS";
    /// An AWS service answered that it is at fault itself.
    AwsFault = "aws-fault", Transient, "AWS reports a fault of its own", None,
        "see the AWS Health Dashboard; the request id is in the journal";
    /// Too many requests.
    Throttled = "throttled", Transient, "AWS asks to slow down", None,
        "look at the request quotas of KMS and S3 in this account";
    /// An endpoint's TLS certificate is signed by nobody we know, or is for another name.
    AwsUntrusted = "aws-untrusted", Transient, "the TLS certificate of an AWS endpoint is not trusted", None,
        "is ca-certificates installed? Behind a proxy that opens TLS, name a bundle with its CA in SSL_CERT_FILE";
    /// No region is known.
    NoRegion = "no-region", Transient, "no AWS region is known", None,
        "set `region` below `[aws]`, or let the instance metadata service answer";
    /// No credentials: no instance role, no metadata service, no profile.
    NoCredentials = "no-credentials", Transient, "no AWS credentials could be had", None,
        "attach an instance profile and allow IMDSv2, or configure a profile in /etc/default/secretfs";
    /// The credentials were refused: expired, unknown or wrongly signed.
    BadCredentials = "bad-credentials", Transient, "AWS refused the credentials", None,
        "check the instance profile or the profile named in /etc/default/secretfs";
    /// The clock is too far off for a signature to be accepted.
    ClockSkew = "clock-skew", Transient, "this machine's clock is wrong", None,
        "let chrony or systemd-timesyncd set the clock; AWS accepts 15 minutes";

    // S3.
    /// `s3:GetObject` is denied, or the object is missing and `s3:ListBucket` is denied.
    S3AccessDenied = "s3-access-denied", Permanent, "S3 denies access to the key's object", Some("s3:GetObject"),
        "allow s3:GetObject on the object for this instance's role (and s3:ListBucket, to tell a missing object from a denied one)";
    /// There is no such object.
    S3NoSuchKey = "s3-no-such-key", Permanent, "there is no such object in S3", None,
        "compare `bucket` and `object` in the configuration with `aws s3 ls`";
    /// There is no such bucket.
    S3NoSuchBucket = "s3-no-such-bucket", Permanent, "there is no such bucket in S3", None,
        "compare `bucket` and the region in the configuration with `aws s3 ls`";
    /// The object is too large to be an encrypted key.
    S3ObjectUnfit = "s3-object-unfit", Permanent, "the object in S3 cannot be an encrypted key", None,
        "it must be a ciphertext blob of KMS: 1 to 6144 bytes; was it stored as base64?";

    // KMS.
    /// `kms:Decrypt` is denied.
    KmsAccessDenied = "kms-access-denied", Permanent, "KMS denies the use of the key", Some("kms:Decrypt"),
        "allow kms:Decrypt on the key for this instance's role, in the role's policy or in the key policy";
    /// The key is disabled.
    KmsDisabled = "kms-disabled", Permanent, "the KMS key is disabled", None,
        "`aws kms enable-key` brings it back, if it may be used again";
    /// The key is pending deletion, or otherwise in a state that forbids use.
    KmsInvalidState = "kms-invalid-state", Permanent, "the KMS key is pending deletion or not usable", None,
        "`aws kms cancel-key-deletion` and `enable-key` bring it back while the waiting period lasts";
    /// The key or its alias does not exist.
    KmsNotFound = "kms-not-found", Permanent, "there is no such KMS key", None,
        "compare `kms-key` in the configuration with `aws kms list-aliases` in this region";
    /// The ciphertext was not made under this key.
    KmsIncorrectKey = "kms-incorrect-key", Permanent, "the object was encrypted under another KMS key", None,
        "compare `kms-key` in the configuration with the key the object was encrypted under";
    /// The ciphertext is damaged, or the encryption context is not the one it was made with.
    KmsInvalidCiphertext = "kms-invalid-ciphertext", Permanent,
        "KMS cannot decrypt the object: damaged, or another encryption context", None,
        "compare `context` in the configuration with the one given to `aws kms encrypt`";
    /// KMS decrypted the object, to nothing.
    KeyEmpty = "key-empty", Permanent, "the decrypted key is empty", None,
        "store a key in the object: `secretfs` needs at least one byte besides newlines";
    /// The key fetcher stopped without a report.
    FetchFailed = "fetch-failed", Transient, "the key fetcher stopped without a report", None,
        "see the journal of the unit; is /usr/lib/secretfs/secretfs-fetch whole?";
}

impl Cause {
    /// The stable code.
    pub const fn code(self) -> &'static str {
        self.row().code
    }

    /// Whether trying the same again can help.
    pub const fn retry(self) -> Retry {
        self.row().retry
    }
}

impl fmt::Display for Cause {
    /// The summary followed by the code: `KMS denies the use of the key (kms-access-denied)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = self.row();
        write!(f, "{} ({})", row.summary, row.code)
    }
}

/// A cause with what was said about this very case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The row of the table.
    pub cause: Cause,
    /// The subject and the words of whoever refused; never a secret.
    pub detail: String,
}

impl Failure {
    /// A failure with its particulars.
    pub fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Self { cause, detail: detail.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.detail.is_empty() { write!(f, "{}", self.cause) } else { write!(f, "{}: {}", self.cause, self.detail) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_unique_and_kebab_case() {
        let codes: BTreeSet<&str> = Cause::ALL.iter().map(|cause| cause.code()).collect();
        assert_eq!(codes.len(), Cause::ALL.len());
        for code in codes {
            assert!(code.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{code}");
        }
    }

    #[test]
    fn every_row_says_something() {
        for cause in Cause::ALL {
            let row = cause.row();
            assert!(!row.summary.is_empty() && !row.summary.ends_with('.'), "{cause:?}");
            assert!(row.hint.len() > 20, "{cause:?}");
        }
    }

    #[test]
    fn a_code_is_what_serde_writes() {
        for cause in Cause::ALL {
            assert_eq!(serde_json::to_string(cause).unwrap(), format!("{:?}", cause.code()));
        }
    }
}
