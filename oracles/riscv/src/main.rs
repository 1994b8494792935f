//! The RISC-V oracle: runs in M-mode of QEMU's `virt` board, puts a guest in VS- or VU-mode on
//! G-stage tables, and reports what each access does.
//!
//! `vsatp` is zero: the guest's virtual addresses are guest physical ones. The guest is a few
//! instructions, each followed by an `ECALL`; loads and stores can also be made on its behalf by
//! `HLV` and `HSV`. Every trap comes to M-mode.

#![no_std]
#![no_main]

mod console;
mod guest;
mod machine;
mod memory;
mod tree;

use core::arch::global_asm;
use core::panic::PanicInfo;

use slat_oracle_protocol::payload;

use crate::console::Console;
use crate::machine::RiscVMachine;

global_asm!(include_str!("start.s"));

/// Entered from `start.s` with a stack and zeroed statics.
#[unsafe(no_mangle)]
extern "C" fn main() -> ! {
    payload::carry_out(memory::script(), &mut RiscVMachine::start(), &mut Console);
    console::power_off()
}

/// Entered from `start.s` at a trap that nothing asked for: a mistake in the payload, or an address
/// without memory in the script.
#[unsafe(no_mangle)]
extern "C" fn unexpected_trap(cause: u64, value: u64, at: u64) -> ! {
    let reason =
        format_args!("M-mode took a trap: mcause {cause:#x} mtval {value:#x} mepc {at:#x}");
    payload::stop(&mut Console, &reason);
    console::power_off()
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    payload::stop(&mut Console, info);
    console::power_off()
}
