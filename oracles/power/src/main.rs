//! The POWER oracle: a POWER9 walks a partition-scoped radix tree for a guest that loads, stores
//! and runs where the script says.
//!
//! A [`Regime`]'s registers are PTCR and LPIDR; the script brings the partition table. A completed
//! access is answered with the guest's r5, which is what it loaded; a trapped one with the vector,
//! HDSISR, HSRR1 and ASDR.
//!
//! The payload runs in little-endian mode, for which Rust's target has an ABI that LLVM's linker
//! knows. The tables are big-endian in either mode.

#![no_std]
#![no_main]
#![expect(
    clippy::cast_possible_truncation,
    reason = "pointers have 64 bits, and capability registers are split into halves on purpose"
)]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "steps of one sequence on the CPU are justified together"
)]

mod radix;

use core::fmt;
use core::panic::PanicInfo;
use core::ptr::with_exposed_provenance_mut as pointer;

use slat_oracle_physical as physical;
use slat_oracle_protocol::answer::Answer;
use slat_oracle_protocol::payload::{self, Machine};
use slat_oracle_protocol::script::{Access, Means, Probe, Regime, Who};

use crate::radix::{Exit, Guest, SYSTEM_CALL};

/// Where the emulator loads the script, and how much memory is there for it; QEMU puts the device
/// tree to 16 MiB. `xtask/src/oracle/power.rs` knows the place too.
const SCRIPT: usize = 0x200_0000;
const SCRIPT_BYTES: usize = 0xdf0_0000;

/// The serial port's data register: on the LPC bus of the machine's first chip.
const SERIAL_PORT: u64 = 0x6_0300_0000_0000 + 0xd001_0000 + 0x3f8;

/// The serial port.
struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: a device register; a byte written to it is sent.
            unsafe { pointer::<u8>(SERIAL_PORT as usize).write_volatile(byte) }
        }
        Ok(())
    }
}

struct Oracle {
    guest: Option<Guest>,
}

impl Machine for Oracle {
    fn fill(&mut self, at: u64, bytes: u64, word: u64) {
        // SAFETY: the script fills only memory that it has for itself.
        unsafe { physical::fill(at, bytes, word) }
    }

    fn copy(&mut self, at: u64, bytes: &[u8]) {
        // SAFETY: as above.
        unsafe { physical::copy(at, bytes) }
    }

    fn peek(&mut self, at: u64) -> u64 {
        // SAFETY: the script looks only at memory that is there.
        unsafe { physical::peek(at) }
    }

    fn enter(&mut self, regime: &Regime) {
        let [ptcr, partition, ..] = regime.registers;
        // SAFETY: the script names memory that is free for the guest, and its tables show the
        // guest only such memory.
        let guest = unsafe { Guest::new(ptcr, partition, regime.code_gpa, regime.code_hpa) };
        self.guest = Some(guest);
    }

    fn probe(&mut self, probe: &Probe) -> Answer {
        let guest = self.guest.as_ref().expect("tables come first");
        assert_eq!((probe.who, probe.means), (Who::Kernel, Means::Guest));
        let Exit {
            vector,
            hdsisr,
            hsrr1,
            asdr,
            r5,
        } = match probe.access {
            Access::Read => guest.load(probe.gpa),
            Access::Write => guest.store(probe.gpa, probe.stored()),
            Access::Execute => guest.execute(probe.gpa),
        };
        match vector {
            SYSTEM_CALL => Answer::Completed([r5, 0, 0, 0]),
            _ => Answer::Trapped([vector, hdsisr, hsrr1, asdr]),
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn main() -> ! {
    // SAFETY: this memory is the script's alone.
    let script = unsafe { physical::script(SCRIPT, SCRIPT_BYTES) };
    payload::carry_out(script, &mut Oracle { guest: None }, &mut Console);
    stop()
}

/// There is no way to switch the machine off; whoever reads the console does.
fn stop() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    payload::stop(&mut Console, info);
    stop()
}
