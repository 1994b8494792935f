//! Building a payload, and one run of it.

use core::time::Duration;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use slat_oracle_protocol::answer::{self, Answer};

use super::judge::{Emulator, Files, Judge, Payload, Plan};
use crate::host;
use crate::journal::{Journal, describe};
use crate::toolchain::BareMetal;
use crate::workspace::Workspace;

/// How long a run may take. A run takes seconds; one that hangs must not stop everything.
const LIMIT: Duration = Duration::from_mins(5);

/// Everything that it takes to run plans.
#[derive(Debug)]
pub(crate) struct Bench {
    emulator: PathBuf,
    payload: PathBuf,
    directory: PathBuf,
}

impl Bench {
    /// Finds or installs the emulator and builds the payload.
    pub(crate) fn set_up(
        workspace: &Workspace,
        judge: &dyn Judge,
        journal: &Journal,
    ) -> Result<Self> {
        let emulator = find_emulator(&judge.emulator(), journal)?;
        let payload = Payloads::new(workspace).build(&judge.payload(), journal)?;
        let directory = workspace.directory(PathBuf::from("oracle").join(judge.name()))?;
        Ok(Self {
            emulator,
            payload,
            directory,
        })
    }

    /// Carries out a plan and returns the answers, one for each of its checks.
    pub(crate) fn run(
        &self,
        judge: &dyn Judge,
        plan: &Plan,
        journal: &Journal,
    ) -> Result<Vec<Answer>> {
        let script = self.directory.join("script");
        fs::write(&script, plan.script.clone().into_bytes())
            .with_context(|| format!("cannot write {}", script.display()))?;
        let mut command = judge.machine(
            plan,
            &Files {
                emulator: &self.emulator,
                payload: &self.payload,
                script: &script,
                directory: &self.directory,
            },
        )?;
        if matches!(journal, Journal::File(_)) {
            journal.say(describe(&command));
        }
        let running = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(journal.stderr()?)
            .spawn()
            .with_context(|| format!("cannot run {}", describe(&command)))?;
        let console = listen(Machine(running), judge.ends_by_itself())?;
        let log = self.directory.join("console");
        fs::write(&log, &console).with_context(|| format!("cannot write {}", log.display()))?;
        let answers = answer::read(&console).with_context(|| {
            let tail = console.len().saturating_sub(400);
            let tail = console.get(tail..).unwrap_or_default();
            format!("the end of the console:\n{tail}")
        })?;
        if answers.len() != plan.checks.len() {
            bail!("{} questions, {} answers", plan.checks.len(), answers.len());
        }
        Ok(answers)
    }
}

fn find_emulator(emulator: &Emulator, journal: &Journal) -> Result<PathBuf> {
    let Emulator { program, packages } = *emulator;
    if let Some(path) = host::find_program(program) {
        return Ok(path);
    }
    host::install(packages, journal).with_context(|| format!("{program} is missing"))?;
    host::find_program(program).ok_or_else(|| anyhow!("{program} is missing after its install"))
}

/// The payloads' workspace, and how they are built.
#[derive(Debug)]
pub(crate) struct Payloads<'w> {
    workspace: &'w Workspace,
}

/// Where payloads are built, below the target directory.
const BUILT: &str = "oracle/payloads";

impl<'w> Payloads<'w> {
    pub(crate) fn new(workspace: &'w Workspace) -> Self {
        Self { workspace }
    }

    /// Where their sources are.
    pub(crate) fn directory(&self) -> PathBuf {
        self.workspace.root.join("oracles")
    }

    /// Builds one and returns where it is.
    fn build(&self, payload: &Payload, journal: &Journal) -> Result<PathBuf> {
        let Payload { package, target } = *payload;
        let compiler = BareMetal::for_target(target, journal)?;
        journal.say(format_args!("building {package}"));
        journal.run(self.cargo(&compiler, "build", package).arg("--quiet"))?;
        let directory = self.workspace.target.join(BUILT);
        Ok(directory.join(target).join("release").join(package))
    }

    /// Lints one. Debian's compiler comes without clippy, so there the compiler's own warnings have
    /// to do.
    pub(crate) fn lint(&self, payload: &Payload, journal: &Journal) -> Result<()> {
        let Payload { package, target } = *payload;
        let compiler = BareMetal::for_target(target, journal)?;
        let mut command = match compiler {
            BareMetal::Installed { .. } => {
                let mut command = self.cargo(&compiler, "clippy", package);
                command.args(["--", "-D", "warnings"]);
                command
            }
            BareMetal::DebianSources { .. } => self.cargo(&compiler, "check", package),
        };
        journal.run(&mut command)
    }

    fn cargo(&self, compiler: &BareMetal, subcommand: &str, package: &str) -> Command {
        let mut command = compiler.cargo(self.workspace, subcommand, BUILT);
        command
            .current_dir(self.directory())
            .args(["--locked", "--package", package]);
        command
    }
}

/// The running emulator, stopped when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It has ended already unless something went wrong; then there is nothing more to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads the console until the machine ends, or until its last line where it does not.
fn listen(mut machine: Machine, to_the_end: bool) -> Result<String> {
    let stdout = machine.0.stdout.take().context("no console")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(stdout);
        let mut line = Vec::new();
        while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line).into_owned();
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    let start = Instant::now();
    let mut console = String::new();
    loop {
        match receiver.recv_timeout(LIMIT.saturating_sub(start.elapsed())) {
            Ok(line) => {
                console.push_str(&line);
                let last = line.starts_with("end ") || line.starts_with("error ");
                if last && !to_the_end {
                    return Ok(console);
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(console),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("the emulator did not end within {LIMIT:?}; its console:\n{console}")
            }
        }
    }
}
