//! The compiler for machines without an operating system.
//!
//! Hypervisor and guest agent are built for `aarch64-unknown-none-softfloat`: without it the
//! compiler would use floating-point registers, and those are the guest's. Oracles have targets of
//! their own. Three ways lead to a target, tried in this order: it is installed beside the compiler
//! in use; rustup installs it; or Debian's `rustc-web`, whose package brings the library's sources,
//! builds the library too.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::host::{self, Family, find_program};
use crate::journal::{Journal, capture};
use crate::workspace::{Workspace, cargo};

/// The target that the hypervisor and what belongs to it are built for.
pub(crate) const TARGET: &str = "aarch64-unknown-none-softfloat";

/// The oldest compiler that builds the project, as (major, minor).
const OLDEST: (u32, u32) = (1, 95);

/// A compiler that can build for a target without an operating system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BareMetal {
    /// The toolchain that runs us has the target.
    Installed {
        /// The target.
        target: &'static str,
    },
    /// Debian's compiler in `/usr/bin`, which builds the library from its sources.
    DebianSources {
        /// The target.
        target: &'static str,
        /// The linker, which that compiler does not bring.
        linker: PathBuf,
    },
}

impl BareMetal {
    /// Finds a toolchain for [`TARGET`], or installs one and says so.
    pub(crate) fn find_or_install(journal: &Journal) -> Result<Self> {
        Self::for_target(TARGET, journal)
    }

    /// Finds a toolchain for `target`, or installs one and says so.
    pub(crate) fn for_target(target: &'static str, journal: &Journal) -> Result<Self> {
        if is_installed(target)? {
            return Ok(Self::Installed { target });
        }
        if find_program("rustup").is_some() {
            let mut command = Command::new("rustup");
            command.args(["target", "add", target]);
            journal.say(format_args!(
                "installing the compiler's target: rustup target add {target}"
            ));
            match journal.run(&mut command) {
                Ok(()) if is_installed(target)? => return Ok(Self::Installed { target }),
                Ok(()) => journal.say("rustup succeeded, but for another toolchain"),
                Err(error) => journal.say(format_args!("{error:#}")),
            }
        }
        debian_sources(target, journal)?;
        let linker = lld(journal)?;
        Ok(Self::DebianSources { target, linker })
    }

    /// `cargo SUBCOMMAND` for the bare-metal target, with its output in its own directory below
    /// the target directory, so that two compilers never share one.
    pub(crate) fn cargo(
        &self,
        workspace: &Workspace,
        subcommand: &str,
        directory: &str,
    ) -> Command {
        let mut command = match self {
            Self::Installed { .. } => Command::new(cargo()),
            Self::DebianSources { target, linker } => {
                let mut command = Command::new(DEBIAN_CARGO);
                let target = target.to_ascii_uppercase().replace('-', "_");
                command
                    .env("RUSTC", DEBIAN_RUSTC)
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env(format!("CARGO_TARGET_{target}_LINKER"), linker);
                command
            }
        };
        let (Self::Installed { target } | Self::DebianSources { target, .. }) = self;
        command
            .current_dir(&workspace.root)
            .args([subcommand, "--release", "--target", target, "--target-dir"])
            .arg(workspace.target.join(directory));
        if matches!(self, Self::DebianSources { .. }) {
            command.arg("-Zbuild-std=core,alloc");
        }
        command
    }
}

/// Whether the standard library for `target` lies beside the compiler in use.
pub(crate) fn is_installed(target: &str) -> Result<bool> {
    Ok(sysroot(&[])?
        .join("lib/rustlib")
        .join(target)
        .join("lib")
        .is_dir())
}

/// The directory of the compiler that `rustc TOOLCHAIN` names (`+nightly`, or nothing for the one
/// in use).
pub(crate) fn sysroot(toolchain: &[&str]) -> Result<PathBuf> {
    let mut command = Command::new("rustc");
    command.args(toolchain).args(["--print", "sysroot"]);
    if !toolchain.is_empty() {
        // Set by rustup for programs below it; here another toolchain is meant.
        command.env_remove("RUSTUP_TOOLCHAIN");
    }
    capture(&mut command).map(|text| PathBuf::from(text.trim()))
}

/// Debian's compiler.
pub(crate) const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Debian's cargo.
pub(crate) const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// The standard library's sources for it.
const DEBIAN_LIBRARY: &str = "/usr/lib/rustlib/src/rust/library";

/// Sees to it that Debian's compiler is there, new enough and with its sources, to build for
/// `target`.
pub(crate) fn debian_sources(target: &str, journal: &Journal) -> Result<()> {
    const PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
    let ready = || {
        Path::new(DEBIAN_CARGO).is_file()
            && Path::new(DEBIAN_LIBRARY).is_dir()
            && capture(Command::new(DEBIAN_RUSTC).arg("--version"))
                .is_ok_and(|text| version(&text).is_some_and(|version| version >= OLDEST))
    };
    if ready() {
        return Ok(());
    }
    match host::family() {
        Family::Debian => {
            host::install(&PACKAGES, journal).context("cannot install Debian's compiler")?;
            if ready() {
                return Ok(());
            }
            let (major, minor) = OLDEST;
            bail!(
                "Debian's rustc-web is older than {major}.{minor} here; {}",
                by_hand(target)
            )
        }
        Family::Ubuntu | Family::Other => {
            bail!("the compiler has no target {target}; {}", by_hand(target))
        }
    }
}

/// LLVM's linker: the one of the toolchain that runs us, or the system's.
fn lld(journal: &Journal) -> Result<PathBuf> {
    let find = || {
        let own = sysroot(&[])
            .and_then(|sysroot| Ok(sysroot.join("lib/rustlib").join(host_target()?)))
            .map(|directory| directory.join("bin/rust-lld"));
        own.ok()
            .filter(|path| path.is_file())
            .or_else(|| find_program("ld.lld"))
    };
    if let Some(path) = find() {
        return Ok(path);
    }
    host::install(&["lld"], journal)?;
    find().context("lld is missing after its install")
}

/// The target of the machine that we run on.
pub(crate) fn host_target() -> Result<String> {
    capture(Command::new("rustc").arg("-vV"))?
        .lines()
        .find_map(|line| line.strip_prefix("host: ").map(ToOwned::to_owned))
        .context("rustc does not tell its host")
}

/// What a user can do about a missing target.
fn by_hand(target: &str) -> String {
    format!("install Rust with rustup, then run:\n  rustup target add {target}")
}

/// The version in `rustc 1.96.0 (...)`, as (major, minor).
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_ascii_whitespace().nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiler_versions_are_read() {
        assert_eq!(version("rustc 1.96.0 (abc 2026-05-01)\n"), Some((1, 96)));
        assert_eq!(version("rustc 1.97.0-nightly (abc)"), Some((1, 97)));
        assert_eq!(version("nonsense"), None);
    }
}
