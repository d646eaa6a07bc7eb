//! The key itself.

use std::fmt;

use secrecy::{ExposeSecret, SecretSlice};
use secretfs_core::key::{KeyForm, key_form};
use zeroize::Zeroize;

/// A decrypted key: zeroed when dropped, without `Clone` or `Serialize`, and shown by its length only.
pub struct Key {
    bytes: SecretSlice<u8>,
    form: KeyForm,
}

impl Key {
    /// Takes the key out of the plaintext, which is zeroed; `None` where nothing of it is left (see [`key_form`]).
    pub fn from_plaintext(mut plaintext: Vec<u8>) -> Option<Self> {
        let (form, length) = key_form(&plaintext);
        // A copy of the exact size: shrinking the vector in place could leave its old allocation behind, unzeroed.
        let bytes: Box<[u8]> = plaintext[..length].into();
        plaintext.zeroize();
        (length > 0).then(|| Self { bytes: bytes.into(), form })
    }

    /// The key's bytes.
    pub fn expose(&self) -> &[u8] {
        self.bytes.expose_secret()
    }

    /// What kind of key it is.
    pub fn form(&self) -> KeyForm {
        self.form
    }

    /// Its length in bytes; never zero.
    pub fn length(&self) -> usize {
        self.expose().len()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} bytes, {:?})", self.length(), self.form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_loses_its_newlines_and_random_bytes_lose_nothing() {
        let password = Key::from_plaintext(b"correct horse\n".to_vec()).unwrap();
        assert_eq!((password.expose(), password.form()), (&b"correct horse"[..], KeyForm::Password));
        let random = Key::from_plaintext(b"\x00\xff\n".to_vec()).unwrap();
        assert_eq!((random.expose(), random.form()), (&b"\x00\xff\n"[..], KeyForm::Binary));
    }

    #[test]
    fn nothing_is_no_key() {
        assert!(Key::from_plaintext(Vec::new()).is_none());
        assert!(Key::from_plaintext(b"\n\n".to_vec()).is_none());
    }

    #[test]
    fn debug_shows_the_length_only() {
        assert_eq!(format!("{:?}", Key::from_plaintext(b"hunter2".to_vec()).unwrap()), "Key(7 bytes, Password)");
    }
}
