//! The volume's story, as the journal gets it: one record for each turn, with its message id and fields.

use secretfs_core::cause::Failure;
use secretfs_core::key::AuditTrail;
use secretfs_core::machine::{Step, Story};
use secretfs_systemd::journal::ids;

/// Writes one turn of the story of the volume `name` to the journal.
pub fn tell(name: &str, story: &Story, trail: &AuditTrail) {
    match story {
        Story::Ready { adopted: false } => {
            tracing::info!(message_id = ids::VOLUME_READY, volume = name, "volume {name}: ready");
        }
        Story::Ready { adopted: true } => {
            tracing::info!(
                message_id = ids::VOLUME_ADOPTED,
                volume = name,
                "volume {name}: found up, verified and taken over; ready"
            );
        }
        Story::Waiting { step, failure, attempt, wait } => {
            tracing::warn!(
                message_id = ids::VOLUME_WAITING,
                volume = name,
                step = step.as_str(),
                secretfs_cause = failure.cause.code(),
                aws_request_id = request_id(*step, trail),
                attempt,
                "volume {name}: {failure}; trying again in {:.1} s\nhint: {}",
                wait.as_secs_f32(),
                failure.cause.row().hint
            );
        }
        Story::Failed { step, failure } => failed(name, step.as_str(), failure, request_id(*step, trail)),
        Story::Formatted => {
            tracing::info!(message_id = ids::VOLUME_FORMATTED, volume = name, "volume {name}: formatted with LUKS2");
        }
        Story::Lost(failure) => {
            tracing::error!(
                message_id = ids::MOUNT_LOST,
                volume = name,
                step = Step::Verify.as_str(),
                secretfs_cause = failure.cause.code(),
                "volume {name}: {failure}; stopping what depends on it\nhint: {}",
                failure.cause.row().hint
            );
        }
        Story::Stopped => {
            tracing::info!(message_id = ids::VOLUME_STOPPED, volume = name, "volume {name}: taken down and closed");
        }
    }
}

/// Says that the volume failed for good.
pub fn failed(name: &str, step: &str, failure: &Failure, aws_request_id: Option<&str>) {
    tracing::error!(
        message_id = ids::VOLUME_FAILED,
        volume = name,
        step,
        secretfs_cause = failure.cause.code(),
        aws_request_id,
        "volume {name}: {failure}; giving up\nhint: {}",
        failure.cause.row().hint
    );
}

/// Says that the running volume could not be made larger.
pub fn not_grown(name: &str, failure: &Failure) {
    tracing::error!(
        volume = name,
        step = Step::Grow.as_str(),
        secretfs_cause = failure.cause.code(),
        "volume {name}: not grown: {failure}; it goes on as it is\nhint: {}",
        failure.cause.row().hint
    );
}

/// The audit record: one for each use of a key.
pub fn key_used(name: &str, trail: &AuditTrail) {
    let key = trail.kms_key_arn.as_deref().unwrap_or("an unnamed key");
    tracing::info!(
        message_id = ids::KEY_USED,
        volume = name,
        step = Step::FetchKey.as_str(),
        aws_request_id = trail.kms_request_id.as_deref(),
        s3_request_id = trail.s3_request_id.as_deref(),
        s3_version = trail.s3_version.as_deref(),
        kms_key_arn = trail.kms_key_arn.as_deref(),
        "volume {name}: KMS decrypted its key under {key}"
    );
}

/// The request that `CloudTrail` knows the failed step by.
fn request_id(step: Step, trail: &AuditTrail) -> Option<&str> {
    let ids = trail.kms_request_id.as_deref().or(trail.s3_request_id.as_deref());
    ids.filter(|_| step == Step::FetchKey)
}
