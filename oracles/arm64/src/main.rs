//! The arm64 oracle: runs at EL2 of QEMU's `virt` board with the MMU off, puts a guest at EL1 or
//! EL0 on stage-2 tables, and reports what each access does.
//!
//! The guest's own first stage is off, with `HCR_EL2.DC` set: its virtual addresses are guest
//! physical ones, and what it sees of memory types is what stage 2 says. The guest is a few
//! instructions, each followed by a `BRK` that `MDCR_EL2.TDE` sends to EL2 from either level.

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
use crate::machine::Arm64Machine;

global_asm!(include_str!("start.s"), options(raw));

/// Entered from `start.s` with a stack and zeroed statics.
#[unsafe(no_mangle)]
extern "C" fn main() -> ! {
    payload::carry_out(memory::script(), &mut Arm64Machine::start(), &mut Console);
    console::power_off()
}

/// Entered from `start.s` when EL2 itself takes an exception, which only a mistake in the payload
/// or an address without memory in the script can cause.
#[unsafe(no_mangle)]
extern "C" fn unexpected_exception(syndrome: u64, address: u64, at: u64) -> ! {
    let reason =
        format_args!("EL2 took an exception: ESR {syndrome:#x} FAR {address:#x} ELR {at:#x}");
    payload::stop(&mut Console, &reason);
    console::power_off()
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    payload::stop(&mut Console, info);
    console::power_off()
}
