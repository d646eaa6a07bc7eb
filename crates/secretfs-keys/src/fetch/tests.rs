//! The SDK's real path, over replayed answers in the words of S3 and KMS.

use aws_sdk_s3::config::Credentials;
use aws_sdk_s3::config::http::{HttpRequest, HttpResponse};
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_http_client::test_util::{ReplayEvent, StaticReplayClient};
use secretfs_core::key::{FetchReport, KeyForm};

use super::*;

const PLAINTEXT: &str = "correct horse battery staple";
const BASE64: &str = "Y29ycmVjdCBob3JzZSBiYXR0ZXJ5IHN0YXBsZQ==";
const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const BLOB: &[u8] = b"\x01\x02\x02\x00ciphertext";

fn request(context: &[(&str, &str)]) -> FetchRequest {
    FetchRequest {
        volume: "scratch".to_owned(),
        source: KeySource::S3Kms {
            bucket: "keys".to_owned(),
            object: "Luks".to_owned(),
            kms_key: "alias/k".to_owned(),
            context: context.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
        },
        region: Some("eu-west-1".to_owned()),
        deadline_ms: 60_000,
    }
}

fn answer(status: u16, headers: &[(&'static str, &'static str)], body: impl Into<SdkBody>) -> HttpResponse {
    let mut answer = HttpResponse::new(status.try_into().unwrap(), body.into());
    for &(name, value) in headers {
        answer.headers_mut().insert(name, value);
    }
    answer
}

fn object(body: &[u8]) -> HttpResponse {
    answer(200, &[("x-amz-request-id", "S3ID"), ("x-amz-version-id", "v1")], body.to_vec())
}

