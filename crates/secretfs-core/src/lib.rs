//! Text and facts in, decisions out: everything secretfs decides, and nothing it does.
//!
//! No function here opens a file, reads a clock or the environment, starts a process or waits.

pub mod cause;
pub mod chain;
pub mod claim;
pub mod config;
pub mod forecast;
pub mod key;
pub mod machine;
pub mod name;
pub mod paths;
pub mod progress;
pub mod retry;
pub mod units;
