//! What must hold in a booted machine, by name.

mod aws;
mod bad_input;
mod boot;
mod consumers;
mod crash;
mod disks;
mod filesystems;
mod grow;
mod guest;
mod kernel;
mod legacy;
mod plan;
mod volumes;
mod wipe;

use anyhow::Result;

use crate::vm::Rig;

/// One scenario.
pub(crate) struct Scenario {
    /// How it is reported and chosen.
    pub(crate) name: &'static str,
    /// Its steps; an error is a failure.
    pub(crate) run: fn(&mut Rig) -> Result<()>,
}

/// Every scenario, in the order in which they run.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "start and stop by hand", run: volumes::start_and_stop },
    Scenario { name: "the tests that need root, loop devices and dm-crypt", run: kernel::ignored_tests },
    Scenario { name: "plan: every deed is told before it is done, and nothing is changed", run: plan::told_and_done },
    Scenario { name: "xfs on a disk, twice", run: volumes::xfs_on_a_disk },
    Scenario { name: "btrfs in a file, twice, and taken over", run: filesystems::btrfs },
    Scenario {
        name: "file system options: label, mkfs, mount, owner, discard, work queues, sector size",
        run: filesystems::options,
    },
    Scenario { name: "an owner that does not exist: refused, nothing left", run: filesystems::unknown_owner },
    Scenario {
        name: "swap on a disk: not made twice in a boot, swapoff noticed, taken over, fresh after a reboot",
        run: filesystems::swap,
    },
    Scenario { name: "grow a file while the volume is in use, and at the next start", run: grow::file },
    Scenario { name: "grow a device while the volume is in use, and at the next start", run: grow::device },
    Scenario { name: "grow denied by KMS, grow to less: the volume goes on as it was", run: grow::refused },
    Scenario { name: "wipe: zeroed before ready, goes on after a stop and a kill", run: wipe::before_ready },
    Scenario { name: "wipe: free space zeroed beside a ready volume, a bar on a terminal", run: wipe::beside },
    Scenario {
        name: "integrity: tags made, kept through a kill and a crash, a changed sector is an error",
        run: wipe::integrity,
    },
    Scenario { name: "wipe: given up when it is not asked for any more", run: wipe::given_up },
    Scenario { name: "wipe: discarded at a format", run: wipe::discarded },
    Scenario { name: "consumer with Requires=+After=", run: consumers::requires_and_after },
    Scenario { name: "consumer with RequiresMountsFor= only", run: consumers::requires_mounts_for },
    Scenario { name: "consumer named in the configuration", run: consumers::named_in_configuration },
    Scenario {
        name: "consumers are started again when the volume is restarted",
        run: consumers::restarted_with_the_volume,
    },
    Scenario {
        name: "at boot through the generator's links, ordered after the network, no ordering cycle in the journal",
        run: boot::at_boot,
    },
    Scenario {
        name: "reboot, volume comes back (persistent) and comes back fresh (ephemeral)",
        run: boot::reboot_persistent_and_ephemeral,
    },
    Scenario {
        name: "power-off: consumers stop, unmount, close, in that order, nothing \"busy\"",
        run: boot::power_off,
    },
    Scenario { name: "power cut: the persistent volume comes back", run: boot::power_cut },
    Scenario {
        name: "`kill -9` of the daemon: mount stays, the restarted instance adopts, READY again",
        run: volumes::kill_the_daemon,
    },
    Scenario { name: "daemon-reload forgotten after a change: said", run: volumes::reload_forgotten },
    Scenario { name: "daemon-reload and daemon-reexec while active", run: volumes::reload_and_reexec },
    Scenario {
        name: "KMS denies: service failed with the cause and the hint in STATUS= and journal, no consumer started, nothing under /mnt/secretfs written",
        run: aws::kms_denies,
    },
    Scenario { name: "no role: waits with the cause, comes up when the role is attached", run: aws::no_role },
    Scenario {
        name: "the fetcher is another user without capabilities, and a stop ends it",
        run: aws::fetcher_without_privileges,
    },
    Scenario { name: "object missing", run: aws::object_missing },
    Scenario { name: "wrong encryption context", run: aws::wrong_encryption_context },
    Scenario { name: "damaged ciphertext", run: aws::damaged_ciphertext },
    Scenario { name: "emulator down at boot, up 20 s later: the volume comes up by itself", run: aws::down_at_boot },
    Scenario { name: "a second volume is broken: the first is unaffected", run: volumes::second_volume_broken },
    Scenario {
        name: "a second volume takes long to stop: the first starts meanwhile",
        run: volumes::second_volume_stops_slowly,
    },
    Scenario { name: "external `umount`: noticed, acted on, said", run: volumes::external_umount },
    Scenario { name: "the recipe's legacy: its file is opened with its data intact", run: legacy::made_by_the_recipe },
    Scenario {
        name: "the recipe's legacy: plain cryptsetup opens what secretfs made",
        run: legacy::opened_by_cryptsetup,
    },
    Scenario { name: "bad input: a malformed or unknown key", run: bad_input::malformed_or_unknown_key },
    Scenario { name: "bad input: two volumes on one mount point or one device", run: bad_input::two_on_one },
    Scenario {
        name: "bad input: a mount point that is not absolute or lies below another volume",
        run: bad_input::mount_points,
    },
    Scenario { name: "bad input: names systemd can't carry", run: bad_input::names },
    Scenario { name: "bad input: a file where a device is expected", run: bad_input::file_for_device },
    Scenario { name: "bad input: a foreign file system on the device", run: bad_input::foreign_file_system },
    Scenario { name: "bad input: a kernel name is accepted with a warning", run: disks::kernel_name_warned_of },
    Scenario {
        name: "disks: every layout by serial and by-id, all disks swapped between boots: the same data",
        run: disks::every_layout_swapped,
    },
    Scenario { name: "disks: a missing one is waited for by its name", run: disks::missing_member },
    Scenario {
        name: "disks: ext4, LUKS1, LVM, md, ZFS, GPT or data behind zeros: refused untouched",
        run: disks::foreign,
    },
    Scenario {
        name: "disks: a persistent volume's came back blank, or with another header: refused",
        run: disks::persistent_came_back_blank,
    },
    Scenario {
        name: "disks: what was persistent is not formatted for being configured as ephemeral",
        run: disks::persistent_named_ephemeral,
    },
    Scenario { name: "disks: one that is attached while the start waits is found at once", run: disks::attached_late },
    Scenario {
        name: "disks: one that is named by its path and attached while the start waits is opened",
        run: disks::attached_late_by_path,
    },
    Scenario {
        name: "disks: an ephemeral volume's came back new and blank: formatted and said",
        run: disks::ephemeral_came_back_blank,
    },
    Scenario {
        name: "crash: `kill -9` and a power cut at every action of format, mkfs, open and stop",
        run: crash::at_every_action,
    },
];
