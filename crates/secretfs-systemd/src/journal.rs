//! Logging: to the journal with fields, or to standard error for a reader.
//!
//! A record is a `tracing` event. Its fields become journal fields of the same name in upper case:
//!
//! | field of the event | in the journal | meaning |
//! | --- | --- | --- |
//! | `volume` | `VOLUME=` | the volume's name |
//! | `step` | `STEP=` | the step of the volume's life: `prepare`, `fetch`, `unlock`, … |
//! | `secretfs_cause` | `SECRETFS_CAUSE=` | the code of `secretfs_core::cause` |
//! | `aws_request_id` | `AWS_REQUEST_ID=` | the id of a request to AWS, `requestID` of its trail |
//! | `message_id` | `MESSAGE_ID=` | one of [`ids`], with its text in the catalog |
//!
//! ```
//! use secretfs_systemd::journal::ids;
//!
//! tracing::info!(message_id = ids::VOLUME_READY, volume = "scratch", "volume scratch: ready at /mnt/secretfs");
//! ```
//!
//! Fields of the spans around an event are sent as well, so name a field in one of the two places, not in both.
//! Any other field goes the same way (`unit` → `UNIT=`, `attempt` → `ATTEMPT=`): take names that
//! systemd.journal-fields(7) does not use for something else.

pub mod ids;

use std::fmt;
use std::io;

use libsystemd::logging::connected_to_journal;
use tracing::Subscriber;
use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::{SetGlobalDefaultError, set_global_default};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::{FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry};

/// `LOG_DAEMON` of syslog(3).
const FACILITY: &str = "3";

/// What every crate of this workspace begins with.
const OWN_TARGETS: &str = "secretfs";

/// Where the records go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// journald, over its native protocol.
    Journal,
    /// Standard error, although it leads to the journal: journald did not answer.
    JournalStream,
    /// Standard error, for whoever runs the program by hand.
    Stderr,
}

/// Sets up logging for the whole process; `program` becomes `SYSLOG_IDENTIFIER=`. To be called once.
///
/// Own records are shown from `info`, those of libraries from `warn`; one level more when systemd asks for it with
/// `$DEBUG_INVOCATION` (`RestartMode=debug`, systemd.service(5)).
pub fn init(program: &str) -> Result<Destination, SetGlobalDefaultError> {
    let debug = std::env::var_os("DEBUG_INVOCATION").is_some_and(|value| value == "1");
    let filter = targets(debug);
    if !connected_to_journal() {
        set_global_default(Registry::default().with(filter).with(stderr_layer(io::stderr, true)))?;
        return Ok(Destination::Stderr);
    }
    match journal_layer(program) {
        Ok(layer) => {
            set_global_default(Registry::default().with(filter).with(layer))?;
            Ok(Destination::Journal)
        }
        Err(error) => {
            set_global_default(Registry::default().with(filter).with(stderr_layer(io::stderr, false)))?;
            tracing::warn!("cannot reach journald ({error}); logging to standard error, without fields");
            Ok(Destination::JournalStream)
        }
    }
}

fn targets(debug: bool) -> Targets {
    let (own, others) =
        if debug { (LevelFilter::DEBUG, LevelFilter::INFO) } else { (LevelFilter::INFO, LevelFilter::WARN) };
    Targets::new().with_default(others).with_target(OWN_TARGETS, own)
}

fn journal_layer(program: &str) -> io::Result<tracing_journald::Layer> {
    let layer = tracing_journald::layer()?;
    Ok(layer
        .with_field_prefix(None)
        .with_syslog_identifier(program.to_owned())
        .with_custom_fields([("SYSLOG_FACILITY", FACILITY)]))
}

/// Lines for a reader; journald stamps the time on its stream itself.
fn stderr_layer<S, W>(writer: W, timestamps: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_target(false).fmt_fields(readable_fields());
    if timestamps { layer.boxed() } else { layer.without_time().boxed() }
}

/// The message, then `name=value` for each field; ids are for machines and are left out.
fn readable_fields() -> impl for<'writer> FormatFields<'writer> + Send + Sync + 'static {
    debug_fn(|writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug| match field.name() {
        "message" => write!(writer, "{value:?}"),
        "message_id" => Ok(()),
        name => write!(writer, " {name}={value:?}"),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_reader_sees() {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = Registry::default().with(targets(false)).with(stderr_layer(move || writer.clone(), false));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(message_id = ids::VOLUME_READY, volume = %"scratch", attempt = 2, "volume scratch: ready");
            tracing::debug!("not shown");
            tracing::info!(target: "aws_config", "not shown either");
            tracing::warn!(target: "aws_config", "shown");
        });
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, " INFO volume scratch: ready volume=scratch attempt=2\n WARN shown\n");
    }
}
