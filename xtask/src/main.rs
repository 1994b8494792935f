//! The project's chores, run as `cargo xtask COMMAND`.
//!
//! `boot` boots an unmodified Linux on the bare-metal hypervisor and prints the memory report;
//! `test` runs every check that the project has, those boots included; `omissions` leaves out one
//! rule of the protocol at a time and expects a test to notice; `mutants` plants a bug at a time and
//! expects the rig to catch it; `soak` runs the rig for as long as asked; `oracle` lets the MMUs of
//! emulators judge our tables; `fuzz` runs the fuzz targets; `bench` counts instructions;
//! `sanitize` runs the tests under the sanitizers. Each of them finds or installs what it
//! needs and says so. What they make goes below the target directory and nowhere else.
//!
//! The modules follow a boot: [`host`] and [`toolchain`] see to the programs that are needed,
//! [`assets`] to the guest's kernel and busybox, [`initramfs`] and [`image`] put files into the
//! form that the machine takes, [`kit`] holds all that together, [`machine`] is the emulated
//! machine and [`guest`] one run of it, whose [`console`] is read for what the guest says.

mod assets;
mod bench;
mod boot;
mod boots;
mod compare;
mod console;
mod fuzz;
mod guest;
mod host;
mod image;
mod initramfs;
mod journal;
mod kit;
mod machine;
mod mutants;
mod nightly;
mod omissions;
mod oracle;
mod report;
mod sanitize;
mod second_opinion;
mod soak;
mod test;
mod toolchain;
mod trial;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::journal::Journal;
use crate::workspace::Workspace;

/// The project's chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot Linux on the hypervisor and print the memory report
    Boot(Box<boot::Options>),
    /// Run every check: format, lints, tests, documentation, omissions and boots
    Test(test::Options),
    /// Leave out one rule of the protocol at a time and expect a test to notice
    Omissions(omissions::Options),
    /// Plant one bug at a time and expect the rig to catch it
    Mutants(mutants::Options),
    /// Run the whole stack on the machine model, seed after seed
    Soak(soak::Options),
    /// Let emulated MMUs judge our tables
    Oracle(oracle::Options),
    /// Run the fuzz targets
    Fuzz(fuzz::Options),
    /// Count what the engine's operations cost, in instructions
    Bench(bench::Options),
    /// Run the library tests under the sanitizers
    Sanitize(sanitize::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = Workspace::find().and_then(|workspace| {
        match &arguments.command {
            Command::Boot(options) => boot::run(&workspace, options)?,
            Command::Test(options) => return test::run(&workspace, options),
            Command::Omissions(options) => {
                omissions::run(&workspace, options, &Journal::Terminal)?;
            }
            Command::Mutants(options) => {
                return mutants::run(&workspace, options, &Journal::Terminal);
            }
            Command::Soak(options) => soak::run(&workspace, options, &Journal::Terminal)?,
            Command::Oracle(options) => {
                return oracle::run(&workspace, options, &Journal::Terminal);
            }
            Command::Fuzz(options) => fuzz::run(&workspace, options, &Journal::Terminal)?,
            Command::Bench(options) => {
                bench::run(&workspace, options, &Journal::Terminal)?;
            }
            Command::Sanitize(options) => sanitize::run(&workspace, options, &Journal::Terminal)?,
        }
        Ok(ExitCode::SUCCESS)
    });
    match done {
        Ok(code) => code,
        Err(error) => {
            let style = anstyle::AnsiColor::Red.on_default().bold();
            anstream::eprintln!("{style}error{style:#}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
