//! Everything that a boot needs, found, installed, fetched or built; and boots made from it.

use core::time::Duration;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::assets::{Assets, Kernel};
use crate::guest::{self, Run};
use crate::host;
use crate::image;
use crate::initramfs;
use crate::journal::Journal;
use crate::machine::{Cpu, Hypervisor, Machine, Modules};
use crate::toolchain::{BareMetal, TARGET};
use crate::workspace::Workspace;
use slat_report::size::Size;

/// The least memory that a guest can have: Linux prints nothing with much less.
pub(crate) const LEAST_MEMORY: Size = Size::mebibytes(64);

/// The most memory that the board takes before it moves its devices about (QEMU's
/// `hw/arm/virt.c`: 255 GiB).
const BOARD_MEMORY: Size = Size(255 << 30);

/// Guest memory comes in whole pages.
pub(crate) const PAGE: Size = Size(4096);

/// When a kind of guest memory is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mapping {
    /// When its region is created
    Create,
    /// When the guest first touches it
    Fault,
}

impl Mapping {
    /// The word for it on the hypervisor's command line.
    fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Fault => "fault",
        }
    }
}

/// The hypervisor that a kit is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    /// As it should be.
    Sound,
    /// Without its TLB invalidations, to see that the checks notice.
    OmitFlush,
}

/// The user's own files for the guest.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnFiles {
    /// A kernel.
    pub(crate) kernel: Option<PathBuf>,
    /// An initramfs.
    pub(crate) initrd: Option<PathBuf>,
}

/// What boots are made from.
#[derive(Debug)]
pub(crate) struct Kit {
    qemu: PathBuf,
    /// The guest's kernel.
    pub(crate) kernel: Kernel,
    initrd: PathBuf,
    /// Whether the initramfs is the user's own.
    silent: bool,
    hypervisor: PathBuf,
    report: PathBuf,
    modules: Modules,
}

/// What is to be booted.
#[derive(Debug, Clone)]
pub(crate) struct Boot {
    /// Whether the hypervisor runs below.
    pub(crate) hypervised: bool,
    /// The CPU.
    pub(crate) cpu: Cpu,
    /// The guest's RAM.
    pub(crate) guest_memory: Size,
    /// The machine's RAM, if it is not to be chosen to fit.
    pub(crate) machine_memory: Option<Size>,
    /// When device memory is mapped.
    pub(crate) mmio: Mapping,
    /// When RAM is mapped.
    pub(crate) ram: Mapping,
    /// The seed of the changes that the host makes under the guest, if it is to make any.
    pub(crate) churn: Option<u64>,
    /// What the guest's init is to do, in its own words.
    pub(crate) tasks: Vec<String>,
    /// Whether the guest is to give the user a shell.
    pub(crate) shell: bool,
    /// More words for the guest's kernel command line.
    pub(crate) append: String,
    /// Whether time is counted in instructions.
    pub(crate) counted: bool,
    /// How long the machine may run.
    pub(crate) limit: Option<Duration>,
}

impl Default for Boot {
    /// What `cargo xtask boot` does when nothing else is asked for.
    fn default() -> Self {
        Self {
            hypervised: true,
            cpu: Cpu::CortexA57,
            guest_memory: Size::mebibytes(512),
            machine_memory: None,
            mmio: Mapping::Create,
            ram: Mapping::Fault,
            churn: None,
            tasks: Vec::new(),
            shell: false,
            append: String::new(),
            counted: false,
            limit: Some(Duration::from_mins(5)),
        }
    }
}

impl Boot {
    /// The guest's kernel command line. A kernel that panics resets the machine at once, which is
    /// how a panic is told from a guest that hangs.
    fn command_line(&self) -> String {
        let mut words = vec!["console=ttyAMA0".to_owned(), "earlycon".to_owned()];
        words.push("panic=-1".to_owned());
        if !self.tasks.is_empty() {
            words.push(format!("slat.run={}", self.tasks.join(",")));
        }
        if self.shell {
            words.push("slat.shell".to_owned());
        }
        if !self.hypervised && self.direct_memory() != self.guest_memory {
            words.push(format!("mem={}", self.guest_memory));
        }
        if !self.append.is_empty() {
            words.push(self.append.clone());
        }
        words.join(" ")
    }

