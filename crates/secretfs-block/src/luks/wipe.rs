//! How far a volume is zeroed, noted in its LUKS2 header: the note goes where the device goes, and says nothing of
//! another format.
//!
//! It is a token without a key slot (LUKS2 On-Disk Format Specification, "Tokens"; numbers of 64 bits are strings there).

use libcryptsetup_rs::{CryptDevice, LibcryptErr, TokenInput};
use serde_json::{Value, json};

use super::{HeaderError, load};
use crate::cryptsetup;
use crate::device::DevicePath;

/// The type of the token.
const TYPE: &str = "secretfs-wipe";

/// LUKS2 has room for so many tokens (`LUKS2_TOKENS_MAX` of libcryptsetup).
const TOKENS: u32 = 32;

/// Reads how many bytes from the beginning of the volume are zeroed; nothing when there is no zeroing to go on with.
pub fn zeroed(device: &DevicePath) -> Result<Option<u64>, HeaderError> {
    let found = cryptsetup::call(|| Ok(find(&mut load(device)?)));
    let found = found.map_err(|source| HeaderError::Broken { device: device.clone(), source })?;
    // What can't be read is zeroed once more.
    Ok(found.map(|(_, token)| token["bytes"].as_str().and_then(|bytes| bytes.parse().ok()).unwrap_or(0)))
}

/// Notes that `bytes` from the beginning are zeroed, or, with nothing, that there is no more to do.
pub fn note_zeroed(device: &DevicePath, bytes: Option<u64>) -> Result<(), HeaderError> {
    let written = cryptsetup::call(|| note(&mut load(device)?, bytes));
    written.map_err(|source| HeaderError::Write { device: device.clone(), source })
}

pub(super) fn note(handle: &mut CryptDevice, bytes: Option<u64>) -> Result<(), LibcryptErr> {
    let slot = find(handle).map(|(slot, _)| slot);
    let token = bytes.map(|bytes| json!({ "type": TYPE, "keyslots": [], "bytes": bytes.to_string() }));
    let input = match (slot, &token) {
        (Some(slot), Some(token)) => TokenInput::ReplaceToken(slot, token),
        (Some(slot), None) => TokenInput::RemoveToken(slot),
        (None, Some(token)) => TokenInput::AddToken(token),
        (None, None) => return Ok(()),
    };
    handle.token_handle().json_set(input).map(|_| ())
}

fn find(handle: &mut CryptDevice) -> Option<(u32, Value)> {
    let mut tokens = handle.token_handle();
    // An empty slot is an error to libcryptsetup.
    (0..TOKENS).find_map(|slot| Some((slot, tokens.json_get(slot).ok()?)).filter(|(_, token)| token["type"] == TYPE))
}
