//! The Armv7 oracle: runs in Hyp mode of QEMU's `virt` board with the MMU off, puts a guest at PL1
//! or PL0 on stage-2 tables, and reports what each access does.
//!
//! Virtual addresses have 32 bits and guest physical ones 40, so the guest has tables of its own:
//! the first GiB of its addresses is itself, the third shows the GiB that is asked about.

#![no_std]
#![no_main]

mod console;
mod guest;
mod machine;
mod memory;

use core::arch::global_asm;
use core::panic::PanicInfo;

use slat_oracle_protocol::payload;

use crate::console::Console;
use crate::machine::Armv7Machine;

global_asm!(include_str!("start.s"), options(raw));

/// Entered from `start.s` with a stack and zeroed statics.
#[unsafe(no_mangle)]
extern "C" fn main() -> ! {
    payload::carry_out(memory::script(), &mut Armv7Machine::start(), &mut Console);
    console::power_off()
}

/// Entered from `start.s` when Hyp mode itself takes an exception, which only a mistake in the
/// payload or an address without memory in the script can cause.
#[unsafe(no_mangle)]
extern "C" fn unexpected_exception(syndrome: u32, address: u32, at: u32) -> ! {
    let reason = format_args!(
        "Hyp mode took an exception: HSR {syndrome:#x} HDFAR {address:#x} ELR {at:#x}"
    );
    payload::stop(&mut Console, &reason);
    console::power_off()
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    payload::stop(&mut Console, info);
    console::power_off()
}
