//! Where keys come from: S3 and KMS, reached with the credentials AWS's own SDK finds.
//!
//! [`fetch`] does one job and reports what it did; the program `secretfs-fetch` puts it into a process of its own, because
//! a process that has called KMS keeps copies of the plaintext in the buffers of TLS and JSON, which nobody can zero.

pub mod classify;
mod client;
mod context;
mod fetch;
mod key;

pub use client::http_client;
pub use fetch::{Outcome, fetch};
pub use key::Key;
