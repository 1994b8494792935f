//! One run of a machine, from its start to its end, and what can be told from it.

use core::time::Duration;
use std::fs;
use std::io::Read as _;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use slat_report::{Outcome, Report};

use crate::console::Console;
use crate::journal::{Journal, describe};
use crate::machine::Machine;

/// A run that is over.
#[derive(Debug)]
pub(crate) struct Run {
    /// What the guest said.
    pub(crate) console: Console,
    /// The hypervisor's report; `None` in a direct boot, and when the hypervisor died before it
    /// could write one.
    pub(crate) report: Option<Report>,
    /// From the start of the machine to its end.
    pub(crate) elapsed: Duration,
    /// The emulator's exit status, `None` if it had to be stopped.
    status: Option<ExitStatus>,
    /// Whether a hypervisor ran below the guest.
    hypervised: bool,
    /// Whether we cannot see what the guest says: the console was the user's, or its init is not
    /// ours.
    silent: bool,
}

/// Runs `machine` until it ends, or for `limit`.
pub(crate) fn run(machine: &Machine, limit: Option<Duration>, journal: &Journal) -> Result<Run> {
    if let Some(hypervisor) = &machine.hypervisor {
        // An old report must never pass for a new one.
        match fs::remove_file(&hypervisor.report) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                bail!("cannot remove {}: {error}", hypervisor.report.display());
            }
            _ => {}
        }
    }
    let mut command = machine.command();
    if matches!(journal, Journal::File(_)) {
        journal.say(describe(&command));
    }
    let start = Instant::now();
    let mut emulator = Emulator::start(&mut command, machine.interactive, journal)?;
    let mut console = Console::default();
    let mut in_time = true;
    if let Some(stdout) = emulator.0.stdout.take() {
        let output = read_in_background(stdout);
        in_time = follow(&output, &mut console, start, limit, journal);
    }
    let status = if in_time {
        Some(emulator.0.wait()?)
    } else {
        None
    };
    drop(emulator);

    let report = match &machine.hypervisor {
        Some(hypervisor) => {
            read_report(&fs::read_to_string(&hypervisor.report).unwrap_or_default())?
        }
        None => None,
    };
    Ok(Run {
        console,
        report,
        elapsed: start.elapsed(),
        status,
        hypervised: machine.hypervisor.is_some(),
        silent: machine.interactive || machine.silent,
    })
}

/// The running emulator, stopped when dropped.
struct Emulator(Child);

impl Emulator {
    fn start(command: &mut Command, interactive: bool, journal: &Journal) -> Result<Self> {
        if !interactive {
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(journal.stderr()?);
        }
        command
            .spawn()
            .map(Self)
            .with_context(|| format!("cannot run {}", describe(command)))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // It has ended already unless something went wrong; then there is nothing more to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes of the console, with the time of their arrival.
type Output = Receiver<(Instant, Vec<u8>)>;

fn read_in_background(mut stdout: ChildStdout) -> Output {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stdout.read(&mut buffer) {
            if sender
                .send((Instant::now(), buffer[..length].to_vec()))
                .is_err()
            {
                break;
            }
        }
    });
    receiver
}

/// Reads the console to its end; `false` if that did not come within `limit`.
fn follow(
    output: &Output,
    console: &mut Console,
    start: Instant,
    limit: Option<Duration>,
    journal: &Journal,
) -> bool {
    loop {
        let next = match limit {
            None => output.recv().map_err(RecvTimeoutError::from),
            Some(limit) => output.recv_timeout(limit.saturating_sub(start.elapsed())),
        };
        match next {
            Ok((at, bytes)) => {
                journal.pass_on(&bytes);
                console.take(&bytes, at - start);
            }
            Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) => return false,
        }
    }
}

/// Reads the report, which is one line of JSON.
fn read_report(text: &str) -> Result<Option<Report>> {
    let Some(line) = text.lines().find(|line| line.starts_with('{')) else {
        return Ok(None);
    };
    serde_json::from_str(line)
        .map(Some)
        .with_context(|| format!("the hypervisor's report cannot be read: {line}"))
}

impl Run {
    /// Checks that the guest powered itself off, and that everything it was asked to do succeeded.
    pub(crate) fn check(&self) -> Result<()> {
        let Some(status) = self.status else {
            bail!(
                "the guest was stopped: it did not power off within {:.0?}",
                self.elapsed
            );
        };
        if self.hypervised {
            self.check_hypervisor(status)?;
        } else {
            ensure!(status.success(), "QEMU failed: {status}");
        }
        if self.silent {
            return Ok(());
        }
        if let Some(error) = self.console.marker("error") {
            bail!("the guest reports: {}", error.words());
        }
        match self.console.marker("done") {
            Some(done) if done.is("failures", "0") => Ok(()),
            Some(done) => bail!("the guest's work failed: {}", done.words()),
            None => bail!("the guest stopped before its work was done"),
        }
    }

    /// Checks the emulator's exit status, which is the hypervisor's, and its report.
    fn check_hypervisor(&self, status: ExitStatus) -> Result<()> {
        let outcome = self.report.as_ref().map(|report| &report.outcome);
        match (status.code(), outcome) {
            (Some(0), Some(Outcome::Off)) => Ok(()),
            (_, Some(Outcome::Reset)) => bail!("the guest reset itself, as Linux does on a panic"),
            (_, Some(Outcome::Failed(reason))) => bail!("the hypervisor stopped: {reason}"),
            (Some(0), None) => bail!("the machine stopped without a memory report"),
            (Some(3), None) => bail!("the hypervisor refused its command line"),
            (Some(code), _) => bail!("the hypervisor or QEMU failed with status {code}"),
            (None, _) => bail!("QEMU failed: {status}"),
        }
    }

    /// Ticks of the system counter from the guest's entry to its init.
    ///
    /// The counter starts with the machine, so a direct boot enters its kernel at zero.
    pub(crate) fn ticks_to_init(&self) -> Option<u64> {
        let entry = match (&self.report, self.hypervised) {
            (Some(report), _) => report.times.entry,
            (None, false) => 0,
            (None, true) => return None,
        };
        self.console
            .marker("init")?
            .number("ticks")?
            .checked_sub(entry)
    }
}
