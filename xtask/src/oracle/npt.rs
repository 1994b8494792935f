//! AMD nested paging, judged by QEMU and by Bochs.

use std::process::Command;

use anyhow::Result;
use slat_oracle_protocol::answer::Answer;
use slat_oracle_protocol::script::{Access, Probe};
use slat_table::format::npt::{Npt, NptFeatures, NptRoot, PAT_AFTER_RESET};

use super::asking::Asking;
use super::judge::{
    Check, Drawing, Emulator, Files, Judge, KnownFault, Outcome, Payload, Plan, Question, Reason,
};
use super::sheet::Ground;
use super::survey::{Kind, Subject, completed, one_by_one};
use super::x86;

/// Nested paging in one of the emulators.
#[derive(Debug)]
pub(crate) enum NptJudge {
    /// In QEMU.
    Qemu,
    /// In Bochs, which has no tables of 5 levels.
    Bochs,
}

/// CPUID `8000_0008`, EAX 7:0, of both emulators' CPUs.
const PHYSICAL_BITS: u8 = 40;

impl Judge for NptJudge {
    fn name(&self) -> &'static str {
        match self {
            Self::Qemu => "npt",
            Self::Bochs => "npt-bochs",
        }
    }

    fn emulator(&self) -> Emulator {
        match self {
            Self::Qemu => x86::QEMU,
            Self::Bochs => x86::BOCHS,
        }
    }

    fn payload(&self) -> Payload {
        Payload {
            package: "slat-oracle-npt",
            target: x86::TARGET,
        }
    }

    fn machine(&self, plan: &Plan, files: &Files<'_>) -> Result<Command> {
        match self {
            Self::Qemu => x86::qemu(plan.cpu, files),
            Self::Bochs => x86::bochs(plan.cpu, files),
        }
    }

    fn plans(&self, drawing: &Drawing) -> Result<Vec<Plan>> {
        let mut kinds = four_levels();
        let cpu = match self {
            Self::Qemu => {
                kinds.extend(five_levels());
                "max,+svm"
            }
            Self::Bochs => "ryzen",
        };
        one_by_one::<NptSubject>(&kinds, drawing, cpu)
    }

    fn bits(&self) -> &'static [u32] {
        // Present, write, user, the block's bit, addresses, no-execute. Memory types have no effect
        // in an emulator, and accessed and dirty bits are set anyway.
        match self {
            Self::Qemu => &[0, 1, 2, 7, 12, 13, 20, 21, 30, 39, 40, 51, 63],
            // A second opinion, and a slower one.
            Self::Bochs => &[0, 1, 2, 12, 63],
        }
    }

    fn seen(&self, question: &Question, answer: &Answer) -> Outcome {
        match (question, *answer) {
            (Question::Memory(_), Answer::Completed([word, ..])) => Outcome::Word(word),
            (Question::Access(probe), Answer::Completed([rax, ..])) => completed(probe.access, rax),
            (Question::Access(probe), Answer::Trapped(registers)) => {
                trapped(probe, registers).unwrap_or(Outcome::Unexpected(*answer))
            }
            (Question::Memory(_), Answer::Trapped(_)) => Outcome::Unexpected(*answer),
        }
    }

    fn known_fault(&self, _: &Check, _: &Outcome) -> Option<&'static KnownFault> {
        None
    }
}

/// A nested page fault (APM volume 2, 15.25.6): `EXITINFO1` is an error code like that of any page
/// fault, `EXITINFO2` the guest physical address.
fn trapped(probe: &Probe, [exit_code, error, gpa, _]: [u64; 4]) -> Option<Outcome> {
    const NESTED_PAGE_FAULT: u64 = 0x400;
    const PRESENT: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    const USER: u64 = 1 << 2;
    const RESERVED: u64 = 1 << 3;
    const FETCH: u64 = 1 << 4;
    /// The guest's own walk was over.
    const FINAL: u64 = 1 << 32;
    let access = match probe.access {
        Access::Read => 0,
        Access::Write => WRITE,
        Access::Execute => FETCH,
    };
    let shape = USER | FINAL | access;
    if exit_code != NESTED_PAGE_FAULT || error & !(PRESENT | RESERVED) != shape {
        return None;
    }
    let reason = match (error & PRESENT != 0, error & RESERVED != 0) {
        (_, true) => Reason::Misconfigured,
        (true, false) => Reason::NotAllowed,
        (false, false) => Reason::NotMapped,
    };
    Some(Outcome::Fault {
        reason,
        gpa: Some(gpa),
        level: None,
    })
}

struct NptSubject;

impl Subject for NptSubject {
    type Format = Npt;

    const GROUND: Ground = x86::GROUND;
    const ADDRESS_BITS: u8 = x86::ADDRESS_BITS;

    fn registers(root: NptRoot, levels: u8, _: &mut Asking) -> [u64; 4] {
        [root.n_cr3, levels.into(), 0, 0]
    }

    fn code(hpa: u64) -> (Vec<u8>, u64) {
        x86::code(hpa)
    }
}

fn kind(words: &str, features: NptFeatures, address_bits: u8) -> Kind<Npt> {
    Kind {
        words: words.to_owned(),
        features: NptFeatures {
            physical_bits: PHYSICAL_BITS,
            ..features
        },
        address_bits,
    }
}

/// Trees of 4 levels, whatever of them the guest uses.
fn four_levels() -> Vec<Kind<Npt>> {
    let other_pat = NptFeatures {
        pat: PAT_AFTER_RESET,
        ..NptFeatures::ALL
    };
    vec![
        kind("", NptFeatures::ALL, 48),
        kind("", NptFeatures::ALL, 40),
        kind(" PAT after reset", other_pat, 39),
        kind(" plain", NptFeatures::NONE, 38),
        kind("", NptFeatures::ALL, 36),
        kind("", NptFeatures::ALL, 32),
    ]
}

/// Trees of 5 levels.
fn five_levels() -> Vec<Kind<Npt>> {
    [57, 49, 40, 33]
        .map(|bits| kind(" LA57", NptFeatures::FIVE_LEVELS, bits))
        .to_vec()
}
