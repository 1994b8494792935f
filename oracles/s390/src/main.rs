//! The s390 oracle: a CPU uses DAT tables for loads, stores and fetches where the script says.
//!
//! A [`Regime`]'s only register is the address-space-control element. A completed access is
//! answered with register 4, which is what was loaded, or the real address for a question; a
//! trapped one with the program interruption's code and the translation-exception identification,
//! or with 0, 0, the condition code and the result of LOAD REAL ADDRESS.

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

mod console;
mod dat;

use core::panic::PanicInfo;

use slat_oracle_physical as physical;
use slat_oracle_protocol::answer::Answer;
use slat_oracle_protocol::payload::{self, Machine};
use slat_oracle_protocol::script::{Access, Means, Probe, Regime, Who};

use crate::console::Console;
use crate::dat::{Exit, Spaces, stop};

/// Where the emulator loads the script, and how much memory is there for it.
/// `xtask/src/oracle/s390.rs` knows the place too.
const SCRIPT: usize = 0x100_0000;
const SCRIPT_BYTES: usize = 0xf00_0000;

struct Oracle {
    spaces: Option<Spaces>,
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
        unsafe { physical::peek(at) }.to_le()
    }

    fn enter(&mut self, regime: &Regime) {
        let [control, ..] = regime.registers;
        // SAFETY: done once, and the program is in real mode whenever it runs.
        let spaces = self.spaces.get_or_insert_with(|| unsafe { Spaces::new() });
        spaces.designate(control);
    }

    fn probe(&mut self, probe: &Probe) -> Answer {
        let spaces = self.spaces.as_ref().expect("tables come first");
        let exit = match (probe.who, probe.means, probe.access) {
            (Who::Kernel, Means::Guest, Access::Read) => spaces.load(probe.gpa),
            (Who::Kernel, Means::Guest, Access::Write) => spaces.store(probe.gpa, probe.stored()),
            (Who::Kernel, Means::Guest, Access::Execute) => spaces.execute(probe.gpa),
            (Who::Kernel, Means::Question, Access::Read) => spaces.question(probe.gpa),
            other => panic!("no way to make an access {other:?}"),
        };
        match exit {
            Exit::Done(result) => Answer::Completed([result, 0, 0, 0]),
            Exit::Interrupted {
                code,
                identification,
            } => Answer::Trapped([code, identification, 0, 0]),
            Exit::Denied { condition, result } => Answer::Trapped([0, 0, condition, result]),
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn main() -> ! {
    // SAFETY: this memory is the script's alone.
    let script = unsafe { physical::script(SCRIPT, SCRIPT_BYTES) };
    payload::carry_out(script, &mut Oracle { spaces: None }, &mut Console::new());
    stop()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    payload::stop(&mut Console::new(), info);
    stop()
}
