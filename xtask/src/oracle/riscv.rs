//! RISC-V G-stage, judged by QEMU.

use core::ops::Range;
use std::process::Command;

use anyhow::Result;
use slat_oracle_protocol::answer::Answer;
use slat_oracle_protocol::script::{Access, Means, Probe, Regime, Who};
use slat_oracle_protocol::tree::Omission;
use slat_table::attributes::Execute;
use slat_table::format::ByteOrder;
use slat_table::format::riscv::{RiscV, RiscVFeatures};

use super::asker::{Asker, Guest, instruction, unmark};
use super::asking::Asking;
use super::attributes;
use super::judge::{
    Check, Drawing, Emulator, Files, Judge, KnownFault, Outcome, Payload, Plan, Question, Reason,
};
use super::placement;
use super::random::Random;
use super::rehearsal::{Stage, rehearse};
use super::sheet::{Ground, Meets, Sheet};

/// RISC-V in QEMU.
#[derive(Debug)]
pub(crate) struct RiscVJudge;

/// Where RAM begins.
const RAM: u64 = 0x8000_0000;

/// The page with the guest's code, behind the payload and before the script.
const CODE: u64 = 0x8300_0000;

/// Where the script is loaded; `oracles/riscv/src/memory.rs` knows too.
const SCRIPT: u64 = 0x8400_0000;

/// Memory for tables, behind the script.
const TABLES: Range<u64> = 0x9000_0000..0xa000_0000;

/// Memory for the tables that the payload makes by itself; `oracles/riscv/src/tree.rs` knows too.
const OWN_TABLES: Range<u64> = 0xa000_0000..0xb000_0000;

/// Memory that the guest may be shown: all the rest.
const MEMORY: Range<u64> = 0xc000_0000..0x40_0000_0000;

const GUEST: Guest = Guest {
    code: |hpa| instruction(unknown_at(hpa)),
    order: ByteOrder::Little,
    memory: MEMORY,
};

/// The emulator takes guest physical addresses for virtual ones and wants the bits above the
/// highest to repeat it.
static UPPER_HALF: KnownFault = KnownFault {
    name: "upper half of the guest's addresses",
    manual: "guest physical addresses are not sign-extended: those of SvNNx4 have NN + 2 bits, and \
             bits above must be zero (Privileged Architecture, \"Guest Physical Address \
             Translation\")",
};

static NO_SVADE: KnownFault = KnownFault {
    name: "A and D set without Svadu",
    manual: "with menvcfg.ADUE clear an access without A, or a store without D, raises a guest page \
             fault (Privileged Architecture, \"Svadu\")",
};

