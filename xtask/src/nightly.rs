//! The nightly compiler, which sanitizers and fuzzers need.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::host::find_program;
use crate::journal::{Journal, capture};
use crate::workspace::Workspace;

/// Sees to it that rustup has a nightly compiler.
pub(crate) fn install(journal: &Journal) -> Result<()> {
    ensure!(
        find_program("rustup").is_some(),
        "a nightly compiler is installed with rustup, which is not here"
    );
    let list = capture(Command::new("rustup").args(["toolchain", "list"]))?;
    if list.lines().any(|line| line.starts_with("nightly")) {
        return Ok(());
    }
    journal.say("installing a nightly compiler: rustup toolchain install nightly");
    journal.run(Command::new("rustup").args([
        "toolchain",
        "install",
        "nightly",
        "--profile=minimal",
    ]))
}

/// `cargo` of the nightly toolchain, with what the toolchain that runs us has set taken away.
pub(crate) fn cargo(workspace: &Workspace) -> Command {
    let mut command = Command::new("rustup");
    command
        .args(["run", "nightly", "cargo"])
        .current_dir(&workspace.root);
    for variable in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTDOC"] {
        command.env_remove(variable);
    }
    command
}
