//! The machines that x86 payloads run on.
//!
//! Neither has firmware: a payload brings its own ROM, and the script is in the same ROM, since Bochs
//! loads nothing larger than 128 KiB to memory in one piece.

use core::fmt::Write as _;
use core::ops::Range;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::judge::{Emulator, Files};
use super::sheet::Ground;
use crate::image;

/// Where the image lies; `oracles/x86/image.ld` knows too.
const IMAGE: u64 = 0x10_0000;

/// The payload's part of the ROM.
const BOOT_ROM: u64 = 0xffff_0000;

/// The ROM, with the script at its start, ends at 4 GiB; `oracles/x86/src/lib.rs` knows too.
const ROM: Range<u64> = 0xffe0_0000..0x1_0000_0000;

/// The page with the guest's code and tables, behind the image.
const CODE: u64 = 0x20_0000;

/// All the memory there is: QEMU's `q35` keeps so much in one piece.
const BYTES: u64 = 0x8000_0000;

/// Tables below, and a block of 1 GiB for guests.
pub(super) const GROUND: Ground = Ground {
    memory: 0x4000_0000..BYTES,
    far_bits: None,
    tables: 0x1000_0000..0x4000_0000,
    code_hpa: CODE,
};

/// Both emulators have CPUs with physical addresses of 40 bits, and the guest's own tables reject
/// others.
pub(super) const ADDRESS_BITS: u8 = 40;

/// The target of all x86 payloads.
pub(super) const TARGET: &str = "x86_64-unknown-none";

/// QEMU.
pub(super) const QEMU: Emulator = Emulator {
    program: "qemu-system-x86_64",
    packages: &["qemu-system-x86"],
};

/// Bochs, with the one of its displays that needs no window.
pub(super) const BOCHS: Emulator = Emulator {
    program: "bochs",
    packages: &["bochs", "bochs-term"],
};

/// Code that says where it is: `mov eax, HPA; hlt`.
pub(super) fn code(hpa: u64) -> (Vec<u8>, u64) {
    let [a, b, c, d, ..] = hpa.to_le_bytes();
    (vec![0xb8, a, b, c, d, 0xf4], hpa & 0xffff_ffff)
}

/// The payload in the form that emulators load.
struct Loadable {
    image: PathBuf,
    rom: PathBuf,
}

impl Loadable {
    fn prepare(files: &Files<'_>) -> Result<Self> {
        let elf = fs::read(files.payload)?;
        let image = image::lay_out(&elf, IMAGE..BOOT_ROM)?;
        let boot = image::lay_out(&elf, BOOT_ROM..ROM.end)?;
        let mut rom = fs::read(files.script)?;
        let space = usize::try_from(BOOT_ROM - ROM.start)?;
        ensure!(
            rom.len() <= space,
            "a script of {} bytes, and there is room for {space}",
            rom.len()
        );
        rom.resize(space, 0);
        rom.extend_from_slice(&boot);
        let write = |name, bytes: &[u8]| {
            let file = files.directory.join(name);
            fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
            Ok::<_, anyhow::Error>(file)
        };
        Ok(Self {
            image: write("image", &image)?,
            rom: write("rom", &rom)?,
        })
    }
}

/// QEMU with this CPU.
pub(super) fn qemu(cpu: &str, files: &Files<'_>) -> Result<Command> {
    let Loadable { image, rom } = Loadable::prepare(files)?;
    let mut command = Command::new(files.emulator);
    command
        .args(["-machine", "q35", "-accel", "tcg", "-cpu", cpu])
        .args(["-m", &format!("{BYTES}B"), "-nodefaults"])
        .args(["-display", "none", "-monitor", "none", "-no-reboot"])
        .args(["-serial", "stdio"])
        .args(["-device", "isa-debug-exit,iobase=0xf4"])
        .arg("-bios")
        .arg(&rom)
        .arg("-device")
        .arg(format!(
            "loader,addr={IMAGE:#x},force-raw=on,file={}",
            image.display()
        ));
    Ok(command)
}

/// Bochs with this CPU.
///
/// It draws its display on standard output, so a shell puts the serial port in its place. Debian's
/// build begins in the debugger, which is told to go on.
pub(super) fn bochs(cpu: &str, files: &Files<'_>) -> Result<Command> {
    let Loadable { image, rom } = Loadable::prepare(files)?;
    let place = |name| files.directory.join(name);
    let (settings, commands, log) = (place("bochsrc"), place("commands"), place("bochs.log"));
    let mut text = String::new();
    for line in [
        "display_library: term".to_owned(),
        // Few instructions a second make the serial port fast.
        format!("cpu: model={cpu}, ips=1000000, reset_on_triple_fault=0"),
        format!("memory: guest={}, host=512", BYTES >> 20),
        format!("romimage: file={}", rom.display()),
        format!("optramimage1: file={}, address={IMAGE:#x}", image.display()),
        "com1: enabled=1, mode=file, dev=/dev/fd/3".to_owned(),
        format!("log: {}", log.display()),
        "panic: action=fatal".to_owned(),
    ] {
        writeln!(text, "{line}")?;
    }
    fs::write(&settings, text)?;
    fs::write(&commands, "continue\n")?;
    let mut command = Command::new("sh");
    command
        .env("TERM", "vt100")
        .args([
            "-c",
            r#"exec "$0" -q -f "$1" -rc "$2" 3>&1 >/dev/null 2>&1"#,
        ])
        .arg(files.emulator)
        .arg(&settings)
        .arg(&commands);
    Ok(command)
}
