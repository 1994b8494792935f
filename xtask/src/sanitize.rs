//! `cargo xtask sanitize`: the library tests under the sanitizers.
//!
//! The address and thread sanitizers need a nightly compiler; the thread sanitizer also needs a
//! standard library that is itself instrumented, since it would report races inside the one that
//! comes with the compiler. That library is built from nightly's own sources where rustup can get
//! them, and otherwise by Debian's compiler from Debian's, with nightly's sanitizer runtime. Miri
//! is run on demand.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::host::{self, find_program};
use crate::journal::{Journal, capture};
use crate::nightly;
use crate::toolchain::{DEBIAN_CARGO, DEBIAN_RUSTC, debian_sources, host_target, sysroot};
use crate::workspace::Workspace;

/// Options of `cargo xtask sanitize`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Which of them
    #[arg(value_enum, default_values = ["address", "thread"])]
    tools: Vec<Tool>,
}

/// What can be looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tool {
    /// Accesses outside of objects, or after their end, and leaks
    Address,
    /// Data races
    Thread,
    /// Undefined behaviour of any kind, by interpretation: slow
    Miri,
}

/// The libraries: everything else has no unsafe code, or runs on bare metal only.
const PACKAGES: [&str; 3] = [
    "--package=slat-table",
    "--package=slat",
    "--package=slat-mm",
];

/// Runs the tools that the options ask for, all of them even if one fails.
pub(crate) fn run(workspace: &Workspace, options: &Options, journal: &Journal) -> Result<()> {
    nightly::install(journal).context("without a nightly compiler there are no sanitizers")?;
    let mut failed = Vec::new();
    for &tool in &options.tools {
        let (name, result) = match tool {
            Tool::Address => ("AddressSanitizer", address(workspace, journal)),
            Tool::Thread => ("ThreadSanitizer", thread(workspace, journal)),
            Tool::Miri => ("Miri", miri(workspace, journal)),
        };
        match result {
            Ok(()) => journal.say(format_args!("{name} found nothing")),
            Err(error) => {
                journal.say(format_args!("{name}: {error:#}"));
                failed.push(name);
            }
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// Sees to it that nightly has these components, and says whether it has.
fn has_components(components: &[&str], journal: &Journal) -> bool {
    let installed = capture(Command::new("rustup").args([
        "component",
        "list",
        "--installed",
        "--toolchain=nightly",
    ]))
    .unwrap_or_default();
    let missing: Vec<_> = components
        .iter()
        .filter(|component| !installed.lines().any(|line| line.starts_with(**component)))
        .collect();
    if missing.is_empty() {
        return true;
    }
    let mut command = Command::new("rustup");
    command
        .args(["component", "add", "--toolchain=nightly"])
        .args(missing);
    journal.say(format_args!(
        "installing {} for nightly",
        components.join(" and ")
    ));
    journal.run(&mut command).is_ok()
}

/// The arguments that all runs share. A target has to be named, for otherwise build scripts and
/// procedural macros would be instrumented too. Instrumented code is slow: it is optimised, with
/// debug assertions left in, and properties are tried on fewer cases.
fn test(command: &mut Command, host: &str, output: &Path) {
    command
        .args([
            "test",
            "--no-fail-fast",
            "--lib",
            "--tests",
            "--target",
            host,
            "--target-dir",
        ])
        .arg(output)
        .args(PACKAGES)
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "2")
        .env("PROPTEST_CASES", "32");
}

fn address(workspace: &Workspace, journal: &Journal) -> Result<()> {
    let mut command = nightly::cargo(workspace);
    test(
        &mut command,
        &host_target()?,
        &workspace.directory("sanitize/address")?,
    );
    command.env("RUSTFLAGS", "-Zsanitizer=address");
    journal.run(&mut command)
}

fn thread(workspace: &Workspace, journal: &Journal) -> Result<()> {
    let host = host_target()?;
    let output = workspace.directory("sanitize/thread")?;
    if has_components(&["rust-src"], journal) {
        let mut command = nightly::cargo(workspace);
        test(&mut command, &host, &output.join("nightly"));
        command
            .arg("-Zbuild-std")
            .env("RUSTFLAGS", "-Zsanitizer=thread");
        return journal.run(&mut command);
    }
    journal.say("rustup has no library sources for nightly; using Debian's compiler");
    debian_sources(&host_target()?, journal)?;
    if find_program("ld.lld").is_none() {
        host::install(&["lld"], journal)?;
    }
    let mut command = Command::new(DEBIAN_CARGO);
    command
        .current_dir(&workspace.root)
        .env("RUSTC", DEBIAN_RUSTC)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", debian_thread_flags(&sanitizer_runtime(&host)?));
    test(&mut command, &host, &output.join("debian"));
    journal.run(command.arg("-Zbuild-std"))
}

/// The thread sanitizer's runtime as nightly brings it.
fn sanitizer_runtime(host: &str) -> Result<PathBuf> {
    let path = sysroot(&["+nightly"])?
        .join("lib/rustlib")
        .join(host)
        .join("lib/librustc-nightly_rt.tsan.a");
    if !path.is_file() {
        bail!(
            "nightly brings no ThreadSanitizer for {host}: no {}",
            path.display()
        );
    }
    Ok(path)
}

/// Flags that make Debian's compiler, which has no runtime of its own, link that one. The whole
/// of it is needed, and with it the libraries that a runtime built for another linker order
/// expects. GNU's linker fails on the C library's warnings about `tmpnam`, so it is lld.
fn debian_thread_flags(runtime: &Path) -> String {
    let runtime = runtime.display().to_string();
    let arguments = [
        "-fuse-ld=lld",
        "-Wl,--whole-archive",
        &runtime,
        "-Wl,--no-whole-archive",
        "-lstdc++",
        "-lm",
        "-ldl",
        "-lpthread",
        "-lc",
        "-lc_nonshared",
        "-rdynamic",
    ];
    let arguments = arguments
        .map(|argument| format!("-Clink-arg={argument}"))
        .join(" ");
    format!("-Zsanitizer=thread -Zexternal-clangrt {arguments}")
}

fn miri(workspace: &Workspace, journal: &Journal) -> Result<()> {
    ensure!(
        has_components(&["miri", "rust-src"], journal),
        "rustup has no Miri for nightly"
    );
    let mut command = nightly::cargo(workspace);
    command
        .args(["miri", "test", "--lib", "--target-dir"])
        .arg(workspace.directory("sanitize/miri")?)
        .args(PACKAGES)
        .env(
            "MIRIFLAGS",
            "-Zmiri-strict-provenance -Zmiri-disable-isolation",
        );
    journal.run(&mut command)
}