impl Judge for RiscVJudge {
    fn name(&self) -> &'static str {
        "riscv"
    }

    fn emulator(&self) -> Emulator {
        Emulator {
            program: "qemu-system-riscv64",
            packages: &["qemu-system-misc"],
        }
    }

    fn payload(&self) -> Payload {
        Payload {
            package: "slat-oracle-riscv",
            target: "riscv64imac-unknown-none-elf",
        }
    }

    fn machine(&self, plan: &Plan, files: &Files<'_>) -> Result<Command> {
        let mut command = Command::new(files.emulator);
        let bytes = MEMORY.end - RAM;
        command
            .args(["-machine", "virt,memory-backend=memory"])
            .args(["-cpu", plan.cpu])
            .args(["-m", &format!("{bytes}B")])
            // Most of it is never touched and takes nothing of the host's.
            .arg("-object")
            .arg(format!(
                "memory-backend-ram,id=memory,size={bytes},reserve=off"
            ))
            .args(["-display", "none", "-monitor", "none", "-nic", "none"])
            .args(["-serial", "stdio", "-no-reboot", "-bios", "none"])
            .arg("-kernel")
            .arg(files.payload);
        files.load_script(&mut command, SCRIPT);
        Ok(command)
    }

    fn plans(&self, drawing: &Drawing) -> Result<Vec<Plan>> {
        let mut asking = Asking::default();
        let mut random = Random::new(drawing.seed);
        let kinds = kinds();
        let wanted = drawing.checks.div_ceil(kinds.len());
        for kind in &kinds {
            kind.ask(drawing, wanted, &mut random, &mut asking)?;
        }
        Ok(vec![asking.into_plan(CPU)])
    }

    fn bits(&self) -> &'static [u32] {
        // V, R, W, X, U, A, D, page number, and what no leaf has. Not: G (5), memory types (62:61),
        // which nothing here can see, and bits for software.
        &[
            0, 1, 2, 3, 4, 10, 11, 14, 19, 20, 25, 28, 30, 37, 40, 44, 53, 63,
        ]
    }

    fn omissions(&self) -> &'static [Omission] {
        &[Omission::Removal, Omission::ByAddress, Omission::Everything]
    }

    fn rehearsal(&self, seed: u64, omission: Omission) -> Result<Option<Plan>> {
        let stage = Stage {
            memory: 0xc000_0000..0x1_0000_0000,
            tables: OWN_TABLES,
            code_hpa: CODE,
            guest: GUEST,
            // At every change between M-mode and the guest the emulator forgets everything.
            means: Means::OnBehalf,
            guest_table: None,
        };
        let features = RiscVFeatures::NONE;
        let told = |meets: &Meets, probe: &Probe| expected(features, meets, probe);
        rehearse::<RiscV>(features, &stage, seed, omission, told)
            .map(|asking| Some(asking.into_plan(CPU)))
    }

    fn seen(&self, question: &Question, answer: &Answer) -> Outcome {
        match (question, *answer) {
            (Question::Memory(_), Answer::Completed([word, ..])) => Outcome::Word(word),
            (Question::Access(probe), Answer::Completed([word, ..])) => completed(probe, word),
            (Question::Access(probe), Answer::Trapped(registers)) => {
                trapped(probe, registers).unwrap_or(Outcome::Unexpected(*answer))
            }
            (Question::Memory(_), Answer::Trapped(_)) => Outcome::Unexpected(*answer),
        }
    }

    fn known_fault(&self, check: &Check, seen: &Outcome) -> Option<&'static KnownFault> {
        let Question::Access(probe) = check.question else {
            return None;
        };
        match (check.expected, seen) {
            (Outcome::Reached { .. } | Outcome::Executed(_), Outcome::Fault { .. })
                if Mode::named(&check.tables).is_some_and(|mode| mode.upper_half(probe.gpa)) =>
            {
                Some(&UPPER_HALF)
            }
            (
                Outcome::Fault {
                    reason: Reason::NotAccessed,
                    ..
                },
                Outcome::Reached { .. } | Outcome::Executed(_) | Outcome::NoMemory,
            ) => Some(&NO_SVADE),
            _ => None,
        }
    }
}

const CPU: &str = "rv64,h=true,svnapot=true,svpbmt=true";

/// A load or store on the guest's behalf that went through.
fn completed(probe: &Probe, word: u64) -> Outcome {
    Outcome::Reached {
        hpa: (probe.access == Access::Read).then(|| unmark(word)),
        memory: None,
    }
}