    /// The hypervisor's command line.
    fn hypervisor_arguments(&self) -> String {
        let Self {
            guest_memory,
            mmio,
            ram,
            ..
        } = self;
        let (mmio, ram) = (mmio.word(), ram.word());
        let churn = self
            .churn
            .map_or_else(String::new, |seed| format!(" churn seed={seed}"));
        format!("memory={guest_memory} mmio={mmio} ram={ram}{churn}")
    }

    /// The RAM of a machine that boots the kernel directly. QEMU rounds RAM up to 8 KiB
    /// (`softmmu/vl.c`), so what lies between is cut off by the kernel's `mem=`.
    fn direct_memory(&self) -> Size {
        self.guest_memory.round_up(Size(8192))
    }
}

impl Kit {
    /// Finds, installs, fetches and builds whatever is missing.
    pub(crate) fn gather(
        workspace: &Workspace,
        build: Build,
        own: &OwnFiles,
        journal: &Journal,
    ) -> Result<Self> {
        let directory = workspace.directory("boot")?;
        let qemu = host::qemu(journal)?;
        let bare_metal = BareMetal::find_or_install(journal)?;
        // A user who brings both files needs nothing from apt.
        let assets = match own {
            OwnFiles {
                kernel: Some(_),
                initrd: Some(_),
            } => None,
            _ => Some(Assets::find_or_fetch(&directory, journal)?),
        };
        let programs = build_programs(workspace, &bare_metal, build, journal)?;

        let hypervisor = directory.join(match build {
            Build::Sound => "slat-hypervisor.img",
            Build::OmitFlush => "slat-hypervisor-omit-flush.img",
        });
        let elf = programs.join("slat-hypervisor");
        let flat = fs::read(&elf)
            .map_err(anyhow::Error::from)
            .and_then(|bytes| image::flatten(&bytes))
            .and_then(|flat| image::check(&flat).map(|()| flat))
            .with_context(|| format!("cannot make a boot image of {}", elf.display()))?;
        fs::write(&hypervisor, flat)?;

        let kernel = match (&own.kernel, &assets) {
            (Some(file), _) => Kernel::prepare(file, &directory)?,
            (None, Some(assets)) => assets.kernel.clone(),
            (None, None) => unreachable!("without a kernel of the user's there are assets"),
        };
        let initrd = match (&own.initrd, &assets) {
            (Some(file), _) => file.clone(),
            (None, Some(assets)) => {
                let path = directory.join("initramfs.cpio");
                initramfs::write(&path, &assets.busybox, &programs.join("slat-agent"))?;
                path
            }
            (None, None) => unreachable!("without an initramfs of the user's there are assets"),
        };
        let modules = Modules::place(file_size(&kernel.image)?, file_size(&initrd)?);
        let report = directory.join("report.json");
        let silent = own.initrd.is_some();
        Ok(Self {
            qemu,
            kernel,
            initrd,
            silent,
            hypervisor,
            report,
            modules,
        })
    }

    /// The file that keeps the console of a boot whose console is not shown.
    pub(crate) fn log(&self) -> PathBuf {
        self.report.with_file_name("console.log")
    }

    /// Boots, and returns when the machine has ended.
    pub(crate) fn boot(&self, boot: &Boot, journal: &Journal) -> Result<Run> {
        let hypervisor = boot.hypervised.then(|| Hypervisor {
            image: self.hypervisor.clone(),
            arguments: boot.hypervisor_arguments(),
            report: self.report.clone(),
            modules: self.modules,
        });
        let memory = if boot.hypervised {
            self.check_memory(boot)?
        } else {
            boot.direct_memory()
        };
        let machine = Machine {
            qemu: self.qemu.clone(),
            cpu: boot.cpu,
            memory,
            counted: boot.counted,
            interactive: boot.shell,
            kernel: self.kernel.image.clone(),
            initrd: self.initrd.clone(),
            silent: self.silent,
            command_line: boot.command_line(),
            hypervisor,
        };
        guest::run(&machine, boot.limit, journal)
    }

