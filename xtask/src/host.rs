//! The machine that we run on: which programs it has, and how missing ones are installed.
//!
//! On Debian and its relatives missing packages are installed with apt, as root or through sudo,
//! after saying so. Anywhere else the exact commands are printed and nothing is touched.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::journal::{Journal, capture, describe};

/// The family of a Linux distribution, as far as it matters to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Debian, with Debian's own package sources.
    Debian,
    /// Ubuntu: apt as well, but other packages behind it.
    Ubuntu,
    /// Anything else; programs are the user's to install.
    Other,
}

/// Which family this machine belongs to.
pub(crate) fn family() -> Family {
    if find_program("apt-get").is_none() {
        return Family::Other;
    }
    family_of(&fs::read_to_string("/etc/os-release").unwrap_or_default())
}

/// Which family an `os-release` file (see its manual page) describes.
fn family_of(os_release: &str) -> Family {
    let fields: HashMap<_, _> = os_release
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name, value.trim_matches('"')))
        .collect();
    let field = |name| fields.get(name).copied().unwrap_or_default();
    let names = || core::iter::once(field("ID")).chain(field("ID_LIKE").split_ascii_whitespace());
    if names().any(|name| name == "ubuntu") {
        Family::Ubuntu
    } else if names().any(|name| name == "debian") {
        Family::Debian
    } else {
        Family::Other
    }
}

/// Where the program `name` is, if the user's path has it.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

/// A command that runs `program` as root, if that can be had.
fn as_root(program: &str) -> Option<Command> {
    let is_root = capture(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    if is_root {
        Some(Command::new(program))
    } else {
        find_program("sudo").map(|sudo| {
            let mut command = Command::new(sudo);
            command.arg(program);
            command
        })
    }
}

/// Installs Debian or Ubuntu `packages`, saying what it does.
pub(crate) fn install(packages: &[&str], journal: &Journal) -> Result<()> {
    let by_hand = format!("apt-get install {}", packages.join(" "));
    ensure!(
        family() != Family::Other,
        "this is not Debian or Ubuntu; install what {by_hand} would there"
    );
    let (Some(mut update), Some(mut install)) = (as_root("apt-get"), as_root("apt-get")) else {
        bail!("neither root nor sudo; as root, run: {by_hand}");
    };
    update.args(["update", "--quiet"]);
    install
        .args(["install", "--yes", "--quiet", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    journal.say(format_args!("installing {}", packages.join(" ")));
    for command in [&mut update, &mut install] {
        journal.say(format_args!("  {}", describe(command)));
        journal.run(command)?;
    }
    Ok(())
}

/// Returns the emulator, installing it if it is missing.
pub(crate) fn qemu(journal: &Journal) -> Result<PathBuf> {
    const PROGRAM: &str = "qemu-system-aarch64";
    if let Some(path) = find_program(PROGRAM) {
        return Ok(path);
    }
    match family() {
        Family::Debian | Family::Ubuntu => install(&["qemu-system-arm"], journal)?,
        Family::Other => bail!(
            "{PROGRAM} is missing. Install it with one of:\n  \
             dnf install qemu-system-aarch64\n  \
             pacman -S qemu-system-aarch64\n  \
             zypper install qemu-arm\n  \
             brew install qemu"
        ),
    }
    find_program(PROGRAM).ok_or_else(|| anyhow::anyhow!("{PROGRAM} is missing after its install"))
}

/// The memory of this machine in bytes, where the system tells (Linux).
pub(crate) fn memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_are_told_apart() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n";
        let ubuntu = "ID=ubuntu\nID_LIKE=debian\n";
        let mint = "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n";
        let raspbian = "ID=raspbian\nID_LIKE=debian\n";
        let fedora = "ID=fedora\n";
        assert_eq!(family_of(debian), Family::Debian);
        assert_eq!(family_of(ubuntu), Family::Ubuntu);
        assert_eq!(family_of(mint), Family::Ubuntu);
        assert_eq!(family_of(raspbian), Family::Debian);
        assert_eq!(family_of(fedora), Family::Other);
        assert_eq!(family_of(""), Family::Other);
    }
}
