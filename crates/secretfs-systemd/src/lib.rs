//! What secretfs says to systemd: jobs and states over D-Bus, `sd_notify`, and the journal.
//!
//! - [`manager`]: starts and stops units, waits for their jobs, reads their state;
//! - [`notify`]: tells the service manager how the daemon fares;
//! - [`journal`]: sets up logging, and names the records that have a message id.

pub mod journal;
pub mod manager;
pub mod notify;
