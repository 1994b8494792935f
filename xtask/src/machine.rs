//! The emulated machine: QEMU's `virt` board and what is put into it.
//!
//! The same board runs the hypervisor with a guest, or the guest's kernel directly, for
//! comparison. It has a 256 MiB memory BAR (`ivshmem-plain`) and nothing that does DMA, since a
//! passed-through device would take guest addresses for host addresses: no network card, and no
//! interrupt translation service (`its=off`), which keeps its tables in memory.

use core::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use serde::Serialize;

use slat_report::size::{MIB, Size};

/// The emulated CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cpu {
    /// Armv8.0, 44-bit physical addresses
    CortexA57,
    /// Everything that this QEMU can emulate
    Max,
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CortexA57 => "cortex-a57",
            Self::Max => "max",
        })
    }
}

impl Cpu {
    /// The value of QEMU's `-cpu`.
    fn model(self) -> &'static str {
        match self {
            Self::CortexA57 => "cortex-a57",
            // The architecture's own pointer authentication code costs an emulator dear: a boot
            // takes 20 s with it.
            Self::Max => "max,pauth-impdef=on",
        }
    }
}

/// A machine and everything that is loaded into it.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The emulator.
    pub(crate) qemu: PathBuf,
    /// The CPU.
    pub(crate) cpu: Cpu,
    /// RAM.
    pub(crate) memory: Size,
    /// Whether time is counted in instructions (1 instruction = 2 ns) instead of real time.
    pub(crate) counted: bool,
    /// Whether the console belongs to the user, keyboard included.
    pub(crate) interactive: bool,
    /// The guest's kernel, an arm64 Image.
    pub(crate) kernel: PathBuf,
    /// The guest's initramfs.
    pub(crate) initrd: PathBuf,
    /// Whether the initramfs is the user's own, whose init says nothing to us.
    pub(crate) silent: bool,
    /// The guest's kernel command line.
    pub(crate) command_line: String,
    /// What runs below the guest, if anything does.
    pub(crate) hypervisor: Option<Hypervisor>,
}

/// The hypervisor below a guest.
#[derive(Debug)]
pub(crate) struct Hypervisor {
    /// Its boot image.
    pub(crate) image: PathBuf,
    /// Its own command line.
    pub(crate) arguments: String,
    /// The file that the memory report goes to.
    pub(crate) report: PathBuf,
    /// Where in the machine's memory the guest's kernel and initramfs are put for it.
    pub(crate) modules: Modules,
}

/// Host-physical addresses of what the hypervisor is to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Modules {
    kernel: u64,
    initrd: u64,
    /// Behind the last of them, from the start of RAM.
    size: Size,
}

impl Modules {
    /// Places a kernel and an initramfs of these sizes.
    pub(crate) fn place(kernel: Size, initrd: Size) -> Self {
        /// Where RAM begins on QEMU's `virt` board (its `hw/arm/virt.c`, `VIRT_MEM`).
        const RAM: u64 = 0x4000_0000;
        /// QEMU puts the hypervisor at the start of RAM and the machine's device tree at 128 MiB;
        /// modules stay clear of both.
        const FIRST: Size = Size::mebibytes(160);
        /// Module addresses are aligned so that the kernel's own 2 MiB alignment survives.
        const ALIGNMENT: Size = Size::mebibytes(2);

        let kernel_end = Size(FIRST.0 + kernel.round_up(ALIGNMENT).0);
        let end = Size(kernel_end.0 + initrd.round_up(ALIGNMENT).0);
        Self {
            kernel: RAM + FIRST.0,
            initrd: RAM + kernel_end.0,
            size: end,
        }
    }

    /// RAM that a machine needs for a guest of this size: the guest's, the modules', and the
    /// hypervisor's for itself, for tables and for free frames that memory is moved into.
    pub(crate) fn machine_memory(&self, guest: Size) -> Size {
        Size(guest.0 + guest.0 / SHARE + self.size.0 + FIXED.0).round_up(Size::mebibytes(2))
    }

    /// The largest guest, in whole mebibytes, for a machine with this RAM.
    pub(crate) fn most_guest_memory(&self, machine: Size) -> Size {
        let rest = machine
            .0
            .saturating_sub(self.size.0 + FIXED.0 + Size::mebibytes(2).0);
        let guest = rest / (SHARE + 1) * SHARE;
        Size(guest - guest % MIB)
    }
}

/// What the hypervisor needs: a fixed part and one part in so many of the guest's RAM.
const FIXED: Size = Size::mebibytes(96);
const SHARE: u64 = 16;

