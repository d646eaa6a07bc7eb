//! What a key is called and where it comes from. Keys themselves never pass through the core.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cause::Failure;

/// A random key of at least this many bytes needs no slow derivation: it has 256 bits of its own.
const STRONG_KEY_BYTES: usize = 32;

/// A request of `secretfsd` to `secretfs-fetch`: JSON on the child's standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FetchRequest {
    /// The volume the key is for; only for messages.
    pub volume: String,
    /// Where the key comes from.
    pub source: KeySource,
    /// The AWS region, where the configuration names one.
    #[serde(default)]
    pub region: Option<String>,
    /// The time limit of the whole job, in milliseconds.
    pub deadline_ms: u64,
}

/// Where a key comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", deny_unknown_fields, rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum KeySource {
    /// A KMS ciphertext blob in an S3 object, as `aws kms encrypt` makes it.
    #[serde(rename = "s3+kms")]
    S3Kms {
        /// The bucket's name.
        bucket: String,
        /// The object's key.
        object: String,
        /// Key id, key ARN, alias name or alias ARN of the KMS key; stated in the call, so that a blob made under
        /// another key is refused.
        kms_key: String,
        /// The encryption context, with its placeholders still in it (see [`expand_context`]).
        context: BTreeMap<String, String>,
    },
}

impl KeySource {
    /// Whether getting the key needs the network.
    pub fn needs_network(&self) -> bool {
        match self {
            Self::S3Kms { .. } => true,
        }
    }

    /// The source in one short line, for `secretfs status`.
    pub fn describe(&self) -> String {
        match self {
            Self::S3Kms { bucket, object, kms_key, .. } => format!("s3://{bucket}/{object} under {kms_key}"),
        }
    }
}

/// What `secretfs-fetch` says when it is done: one line of JSON on its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum FetchReport {
    /// The key went out through the key descriptor.
    Fetched {
        /// What kind of key it is.
        form: KeyForm,
        /// Its length in bytes.
        length: usize,
        /// How it was got.
        trail: AuditTrail,
    },
    /// There is no key.
    Failed {
        /// Why not.
        failure: Failure,
        /// How far it got.
        trail: AuditTrail,
    },
}

/// What joins one use of a key with `CloudTrail`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct AuditTrail {
    /// ARN of the KMS key that decrypted, as KMS says it.
    pub kms_key_arn: Option<String>,
    /// KMS's request id, the `requestID` of the `CloudTrail` event.
    pub kms_request_id: Option<String>,
    /// S3's request id (`x-amz-request-id`).
    pub s3_request_id: Option<String>,
    /// The version of the object that was read, in a versioned bucket.
    pub s3_version: Option<String>,
}

/// What kind of key came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyForm {
    /// Text that a person may have chosen.
    Password,
    /// Random bytes.
    Binary,
}

/// Tells the form of the decrypted `plaintext` and how many of its bytes are the key.
///
/// The shell recipe kept the plaintext in a shell variable, and `$(…)` drops trailing newlines (bash(1), "Command
/// Substitution"), so the LUKS key was the text without them. Text therefore loses its trailing newlines; anything that
/// is not text is random bytes, every one of which counts.
pub fn key_form(plaintext: &[u8]) -> (KeyForm, usize) {
    let length = plaintext.iter().rposition(|byte| *byte != b'\n').map_or(0, |last| last + 1);
    match std::str::from_utf8(&plaintext[..length]) {
        Ok(text) if !text.chars().any(char::is_control) => (KeyForm::Password, length),
        _ => (KeyForm::Binary, plaintext.len()),
    }
}

/// How a LUKS key slot derives its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kdf {
    /// PBKDF2 with the least iterations LUKS2 takes: opens in milliseconds and needs no memory.
    Pbkdf2Minimal,
    /// libcryptsetup's own Argon2id, measured on the machine.
    Argon2id,
}

impl Kdf {
    /// Chooses by the strength of the key: a random key of 32 bytes and more gains nothing from a slow derivation.
    pub fn for_key(form: KeyForm, length: usize) -> Self {
        match form {
            KeyForm::Binary if length >= STRONG_KEY_BYTES => Self::Pbkdf2Minimal,
            KeyForm::Binary | KeyForm::Password => Self::Argon2id,
        }
    }
}

/// A placeholder in an encryption context that nothing is known for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the encryption context names {{{name}}}, which is not known")]
pub struct UnknownPlaceholder {
    /// The name between the braces.
    pub name: String,
}

/// The placeholders an encryption context may use.
pub const PLACEHOLDERS: &[&str] = &["volume", "hostname", "machine-id", "instance-id", "region"];