    /// The RAM that the machine needs, if guest and machine fit the limits.
    fn check_memory(&self, boot: &Boot) -> Result<Size> {
        let available = boot.machine_memory.unwrap_or_else(|| {
            host::memory().map_or(BOARD_MEMORY, |memory| BOARD_MEMORY.min(Size(memory)))
        });
        let most = self.modules.most_guest_memory(available);
        ensure!(
            (LEAST_MEMORY..=most).contains(&boot.guest_memory),
            "--guest-memory {}: must be from {LEAST_MEMORY} to {most} on this machine, in whole \
             pages of {} bytes",
            boot.guest_memory,
            PAGE.0,
        );
        Ok(boot
            .machine_memory
            .unwrap_or_else(|| self.modules.machine_memory(boot.guest_memory)))
    }
}

/// Builds hypervisor and guest agent and returns the directory that they are in.
fn build_programs(
    workspace: &Workspace,
    bare_metal: &BareMetal,
    build: Build,
    journal: &Journal,
) -> Result<PathBuf> {
    let (directory, features) = match build {
        Build::Sound => ("bare-metal", None),
        Build::OmitFlush => ("bare-metal-omit-flush", Some("slat-hypervisor/omit-flush")),
    };
    let mut command = bare_metal.cargo(workspace, "build", directory);
    command.args([
        "--quiet",
        "--package=slat-hypervisor",
        "--package=slat-agent",
    ]);
    if let Some(features) = features {
        command.args(["--features", features]);
    }
    journal.say("building hypervisor and guest agent");
    journal.run(&mut command)?;
    Ok(workspace
        .target
        .join(directory)
        .join(TARGET)
        .join("release"))
}

fn file_size(path: &Path) -> Result<Size> {
    let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Size(metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kit() -> Kit {
        Kit {
            qemu: "qemu".into(),
            kernel: Kernel {
                image: "Image".into(),
                name: "Image".to_owned(),
            },
            initrd: "initrd".into(),
            silent: false,
            hypervisor: "hypervisor".into(),
            report: "report".into(),
            modules: Modules::place(Size::mebibytes(30), Size::mebibytes(6)),
        }
    }

    #[test]
    fn command_lines_say_what_was_asked_for() {
        let boot = Boot {
            guest_memory: Size(300_004 << 10),
            churn: Some(7),
            tasks: vec!["bar".to_owned(), "hole:0x1".to_owned()],
            append: "quiet".to_owned(),
            ..Boot::default()
        };
        assert_eq!(
            boot.hypervisor_arguments(),
            "memory=300004K mmio=create ram=fault churn seed=7"
        );
        assert!(boot.command_line().ends_with("slat.run=bar,hole:0x1 quiet"));

        // QEMU cannot give a machine this size, so the kernel has to leave some of it alone.
        let direct = Boot {
            hypervised: false,
            ..boot
        };
        assert_eq!(direct.direct_memory(), Size(300_008 << 10));
        assert!(direct.command_line().contains("mem=300004K"));
    }

    #[test]
    fn memory_is_limited_below_and_by_the_machine() {
        let boot = |guest, machine| Boot {
            guest_memory: Size::mebibytes(guest),
            machine_memory: machine,
            ..Boot::default()
        };
        let kit = kit();
        assert_eq!(
            kit.check_memory(&boot(64, None)).unwrap(),
            Size::mebibytes(64 + 4 + 196 + 96)
        );
        for (guest, machine) in [(63, None), (1 << 30, None), (1000, Some(Size(1 << 30)))] {
            let error = kit
                .check_memory(&boot(guest, machine))
                .unwrap_err()
                .to_string();
            assert!(error.contains("--guest-memory"), "{error}");
            assert!(error.contains("from 64M to "), "{error}");
        }
        let error = kit
            .check_memory(&boot(1000, Some(Size(1 << 30))))
            .unwrap_err()
            .to_string();
        assert!(error.contains("to 687M on this machine"), "{error}");
    }
}