impl Machine {
    /// The command that runs the machine.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.qemu);
        command
            .args(["-machine", "virt,virtualization=on,gic-version=3,its=off"])
            .args(["-cpu", self.cpu.model()])
            .args(["-m", &format!("{}B", self.memory.0)])
            .args([
                "-display",
                "none",
                "-monitor",
                "none",
                "-nic",
                "none",
                "-no-reboot",
            ])
            .args([
                "-serial",
                if self.interactive {
                    "mon:stdio"
                } else {
                    "stdio"
                },
            ])
            .args(["-object", "memory-backend-ram,id=bar,share=on,size=256M"])
            .args(["-device", "ivshmem-plain,memdev=bar"]);
        if self.counted {
            command.args(["-icount", "shift=1,sleep=off"]);
        }
        match &self.hypervisor {
            None => command
                .arg("-kernel")
                .arg(&self.kernel)
                .arg("-initrd")
                .arg(&self.initrd)
                .args(["-append", &self.command_line]),
            Some(hypervisor) => self.load_hypervisor(&mut command, hypervisor),
        };
        command
    }

    fn load_hypervisor<'a>(
        &self,
        command: &'a mut Command,
        hypervisor: &Hypervisor,
    ) -> &'a mut Command {
        let modules = hypervisor.modules;
        let kernel = format!(
            "guest-loader,addr={:#x},kernel={},bootargs={}",
            modules.kernel,
            escape_path(&self.kernel),
            escape(&self.command_line)
        );
        let initrd = format!(
            "guest-loader,addr={:#x},initrd={}",
            modules.initrd,
            escape_path(&self.initrd)
        );
        // Semihosting is the hypervisor's way to leave with an exit status, and to hand over the
        // report without mixing it with the guest's console.
        let report = format!("file,id=report,path={}", escape_path(&hypervisor.report));
        command
            .arg("-kernel")
            .arg(&hypervisor.image)
            .args(["-append", &hypervisor.arguments])
            .args(["-device", &kernel, "-device", &initrd])
            .args(["-chardev", &report])
            .args([
                "-semihosting-config",
                "enable=on,target=native,chardev=report",
            ])
    }
}

/// A value inside a QEMU option, where a comma ends it unless doubled.
fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

fn escape_path(path: &Path) -> String {
    escape(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::describe;

    fn machine(hypervisor: Option<Hypervisor>) -> Machine {
        Machine {
            qemu: "qemu-system-aarch64".into(),
            cpu: Cpu::CortexA57,
            memory: Size::mebibytes(512),
            counted: false,
            interactive: false,
            kernel: "/a,b/Image".into(),
            initrd: "/initrd".into(),
            silent: false,
            command_line: "slat.run=bar,hole:0x1".into(),
            hypervisor,
        }
    }

    #[test]
    fn a_direct_boot_takes_the_command_line_as_it_is() {
        let line = describe(&machine(None).command());
        assert!(line.contains("-append slat.run=bar,hole:0x1"), "{line}");
        assert!(line.contains("-kernel /a,b/Image"), "{line}");
        assert!(!line.contains("semihosting"), "{line}");
    }

    #[test]
    fn commas_inside_options_are_doubled() {
        let line = describe(
            &machine(Some(Hypervisor {
                image: "/hypervisor".into(),
                arguments: "memory=512M".to_owned(),
                report: "/report".into(),
                modules: Modules::place(Size::mebibytes(27), Size(5)),
            }))
            .command(),
        );
        assert!(
            line.contains("kernel=/a,,b/Image,bootargs=slat.run=bar,,hole:0x1"),
            "{line}"
        );
        assert!(line.contains("addr=0x4a000000,kernel"), "{line}");
        assert!(line.contains("addr=0x4bc00000,initrd"), "{line}");
    }

    #[test]
    fn modules_do_not_overlap_and_fit_the_machine() {
        let modules = Modules::place(Size(30 << 20 | 1), Size(1));
        assert_eq!(modules.initrd - modules.kernel, 32 << 20);
        assert_eq!(modules.size, Size::mebibytes(160 + 32 + 2));
        let guest = Size::mebibytes(64);
        assert!(modules.machine_memory(guest).0 >= guest.0 + modules.size.0);
    }

    #[test]
    fn the_largest_guest_fits_its_machine() {
        let modules = Modules::place(Size::mebibytes(30), Size::mebibytes(6));
        for machine in [Size::mebibytes(512), Size(4 << 30), Size(255 << 30)] {
            let guest = modules.most_guest_memory(machine);
            assert!(modules.machine_memory(guest) <= machine);
            assert!(guest.0 > machine.0 / 4);
        }
        assert_eq!(modules.most_guest_memory(Size::mebibytes(64)), Size(0));
    }
}
