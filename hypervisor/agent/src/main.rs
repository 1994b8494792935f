//! The guest agent: a small static arm64 Linux program that runs inside the guest.
//!
//! The guest's init starts it to look at guest memory from the inside, where a mistake of the
//! hypervisor would be seen: it touches and verifies every page of a PCI memory BAR (`bar`), reads
//! an address that nothing answers (`hole`), and works on checksummed memory and files while the
//! host moves that memory about (`check`). Every result is one console line that begins with
//! `slat-guest: `, followed by a word and `key=value` pairs, which `cargo xtask` reads.
//!
//! It has no libc: the toolchain that builds the hypervisor is the only cross toolchain that a user
//! needs. Built for the bare-metal target it makes the few system calls itself; built for any
//! other target it only says how it is meant to be built (and runs the unit tests of the patterns).
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(any(target_os = "none", test))]
mod pattern;

#[cfg(target_os = "none")]
mod bar;
#[cfg(target_os = "none")]
mod check;
#[cfg(target_os = "none")]
mod command;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod counter;
#[cfg(target_os = "none")]
mod hole;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
mod syscall;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!(
        "slat-agent runs inside an arm64 Linux guest. `cargo xtask boot` builds it for \
         aarch64-unknown-none-softfloat and puts it into the guest's initramfs."
    );
    std::process::ExitCode::FAILURE
}
