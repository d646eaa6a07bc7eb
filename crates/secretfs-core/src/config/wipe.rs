//! What is done to a device, when it is formatted, about what was on it before.

/// What is done about what was on the device before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wipe {
    /// Nothing: what is not written stays as it is, below the encryption.
    #[default]
    None,
    /// Zeros are written through the mapping, which is ciphertext on the device.
    Zero {
        /// Whether that is done before the volume is ready, or in the free space of the file system while it is in use.
        before_ready: bool,
    },
    /// The device is told that nothing on it is needed.
    Discard,
}
