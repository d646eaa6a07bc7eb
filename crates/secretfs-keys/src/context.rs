//! The facts that an encryption context may name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use aws_config::imds;
use aws_config::imds::client::error::ImdsError;
use aws_config::provider_config::ProviderConfig;
use aws_sdk_s3::config::SharedHttpClient;
use secretfs_core::cause::{Cause, Failure};
use secretfs_core::key::{expand_context, placeholders};

use crate::classify::chain;

const MACHINE_ID: &str = "/etc/machine-id";
const INSTANCE_ID: &str = "/latest/meta-data/instance-id";

/// Puts this machine's facts in the place of the placeholders of `context`; only the facts that occur are looked up.
pub(crate) async fn resolve(
    context: &BTreeMap<String, String>,
    volume: &str,
    region: &str,
    http: &SharedHttpClient,
) -> Result<BTreeMap<String, String>, Failure> {
    let wanted: BTreeSet<String> = context.values().flat_map(|value| placeholders(value)).collect();
    let mut facts = BTreeMap::new();
    for name in wanted {
        let value = match name.as_str() {
            "volume" => volume.to_owned(),
            "region" => region.to_owned(),
            "hostname" => hostname()?,
            "machine-id" => machine_id(&fs::read_to_string(MACHINE_ID).unwrap_or_default())?,
            "instance-id" => instance_id(http).await?,
            // Not a fact of ours; the expansion below says so.
            _ => continue,
        };
        facts.insert(name, value);
    }
    expand_context(context, |name| facts.get(name).cloned())
        .map_err(|unknown| Failure::new(Cause::Config, unknown.to_string()))
}

fn unknown(cause: Cause, name: &str, why: impl std::fmt::Display) -> Failure {
    Failure::new(cause, format!("the encryption context names {{{name}}}, but {why}"))
}

fn hostname() -> Result<String, Failure> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // `(none)` is what the kernel says before anybody has set a name.
    if name.is_empty() || name == "(none)" {
        return Err(unknown(Cause::System, "hostname", "this machine has no host name yet"));
    }
    Ok(name)
}

/// The machine id in the text of its file, which says `uninitialized` early in a first boot (machine-id(5)).
fn machine_id(text: &str) -> Result<String, Failure> {
    let id = text.trim();
    if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(id.to_owned())
    } else {
        Err(unknown(Cause::System, "machine-id", format_args!("{MACHINE_ID} holds no machine id")))
    }
}

async fn instance_id(http: &SharedHttpClient) -> Result<String, Failure> {
    let provider = ProviderConfig::without_region().with_http_client(http.clone());
    match imds::Client::builder().configure(&provider).build().get(INSTANCE_ID).await {
        Ok(id) => Ok(id.as_ref().trim().to_owned()),
        Err(ImdsError::ErrorResponse(answer)) => Err(unknown(
            Cause::AwsFault,
            "instance-id",
            format_args!("the instance metadata service answered HTTP {}", answer.response().status().as_u16()),
        )),
        Err(error) => Err(unknown(
            Cause::AwsUnreachable,
            "instance-id",
            format_args!("the instance metadata service does not answer: {}", chain(&error)),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_id_is_32_hexadecimal_digits() {
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(machine_id(&format!("{id}\n")), Ok(id.to_owned()));
        for text in ["", "uninitialized\n", "0123"] {
            assert_eq!(machine_id(text).unwrap_err().cause, Cause::System, "{text:?}");
        }
    }

    #[test]
    fn this_machine_has_a_name() {
        assert!(!hostname().unwrap().is_empty());
    }
}