/// What a trap means (Privileged Architecture, `mcause`).
fn trapped(probe: &Probe, [cause, value, second_value, loaded]: [u64; 4]) -> Option<Outcome> {
    const ILLEGAL_INSTRUCTION: u64 = 2;
    const CALL_FROM_USER: u64 = 8;
    const CALL_FROM_KERNEL: u64 = 10;
    const FETCH_ACCESS_FAULT: u64 = 1;
    const LOAD_ACCESS_FAULT: u64 = 5;
    const STORE_ACCESS_FAULT: u64 = 7;
    const FETCH_GUEST_PAGE_FAULT: u64 = 20;
    const LOAD_GUEST_PAGE_FAULT: u64 = 21;
    const STORE_GUEST_PAGE_FAULT: u64 = 23;
    match (cause, probe.access) {
        (CALL_FROM_USER | CALL_FROM_KERNEL, Access::Read | Access::Write) => {
            Some(completed(probe, loaded))
        }
        (ILLEGAL_INSTRUCTION, Access::Execute) => Some(Outcome::Executed(value)),
        (FETCH_ACCESS_FAULT, Access::Execute)
        | (LOAD_ACCESS_FAULT, Access::Read)
        | (STORE_ACCESS_FAULT, Access::Write) => Some(Outcome::NoMemory),
        (FETCH_GUEST_PAGE_FAULT, Access::Execute)
        | (LOAD_GUEST_PAGE_FAULT, Access::Read)
        | (STORE_GUEST_PAGE_FAULT, Access::Write) => Some(Outcome::Fault {
            // One cause for all, and no level.
            reason: Reason::Untold,
            gpa: Some(second_value << 2 | value & 0b11),
            level: None,
        }),
        _ => None,
    }
}

/// An instruction of 4 bytes that no hart knows (custom-0), which says, well enough, where it is;
/// `mtval` tells it.
fn unknown_at(hpa: u64) -> (u32, u64) {
    let number = (hpa >> 2 ^ hpa >> 15 ^ hpa >> 31) & 0x1ff_ffff;
    let instruction = number << 7 | 0x0b;
    (
        u32::try_from(instruction).expect("25 bits and 7"),
        instruction,
    )
}

/// A translation mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Sv39x4,
    Sv48x4,
    Sv57x4,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Sv39x4, Self::Sv48x4, Self::Sv57x4];

    const fn name(self) -> &'static str {
        match self {
            Self::Sv39x4 => "Sv39x4",
            Self::Sv48x4 => "Sv48x4",
            Self::Sv57x4 => "Sv57x4",
        }
    }

    /// The one that a description of tables begins with.
    fn named(tables: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|mode| tables.starts_with(mode.name()))
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Sv39x4 => 41,
            Self::Sv48x4 => 50,
            Self::Sv57x4 => 59,
        }
    }

    const fn upper_half(self, gpa: u64) -> bool {
        gpa >> (self.bits() - 1) & 1 != 0
    }

    const fn alone(self, features: RiscVFeatures) -> RiscVFeatures {
        RiscVFeatures {
            sv39x4: matches!(self, Self::Sv39x4),
            sv48x4: matches!(self, Self::Sv48x4),
            sv57x4: matches!(self, Self::Sv57x4),
            ..features
        }
    }
}

/// Tables of one kind, to be drawn and asked about.
#[derive(Debug)]
struct Kind {
    mode: Mode,
    features: RiscVFeatures,
    address_bits: u8,
}

/// Every mode with guest addresses as wide as it can, and less, on harts with and without what
/// changes entries.
fn kinds() -> Vec<Kind> {
    let harts = [
        RiscVFeatures::ALL,
        RiscVFeatures::NONE,
        RiscVFeatures {
            svadu: true,
            ..RiscVFeatures::NONE
        },
        RiscVFeatures {
            svadu: false,
            ..RiscVFeatures::ALL
        },
    ];
    let mut kinds = Vec::new();
    for mode in Mode::ALL {
        for (less, hart) in (0..).zip(harts.iter().cycle()).take(12) {
            kinds.push(Kind {
                mode,
                features: mode.alone(*hart),
                address_bits: mode.bits() - less,
            });
        }
    }
    kinds
}

/// The VM's number.
const VMID: u16 = 0x123;

impl Kind {
    fn words(&self) -> String {
        let Self {
            mode,
            features,
            address_bits,
        } = self;
        let mut words = format!("{}, {address_bits} bits", mode.name());
        for (has, word) in [
            (features.svadu, " Svadu"),
            (features.svnapot, " Svnapot"),
            (features.svpbmt, " Svpbmt"),
        ] {
            if has {
                words.push_str(word);
            }
        }
        words
    }

