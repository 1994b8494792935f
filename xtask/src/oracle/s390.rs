//! s390 DAT tables, judged by QEMU: everything but large leaves, whose facilities it does not have.

use std::process::Command;

use anyhow::Result;
use slat_oracle_protocol::answer::Answer;
use slat_oracle_protocol::script::{Access, Means, Probe};
use slat_table::format::ByteOrder;
use slat_table::format::s390::{S390, S390Features, S390Root};

use super::asking::Asking;
use super::judge::{
    Check, Drawing, Emulator, Files, Judge, KnownFault, Outcome, Payload, Plan, Question, Reason,
};
use super::sheet::{Ground, Meets};
use super::survey::{Kind, Subject, completed, one_by_one, usual};

/// s390 in QEMU.
#[derive(Debug)]
pub(crate) struct S390Judge;

/// Where the script is loaded; `oracles/s390/src/main.rs` knows too.
const SCRIPT: u64 = 0x100_0000;

/// All the memory there is.
const BYTES: u64 = 0x8000_0000;

/// Program interruption codes (Principles of Operation, chapter 6).
mod code {
    pub(super) const PROTECTION: u64 = 0x04;
    pub(super) const ADDRESSING: u64 = 0x05;
    pub(super) const SEGMENT: u64 = 0x10;
    pub(super) const PAGE: u64 = 0x11;
    pub(super) const SPECIFICATION: u64 = 0x12;
    pub(super) const DESIGNATION: u64 = 0x38;
    pub(super) const REGION_FIRST: u64 = 0x39;
    pub(super) const REGION_SECOND: u64 = 0x3a;
    pub(super) const REGION_THIRD: u64 = 0x3b;
}

impl Judge for S390Judge {
    fn name(&self) -> &'static str {
        "s390"
    }

    fn emulator(&self) -> Emulator {
        Emulator {
            program: "qemu-system-s390x",
            packages: &["qemu-system-misc"],
        }
    }

    fn payload(&self) -> Payload {
        Payload {
            package: "slat-oracle-s390",
            target: "s390x-unknown-linux-gnu",
        }
    }

    fn machine(&self, plan: &Plan, files: &Files<'_>) -> Result<Command> {
        let mut command = Command::new(files.emulator);
        command
            .args(["-machine", "s390-ccw-virtio", "-accel", "tcg"])
            .args(["-cpu", plan.cpu, "-m", &format!("{BYTES}B"), "-nodefaults"])
            .args(["-display", "none", "-monitor", "none", "-no-reboot"])
            .args(["-chardev", "stdio,id=console"])
            .args(["-device", "sclpconsole,chardev=console"])
            .arg("-kernel")
            .arg(files.payload);
        files.load_script(&mut command, SCRIPT);
        Ok(command)
    }

    fn plans(&self, drawing: &Drawing) -> Result<Vec<Plan>> {
        let features = S390Features {
            enhanced_dat_1: false,
            enhanced_dat_2: false,
            ..S390Features::ALL
        };
        let kinds = [63, 56, 53, 48, 42, 36, 32, 31].map(|address_bits| Kind {
            words: String::new(),
            features,
            address_bits,
        });
        one_by_one::<S390Subject>(&kinds, drawing, "max")
    }

    fn bits(&self) -> &'static [u32] {
        // Execution, protection, invalid, the bit that must be zero, addresses. What is below is
        // the software's.
        &[8, 9, 10, 11, 12, 13, 20, 31, 42, 53, 63]
    }

    fn seen(&self, question: &Question, answer: &Answer) -> Outcome {
        match (question, *answer) {
            (Question::Memory(_), Answer::Completed([word, ..])) => Outcome::Word(word),
            (Question::Access(probe), Answer::Completed([register, ..])) => {
                went_through(probe, register)
            }
            (Question::Access(probe), Answer::Trapped(words)) => {
                trapped(probe, words).unwrap_or(Outcome::Unexpected(*answer))
            }
            (Question::Memory(_), Answer::Trapped(_)) => Outcome::Unexpected(*answer),
        }
    }

    fn known_fault(&self, check: &Check, seen: &Outcome) -> Option<&'static KnownFault> {
        const CONDITION_CODE: KnownFault = KnownFault {
            name: "LOAD REAL ADDRESS sets condition code 3 for every failure",
            manual: "condition code 1 for an invalid segment-table entry, 2 for a page-table entry",
        };
        let Outcome::Unexpected(Answer::Trapped([0, 0, 3, result])) = *seen else {
            return None;
        };
        let told = translation_exception(result & 0xffff, None)?;
        check.expected.agrees(&told).then_some(&CONDITION_CODE)
    }
}

