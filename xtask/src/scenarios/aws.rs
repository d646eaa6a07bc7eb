//! What AWS may answer, or not answer.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::guest::{PASSWORD, REQUIRES, REQUIRES_MOUNTS_FOR, UP_LIMIT, Volume};
use crate::emulator::{Kms, Role};
use crate::vm::Rig;

/// The service fails at once for this cause, no consumer of either kind starts and nothing is opened or written.
fn check_refused(rig: &Rig, volume: &Volume, cause: &str) -> Result<()> {
    rig.configure(&[volume])?;
    rig.add_consumer("rig-app.service", "/mnt/secretfs", REQUIRES)?;
    rig.add_consumer("rig-mount.service", "/mnt/secretfs", REQUIRES_MOUNTS_FOR)?;
    rig.vm.fails("systemctl start secretfs@scratch")?;
    rig.check_failed("secretfs@scratch.service", cause)?;
    for unit in ["rig-app.service", "rig-mount.service"] {
        rig.vm.fails(&format!("systemctl start {unit}"))?;
        rig.same(unit, "ExecMainStartTimestampMonotonic", "0")?;
    }
    volume.check_gone(rig)?;
    let written = rig.vm.ok("if [ -e /mnt/secretfs ]; then find /mnt/secretfs -mindepth 1; fi")?;
    ensure!(written.is_empty(), "below /mnt/secretfs on the root file system:\n{written}");
    rig.check_guarded("/mnt/secretfs")
}

pub(super) fn kms_denies(rig: &mut Rig) -> Result<()> {
    let volume = Volume::scratch();
    rig.aws.set_role(Role::Denied)?;
    check_refused(rig, &volume, "kms-access-denied")?;
    let fields =
        "MESSAGE_ID=279b356bb7e44efa91123fee3ca1d3b0 VOLUME=scratch STEP=fetch-key SECRETFS_CAUSE=kms-access-denied";
    let records = rig.vm.ok(&format!("journalctl --quiet --boot --output=cat {fields}"))?;
    ensure!(!records.is_empty(), "no record has the fields {fields}");
    // Once it is allowed, a plain start is all that is needed.
    rig.aws.set_role(Role::Reader)?;
    rig.vm.ok("systemctl start rig-app")?;
    volume.check_up(rig)
}

pub(super) fn object_missing(rig: &mut Rig) -> Result<()> {
    let volume = Volume { object: "no-such-object".into(), ..Volume::scratch() };
    check_refused(rig, &volume, "s3-no-such-key")
}

pub(super) fn wrong_encryption_context(rig: &mut Rig) -> Result<()> {
    rig.use_kms(Kms::Strict)?;
    let with_context = |context: &str| Volume {
        object: "strict/context".into(),
        key_extra: format!(", context = {{ {context} }}"),
        ..Volume::scratch()
    };
    let right = with_context(r#"volume = "scratch""#);
    rig.configure(&[&right])?;
    rig.vm.ok("systemctl start secretfs@scratch")?;
    right.check_up(rig)?;
    rig.vm.ok("systemctl stop secretfs@scratch")?;
    check_refused(rig, &with_context(r#"volume = "other""#), "kms-invalid-ciphertext")?;
    check_refused(rig, &with_context(""), "kms-invalid-ciphertext")
}

pub(super) fn damaged_ciphertext(rig: &mut Rig) -> Result<()> {
    rig.use_kms(Kms::Strict)?;
    let volume = Volume { object: "strict/damaged".into(), ..Volume::scratch() };
    check_refused(rig, &volume, "kms-invalid-ciphertext")?;
    let whole = Volume { object: format!("strict/{PASSWORD}"), ..Volume::scratch() };
    rig.configure(&[&whole])?;
    rig.vm.ok("systemctl start secretfs@scratch")?;
    whole.check_up(rig)
}

pub(super) fn no_role(rig: &mut Rig) -> Result<()> {
    let volume = Volume::scratch();
    rig.aws.set_role(Role::None)?;
    rig.configure(&[&volume])?;
    rig.vm.ok("systemctl start --no-block secretfs@scratch")?;
    wait_for_status(rig, "no-credentials")?;
    rig.aws.set_role(Role::Reader)?;
    rig.wait_active("secretfs@scratch.service")?;
    volume.check_up(rig)
}

/// Caught while it waits for an address that never answers: another user, no capability, and it ends with a stop.
pub(super) fn fetcher_without_privileges(rig: &mut Rig) -> Result<()> {
    let volume = Volume::scratch();
    rig.configure(&[&volume])?;
    rig.vm.ok("echo AWS_ENDPOINT_URL=http://10.0.2.99 >> /etc/default/secretfs")?;
    rig.vm.ok("systemctl start --no-block secretfs@scratch")?;
    rig.vm.wait_until("the fetcher runs", "pgrep --exact secretfs-fetch", UP_LIMIT)?;
    let said = rig.vm.ok("pid=$(pgrep --exact secretfs-fetch)
         grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapAmb|NoNewPrivs):' /proc/$pid/status | tr -s '\\t ' ' '
         id -u secretfs; id -g secretfs")?;
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    let [.., uid, gid] = lines.as_slice() else { anyhow::bail!("the fetcher has no status: {said}") };
    let none = "0000000000000000";
    let mut wanted = vec![format!("Uid: {uid} {uid} {uid} {uid}"), format!("Gid: {gid} {gid} {gid} {gid}")];
    wanted.extend(["CapInh", "CapPrm", "CapEff", "CapAmb"].map(|set| format!("{set}: {none}")));
    wanted.extend(["Groups:".to_owned(), "NoNewPrivs: 1".to_owned()]);
    for line in wanted {
        ensure!(lines.contains(&line.as_str()), "the fetcher has no `{line}`:\n{said}");
    }
    rig.vm.ok("systemctl stop secretfs@scratch")?;
    rig.vm.fails("pgrep --exact secretfs-fetch")?;
    volume.check_gone(rig)
}

pub(super) fn down_at_boot(rig: &mut Rig) -> Result<()> {
    let volume = Volume::scratch();
    rig.configure(&[&volume])?;
    rig.add_consumer("rig-app.service", "/mnt/secretfs", REQUIRES)?;
    rig.vm.ok("systemctl enable rig-app")?;
    rig.aws.stop_aws()?;
    rig.vm.reboot()?;
    wait_for_status(rig, "aws-unreachable")?;
    sleep(Duration::from_secs(20));
    rig.same("secretfs@scratch.service", "ActiveState", "activating")?;
    rig.same("rig-app.service", "ActiveState", "inactive")?;
    rig.aws.start_aws()?;
    rig.wait_active("secretfs@scratch.service")?;
    volume.check_up(rig)?;
    rig.wait_active("rig-app.service")?;
    rig.same("secretfs@scratch.service", "NRestarts", "0")
}

/// Waits until the starting service says that it is waiting, and why.
fn wait_for_status(rig: &Rig, cause: &str) -> Result<()> {
    rig.vm.wait_until(
        &format!("STATUS= says {cause}"),
        &format!("systemctl show --property StatusText secretfs@scratch | tee /dev/stderr | grep --quiet {cause}"),
        UP_LIMIT,
    )?;
    rig.same("secretfs@scratch.service", "ActiveState", "activating")
}
