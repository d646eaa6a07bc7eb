//! The program itself, as the daemon runs it: request in, key and report out, exit status.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;

use secretfs_core::cause::Cause;
use secretfs_core::key::{FetchReport, FetchRequest, KeyForm, KeySource};

const PLAINTEXT: &str = "correct horse battery staple";
const DECRYPTED: &str = r#"{"KeyId":"arn:aws:kms:x:1:key/k","Plaintext":"Y29ycmVjdCBob3JzZSBiYXR0ZXJ5IHN0YXBsZQo="}"#;

struct Finished {
    status: Option<i32>,
    output: String,
    log: String,
}

/// Runs the program below a shell that sets its descriptors by `redirections`, against AWS at `endpoint`.
fn run(redirections: &str, endpoint: &str, input: &str) -> Finished {
    let mut child = Command::new("/bin/sh")
        .args(["-c", &format!("exec \"$0\" {redirections}"), env!("CARGO_BIN_EXE_secretfs-fetch")])
        .env_clear()
        .env("AWS_ENDPOINT_URL", endpoint)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        .env("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that refuses its arguments does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Finished {
        status: output.status.code(),
        output: String::from_utf8(output.stdout).unwrap(),
        log: String::from_utf8(output.stderr).unwrap(),
    }
}

fn request() -> String {
    let request = FetchRequest {
        volume: "scratch".to_owned(),
        source: KeySource::S3Kms {
            bucket: "keys".to_owned(),
            object: "Luks".to_owned(),
            kms_key: "alias/k".to_owned(),
            context: [("volume".to_owned(), "{volume}".to_owned())].into(),
        },
        region: Some("eu-west-1".to_owned()),
        deadline_ms: 20_000,
    };
    serde_json::to_string(&request).unwrap()
}

/// An S3 with one object and a KMS that decrypts anything.
fn serve() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for connection in listener.incoming() {
            answer(connection.unwrap());
        }
    });
    endpoint
}

fn answer(connection: TcpStream) {
    let mut reader = BufReader::new(connection);
    let mut head = Vec::new();
    while head.last().is_none_or(|line: &String| line != "\r\n") {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        head.push(line.to_ascii_lowercase());
    }
    let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok()).unwrap_or(0);
    reader.read_exact(&mut vec![0; length]).unwrap();
    let body = if head[0].starts_with("get") { "ciphertext" } else { DECRYPTED };
    let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    reader.get_mut().write_all((head + body).as_bytes()).unwrap();
}

#[test]
fn the_whole_key_comes_before_the_report() {
    // Key and report share a pipe here, which shows their order.
    let finished = run("3>&1", &serve(), &request());
    assert_eq!(finished.status, Some(0), "{}", finished.log);
    let report = finished.output.strip_prefix(PLAINTEXT).expect("the key comes first, without its newline");
    assert_eq!(report.matches('\n').count(), 1);
    match serde_json::from_str(report).unwrap() {
        FetchReport::Fetched { form: KeyForm::Password, length: 28, trail } => {
            assert_eq!(trail.kms_key_arn.as_deref(), Some("arn:aws:kms:x:1:key/k"));
        }
        other => panic!("{other:?}"),
    }
    assert!(!finished.log.contains("horse") && !report.contains("horse"));
}

#[test]
fn a_transient_failure_exits_75_with_a_report_and_no_key() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let finished = run("3>&1", &format!("http://{closed}"), &request());
    assert_eq!(finished.status, Some(75), "{}", finished.log);
    match serde_json::from_str(&finished.output).unwrap() {
        FetchReport::Failed { failure, .. } => {
            assert_eq!(failure.cause, Cause::AwsUnreachable);
            assert!(failure.detail.contains(&closed.to_string()), "{failure}");
        }
        other @ FetchReport::Fetched { .. } => panic!("{other:?}"),
    }
}

#[test]
fn a_peer_that_speaks_no_http_is_no_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            connection.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n").unwrap();
            let _ = connection.read(&mut [0; 4096]);
        }
    });
    let finished = run("3>&1", &endpoint, &request());
    assert_eq!(finished.status, Some(75), "{}", finished.log);
    assert!(finished.output.contains("aws-unreachable"), "{}", finished.output);
}

#[test]
fn a_permanent_failure_exits_77() {
    let finished = run("3>&1", "http://127.0.0.1:1", &request().replace("{volume}", "{colour}"));
    assert_eq!(finished.status, Some(77), "{}", finished.log);
    assert!(finished.output.contains("{colour}"), "{}", finished.output);
}

#[test]
fn wrong_usage_exits_64_and_reports_nothing() {
    let table = [
        ("3>&1", "{", "is not understood"),
        ("3>&1", r#"{"volume": "x", "password": "y"}"#, "unknown field `password`"),
        ("3>&-", "", "descriptor 3 is not open"),
        ("3>/dev/null", "", "descriptor 3 is a CharacterDevice"),
        ("3<&0", "", "descriptor 3 is open for reading only"),
        ("--key-fd 1", "", "0, 1 and 2"),
        ("key", "", "unknown argument \"key\""),
    ];
    for (redirections, input, complaint) in table {
        let finished = run(redirections, "http://127.0.0.1:1", input);
        assert_eq!((finished.status, finished.output.as_str()), (Some(64), ""), "{redirections}");
        assert!(finished.log.contains(complaint), "{redirections}: {}", finished.log);
    }
}

#[test]
fn questions_about_the_program_are_answered() {
    let help = run("--help", "http://127.0.0.1:1", "");
    assert_eq!(help.status, Some(0));
    assert!(help.output.starts_with("usage: secretfs-fetch"), "{}", help.output);
    let version = run("--version", "http://127.0.0.1:1", "");
    assert_eq!(version.output, format!("secretfs-fetch {}\n", env!("CARGO_PKG_VERSION")));
}
