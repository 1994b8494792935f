//! The debugger's services (Arm, IHI 0082, "Semihosting", version 3.0): one line of text out, and an
//! exit status.

use core::arch::asm;
use core::ffi::CStr;

/// Writes a string that ends with a zero byte.
const SYS_WRITE0: u64 = 0x04;
/// Stops the machine with an exit status.
const SYS_EXIT_EXTENDED: u64 = 0x20;
/// The reason for an exit that is none of the debugger's: the program ended.
const APPLICATION_EXIT: u64 = 0x2_0026;

/// How the run ended, as the exit status of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Status {
    /// The guest switched itself off.
    Off = 0,
    /// The guest reset itself.
    Reset = 1,
    /// The hypervisor failed, or found the guest's memory wrong.
    Failed = 2,
    /// The hypervisor was started wrongly.
    Usage = 3,
}

/// Writes `text` to the debugger.
pub(super) fn write(text: &CStr) {
    let text = text.as_ptr();
    // SAFETY: the string lives until the call has returned and ends with a zero byte.
    unsafe { call(SYS_WRITE0, text.expose_provenance() as u64) };
}

/// Stops the machine.
pub(super) fn exit(status: Status) -> ! {
    let block = [APPLICATION_EXIT, status as u64];
    // SAFETY: the block has the two words that this call reads.
    unsafe { call(SYS_EXIT_EXTENDED, block.as_ptr().expose_provenance() as u64) };
    halt()
}

/// Stops this CPU, for want of anybody to tell: without a debugger the instruction of a call is
/// undefined.
pub(super) fn halt() -> ! {
    loop {
        aarch64_cpu::asm::wfi();
    }
}

/// # Safety
///
/// `argument` must be what the operation expects.
unsafe fn call(operation: u64, argument: u64) {
    // SAFETY: the caller vouches for the argument; the operations used here write nothing but x0.
    unsafe {
        asm!("hlt #0xf000", inout("x0") operation => _, in("x1") argument, options(nostack));
    }
}
