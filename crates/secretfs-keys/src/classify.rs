//! From the SDK's errors to the table of causes.

use std::error::Error;
use std::{fmt, io, iter};

use aws_config::imds::client::error::ImdsError;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ConnectorError, ProvideErrorMetadata, SdkError};
use rustls::CertificateError;
use secretfs_core::cause::{Cause, Failure};

/// What the SDK's layers say when the one below them failed; it adds nothing to what that one says.
const LAYERS: [&str; 8] = [
    "client error (Connect)",
    "client error (SendRequest)",
    "dispatch failure",
    "io error",
    "no credentials found in chain",
    "other",
    "service error",
    "the credential provider was not enabled",
];

/// A message of AWS's is cut here; the longest useful ones name two ARNs.
const MAX_MESSAGE: usize = 600;

/// Which service was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// S3 `GetObject`.
    S3,
    /// KMS `Decrypt`.
    Kms,
}

/// How a call failed, without the SDK's types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Facts<'a> {
    /// The service answered.
    Answer {
        /// Who answered.
        service: Service,
        /// The HTTP status.
        status: u16,
        /// The error code, where one could be read.
        code: Option<&'a str>,
        /// The message that goes with it.
        message: Option<&'a str>,
    },
    /// No answer: no route, no name, refused, reset, too late.
    NoAnswer,
    /// The peer's certificate is not trusted.
    Untrusted,
    /// The peer's certificate is not valid yet, by our clock.
    NotYetValid,
    /// The call could not be put together from what the configuration says.
    Unaskable,
}

/// The cause that `facts` amount to.
pub fn cause(facts: Facts<'_>) -> Cause {
    match facts {
        Facts::Answer { service, status, code, message } => {
            answered(service, status, code.unwrap_or_default(), message.unwrap_or_default())
        }
        Facts::NoAnswer => Cause::AwsUnreachable,
        Facts::Untrusted => Cause::AwsUntrusted,
        Facts::NotYetValid => Cause::ClockSkew,
        Facts::Unaskable => Cause::Config,
    }
}

fn answered(service: Service, status: u16, code: &str, message: &str) -> Cause {
    // S3 passes on what KMS says of the key of an SSE-KMS object: `KMS.DisabledException`.
    let (service, code) = code.strip_prefix("KMS.").map_or((service, code), |code| (Service::Kms, code));
    let by_status = || match (status, service) {
        (401, _) => Cause::BadCredentials,
        (403, Service::S3) => Cause::S3AccessDenied,
        (403, Service::Kms) => Cause::KmsAccessDenied,
        (404, Service::S3) => Cause::S3NoSuchKey,
        (301, Service::S3) => Cause::S3NoSuchBucket,
        (429, _) => Cause::Throttled,
        (400..=499, _) if status != 408 => Cause::Config,
        // What is left is a fault, or no answer of the service at all: a proxy, a portal.
        _ => Cause::AwsFault,
    };
    match code {
        "RequestTimeTooSkewed" | "RequestExpired" | "RequestInTheFuture" => Cause::ClockSkew,
        "SignatureDoesNotMatch" | "InvalidSignatureException" if about_time(message) => Cause::ClockSkew,
        "AuthorizationHeaderMalformed" if message.contains("expecting") => Cause::S3NoSuchBucket,
        "SignatureDoesNotMatch"
        | "InvalidSignatureException"
        | "AuthorizationHeaderMalformed"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "InvalidAccessKeyId"
        | "InvalidClientTokenId"
        | "InvalidToken"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "TokenRefreshRequired"
        | "UnrecognizedClientException" => Cause::BadCredentials,

        "BandwidthLimitExceeded"
        | "EC2ThrottledException"
        | "LimitExceededException"
        | "PriorRequestNotComplete"
        | "RequestLimitExceeded"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "SlowDown"
        | "ThrottledException"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequestsException" => Cause::Throttled,

        "InternalError"
        | "InternalFailure"
        | "RequestTimeout"
        | "RequestTimeoutException"
        | "ServiceUnavailable"
        | "ServiceUnavailableException" => Cause::AwsFault,

        _ => match service {
            Service::S3 => match code {
                "NoSuchKey" | "NoSuchVersion" | "MethodNotAllowed" => Cause::S3NoSuchKey,
                "NoSuchBucket" | "PermanentRedirect" | "IllegalLocationConstraintException" => Cause::S3NoSuchBucket,
                // The object is encrypted with SSE-KMS, and it is the key of that which S3 may not use for us.
                "AccessDenied" if message.contains("kms:Decrypt") => Cause::KmsAccessDenied,
                "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => Cause::S3AccessDenied,
                // In Glacier; encrypted with a key of the customer's that we do not have.
                "InvalidObjectState" | "InvalidRequest" => Cause::S3ObjectUnfit,
                _ => by_status(),
            },
            Service::Kms => match code {
                "AccessDeniedException" | "AccessDenied" => Cause::KmsAccessDenied,
                "DisabledException" => Cause::KmsDisabled,
                "KMSInvalidStateException" => Cause::KmsInvalidState,
                "NotFoundException" => Cause::KmsNotFound,
                "IncorrectKeyException" | "InvalidKeyUsageException" => Cause::KmsIncorrectKey,
                "InvalidCiphertextException" => Cause::KmsInvalidCiphertext,
                // KMS sends the first two with HTTP 500, and the last with 500 or 400.
                "DependencyTimeoutException" | "KeyUnavailableException" | "KMSInternalException" => Cause::AwsFault,
                _ => by_status(),
            },
        },
    }
}

