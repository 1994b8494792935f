//! The NPT oracle: an AMD CPU walks nested page tables for a guest that loads, stores and runs
//! where the script says.
//!
//! A [`Regime`]'s registers are nCR3 and the number of levels, 4 or 5. A completed access is answered
//! with the guest's RAX, which is what it loaded; a trapped one with the exit code, EXITINFO1 and
//! EXITINFO2.

#![no_std]
#![no_main]
#![expect(clippy::cast_possible_truncation, reason = "a limit of 16 bits")]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "steps of one sequence on the CPU are justified together"
)]

mod debug;
mod svm;

use core::panic::PanicInfo;

use slat_oracle_physical as physical;
use slat_oracle_protocol::answer::Answer;
use slat_oracle_protocol::payload::{self, Machine};
use slat_oracle_protocol::script::{Access, Means, Probe, Regime, Who};
use slat_oracle_x86::cpu::{self, Console};
use slat_oracle_x86::guest::{GuestPage, LOAD_AT, STORE_AT};
use slat_oracle_x86::script;
use slat_oracle_x86::start::walk_levels;

use crate::svm::{EXIT_DEBUG, EXIT_HLT, Exit, FLAGS, FLAGS_TRAP, Guest};

struct Oracle {
    guest: Option<(Guest, GuestPage)>,
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
        let [nested_cr3, levels, ..] = regime.registers;
        // SAFETY: the script asks for 5 levels only of a CPU that has them.
        unsafe { walk_levels(levels) };
        // SAFETY: the script names memory that is free for the guest.
        let page = unsafe { GuestPage::new(regime.code_hpa, regime.code_gpa) };
        // SAFETY: the script's tables show the guest only memory that the script names; there is
        // one guest at a time.
        let guest = unsafe { Guest::new(nested_cr3, page.cr3()) };
        self.guest = Some((guest, page));
    }

    fn probe(&mut self, probe: &Probe) -> Answer {
        let (guest, page) = self.guest.as_ref().expect("tables come first");
        assert_eq!((probe.who, probe.means), (Who::Kernel, Means::Guest));
        let at = page.look_at(probe.gpa);
        let exit = match probe.access {
            Access::Read => guest.run(LOAD_AT, FLAGS, at, 0),
            Access::Write => guest.run(STORE_AT, FLAGS, at, probe.stored()),
            // One instruction, whatever it is.
            Access::Execute => guest.run(at, FLAGS_TRAP, 0, 0),
        };
        let Exit {
            code,
            info1,
            info2,
            rax,
        } = exit;
        match code {
            EXIT_HLT | EXIT_DEBUG => Answer::Completed([rax, 0, 0, 0]),
            _ => Answer::Trapped([code, info1, info2, 0]),
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn main() -> ! {
    debug::ignore_exceptions();
    payload::carry_out(script(), &mut Oracle { guest: None }, &mut Console::open());
    cpu::power_off()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    payload::stop(&mut Console::open(), info);
    cpu::power_off()
}
