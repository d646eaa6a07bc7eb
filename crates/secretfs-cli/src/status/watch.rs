//! `secretfs status --watch`: how a start, a stop or a zeroing goes on.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{Report, collect};

/// Between two looks; the daemon tells how far it has come every two seconds.
const PAUSE: Duration = Duration::from_millis(500);

/// Follows the volume `name` until nothing goes on with it, and shows it then.
pub fn run(name: &str) -> io::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let bar = ProgressBar::no_length();
    let mut said = String::new();
    loop {
        let config = secretfs_generator::read_config(Path::new("/"));
        let reports = runtime.block_on(collect::collect(&config, Some(name)));
        let Some(report) = reports.first().filter(|report| goes_on(report)) else { break };
        if io::stderr().is_terminal() {
            show(&bar, report);
        } else if report.status.as_ref().is_some_and(|status| *status != said) {
            said = report.status.clone().unwrap_or_default();
            writeln!(io::stdout(), "{said}")?;
        }
        sleep(PAUSE);
    }
    bar.finish_and_clear();
    super::run(Some(name), false)
}

/// Whether waiting for what comes next makes sense.
fn goes_on(report: &Report) -> bool {
    report.zeroing.is_some() || matches!(report.state, "starting" | "stopping")
}

fn show(bar: &ProgressBar, report: &Report) {
    let status = report.status.clone().unwrap_or_default();
    let template = if let Some(progress) = report.zeroing {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        "{wide_bar} {percent} %\n{msg}"
    } else {
        "{spinner} {msg}"
    };
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(status);
    bar.tick();
}
