//! QEMU's serial port, and the way out.

use core::arch::asm;
use core::fmt;

/// The PL011 of QEMU's `virt` board, which takes a byte at any time.
const DATA_REGISTER: *mut u32 = 0x0900_0000 as *mut u32;

/// The console.
#[derive(Debug)]
pub(crate) struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the register is the board's, and nobody else uses it.
            unsafe { DATA_REGISTER.write_volatile(byte.into()) };
        }
        Ok(())
    }
}

/// Ends the machine: PSCI `SYSTEM_OFF` (DEN0022), which QEMU answers to `SMC` here.
pub(crate) fn power_off() -> ! {
    const SYSTEM_OFF: u32 = 0x8400_0008;
    loop {
        // SAFETY: there is nothing left that the call could disturb.
        unsafe {
            asm!(".arch_extension sec", "smc #0", in("r0") SYSTEM_OFF, options(nomem, nostack));
        };
    }
}
