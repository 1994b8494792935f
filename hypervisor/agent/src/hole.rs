//! `hole ADDRESS`: reads and writes a physical address that lies in no region.
//!
//! On a real machine nothing answers there and the CPU takes an external abort, which Linux turns
//! into SIGBUS for a program. The hypervisor must hand the same to its guest.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::command::Failure;
use crate::console::say;
use crate::syscall::{File, Open, handle_signal};

const SIGBUS: u64 = 7;
const PAGE: u64 = 4096;

/// How many SIGBUS have arrived.
static ABORTS: AtomicU64 = AtomicU64::new(0);

/// Counts the signal and steps over the instruction that caused it.
///
/// # Safety
/// `context` must be the kernel's `ucontext_t`.
unsafe extern "C" fn on_bus_error(_signal: u32, _info: *const u8, context: *mut u64) {
    // `ucontext_t` (arch/arm64/include/uapi/asm/ucontext.h): flags 8, link 8, stack 24, signal
    // mask 8 padded to 128 bytes, all aligned to 16: the machine context begins at 176. In it come
    // fault_address, 31 registers and sp, then pc.
    const PC: usize = (176 + 8 + 31 * 8 + 8) / 8;
    ABORTS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the kernel's frame holds the saved pc there.
    let pc = unsafe { context.add(PC) };
    // SAFETY: as above. Every A64 instruction is 4 bytes, and the accesses below are written so
    // that going on behind them is sound.
    unsafe { *pc += 4 };
}

/// Reads and then writes at physical `address` and expects an external abort from both.
pub(crate) fn run(address: u64) -> Result<(), Failure> {
    let memory = File::open(c"/dev/mem", Open::ReadWriteSync)?;
    let page = memory.map(address & !(PAGE - 1), PAGE)?;
    let offset = usize::try_from(address & (PAGE - 1) & !7).unwrap_or(0);
    let place = page.wrapping_byte_add(offset);
    // SAFETY: the handler counts in an atomic and changes the saved pc alone. It may run behind
    // one of the two accesses below only, which are single instructions with no result to miss.
    unsafe { handle_signal(SIGBUS, on_bus_error) }?;

    // SAFETY: the address is mapped for this program, and where nothing answers the handler steps
    // over the load; the register then keeps what it had.
    unsafe { asm!("ldr {value}, [{place}]", value = inout(reg) 0_u64 => _, place = in(reg) place) };
    let read = ABORTS.load(Ordering::Relaxed) == 1;
    // SAFETY: as above; no Rust object lies there.
    unsafe { asm!("str xzr, [{place}]", place = in(reg) place) };
    let write = ABORTS.load(Ordering::Relaxed) == u64::from(read) + 1;

    say!("hole address={address:#x} read_abort={read} write_abort={write}");
    if read && write {
        Ok(())
    } else {
        Err(Failure::NoAbort)
    }
}
