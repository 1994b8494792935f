//! The EPT oracle: an Intel CPU walks extended page tables for a guest that loads, stores and runs
//! where the script says.
//!
//! A [`Regime`]'s only register is the EPT pointer. A completed access is answered with the guest's
//! RAX, which is what it loaded; a trapped one with the exit reason, the exit qualification, the
//! guest physical address, and the exception if there was one.

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

mod vmx;

use core::panic::PanicInfo;

use slat_oracle_physical as physical;
use slat_oracle_protocol::answer::Answer;
use slat_oracle_protocol::payload::{self, Machine};
use slat_oracle_protocol::script::{Access, Means, Probe, Regime, Who};
use slat_oracle_x86::cpu::{self, Console};
use slat_oracle_x86::guest::{GuestPage, LOAD_AT, STORE_AT};
use slat_oracle_x86::script;

use crate::vmx::{DEBUG_EXCEPTION, EXIT_EXCEPTION, EXIT_HLT, Exit, FLAGS, FLAGS_TRAP, Vmx};

#[derive(Default)]
struct Oracle {
    guest: Option<(Vmx, GuestPage)>,
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
        let [ept_pointer, ..] = regime.registers;
        let mut vmx = match self.guest.take() {
            Some((vmx, _)) => vmx,
            // SAFETY: the payload is for CPUs with VMX, and this is done once.
            None => unsafe { Vmx::new() },
        };
        // SAFETY: the script names memory that is free for the guest.
        let page = unsafe { GuestPage::new(regime.code_hpa, regime.code_gpa) };
        // SAFETY: the script's tables show the guest only memory that the script names.
        unsafe { vmx.load(ept_pointer, page.cr3()) };
        self.guest = Some((vmx, page));
    }

    fn probe(&mut self, probe: &Probe) -> Answer {
        let (vmx, page) = self.guest.as_mut().expect("tables come first");
        assert_eq!((probe.who, probe.means), (Who::Kernel, Means::Guest));
        let at = page.look_at(probe.gpa);
        let exit = match probe.access {
            Access::Read => vmx.run(LOAD_AT, FLAGS, at, 0),
            Access::Write => vmx.run(STORE_AT, FLAGS, at, probe.stored()),
            // One instruction, whatever it is.
            Access::Execute => vmx.run(at, FLAGS_TRAP, 0, 0),
        };
        let Exit {
            reason,
            qualification,
            gpa,
            rax,
            event,
        } = exit;
        match (reason, event) {
            (EXIT_HLT, _) | (EXIT_EXCEPTION, DEBUG_EXCEPTION) => Answer::Completed([rax, 0, 0, 0]),
            _ => Answer::Trapped([reason, qualification, gpa, event]),
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn main() -> ! {
    payload::carry_out(script(), &mut Oracle::default(), &mut Console::open());
    cpu::power_off()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    payload::stop(&mut Console::open(), info);
    cpu::power_off()
}