fn s3_error(status: u16, code: &str, message: &str) -> HttpResponse {
    let headers = [("x-amz-request-id", "S3ID"), ("x-amz-id-2", "S3EXT"), ("content-type", "application/xml")];
    answer(status, &headers, format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>"))
}

fn kms(status: u16, body: &str) -> HttpResponse {
    let headers = [("x-amzn-requestid", "KMSID"), ("content-type", "application/x-amz-json-1.1")];
    answer(status, &headers, body)
}

fn kms_error(code: &str, message: &str) -> HttpResponse {
    kms(400, &format!(r#"{{"__type":"{code}","message":"{message}"}}"#))
}

fn plaintext(base64: &str) -> HttpResponse {
    kms(200, &format!(r#"{{"KeyId":"{ARN}","Plaintext":"{base64}","EncryptionAlgorithm":"SYMMETRIC_DEFAULT"}}"#))
}

/// What comes of `request` when AWS gives these answers, one after the other; and what was sent to it.
async fn replay(request: &FetchRequest, answers: Vec<HttpResponse>) -> (Outcome, StaticReplayClient) {
    let events = answers.into_iter().map(|answer| ReplayEvent::new(HttpRequest::new(SdkBody::empty()), answer));
    let replay = StaticReplayClient::new(events.collect());
    let http = SharedHttpClient::new(replay.clone());
    let loader = client::settings(request.region.as_deref(), &http).credentials_provider(credentials());
    let outcome = fetch_with(request, http, loader).await;
    if let Err(failure) = &outcome.key {
        let report = FetchReport::Failed { failure: failure.clone(), trail: outcome.trail.clone() };
        let all = format!("{failure} {outcome:?} {}", serde_json::to_string(&report).unwrap());
        for secret in [PLAINTEXT, BASE64, "wJalrXUtnFEMI", "horse", "Y29ycmVj"] {
            assert!(!all.contains(secret), "{secret} is in {all}");
        }
    }
    (outcome, replay)
}

fn credentials() -> Credentials {
    Credentials::new("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG", None, None, "test")
}

async fn failure(answers: Vec<HttpResponse>) -> (Failure, AuditTrail) {
    let (outcome, _) = replay(&request(&[]), answers).await;
    (outcome.key.unwrap_err(), outcome.trail)
}

#[tokio::test]
async fn a_key_comes_with_its_trail() {
    let wanted = request(&[("volume", "{volume}"), ("region", "{region}")]);
    let (outcome, sent) = replay(&wanted, vec![object(BLOB), plaintext(BASE64)]).await;
    let key = outcome.key.unwrap();
    assert_eq!((key.expose(), key.form()), (PLAINTEXT.as_bytes(), KeyForm::Password));
    let trail = AuditTrail {
        kms_key_arn: Some(ARN.to_owned()),
        kms_request_id: Some("KMSID".to_owned()),
        s3_request_id: Some("S3ID".to_owned()),
        s3_version: Some("v1".to_owned()),
    };
    assert_eq!(outcome.trail, trail);

    let sent: Vec<(String, String)> = sent
        .actual_requests()
        .map(|request| {
            (request.uri().to_owned(), String::from_utf8_lossy(request.body().bytes().unwrap_or(b"")).into_owned())
        })
        .collect();
    assert_eq!(sent[0].0, "https://keys.s3.eu-west-1.amazonaws.com/Luks?x-id=GetObject");
    assert_eq!(sent[1].0, "https://kms.eu-west-1.amazonaws.com/");
    let body: serde_json::Value = serde_json::from_str(&sent[1].1).unwrap();
    let wanted = serde_json::json!({
        "CiphertextBlob": "AQICAGNpcGhlcnRleHQ=",
        "EncryptionContext": {"volume": "scratch", "region": "eu-west-1"},
        "KeyId": "alias/k",
    });
    assert_eq!(body, wanted);
}

#[tokio::test]
async fn s3_says_no() {
    let table = [
        (404, "NoSuchKey", "The specified key does not exist.", Cause::S3NoSuchKey),
        (404, "NoSuchBucket", "The specified bucket does not exist", Cause::S3NoSuchBucket),
        (403, "AccessDenied", "Access Denied", Cause::S3AccessDenied),
        (
            403,
            "AccessDenied",
            "User: x is not authorized to perform: kms:Decrypt on resource: y",
            Cause::KmsAccessDenied,
        ),
        (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist", Cause::BadCredentials),
        (400, "ExpiredToken", "The provided token has expired.", Cause::BadCredentials),
        (400, "KMS.DisabledException", "arn is disabled.", Cause::KmsDisabled),
    ];
    for (status, code, message, cause) in table {
        let (failure, trail) = failure(vec![s3_error(status, code, message)]).await;
        let detail = format!("S3 GetObject of s3://keys/Luks: {code}: {message}");
        assert_eq!(failure, Failure::new(cause, detail));
        assert_eq!(trail, AuditTrail { s3_request_id: Some("S3ID".to_owned()), ..AuditTrail::default() });
    }
}

#[tokio::test]
async fn a_bucket_elsewhere_is_said_to_be_there() {
    let mut redirect = s3_error(301, "PermanentRedirect", "The bucket you are attempting to access …");
    redirect.headers_mut().insert("x-amz-bucket-region", "us-west-2");
    let (failure, _) = failure(vec![redirect]).await;
    assert_eq!(failure.cause, Cause::S3NoSuchBucket);
    assert!(failure.detail.ends_with("; the bucket is in us-west-2"), "{failure}");
}

#[tokio::test]
async fn a_bare_403_is_a_denial() {
    let (s3, _) = failure(vec![answer(403, &[], "")]).await;
    assert_eq!(s3.cause, Cause::S3AccessDenied, "{s3}");
    let (kms, _) = failure(vec![object(BLOB), answer(403, &[], "<html>no</html>")]).await;
    let detail = "KMS Decrypt with alias/k: HTTP 403 without an error code";
    assert_eq!(kms, Failure::new(Cause::KmsAccessDenied, detail));
}

#[tokio::test]
async fn an_unfit_object_never_reaches_kms() {
    let declared = answer(200, &[("content-length", "6145")], "x");
    let (outcome, sent) = replay(&request(&[]), vec![declared]).await;
    assert_eq!(outcome.key.unwrap_err().cause, Cause::S3ObjectUnfit);
    assert_eq!(sent.actual_requests().count(), 1);
    for body in [vec![0; MAX_CIPHERTEXT + 1], Vec::new()] {
        let (outcome, sent) = replay(&request(&[]), vec![object(&body)]).await;
        assert_eq!(outcome.key.unwrap_err().cause, Cause::S3ObjectUnfit);
        assert_eq!(sent.actual_requests().count(), 1);
    }
    let (outcome, _) = replay(&request(&[]), vec![object(&[0; MAX_CIPHERTEXT]), plaintext(BASE64)]).await;
    assert!(outcome.key.is_ok());
}

#[tokio::test]
async fn kms_says_no() {
    let table = [
        ("AccessDeniedException", "User: x is not authorized to perform: kms:Decrypt", Cause::KmsAccessDenied),
        ("DisabledException", "arn is disabled.", Cause::KmsDisabled),
        ("KMSInvalidStateException", "arn is pending deletion.", Cause::KmsInvalidState),
        ("NotFoundException", "Alias arn is not found.", Cause::KmsNotFound),
        ("IncorrectKeyException", "The key ID in the request does not identify", Cause::KmsIncorrectKey),
        (
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
            Cause::BadCredentials,
        ),
        ("ValidationException", "1 validation error detected", Cause::Config),
    ];
    for (code, message, cause) in table {
        let (failure, trail) = failure(vec![object(BLOB), kms_error(code, message)]).await;
        assert_eq!(failure, Failure::new(cause, format!("KMS Decrypt with alias/k: {code}: {message}")));
        assert_eq!((trail.kms_request_id.as_deref(), trail.kms_key_arn), (Some("KMSID"), None));
    }
}

#[tokio::test]
async fn a_wrong_context_and_a_base64_object_look_alike_to_kms() {
    let invalid = || kms(400, r#"{"__type":"InvalidCiphertextException"}"#);
    let (wrong_context, _) = failure(vec![object(BLOB), invalid()]).await;
    let said = "KMS Decrypt with alias/k: InvalidCiphertextException (HTTP 400)";
    assert_eq!(wrong_context, Failure::new(Cause::KmsInvalidCiphertext, said));
    let (base64, _) = failure(vec![object(b"AQICAHhjaXBoZXJ0ZXh0\n"), invalid()]).await;
    assert_eq!(base64.cause, Cause::KmsInvalidCiphertext);
    assert!(base64.detail.contains("looks like base64"), "{base64}");
}

#[tokio::test(start_paused = true)]
async fn faults_and_throttles_are_tried_three_times() {
    let fault = || answer(503, &[], "");
    let (outcome, sent) = replay(&request(&[]), vec![fault(), fault(), fault()]).await;
    assert_eq!(outcome.key.unwrap_err().cause, Cause::AwsFault);
    assert_eq!(sent.actual_requests().count(), 3);
    let slow = || kms_error("ThrottlingException", "Rate exceeded");
    let (failure, _) = failure(vec![object(BLOB), slow(), slow(), slow()]).await;
    assert_eq!(failure.cause, Cause::Throttled);
    let (outcome, _) = replay(&request(&[]), vec![fault(), object(BLOB), slow(), plaintext(BASE64)]).await;
    assert!(outcome.key.is_ok(), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_wrong_clock_is_named() {
    let skewed = || s3_error(403, "RequestTimeTooSkewed", "The difference between the request time and …");
    let (failure, _) = failure(vec![skewed(), skewed(), skewed()]).await;
    assert_eq!(failure.cause, Cause::ClockSkew);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_says_what_was_under_way() {
    let http = SharedHttpClient::new(aws_smithy_http_client::test_util::NeverClient::new());
    let wanted = FetchRequest { deadline_ms: 500, ..request(&[]) };
    let loader = client::settings(wanted.region.as_deref(), &http).credentials_provider(credentials());
    let failure = fetch_with(&wanted, http, loader).await.key.unwrap_err();
    let said = "S3 GetObject of s3://keys/Luks took longer than 500 ms in all (asked keys.s3.eu-west-1.amazonaws.com)";
    assert_eq!(failure, Failure::new(Cause::AwsUnreachable, said));
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_not_quoted() {
    let broken = [format!(r#"{{"Plaintext":"{BASE64}""#), format!(r#"{{"Plaintext":"!{BASE64}"}}"#), BASE64.to_owned()];
    for body in broken {
        let (failure, _) = failure(vec![object(BLOB), kms(200, &body)]).await;
        assert_eq!(failure.cause, Cause::AwsFault, "{failure}");
    }
    let (failure, _) = failure(vec![object(BLOB), kms(200, "{}")]).await;
    assert_eq!(failure.cause, Cause::AwsFault, "{failure}");
}

#[tokio::test]
async fn nothing_decrypted_is_no_key() {
    for base64 in ["", "Cgo="] {
        let (failure, trail) = failure(vec![object(BLOB), plaintext(base64)]).await;
        assert_eq!(failure.cause, Cause::KeyEmpty);
        assert_eq!(trail.kms_key_arn.as_deref(), Some(ARN));
    }
}

#[tokio::test]
async fn what_cannot_be_asked_is_the_configurations_fault() {
    let unknown = request(&[("a", "{colour}")]);
    let (outcome, sent) = replay(&unknown, Vec::new()).await;
    let said = "the encryption context names {colour}, which is not known";
    assert_eq!(outcome.key.unwrap_err(), Failure::new(Cause::Config, said));
    assert_eq!(sent.actual_requests().count(), 0);

    let mut no_bucket = request(&[]);
    let KeySource::S3Kms { bucket, .. } = &mut no_bucket.source;
    *bucket = "arn:aws:nonsense".to_owned();
    let (outcome, sent) = replay(&no_bucket, Vec::new()).await;
    let failure = outcome.key.unwrap_err();
    assert_eq!(failure.cause, Cause::Config, "{failure}");
    assert_eq!(sent.actual_requests().count(), 0);
}
