//! The one HTTPS client, and the settings of the SDK.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{env, fs};

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region};
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents, SharedHttpClient};
use aws_sdk_s3::error::BoxError;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secretfs_core::cause::{Cause, Failure};
use tracing::warn;

/// Where Debian and Fedora, with their descendants, keep all trusted certificates in one file.
const BUNDLES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const PEM_END: &str = "-----END CERTIFICATE-----";

/// A region's endpoint is a few milliseconds away from an instance; three lost SYN packets are an outage.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// For one attempt with answer and all: S3 and KMS answer in well under a second.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(8);

/// The daemon tries again by its own schedule; these attempts only carry over a single lost or throttled call.
const ATTEMPTS: u32 = 3;

/// Before the second attempt; the SDK's own default of a second would be most of a usual fetch.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);

/// The HTTPS client for every call: rustls with ring, trusting what one bundle file holds.
///
/// The bundle is `SSL_CERT_FILE`, or else the distribution's. rustls-native-certs would read the hashed directory beside
/// it too, for 13 ms; and ring starts 33 ms sooner than aws-lc, which gathers its own entropy first.
pub fn http_client() -> Result<SharedHttpClient, Failure> {
    let bundle = env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let bundle = bundle.or_else(|| BUNDLES.map(PathBuf::from).into_iter().find(|path| path.exists()));
    let certificates = if let Some(path) = bundle {
        read_bundle(&path)?
    } else {
        warn!("there is no bundle of trusted certificates, neither {} nor {}", BUNDLES[0], BUNDLES[1]);
        String::new()
    };
    let trust = TrustStore::empty().with_pem_certificate(certificates);
    let context = TlsContext::builder().with_trust_store(trust).build();
    let context = context.map_err(|error| Failure::new(Cause::Internal, format!("TLS client: {error}")))?;
    Ok(Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(context).build_https())
}

/// The SDK's own chain of settings (environment, profile, instance metadata), with our client and time limits.
pub(crate) fn settings(region: Option<&str>, http: &SharedHttpClient) -> ConfigLoader {
    let timeouts =
        TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_attempt_timeout(ATTEMPT_TIMEOUT).build();
    let retries = RetryConfig::standard().with_max_attempts(ATTEMPTS).with_initial_backoff(FIRST_BACKOFF);
    let loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http.clone())
        .timeout_config(timeouts)
        .retry_config(retries);
    match region {
        Some(region) => loader.region(Region::new(region.to_owned())),
        None => loader,
    }
}

/// Notes which host a client asks, for the detail of a failure without an answer: the endpoint may come from an
/// environment variable, a profile or the region.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer(Arc<Mutex<Option<String>>>);

impl Peer {
    /// ` (asked HOST)`, or nothing before the first call.
    pub(crate) fn asked(&self) -> String {
        self.host().as_deref().map(|host| format!(" (asked {host})")).unwrap_or_default()
    }

    /// Forgets the host, before another step.
    pub(crate) fn forget(&self) {
        *self.host() = None;
    }

    fn host(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intercept for Peer {
    fn name(&self) -> &'static str {
        "Peer"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let uri = context.request().uri();
        let host = uri.split_once("://").map_or(uri, |(_, rest)| rest).split(['/', '?']).next();
        *self.host() = host.map(str::to_owned);
        Ok(())
    }
}

fn read_bundle(path: &Path) -> Result<String, Failure> {
    let bytes = fs::read(path).map_err(|error| {
        Failure::new(
            Cause::AwsUntrusted,
            format!("cannot read the trusted certificates in {}: {error}", path.display()),
        )
    })?;
    let (usable, refused) = usable_certificates(&String::from_utf8_lossy(&bytes));
    if refused > 0 {
        warn!("{}: {refused} certificates cannot be used and were left out", path.display());
    }
    Ok(usable)
}

/// The certificates of a bundle that rustls accepts, and how many it does not.
///
/// The HTTP client panics on a certificate that it cannot read, and other TLS libraries are less strict: one bad
/// certificate of a company's own CA must not cost the volume.
fn usable_certificates(bundle: &str) -> (String, usize) {
    let mut usable = String::with_capacity(bundle.len());
    let mut refused = 0;
    for block in bundle.split_inclusive(PEM_END) {
        let Some(block) = block.find(PEM_BEGIN).map(|start| &block[start..]) else { continue };
        let trusted = CertificateDer::from_pem_slice(block.as_bytes())
            .is_ok_and(|certificate| rustls::RootCertStore::empty().add(certificate).is_ok());
        if trusted {
            usable.push_str(block);
            usable.push('\n');
        } else {
            refused += 1;
        }
    }
    (usable, refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_left_out() {
        let bundle =
            format!("# a comment\n{PEM_BEGIN}\nbm90IGEgY2VydGlmaWNhdGU=\n{PEM_END}\n{PEM_BEGIN}\n!\n{PEM_END}\nrest");
        assert_eq!(usable_certificates(&bundle), (String::new(), 2));
        assert_eq!(usable_certificates(""), (String::new(), 0));
        assert_eq!(usable_certificates(PEM_BEGIN), (String::new(), 1));
    }

    #[test]
    fn a_missing_bundle_is_named() {
        let failure = read_bundle(Path::new("/nonexistent/bundle.pem")).unwrap_err();
        assert_eq!(failure.cause, Cause::AwsUntrusted);
        assert!(failure.detail.contains("/nonexistent/bundle.pem"), "{failure}");
    }
}