/// `Signature expired: … is now earlier than …`, `Signature not yet current: …`.
fn about_time(message: &str) -> bool {
    message.contains("Signature expired") || message.contains("not yet current")
}

/// What became of the call that `subject` names.
pub fn failure<E>(service: Service, subject: &impl fmt::Display, error: &SdkError<E, HttpResponse>) -> Failure
where
    E: Error + ProvideErrorMetadata + 'static,
{
    let Some(response) = error.raw_response() else {
        return Failure::new(cause(unanswered(error)), format!("{subject}: {}", chain(error)));
    };
    let status = response.status().as_u16();
    let (code, message) = (error.code(), error.message());
    // The text of a parser's error is left out: the answer it could not read may hold the plaintext.
    let mut detail = match (code, message) {
        (Some(code), Some(message)) => format!("{subject}: {code}: {}", cut(one_line(message))),
        (Some(code), None) => format!("{subject}: {code} (HTTP {status})"),
        (None, _) => format!("{subject}: HTTP {status} without an error code"),
    };
    if let Some(region) = response.headers().get("x-amz-bucket-region") {
        detail.push_str("; the bucket is in ");
        detail.push_str(&cut(one_line(region)));
    }
    Failure::new(cause(Facts::Answer { service, status, code, message }), detail)
}

fn unanswered<E>(error: &SdkError<E, HttpResponse>) -> Facts<'static>
where
    E: Error + 'static,
{
    for error in causes(error) {
        if let Some(rustls::Error::InvalidCertificate(why)) = error.downcast_ref() {
            return match why {
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Facts::NotYetValid,
                _ => Facts::Untrusted,
            };
        }
    }
    match error {
        SdkError::ConstructionFailure(_) => Facts::Unaskable,
        SdkError::DispatchFailure(failure) if failure.is_user() => Facts::Unaskable,
        // Endpoints are resolved while the call is on its way, so a bucket name or an address that makes no endpoint comes
        // out here. All that goes wrong on the wire passes through the HTTP client, whose errors say so.
        SdkError::DispatchFailure(failure)
            if failure.is_other()
                && failure.as_other().is_none()
                && !causes(error).any(|error| error.to_string().starts_with("client error (")) =>
        {
            Facts::Unaskable
        }
        _ => Facts::NoAnswer,
    }
}

/// Why there are no credentials.
pub fn no_credentials(error: &CredentialsError) -> Failure {
    /// What STS answers to an identity that it refuses.
    const REFUSALS: [&str; 6] = [
        "AccessDenied",
        "ExpiredToken",
        "InvalidClientTokenId",
        "InvalidIdentityToken",
        "SignatureDoesNotMatch",
        "Unauthorized",
    ];
    let text = match error {
        CredentialsError::CredentialsNotLoaded(_) => nowhere(&joined(error)),
        _ => chain(error),
    };
    let from_imds = causes(error).any(<dyn Error>::is::<ImdsError>);
    let cause = match error {
        CredentialsError::ProviderError(_) if REFUSALS.iter().any(|code| text.contains(code)) => Cause::BadCredentials,
        // STS, which a profile with a role asks, is as far away as S3; IMDS is part of the instance.
        CredentialsError::ProviderError(_) if !from_imds && causes(error).any(<dyn Error>::is::<ConnectorError>) => {
            Cause::AwsUnreachable
        }
        _ => Cause::NoCredentials,
    };
    Failure::new(cause, format!("getting credentials: {text}"))
}

