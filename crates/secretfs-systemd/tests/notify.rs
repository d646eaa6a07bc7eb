//! `sd_notify` against a real datagram socket. The messages are sent by this test program, run once more as a child,
//! because the socket's name is taken from the environment of the process.

use std::env;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use secretfs_systemd::notify::Notifier;

/// What the child says; does nothing unless it is the child.
#[test]
fn child() {
    let Ok(watchdog) = env::var("SECRETFS_TEST_WATCHDOG_MS") else { return };
    let notifier = Notifier::from_env();
    let told = env::var_os("NOTIFY_SOCKET").is_some();
    let interval = watchdog.parse().ok().map(Duration::from_millis);
    assert_eq!(notifier.watchdog_interval(), interval);
    assert_eq!(notifier.status("fetching the key\nREADY=1").unwrap(), told);
    assert_eq!(notifier.extend_timeout(Duration::from_secs(90)).unwrap(), told);
    assert_eq!(notifier.watchdog().unwrap(), told);
    assert_eq!(notifier.ready().unwrap(), told);
    assert_eq!(notifier.stopping().unwrap(), told);
    assert_eq!(env::var_os("NOTIFY_SOCKET").is_some(), told, "the environment is left alone");
}

fn run_child(set: &[(&str, &str)]) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "child"]).env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_PID").envs(set.iter().copied());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn messages_arrive_one_by_one() {
    let path = env::temp_dir().join(format!("secretfs-notify-{}", std::process::id()));
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    run_child(&[
        ("SECRETFS_TEST_WATCHDOG_MS", "30000"),
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "30000000"),
    ]);
    let messages: Vec<String> = (0..5)
        .map(|_| {
            let mut buffer = [0; 4096];
            let length = socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        })
        .collect();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(
        messages,
        [
            "STATUS=fetching the key READY=1\n",
            "EXTEND_TIMEOUT_USEC=90000000\n",
            "WATCHDOG=1\n",
            "READY=1\n",
            "STOPPING=1\n",
        ]
    );
}

#[test]
fn by_hand_nobody_is_told() {
    run_child(&[("SECRETFS_TEST_WATCHDOG_MS", "none"), ("WATCHDOG_USEC", "0")]);
}

#[test]
fn a_watchdog_of_another_process_is_not_ours() {
    run_child(&[("SECRETFS_TEST_WATCHDOG_MS", "none"), ("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "1")]);
}
