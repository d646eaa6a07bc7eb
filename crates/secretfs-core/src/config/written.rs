//! The TOML as written, before anything is checked.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeValue, ValueDeserializer};

use super::matching::Words;
use super::{ConfigError, Source};

/// Reads one table; an unknown key or a wrong type is an error with its place.
pub(super) fn read<T: DeserializeOwned>(
    source: &Source,
    at: &str,
    value: Spanned<DeValue<'_>>,
) -> Result<T, ConfigError> {
    let kept = value.clone();
    T::deserialize(ValueDeserializer::from(value)).map_err(|error| {
        let at = error.span().and_then(|span| key_at(at, &kept, &span)).unwrap_or_else(|| at.to_owned());
        ConfigError::from_toml(source, &at, &error)
    })
}

/// The dotted key of the table or value that `span` stands in, somewhere in `value`, whose own key is `at`.
fn key_at(at: &str, value: &Spanned<DeValue<'_>>, span: &Range<usize>) -> Option<String> {
    let DeValue::Table(table) = value.get_ref() else { return None };
    table.iter().find_map(|(key, inner)| {
        if key.span() == *span {
            return Some(at.to_owned());
        }
        let below = format!("{at}.{}", key.get_ref());
        let outer = inner.span();
        let within = outer.start <= span.start && span.end <= outer.end;
        key_at(&below, inner, span).or(within.then_some(below))
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", expecting = "a table")]
pub(super) struct Aws {
    pub(super) region: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", expecting = "a table")]
pub(super) struct Volume {
    pub(super) mount: Option<Spanned<String>>,
    pub(super) lifecycle: Option<Spanned<String>>,
    pub(super) backing: Option<Spanned<Backing>>,
    pub(super) filesystem: Option<Spanned<Filesystem>>,
    pub(super) luks: Option<Spanned<Luks>>,
    pub(super) wipe: Option<Spanned<String>>,
    pub(super) wipe_before_ready: Option<Spanned<bool>>,
    pub(super) key: Option<Spanned<Key>>,
    #[serde(default)]
    pub(super) consumers: Vec<Spanned<String>>,
    pub(super) auto: Option<bool>,
    pub(super) start_timeout: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", expecting = "a table")]
pub(super) struct Backing {
    pub(super) file: Option<Spanned<String>>,
    pub(super) size: Option<Spanned<String>>,
    pub(super) device: Option<Spanned<String>>,
    #[serde(rename = "match")]
    pub(super) matching: Option<Spanned<Match>>,
    pub(super) layout: Option<Spanned<String>>,
    pub(super) stripe_size: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", expecting = "a table")]
pub(super) struct Match {
    pub(super) model: Option<Spanned<Words>>,
    pub(super) serial: Option<Spanned<Words>>,
    pub(super) by_id: Option<Spanned<Words>>,
    pub(super) wwn: Option<Spanned<Words>>,
    pub(super) ebs_volume: Option<Spanned<Words>>,
    pub(super) min_size: Option<Spanned<String>>,
    pub(super) max_size: Option<Spanned<String>>,
    pub(super) count: Option<Spanned<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", expecting = "a table")]
pub(super) struct Filesystem {
    #[serde(rename = "type")]
    pub(super) kind: Option<Spanned<String>>,
    pub(super) label: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) mkfs_options: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) mount_options: Vec<Spanned<String>>,
    pub(super) owner: Option<Spanned<String>>,
    pub(super) group: Option<Spanned<String>>,
    pub(super) mode: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", expecting = "a table")]
pub(super) struct Luks {
    pub(super) discard: Option<Spanned<bool>>,
    pub(super) no_read_workqueue: Option<bool>,
    pub(super) no_write_workqueue: Option<bool>,
    pub(super) sector_size: Option<Spanned<i64>>,
    pub(super) integrity: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", expecting = "a table")]
pub(super) struct Key {
    pub(super) source: Option<Spanned<String>>,
    pub(super) bucket: Option<Spanned<String>>,
    pub(super) object: Option<Spanned<String>>,
    #[expect(clippy::struct_field_names, reason = "the key as AWS names it")]
    pub(super) kms_key: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) context: BTreeMap<String, Spanned<String>>,
}