/// What is worth saying of the chain of providers, which lists them all, empty-handed each in its own words: what the
/// profile said, if anything, and the metadata service, which an instance relies on.
fn nowhere(text: &str) -> String {
    let Some((before, metadata)) = text.rsplit_once(" Ec2InstanceMetadata: ") else { return text.to_owned() };
    let why = |text: &str| text.split(": ").filter(|part| !LAYERS.contains(part)).collect::<Vec<_>>().join(": ");
    let profile = before.split_once(" Profile: ").and_then(|(_, rest)| rest.split_once(" WebIdentityToken: "));
    let mut said = vec!["none in environment, profile, web identity or container".to_owned()];
    for (source, text) in [("profile", profile.map_or("", |(text, _)| text)), ("instance metadata", metadata)] {
        let why = why(text);
        if !why.is_empty() {
            said.push(format!("{source}: {why}"));
        }
    }
    cut(said.join("; "))
}

/// An error with all that it came of, on one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    cut(joined(error))
}

fn joined(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    for error in causes(error) {
        // The answer's headers and body are in this one's text.
        let text = match error.downcast_ref() {
            Some(ImdsError::ErrorResponse(answer)) => {
                format!("IMDS answered HTTP {}", answer.response().status().as_u16())
            }
            _ => one_line(&error.to_string()),
        };
        // Some layers repeat the text of the one below.
        if !line.contains(&text) && !LAYERS.contains(&text.as_str()) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&text);
        }
    }
    line
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| match error.downcast_ref::<io::Error>() {
        // `source()` of an `io::Error` skips the error that it wraps, and that one is rustls's.
        Some(error) => error.get_ref().map(|inner| inner as &(dyn Error + 'static)),
        None => error.source(),
    })
}

/// Words of others, fit for a line of a log.
fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

