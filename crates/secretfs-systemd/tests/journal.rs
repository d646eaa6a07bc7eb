//! Records as a real journald stores them. It runs in a mount namespace with a `/run` of its own, so it neither hears
//! nor disturbs the system's: for root only, and run by name (`--ignored`).

use std::env;
use std::process::Command;

use secretfs_systemd::journal::{self, Destination, ids};
use serde_json::Value;

/// What the child logs; does nothing unless it is the child.
#[test]
fn child() {
    if env::var_os("SECRETFS_TEST_JOURNAL").is_none() {
        return;
    }
    assert_eq!(journal::init("secretfsd").unwrap(), Destination::Journal);
    let span = tracing::info_span!(target: "secretfsd", "volume", volume = "scratch");
    let _inside = span.enter();
    tracing::error!(
        target: "secretfsd",
        message_id = ids::VOLUME_FAILED,
        step = "fetch",
        secretfs_cause = "kms-access-denied",
        aws_request_id = %"6f1c-77",
        attempt = 3,
        "volume scratch: KMS denies the use of the key;\ngiving up"
    );
    tracing::debug!(target: "secretfsd", "not asked for");
}

const SCRIPT: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journald.conf.d /run/log/journal
printf '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\nForwardToWall=no\n' >/run/systemd/journald.conf.d/test.conf
/lib/systemd/systemd-journald >/run/journald.log 2>&1 &
journald=$!
trap 'kill $journald' EXIT
for _ in $(seq 100); do [ -S /run/systemd/journal/stdout ] && break; sleep 0.1; done
systemd-cat sh -c 'JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec "$0" --exact child' "$1"
journalctl --sync
journalctl --directory=/run/log/journal --output=json --all SYSLOG_IDENTIFIER=secretfsd
"#;

#[test]
#[ignore = "needs root, unshare and systemd-journald"]
fn journald_stores_every_field() {
    let program = env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", SCRIPT, "sh"])
        .arg(program)
        .env("SECRETFS_TEST_JOURNAL", "1")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 1, "{text}");
    let expected = [
        ("MESSAGE", "volume scratch: KMS denies the use of the key;\ngiving up"),
        ("MESSAGE_ID", ids::VOLUME_FAILED),
        ("PRIORITY", "3"),
        ("SYSLOG_FACILITY", "3"),
        ("SYSLOG_IDENTIFIER", "secretfsd"),
        ("VOLUME", "scratch"),
        ("STEP", "fetch"),
        ("SECRETFS_CAUSE", "kms-access-denied"),
        ("AWS_REQUEST_ID", "6f1c-77"),
        ("ATTEMPT", "3"),
        ("_TRANSPORT", "journal"),
    ];
    for (field, value) in expected {
        assert_eq!(records[0][field], value, "{field}: {text}");
    }
}
