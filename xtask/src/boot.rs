//! `cargo xtask boot`: boots a guest, shows its console, prints the memory report.

use core::time::Duration;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::compare;
use crate::guest::Run;
use crate::journal::Journal;
use crate::kit::{Boot, Build, Kit, LEAST_MEMORY, Mapping, OwnFiles, PAGE};
use crate::machine::Cpu;
use crate::report;
use crate::workspace::Workspace;
use slat_report::size::{MIB, Size};

/// Options of `cargo xtask boot`.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch on the command line"
)]
pub(crate) struct Options {
    /// RAM of the guest: 64M up to what the machine has, in whole pages of 4096 bytes
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = guest_memory)]
    guest_memory: Size,

    /// RAM of the emulated machine; chosen to fit the guest if not given
    #[arg(long, value_name = "SIZE", value_parser = machine_memory)]
    machine_memory: Option<Size>,

    /// When device memory is mapped
    #[arg(long, value_enum, default_value = "create")]
    mmio: Mapping,

    /// When RAM is mapped
    #[arg(long, value_enum, default_value = "fault")]
    ram: Mapping,

    /// Have the host change the guest's memory all the time while the guest checks its work
    #[arg(long, conflicts_with_all = ["compare", "shell"])]
    churn: bool,

    /// Seed of those changes; drawn from the clock if not given
    #[arg(long, value_name = "N", requires = "churn")]
    seed: Option<u64>,

    /// How long the guest works under them
    #[arg(
        long, value_name = "N", default_value = "60", requires = "churn",
        conflicts_with = "initrd", value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    seconds: u64,

    /// Give an interactive shell in the guest (leave QEMU with Ctrl-A X)
    #[arg(long, conflicts_with_all = ["compare", "initrd"])]
    shell: bool,

    /// Boot this kernel, an arm64 Image, instead of the distribution's
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,

    /// Boot with this initramfs instead of busybox and the guest agent
    #[arg(long, value_name = "FILE", conflicts_with = "compare")]
    initrd: Option<PathBuf>,

    /// More words for the guest's kernel command line
    #[arg(
        long,
        value_name = "WORDS",
        default_value = "",
        hide_default_value = true
    )]
    append: String,

    /// Work for the guest's init: `bar`, `hole:ADDRESS`, `check:SECONDS:MEBIBYTES:SEED`
    #[arg(
        long, value_name = "TASK,...", value_delimiter = ',',
        conflicts_with_all = ["initrd", "compare"]
    )]
    run: Vec<String>,

    /// CPU of the machine
    #[arg(long, value_enum, default_value = "cortex-a57")]
    cpu: Cpu,

    /// Stop the guest after this long; without, 300 s and the time under churn, or never with
    /// --shell or --initrd
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,

    /// Write the memory report to this file
    #[arg(long, value_name = "FILE", conflicts_with = "compare")]
    json: Option<PathBuf>,

    /// Boot the same kernel with and without the hypervisor and compare the times to init
    #[arg(long)]
    compare: bool,

    /// Leave the hypervisor out: boot the kernel directly on the machine
    #[arg(long, conflicts_with_all = ["churn", "compare", "json", "machine_memory"])]
    direct: bool,
}

/// Reads `--guest-memory`. The upper limit depends on the machine and is checked with it.
fn guest_memory(text: &str) -> Result<Size, String> {
    let size: Size = text.parse()?;
    if size < LEAST_MEMORY || !size.0.is_multiple_of(PAGE.0) {
        return Err(format!(
            "must be from {LEAST_MEMORY} up to what the machine has, in whole pages of {} bytes",
            PAGE.0
        ));
    }
    Ok(size)
}

/// Reads `--machine-memory`. Whether the guest fits is checked when its kernel is known.
fn machine_memory(text: &str) -> Result<Size, String> {
    const MOST: Size = Size(255 << 30);
    let size: Size = text.parse()?;
    if size > MOST || !size.0.is_multiple_of(MIB) {
        return Err(format!("must be at most {MOST}, in whole mebibytes"));
    }
    Ok(size)
}

