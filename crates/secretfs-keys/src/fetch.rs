//! One fetch: region, credentials, ciphertext from S3, plaintext from KMS.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_config::{ConfigLoader, SdkConfig};
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_kms::operation::RequestId as _;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_s3::config::SharedHttpClient;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestIdExt as _;
use secretfs_core::cause::{Cause, Failure};
use secretfs_core::key::{AuditTrail, FetchRequest, KeySource};
use tracing::debug;

use crate::classify::{self, Service};
use crate::client::Peer;
use crate::{Key, client, context};

/// The largest ciphertext that KMS's Decrypt takes.
const MAX_CIPHERTEXT: usize = 6144;

/// What became of a request.
#[derive(Debug)]
pub struct Outcome {
    /// The key, or why there is none.
    pub key: Result<Key, Failure>,
    /// What `CloudTrail` and S3's access log know the calls by, as far as they were made; of refused ones too.
    pub trail: AuditTrail,
}

/// Fetches one key within the request's deadline.
pub async fn fetch(request: &FetchRequest, http: SharedHttpClient) -> Outcome {
    let loader = client::settings(request.region.as_deref(), &http);
    fetch_with(request, http, loader).await
}

/// [`fetch`] with the SDK's settings still open.
pub(crate) async fn fetch_with(request: &FetchRequest, http: SharedHttpClient, loader: ConfigLoader) -> Outcome {
    let job = Job { request, http, progress: Mutex::default(), peer: Peer::default() };
    let key = match tokio::time::timeout(Duration::from_millis(request.deadline_ms), job.run(loader)).await {
        Ok(key) => key,
        Err(_) => Err(Failure::new(
            Cause::AwsUnreachable,
            format!("{} took longer than {} ms in all{}", job.progress().step, request.deadline_ms, job.peer.asked()),
        )),
    };
    let trail = std::mem::take(&mut job.progress().trail);
    Outcome { key, trail }
}

/// A request that is under way.
struct Job<'a> {
    request: &'a FetchRequest,
    http: SharedHttpClient,
    progress: Mutex<Progress>,
    peer: Peer,
}

/// What is known of a job whenever its time is up.
#[derive(Debug, Default)]
struct Progress {
    step: Step,
    trail: AuditTrail,
}

/// What a job is doing.
#[derive(Debug, Clone, Default)]
enum Step {
    #[default]
    Settings,
    Credentials,
    Context,
    /// With the object's URL.
    Object(String),
    /// With the name of the KMS key.
    Decrypt(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings => f.write_str("finding the region"),
            Self::Credentials => f.write_str("getting credentials"),
            Self::Context => f.write_str("getting the facts for the encryption context"),
            Self::Object(url) => write!(f, "S3 GetObject of {url}"),
            Self::Decrypt(key) => write!(f, "KMS Decrypt with {key}"),
        }
    }
}