    /// Draws tables and asks about them.
    fn ask(
        &self,
        drawing: &Drawing,
        wanted: usize,
        random: &mut Random,
        asking: &mut Asking,
    ) -> Result<()> {
        let ground = Ground {
            memory: MEMORY,
            // The guest's accesses are real, so there must be memory.
            far_bits: None,
            tables: TABLES,
            code_hpa: CODE,
        };
        let mut sheet = Sheet::<RiscV>::new(self.features, self.address_bits, &ground.tables)?;
        let attributes = attributes::drawn(random);
        let code_gpa = placement::draw(&mut sheet, &ground, &attributes, random)?;
        sheet.write(asking.script(), code_gpa, drawing.flip)?;
        let regime = Regime {
            registers: [sheet.table().root(VMID)?, 0, 0, 0],
            code_gpa,
            code_hpa: CODE,
        };
        asking.enter(&self.words(), regime);
        let addresses = placement::addresses(&sheet, wanted.div_ceil(2), random);
        // Where the hardware is not meant to set bits, the emulator does.
        let look = drawing.flip.is_none() && self.features.svadu;
        let mut asker = Asker::new(&sheet, asking, GUEST, look);
        for gpa in addresses {
            for means in [Means::OnBehalf, Means::Guest] {
                let access = match means {
                    Means::Guest => *random.pick(&[Access::Read, Access::Write, Access::Execute]),
                    _ => *random.pick(&[Access::Read, Access::Write]),
                };
                let probe = Probe {
                    gpa: gpa & !7,
                    access,
                    who: *random.pick(&[Who::Kernel, Who::User]),
                    means,
                };
                let meets = asker.sheet.meets(probe.gpa)?;
                let expected = expected(self.features, &meets, &probe);
                if self.mode.upper_half(probe.gpa) {
                    // The emulator is known to fail here, so there is nothing to look at after.
                    asker.asking.access(probe, expected);
                } else if is_not_accessed(&expected) {
                    // The emulator is known to go on, so it must come to no harm.
                    asker.access_that_may_go_through(probe, &meets, expected);
                } else {
                    asker.access(probe, &meets, expected)?;
                }
            }
        }
        if !self.features.svadu {
            // The emulator gets past the first half where it should not.
            return Ok(());
        }
        for gpa in placement::across_edges(&sheet, wanted / 8, random) {
            let probe = Probe {
                gpa,
                access: Access::Read,
                who: *random.pick(&[Who::Kernel, Who::User]),
                means: *random.pick(&[Means::OnBehalf, Means::Guest]),
            };
            if !self.mode.upper_half(gpa) && !self.mode.upper_half(gpa + 4) {
                asker.load_across(probe, |meets, probe| expected(self.features, meets, probe))?;
            }
        }
        Ok(())
    }
}

/// Whether the page is to be left to software to mark.
fn is_not_accessed(expected: &Outcome) -> bool {
    let Outcome::Fault { reason, .. } = expected else {
        return false;
    };
    *reason == Reason::NotAccessed
}

/// What must come of an access: the guest's kernel and programs are treated alike.
fn expected(features: RiscVFeatures, meets: &Meets, probe: &Probe) -> Outcome {
    let fault = |reason| Outcome::Fault {
        reason,
        gpa: Some(probe.gpa),
        level: None,
    };
    let Meets::Leaf { attributes, .. } = *meets else {
        return fault(Reason::NotMapped);
    };
    let permissions = attributes.permissions;
    let allowed = match probe.access {
        Access::Read => permissions.read,
        Access::Write => permissions.write,
        Access::Execute => permissions.execute == Execute::Always,
    };
    if !allowed {
        fault(Reason::NotAllowed)
    } else if !attributes.accessed && !features.svadu {
        fault(Reason::NotAccessed)
    } else {
        Outcome::Reached {
            hpa: None,
            memory: None,
        }
    }
}