fn cut(line: String) -> String {
    match line.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_their_causes() {
        use Service::{Kms, S3};
        let table: &[(Service, u16, &str, &str, Cause)] = &[
            (S3, 404, "NoSuchKey", "", Cause::S3NoSuchKey),
            (S3, 404, "NoSuchBucket", "", Cause::S3NoSuchBucket),
            (S3, 301, "PermanentRedirect", "", Cause::S3NoSuchBucket),
            (S3, 301, "", "", Cause::S3NoSuchBucket),
            (S3, 400, "AuthorizationHeaderMalformed", "the region 'a' is wrong; expecting 'b'", Cause::S3NoSuchBucket),
            (S3, 400, "AuthorizationHeaderMalformed", "the authorization header is malformed", Cause::BadCredentials),
            (S3, 403, "AccessDenied", "Access Denied", Cause::S3AccessDenied),
            (
                S3,
                403,
                "AccessDenied",
                "not authorized to perform: kms:Decrypt on resource: arn",
                Cause::KmsAccessDenied,
            ),
            (S3, 400, "KMS.DisabledException", "", Cause::KmsDisabled),
            (S3, 400, "KMS.KMSInvalidStateException", "", Cause::KmsInvalidState),
            (S3, 403, "", "", Cause::S3AccessDenied),
            (S3, 404, "", "", Cause::S3NoSuchKey),
            (S3, 403, "InvalidAccessKeyId", "", Cause::BadCredentials),
            (S3, 403, "SignatureDoesNotMatch", "The request signature we calculated", Cause::BadCredentials),
            (S3, 400, "ExpiredToken", "", Cause::BadCredentials),
            (S3, 403, "RequestTimeTooSkewed", "", Cause::ClockSkew),
            (S3, 403, "InvalidObjectState", "", Cause::S3ObjectUnfit),
            (S3, 400, "InvalidBucketName", "", Cause::Config),
            (S3, 503, "SlowDown", "", Cause::Throttled),
            (S3, 503, "ServiceUnavailable", "", Cause::AwsFault),
            (S3, 500, "InternalError", "", Cause::AwsFault),
            (S3, 502, "", "", Cause::AwsFault),
            (S3, 200, "", "", Cause::AwsFault),
            (Kms, 400, "AccessDeniedException", "", Cause::KmsAccessDenied),
            (Kms, 403, "", "", Cause::KmsAccessDenied),
            (Kms, 400, "DisabledException", "", Cause::KmsDisabled),
            (Kms, 400, "KMSInvalidStateException", "arn is pending deletion.", Cause::KmsInvalidState),
            (Kms, 400, "NotFoundException", "", Cause::KmsNotFound),
            (Kms, 400, "IncorrectKeyException", "", Cause::KmsIncorrectKey),
            (Kms, 400, "InvalidKeyUsageException", "", Cause::KmsIncorrectKey),
            (Kms, 400, "InvalidCiphertextException", "", Cause::KmsInvalidCiphertext),
            (Kms, 500, "KeyUnavailableException", "", Cause::AwsFault),
            (Kms, 500, "DependencyTimeoutException", "", Cause::AwsFault),
            (Kms, 500, "KMSInternalException", "", Cause::AwsFault),
            (Kms, 400, "ThrottlingException", "", Cause::Throttled),
            (Kms, 400, "LimitExceededException", "", Cause::Throttled),
            (Kms, 429, "", "", Cause::Throttled),
            (Kms, 400, "UnrecognizedClientException", "", Cause::BadCredentials),
            (Kms, 400, "ExpiredTokenException", "", Cause::BadCredentials),
            (Kms, 400, "InvalidSignatureException", "The request signature we calculated", Cause::BadCredentials),
            (Kms, 400, "InvalidSignatureException", "Signature expired: 1 is now earlier than 2", Cause::ClockSkew),
            (Kms, 400, "InvalidSignatureException", "Signature not yet current: 1", Cause::ClockSkew),
            (Kms, 400, "ValidationException", "", Cause::Config),
            (Kms, 503, "", "", Cause::AwsFault),
        ];
        for &(service, status, code, message, wanted) in table {
            let code = (!code.is_empty()).then_some(code);
            let facts = Facts::Answer { service, status, code, message: Some(message) };
            assert_eq!(cause(facts), wanted, "{facts:?}");
        }
    }

    #[test]
    fn no_answer_has_its_causes() {
        assert_eq!(cause(Facts::NoAnswer), Cause::AwsUnreachable);
        assert_eq!(cause(Facts::Untrusted), Cause::AwsUntrusted);
        assert_eq!(cause(Facts::NotYetValid), Cause::ClockSkew);
        assert_eq!(cause(Facts::Unaskable), Cause::Config);
    }

    #[test]
    fn credentials_have_their_causes() {
        let imds_down = CredentialsError::not_loaded("no providers in chain provided credentials");
        assert_eq!(no_credentials(&imds_down).cause, Cause::NoCredentials);
        let refused = CredentialsError::provider_error("unhandled error (AccessDenied)");
        assert_eq!(no_credentials(&refused).cause, Cause::BadCredentials);
        let cut_off = CredentialsError::provider_error(ConnectorError::io(io::Error::other("refused").into()));
        assert_eq!(no_credentials(&cut_off).cause, Cause::AwsUnreachable);
        let odd = CredentialsError::invalid_configuration("profile `x` was not defined");
        assert_eq!(
            no_credentials(&odd),
            Failure::new(
                Cause::NoCredentials,
                "getting credentials: the credentials provider was not properly configured: profile `x` was not defined"
            )
        );
    }

    #[test]
    fn only_the_telling_providers_are_quoted() {
        let text = "the credential provider was not enabled: no credentials found in chain. Attempted: Environment: the \
                    credential provider was not enabled: environment variable not set Profile: the credential provider \
                    was not enabled: profile `x` was not defined WebIdentityToken: the credential provider was not \
                    enabled: $X was not set EcsContainer: the credential provider was not enabled: not configured \
                    Ec2InstanceMetadata: the credential provider was not enabled: received 404 from IMDS";
        let said = "none in environment, profile, web identity or container; profile: profile `x` was not defined; \
                    instance metadata: received 404 from IMDS";
        assert_eq!(nowhere(text), said);
        assert_eq!(nowhere("something else"), "something else");
    }

    #[test]
    fn certificates_have_their_causes() {
        let wrapped = |why| {
            let error = io::Error::other(rustls::Error::InvalidCertificate(why));
            let error: SdkError<aws_sdk_kms::operation::decrypt::DecryptError, HttpResponse> =
                SdkError::dispatch_failure(ConnectorError::io(error.into()));
            failure(Service::Kms, &"KMS", &error).cause
        };
        assert_eq!(wrapped(CertificateError::UnknownIssuer), Cause::AwsUntrusted);
        assert_eq!(wrapped(CertificateError::NotValidYet), Cause::ClockSkew);
    }

    #[test]
    fn words_of_others_stay_on_one_line() {
        assert_eq!(one_line(" a\n\tb\u{1b}[1m  c "), "a b [1m c");
        assert_eq!(cut("x".repeat(MAX_MESSAGE + 1)).chars().count(), MAX_MESSAGE + 1);
    }
}
