//! Instructions: ports, model-specific registers, control registers.

use core::arch::asm;
use core::fmt;

/// The first serial port.
const COM1: u16 = 0x3f8;

/// Writes a byte to an I/O port.
///
/// # Safety
///
/// The device behind the port must not write to memory that is in use.
pub unsafe fn out(port: u16, value: u8) {
    // SAFETY: an access to a port touches no memory of ours; what the device does is the
    // caller's business.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

/// Reads a byte from an I/O port.
///
/// # Safety
///
/// As for [`out`].
pub unsafe fn input(port: u16) -> u8 {
    let value;
    // SAFETY: as in `out`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) }
    value
}

/// The first serial port, for text.
#[derive(Debug)]
pub struct Console(());

impl Console {
    /// Readies the port: 8 bits, no parity, one stop bit, as fast as it goes.
    pub fn open() -> Self {
        const LINE_CONTROL: u16 = COM1 + 3;
        const DIVISOR_LATCH: u8 = 1 << 7;
        // SAFETY: the serial port does not touch memory.
        unsafe {
            out(LINE_CONTROL, DIVISOR_LATCH);
            out(COM1, 1);
            out(COM1 + 1, 0);
            out(LINE_CONTROL, 0b11);
        }
        Self(())
    }
}

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(send);
        Ok(())
    }
}

/// Sends a byte through the first serial port when it has room.
fn send(byte: u8) {
    const ROOM_TO_SEND: u8 = 1 << 5;
    // SAFETY: the serial port does not touch memory.
    unsafe {
        while input(COM1 + 5) & ROOM_TO_SEND == 0 {}
        out(COM1, byte);
    }
}

/// Ends the emulation, in the ways that Bochs (the word "Shutdown" at port 0x8900) and QEMU (the
/// `isa-debug-exit` device) offer.
pub fn power_off() -> ! {
    const ALL_SENT: u8 = 1 << 6;
    // SAFETY: none of the devices touches memory.
    unsafe {
        while input(COM1 + 5) & ALL_SENT == 0 {}
        for byte in *b"Shutdown" {
            out(0x8900, byte);
        }
        out(0xf4, 0);
    }
    loop {
        // SAFETY: halting touches nothing.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// Reads a model-specific register.
///
/// # Safety
///
/// The CPU has it.
pub unsafe fn read_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading a register that exists changes nothing.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
///
/// The CPU has it, and the program can live with the new value.
pub unsafe fn write_msr(register: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: by the caller's promise.
    unsafe { asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high, options(nostack)) }
}