/// Puts facts in the place of `{volume}`, `{instance-id}`, … in the values of an encryption context.
///
/// `fact` is asked only for the placeholders that occur. `{{` and `}}` stand for the braces themselves.
pub fn expand_context(
    context: &BTreeMap<String, String>,
    mut fact: impl FnMut(&str) -> Option<String>,
) -> Result<BTreeMap<String, String>, UnknownPlaceholder> {
    context.iter().map(|(name, value)| Ok((name.clone(), expand(value, &mut fact)?))).collect()
}

/// The placeholders that `value` uses.
pub fn placeholders(value: &str) -> Vec<String> {
    let mut names = Vec::new();
    let collected = expand(value, &mut |name: &str| {
        names.push(name.to_owned());
        Some(String::new())
    });
    debug_assert!(collected.is_ok(), "every placeholder was answered");
    names
}

fn expand(value: &str, fact: &mut impl FnMut(&str) -> Option<String>) -> Result<String, UnknownPlaceholder> {
    let mut expanded = String::new();
    let mut rest = value;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(at);
        expanded.push_str(before);
        if let Some(after) = from.strip_prefix("{{") {
            expanded.push('{');
            rest = after;
        } else if let Some(after) = from.strip_prefix("}}") {
            expanded.push('}');
            rest = after;
        } else if let Some((name, after)) = from.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            expanded.push_str(&fact(name).ok_or_else(|| UnknownPlaceholder { name: name.to_owned() })?);
            rest = after;
        } else {
            expanded.push_str(&from[..1]);
            rest = &from[1..];
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_password_loses_the_newlines_the_shell_dropped() {
        assert_eq!(key_form(b"correct horse\n\n"), (KeyForm::Password, 13));
        assert_eq!(key_form(b"correct horse"), (KeyForm::Password, 13));
        assert_eq!(key_form("schlüssel\n".as_bytes()), (KeyForm::Password, 10));
    }

    #[test]
    fn random_bytes_are_kept_whole() {
        assert_eq!(key_form(b"\x00\xffab\n"), (KeyForm::Binary, 5));
        assert_eq!(key_form(b"a\tb\n"), (KeyForm::Binary, 4));
    }

    #[test]
    fn nothing_but_newlines_is_empty() {
        assert_eq!(key_form(b""), (KeyForm::Password, 0));
        assert_eq!(key_form(b"\n\n"), (KeyForm::Password, 0));
    }

    #[test]
    fn only_strong_random_keys_get_the_cheap_kdf() {
        assert_eq!(Kdf::for_key(KeyForm::Binary, 64), Kdf::Pbkdf2Minimal);
        assert_eq!(Kdf::for_key(KeyForm::Binary, 31), Kdf::Argon2id);
        assert_eq!(Kdf::for_key(KeyForm::Password, 64), Kdf::Argon2id);
    }

    #[test]
    fn context_is_expanded() {
        let context = BTreeMap::from([
            ("volume".to_owned(), "{volume}".to_owned()),
            ("host".to_owned(), "i={instance-id}, {{plain}}".to_owned()),
        ]);
        let expanded = expand_context(&context, |name| match name {
            "volume" => Some("scratch".to_owned()),
            "instance-id" => Some("i-1".to_owned()),
            _ => None,
        });
        let wanted = BTreeMap::from([
            ("volume".to_owned(), "scratch".to_owned()),
            ("host".to_owned(), "i=i-1, {plain}".to_owned()),
        ]);
        assert_eq!(expanded, Ok(wanted));
        let unknown = expand_context(&BTreeMap::from([("a".to_owned(), "{colour}".to_owned())]), |_| None);
        assert_eq!(unknown, Err(UnknownPlaceholder { name: "colour".to_owned() }));
    }

    #[test]
    fn a_request_survives_the_pipe() {
        let request = FetchRequest {
            volume: "scratch".to_owned(),
            source: KeySource::S3Kms {
                bucket: "b".to_owned(),
                object: "o".to_owned(),
                kms_key: "alias/k".to_owned(),
                context: BTreeMap::new(),
            },
            region: None,
            deadline_ms: 30_000,
        };
        let json = serde_json::to_string(&request).unwrap();
        assert!(json.contains("\"source\":\"s3+kms\""), "{json}");
        assert_eq!(serde_json::from_str::<FetchRequest>(&json).unwrap(), request);
    }

    proptest! {
        #[test]
        fn expansion_never_panics(value in ".{0,60}") {
            let _ = expand(&value, &mut |_: &str| Some("x".to_owned()));
            let _ = placeholders(&value);
        }

        #[test]
        fn text_without_braces_is_kept(value in "[^{}]{0,60}") {
            prop_assert_eq!(expand(&value, &mut |_: &str| None), Ok(value));
        }
    }
}