/// Boots as the options say.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let journal = &Journal::Terminal;
    let own = OwnFiles {
        kernel: options.kernel.clone(),
        initrd: options.initrd.clone(),
    };
    let kit = Kit::gather(workspace, Build::Sound, &own, journal)?;
    let boot = options.boot();
    if options.compare {
        let comparison = compare::run(&kit, &boot, compare::PAIRS, journal)?;
        anstream::print!("{comparison}");
        return comparison.check();
    }

    if let Some(seed) = boot.churn {
        journal.say(format_args!("churn with seed {seed}"));
    }
    journal.say(format_args!("booting {} on {}", kit.kernel.name, boot.cpu));
    let run = kit.boot(&boot, journal)?;
    finish(options, &run)
}

/// Prints and stores the report, and says how the boot went.
fn finish(options: &Options, run: &Run) -> Result<()> {
    if run.report.is_some() {
        let report = report::Full::new(run);
        anstream::print!("\n{report}");
        if let Some(path) = &options.json {
            let text = serde_json::to_string_pretty(&report)? + "\n";
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    run.check()
}

impl Options {
    /// The boot that these options ask for.
    fn boot(&self) -> Boot {
        let churn = self
            .churn
            .then(|| self.seed.unwrap_or_else(seed_from_clock));
        let mut tasks = self.run.clone();
        if let (Some(seed), None) = (churn, &self.initrd) {
            tasks.push(check_task(self.guest_memory, self.seconds, seed));
        }
        Boot {
            hypervised: !self.direct,
            cpu: self.cpu,
            guest_memory: self.guest_memory,
            machine_memory: self.machine_memory,
            mmio: self.mmio,
            ram: self.ram,
            churn,
            tasks,
            shell: self.shell,
            append: self.append.clone(),
            counted: false,
            limit: self.limit(),
        }
    }

    fn limit(&self) -> Option<Duration> {
        match self.timeout {
            Some(seconds) => Some(Duration::from_secs(seconds)),
            None if self.shell || self.initrd.is_some() => None,
            None if self.churn => Some(churn_limit(self.seconds)),
            None => Boot::default().limit,
        }
    }
}

/// The task of checking an eighth of the guest's memory for a while. The rest is left to the
/// kernel and to the files.
pub(crate) fn check_task(guest_memory: Size, seconds: u64, seed: u64) -> String {
    format!("check:{seconds}:{}:{seed}", guest_memory.0 / 8 / MIB)
}

/// How long a boot with so much time under churn may take in all.
pub(crate) fn churn_limit(seconds: u64) -> Duration {
    Duration::from_secs(300 + 2 * seconds)
}

/// Any number; it is printed, so that the run can be repeated.
fn seed_from_clock() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(1, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(words: &[&str]) -> Result<Boot, String> {
        let words = core::iter::once("boot").chain(words.iter().copied());
        Line::try_parse_from(words)
            .map(|line| line.options.boot())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn without_options_the_defaults_are_booted() {
        let boot = parse(&[]).unwrap();
        assert_eq!(boot.guest_memory, Size::mebibytes(512));
        assert_eq!((boot.mmio, boot.ram), (Mapping::Create, Mapping::Fault));
        assert!(boot.hypervised && boot.churn.is_none() && boot.tasks.is_empty());
    }

    #[test]
    fn churn_gives_the_guest_work_to_check() {
        let boot = parse(&["--churn", "--seed", "9", "--seconds", "5"]).unwrap();
        assert_eq!(boot.churn, Some(9));
        assert_eq!(boot.tasks, ["check:5:64:9"]);
        assert_eq!(boot.limit, Some(Duration::from_secs(310)));
    }

    #[test]
    fn wrong_values_name_the_option_and_the_range() {
        for (words, expected) in [
            (["--guest-memory", "32M"], "from 64M up to"),
            (["--guest-memory", "64.5M"], "512M"),
            (["--guest-memory", "67108865"], "whole pages of 4096"),
            (["--machine-memory", "256G"], "at most 255G"),
            (["--mmio", "never"], "create, fault"),
            (["--ram", "1"], "fault"),
            (["--cpu", "z80"], "cortex-a57, max"),
            (["--timeout", "0"], "1.."),
        ] {
            let error = parse(&words).unwrap_err();
            assert!(
                error.contains(words[0]) && error.contains(expected),
                "{error}"
            );
        }
        let error = parse(&["--churn", "--seconds", "0"]).unwrap_err();
        assert!(
            error.contains("--seconds") && error.contains("1..=86400"),
            "{error}"
        );
        assert!(parse(&["--seed", "1"]).unwrap_err().contains("--churn"));
    }
}
