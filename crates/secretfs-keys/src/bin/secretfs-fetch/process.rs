//! What this process asks of the kernel before it sees a key, and its log.

use std::io;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Keeps the key out of core files, of other processes' reach and, where allowed, of swap; returns what did not work.
pub(crate) fn harden() -> Vec<String> {
    let no_core = Rlimit { current: Some(0), maximum: Some(0) };
    let steps = [
        ("cannot forbid tracing and core files", set_dumpable_behavior(DumpableBehavior::NotDumpable)),
        ("cannot set the limit for core files to 0", setrlimit(Resource::Core, no_core)),
        ("cannot lock memory", lock_memory()),
    ];
    steps.into_iter().filter_map(|(what, result)| result.err().map(|error| format!("{what}: {error}"))).collect()
}

/// Locks all memory if there is no limit to it. Below a limit it must not be tried: later allocations would fail at it.
/// The daemon's unit sets `MemorySwapMax=0` besides.
fn lock_memory() -> rustix::io::Result<()> {
    match getrlimit(Resource::Memlock).current {
        Some(_) => Ok(()),
        None => mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT),
    }
}

/// Logs to standard error, without the time where the journal adds it.
pub(crate) fn log_to_stderr() {
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(false).with_target(false);
    // What the SDK warns of comes back as an error, with more sense; its traces are nobody's business here.
    let ours = Targets::new().with_target("secretfs_keys", Level::INFO).with_target("secretfs_fetch", Level::INFO);
    let registry = tracing_subscriber::registry().with(ours);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        registry.with(lines.without_time()).init();
    } else {
        registry.with(lines).init();
    }
}
