//! Child processes: run to their end, or kept beside the run and ended with it.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// How long a service may take to end after SIGTERM; the emulator writes its state meanwhile.
const TERMINATE_LIMIT: Duration = Duration::from_secs(10);

/// How often a waiting loop looks again.
pub(crate) const POLL: Duration = Duration::from_millis(200);

/// Prints the command line, runs it with this process's output, and makes a failure an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("+ {}", line(command));
    let status = command.status().with_context(|| format!("cannot run {}", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Runs the command quietly and gives its standard output; an error carries both outputs.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", line(command)))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` ended with {}\n{stdout}{stderr}", line(command), output.status);
    }
    Ok(stdout)
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Waits until no other run of this workspace uses what is called `name`; holds it until dropped.
pub(crate) fn lock(name: &str) -> Result<File> {
    let target = workspace().join("target");
    fs::create_dir_all(&target)?;
    let file = File::create(target.join(format!("{name}.lock")))?;
    if file.try_lock().is_err() {
        println!("{name}: waiting for another run to end");
        file.lock()?;
    }
    Ok(file)
}

/// A process that lives beside the run. It ends when dropped, and the kernel ends it if the run is killed.
pub(crate) struct Service {
    name: String,
    child: Child,
}

impl Service {
    /// Starts a command whose output is appended to `log`.
    pub(crate) fn spawn(name: &str, command: &Command, log: &Path) -> Result<Self> {
        let out = OpenOptions::new().create(true).append(true).open(log)?;
        // setpriv sets the parent-death signal and becomes the command: same process id, no wrapper left.
        let mut wrapped = Command::new("setpriv");
        wrapped.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        wrapped.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        if let Some(dir) = command.get_current_dir() {
            wrapped.current_dir(dir);
        }
        wrapped.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = wrapped.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// The exit status, once the process has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            sleep(POLL);
        }
        bail!("{} did not end within {} s", self.name, limit.as_secs())
    }

    /// Asks the process to end and waits for it.
    pub(crate) fn terminate(mut self) -> Result<()> {
        capture(Command::new("kill").arg(self.child.id().to_string()))?;
        self.wait(TERMINATE_LIMIT)?;
        Ok(())
    }

    /// Ends the process without asking it.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Both fail only when the process has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