impl Job<'_> {
    async fn run(&self, loader: ConfigLoader) -> Result<Key, Failure> {
        match &self.request.source {
            KeySource::S3Kms { bucket, object, kms_key, context } => {
                let config = self.connect(loader).await?;
                let region = config.region().map(AsRef::as_ref).ok_or_else(|| {
                    Failure::new(Cause::NoRegion, "neither configuration, environment, profile nor IMDS names a region")
                })?;
                self.enter(Step::Context);
                let context = context::resolve(context, &self.request.volume, region, &self.http).await?;
                let ciphertext = self.get_object(&config, bucket, object).await?;
                self.decrypt(&config, kms_key, context, ciphertext).await
            }
        }
    }

    /// Region, credentials and endpoints, as the SDK finds them.
    ///
    /// The credentials are fetched here once and given to both clients, for an error that is theirs alone. The region is
    /// looked at after them: with neither, the metadata service may just not be up yet, which may pass.
    async fn connect(&self, loader: ConfigLoader) -> Result<SdkConfig, Failure> {
        let config = loader.load().await;
        self.enter(Step::Credentials);
        let Some(provider) = config.credentials_provider() else {
            return Err(Failure::new(Cause::NoCredentials, "the SDK's settings rule out all credentials"));
        };
        let credentials = provider.provide_credentials().await.map_err(|error| classify::no_credentials(&error))?;
        Ok(config.into_builder().credentials_provider(SharedCredentialsProvider::new(credentials)).build())
    }

    async fn get_object(&self, config: &SdkConfig, bucket: &str, object: &str) -> Result<Vec<u8>, Failure> {
        let url = format!("s3://{bucket}/{object}");
        let step = self.enter(Step::Object(url.clone()));
        let settings = aws_sdk_s3::config::Builder::from(config).interceptor(self.peer.clone()).build();
        let answer = aws_sdk_s3::Client::from_conf(settings).get_object().bucket(bucket).key(object).send().await;
        self.progress().trail.s3_request_id = answer.request_id().map(str::to_owned);
        let extended_id = answer.extended_request_id().map(str::to_owned);
        let answer = answer.map_err(|error| self.refused(Service::S3, &step, &error));
        debug!(
            volume = self.request.volume,
            request_id = self.progress().trail.s3_request_id,
            extended_id,
            "{step}: {}",
            if answer.is_ok() { "found" } else { "refused" }
        );
        let mut answer = answer?;
        self.progress().trail.s3_version = answer.version_id.take();

        let unfit = |what: fmt::Arguments<'_>| Failure::new(Cause::S3ObjectUnfit, format!("{url} {what}"));
        let too_large = || unfit(format_args!("is larger than the {MAX_CIPHERTEXT} bytes that KMS decrypts"));
        if answer.content_length.is_some_and(|length| usize::try_from(length).unwrap_or(0) > MAX_CIPHERTEXT) {
            return Err(too_large());
        }
        let mut ciphertext = Vec::new();
        while let Some(chunk) = answer.body.next().await {
            let chunk = chunk.map_err(|error| {
                Failure::new(
                    Cause::AwsUnreachable,
                    format!("{step}: its content broke off: {}", classify::chain(&error)),
                )
            })?;
            if ciphertext.len() + chunk.len() > MAX_CIPHERTEXT {
                return Err(too_large());
            }
            ciphertext.extend_from_slice(&chunk);
        }
        if ciphertext.is_empty() { Err(unfit(format_args!("is empty"))) } else { Ok(ciphertext) }
    }

    async fn decrypt(
        &self,
        config: &SdkConfig,
        kms_key: &str,
        context: BTreeMap<String, String>,
        ciphertext: Vec<u8>,
    ) -> Result<Key, Failure> {
        let step = self.enter(Step::Decrypt(kms_key.to_owned()));
        let base64 = looks_like_base64(&ciphertext);
        let settings = aws_sdk_kms::config::Builder::from(config).interceptor(self.peer.clone()).build();
        let answer = aws_sdk_kms::Client::from_conf(settings)
            .decrypt()
            .key_id(kms_key)
            .set_encryption_context((!context.is_empty()).then(|| context.into_iter().collect()))
            .ciphertext_blob(Blob::new(ciphertext))
            .send()
            .await;
        self.progress().trail.kms_request_id = answer.request_id().map(str::to_owned);
        let answer = answer.map_err(|error| {
            let mut failure = self.refused(Service::Kms, &step, &error);
            if base64 && failure.cause == Cause::KmsInvalidCiphertext {
                failure.detail.push_str("; the object looks like base64 text: store what `base64 -d` makes of it");
            }
            failure
        });
        debug!(
            volume = self.request.volume,
            request_id = self.progress().trail.kms_request_id,
            "{step}: {}",
            if answer.is_ok() { "done" } else { "refused" }
        );
        let mut answer = answer?;
        self.progress().trail.kms_key_arn = answer.key_id.take();
        let plaintext = answer
            .plaintext
            .take()
            .ok_or_else(|| Failure::new(Cause::AwsFault, format!("{step}: the answer has no plaintext")))?;
        // `into_inner` moves, so that the one buffer there is gets zeroed.
        Key::from_plaintext(plaintext.into_inner())
            .ok_or_else(|| Failure::new(Cause::KeyEmpty, format!("{step} gave nothing but newlines")))
    }

    fn refused<E>(&self, service: Service, step: &Step, error: &SdkError<E, HttpResponse>) -> Failure
    where
        E: Error + ProvideErrorMetadata + 'static,
    {
        let mut failure = classify::failure(service, step, error);
        if error.raw_response().is_none() {
            failure.detail.push_str(&self.peer.asked());
        }
        failure
    }

    fn enter(&self, step: Step) -> Step {
        self.peer.forget();
        self.progress().step = step.clone();
        step
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the object is text as `base64` writes it; a real blob begins with bytes that are no text at all.
fn looks_like_base64(object: &[u8]) -> bool {
    object.len() >= 16
        && object.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'\n' | b'\r'))
}

#[cfg(test)]
mod tests;
