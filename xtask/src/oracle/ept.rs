//! Intel EPT, judged by Bochs: 4 levels, no mode-based execute control.

use std::process::Command;

use anyhow::Result;
use slat_oracle_protocol::answer::Answer;
use slat_oracle_protocol::script::{Access, Probe};
use slat_table::format::ept::{Ept, EptFeatures, EptRoot};

use super::asking::Asking;
use super::judge::{
    Check, Drawing, Emulator, Files, Judge, KnownFault, Outcome, Payload, Plan, Question, Reason,
};
use super::sheet::Ground;
use super::survey::{Kind, Subject, completed, one_by_one};
use super::x86;

/// EPT in Bochs.
#[derive(Debug)]
pub(crate) struct EptJudge;

impl Judge for EptJudge {
    fn name(&self) -> &'static str {
        "ept"
    }

    fn emulator(&self) -> Emulator {
        x86::BOCHS
    }

    fn payload(&self) -> Payload {
        Payload {
            package: "slat-oracle-ept",
            target: x86::TARGET,
        }
    }

    fn machine(&self, plan: &Plan, files: &Files<'_>) -> Result<Command> {
        x86::bochs(plan.cpu, files)
    }

    fn plans(&self, drawing: &Drawing) -> Result<Vec<Plan>> {
        one_by_one::<EptSubject>(&kinds(), drawing, "corei7_skylake_x")
    }

    fn bits(&self) -> &'static [u32] {
        // Read, write, execute, two bits of the memory type that can only make it a reserved one,
        // the block's bit, addresses.
        &[0, 1, 2, 3, 4, 7, 12, 30, 51]
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

/// An EPT violation, with its exit qualification (Intel SDM volume 3C, 28.2.1, table 28-7), or an EPT
/// misconfiguration.
fn trapped(probe: &Probe, [exit_reason, qualification, gpa, _]: [u64; 4]) -> Option<Outcome> {
    const VIOLATION: u64 = 48;
    const MISCONFIGURATION: u64 = 49;
    /// What the walk allows.
    const ALLOWED: u64 = 0b111 << 3;
    /// There is a linear address, and it is that of the access rather than of the guest's tables.
    const LINEAR: u64 = 0b11 << 7;
    const ACCESS: u64 = 0b111;
    let access = match probe.access {
        Access::Read => 1 << 0,
        Access::Write => 1 << 1,
        Access::Execute => 1 << 2,
    };
    let reason = match exit_reason {
        MISCONFIGURATION => Reason::Misconfigured,
        VIOLATION if qualification & (ACCESS | LINEAR) != access | LINEAR => return None,
        VIOLATION if qualification & ALLOWED == 0 => Reason::NotMapped,
        VIOLATION => Reason::NotAllowed,
        _ => return None,
    };
    Some(Outcome::Fault {
        reason,
        gpa: Some(gpa),
        level: None,
    })
}

struct EptSubject;

impl Subject for EptSubject {
    type Format = Ept;

    const GROUND: Ground = x86::GROUND;
    const ADDRESS_BITS: u8 = x86::ADDRESS_BITS;

    fn registers(root: EptRoot, _: u8, _: &mut Asking) -> [u64; 4] {
        [root.eptp, 0, 0, 0]
    }

    fn code(hpa: u64) -> (Vec<u8>, u64) {
        x86::code(hpa)
    }
}

fn kinds() -> Vec<Kind<Ept>> {
    let all = EptFeatures {
        physical_bits: x86::ADDRESS_BITS,
        mode_based_execute: false,
        ..EptFeatures::ALL
    };
    let plain = EptFeatures {
        physical_bits: x86::ADDRESS_BITS,
        ..EptFeatures::NONE
    };
    let without_use = EptFeatures {
        accessed_dirty: false,
        ..all
    };
    let guest_pat = EptFeatures {
        ignore_pat: false,
        ..all
    };
    let kind = |words: &str, features, address_bits| Kind {
        words: words.to_owned(),
        features,
        address_bits,
    };
    vec![
        kind("", all, 48),
        kind("", all, 40),
        kind(" no A/D", without_use, 40),
        kind(" the guest's PAT", guest_pat, 39),
        kind(" plain", plain, 38),
        kind(" plain", plain, 48),
        kind("", all, 36),
        kind("", all, 32),
    ]
}