fn went_through(probe: &Probe, register: u64) -> Outcome {
    match (probe.means, probe.access) {
        (Means::Question, _) => Outcome::Reached {
            hpa: Some(register),
            memory: None,
        },
        _ => completed(probe.access, register),
    }
}

/// A program interruption, or what LOAD REAL ADDRESS says.
fn trapped(
    probe: &Probe,
    [interruption, identification, condition, result]: [u64; 4],
) -> Option<Outcome> {
    let gpa = Some(identification & !0xfff | probe.gpa & 0xfff);
    match (probe.means, condition) {
        (Means::Question, 1) => translation_exception(code::SEGMENT, None),
        (Means::Question, 2) => translation_exception(code::PAGE, None),
        (Means::Question, 3) => match result & 0xffff {
            code::SEGMENT | code::PAGE => None,
            reason => translation_exception(reason, None),
        },
        _ => translation_exception(interruption, gpa),
    }
}

/// What a program interruption says of the tables.
fn translation_exception(interruption: u64, gpa: Option<u64>) -> Option<Outcome> {
    let (reason, level) = match interruption {
        code::PAGE => (Reason::NotMapped, Some(0)),
        code::SEGMENT => (Reason::NotMapped, Some(1)),
        code::REGION_THIRD => (Reason::NotMapped, Some(2)),
        code::REGION_SECOND => (Reason::NotMapped, Some(3)),
        code::REGION_FIRST => (Reason::NotMapped, Some(4)),
        code::DESIGNATION | code::ADDRESSING => (Reason::AddressSize, None),
        code::SPECIFICATION => (Reason::Misconfigured, None),
        code::PROTECTION => (Reason::NotAllowed, None),
        _ => return None,
    };
    Some(Outcome::Fault { reason, gpa, level })
}

struct S390Subject;

impl Subject for S390Subject {
    type Format = S390;

    const GROUND: Ground = Ground {
        memory: 0x4000_0000..BYTES,
        // LOAD REAL ADDRESS tells whole addresses.
        far_bits: Some(63),
        tables: 0x1000_0000..0x4000_0000,
        code_hpa: 0x20_0000,
    };
    const ADDRESS_BITS: u8 = 64;
    const QUESTIONS: bool = true;
    const BYTE_ORDER: ByteOrder = ByteOrder::Big;

    fn registers(root: S390Root, _: u8, _: &mut Asking) -> [u64; 4] {
        [root.asce, 0, 0, 0]
    }

    /// `lgfi %r4, NUMBER; svc 1`.
    fn code(hpa: u64) -> (Vec<u8>, u64) {
        const LGFI_R4: u64 = 0xc041 << 48;
        const SUPERVISOR_CALL: u64 = 0x0a01;
        let number = hpa & 0x7fff_ffff;
        let code = LGFI_R4 | number << 16 | SUPERVISOR_CALL;
        (code.to_be_bytes().to_vec(), number)
    }

    fn expected(meets: &Meets, access: Access) -> Outcome {
        match *meets {
            // How much more than the guest's addresses the tables cover depends on their root.
            Meets::Beyond => Outcome::Fault {
                reason: Reason::Untold,
                gpa: None,
                level: None,
            },
            // A leaf that was not used is invalid to the hardware.
            Meets::Leaf {
                level, attributes, ..
            } if !attributes.accessed => usual(&Meets::Nothing(level), access),
            _ => usual(meets, access),
        }
    }
}
