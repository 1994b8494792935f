//! The hypervisor's lines on the machine's UART. The guest has the same UART, so they all begin
//! with `slat: `.

use core::fmt::{self, Write};
use core::ptr::NonNull;

use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};
use spin::Mutex;

/// Where the UART is until the device tree has been read: QEMU's `virt` machine. This is the one
/// address that the hypervisor does not learn from the machine.
pub(super) const EARLY_ADDRESS: u64 = 0x900_0000;

static CONSOLE: Mutex<Option<Console>> = Mutex::new(None);

/// Writes one line.
macro_rules! say {
    ($($argument:tt)*) => { $crate::el2::console::line(format_args!($($argument)*)) };
}
pub(super) use say;

struct Console(Uart<'static>);

/// Uses the PL011 at host-physical `address` from now on.
///
/// # Safety
///
/// A PL011 must be mapped there as device memory, and no reference into it may exist.
pub(super) unsafe fn use_uart(address: u64) {
    let registers = core::ptr::with_exposed_provenance_mut::<PL011Registers>(address as usize);
    *CONSOLE.lock() = NonNull::new(registers).map(|registers| {
        // SAFETY: the caller vouches for the device.
        Console(Uart::new(unsafe { UniqueMmioPointer::new(registers) }))
    });
}

/// Takes the console from whoever has it: for a hypervisor that is about to stop.
pub(super) fn take_over() {
    if CONSOLE.is_locked() {
        // SAFETY: there is one CPU, and it never returns to whatever held the lock.
        unsafe { CONSOLE.force_unlock() };
    }
}

/// Writes one line, prefix and line end included.
pub(super) fn line(text: fmt::Arguments<'_>) {
    if let Some(console) = CONSOLE.lock().as_mut() {
        // The UART takes every byte: there is no error to hand on.
        let _ = write!(console, "slat: {text}\r\n");
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while self.0.is_tx_fifo_full() {
                core::hint::spin_loop();
            }
            self.0.write_word(byte);
        }
        Ok(())
    }
}
