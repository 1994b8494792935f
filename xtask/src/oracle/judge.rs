//! What an architecture brings so that an emulator can judge its tables.
//!
//! A [`Judge`] draws layouts, builds tables for them with `slat-table`, and writes a script of
//! accesses with, for each, what `slat` says must come of it: a [`Plan`]. The plan is carried out
//! by the judge's payload in the judge's emulator, and what the hardware reports is read back as
//! an [`Outcome`] and compared.

use core::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use slat_oracle_protocol::answer::Answer;
use slat_oracle_protocol::script::{Access, Means, Probe, Script, Who};
use slat_oracle_protocol::tree::Omission;
use slat_table::attributes::MemoryType;

/// An architecture and the emulator that judges it.
pub(crate) trait Judge {
    /// The word that chooses it on the command line.
    fn name(&self) -> &'static str;

    /// Its emulator.
    fn emulator(&self) -> Emulator;

    /// What runs in the emulator.
    fn payload(&self) -> Payload;

    /// The command that carries out a plan. It writes the payload's console to standard output and
    /// ends by itself when the payload is done, unless [`ends_by_itself`](Self::ends_by_itself) is
    /// false.
    fn machine(&self, plan: &Plan, files: &Files<'_>) -> Result<Command>;

    /// Whether the emulator ends after the last line; one that does not is stopped then.
    fn ends_by_itself(&self) -> bool {
        true
    }

    /// Draws layouts and questions.
    fn plans(&self, drawing: &Drawing) -> Result<Vec<Plan>>;

    /// Bits of a leaf that must be noticed when they are flipped.
    fn bits(&self) -> &'static [u32] {
        &[]
    }

    /// Pieces of TLB maintenance that must be noticed when they are left out of a rehearsal.
    fn omissions(&self) -> &'static [Omission] {
        &[]
    }

    /// What the payload does with trees of its own, where the emulator remembers translations.
    fn rehearsal(&self, seed: u64, omission: Omission) -> Result<Option<Plan>> {
        let _ = (seed, omission);
        Ok(None)
    }

    /// What the hardware said, read from the registers that the payload reports.
    fn seen(&self, question: &Question, answer: &Answer) -> Outcome;

    /// Where the emulator is known to be wrong: the fault that explains this difference.
    fn known_fault(&self, check: &Check, seen: &Outcome) -> Option<&'static KnownFault>;
}

/// A program, and the Debian packages that bring it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Emulator {
    pub(crate) program: &'static str,
    pub(crate) packages: &'static [&'static str],
}

/// A bare-metal program below `oracles/`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Payload {
    /// Its package, in the directory of the same name without `slat-oracle-`.
    pub(crate) package: &'static str,
    /// The target that it is built for.
    pub(crate) target: &'static str,
}

/// What a machine is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Files<'a> {
    /// The emulator.
    pub(crate) emulator: &'a Path,
    /// The payload, as the linker left it (ELF).
    pub(crate) payload: &'a Path,
    /// The script.
    pub(crate) script: &'a Path,
    /// A directory for whatever else the machine takes.
    pub(crate) directory: &'a Path,
}

impl Files<'_> {
    /// Has QEMU load the script at `address`, byte by byte as it is.
    pub(super) fn load_script(&self, command: &mut Command, address: u64) {
        command.arg("-device").arg(format!(
            "loader,addr={address:#x},force-raw=on,file={}",
            self.script.display()
        ));
    }
}

/// What to draw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drawing {
    /// Seed of all that is drawn.
    pub(crate) seed: u64,
    /// At least so many accesses.
    pub(crate) checks: usize,
    /// A bit to flip in every leaf that the hardware sees, behind our back.
    pub(crate) flip: Option<u32>,
}

/// Something to carry out in one boot.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The CPU, in the emulator's words.
    pub(crate) cpu: &'static str,
    /// What the payload is to do.
    pub(crate) script: Script,
    /// What must come of it: one for each answer, in order.
    pub(crate) checks: Vec<Check>,
}

/// A question and what `slat` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    /// On which tables, in words.
    pub(crate) tables: std::rc::Rc<str>,
    /// What is asked.
    pub(crate) question: Question,
    /// What must come of it.
    pub(crate) expected: Outcome,
}

/// What the payload is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// What comes of an access.
    Access(Probe),
    /// What the 8 bytes at a host physical address are.
    Memory(u64),
}

/// What came of a question. What is `None` was not told, and is not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The access went through.
    Reached {
        /// To this host physical address.
        hpa: Option<u64>,
        /// As memory of this type.
        memory: Option<MemoryType>,
    },
    /// The guest executed this instruction.
    Executed(u64),
    /// The translation went through, to where no memory is.
    NoMemory,
    /// The access did not go through.
    Fault {
        /// For this reason.
        reason: Reason,
        /// At this guest physical address.
        gpa: Option<u64>,
        /// At an entry of this level, counted from the pages.
        level: Option<u8>,
    },
    /// The memory holds this.
    Word(u64),
    /// The hardware reported something that no access should meet.
    Unexpected(Answer),
}

/// Why a second-level translation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Nothing is mapped there.
    NotMapped,
    /// The access is not allowed.
    NotAllowed,
    /// The page is marked as not accessed, and hardware leaves that to software.
    NotAccessed,
    /// The guest or host physical address has more bits than the tables or the machine do.
    AddressSize,
    /// The entry is none that the hardware can make sense of.
    Misconfigured,
    /// Any of the above: the hardware does not say.
    Untold,
}

/// A fault of an emulator that is known and documented in `docs/oracles.md`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KnownFault {
    /// What it is called there.
    pub(crate) name: &'static str,
    /// What the manual says instead.
    pub(crate) manual: &'static str,
}

impl Outcome {
    /// Whether the two say the same as far as both say anything.
    pub(crate) fn agrees(&self, other: &Self) -> bool {
        fn same<T: PartialEq + Copy>(a: Option<T>, b: Option<T>) -> bool {
            a.is_none() || b.is_none() || a == b
        }
        match (*self, *other) {
            (
                Self::Reached { hpa, memory },
                Self::Reached {
                    hpa: other_hpa,
                    memory: other_memory,
                },
            ) => same(hpa, other_hpa) && same(memory, other_memory),
            (
                Self::Fault { reason, gpa, level },
                Self::Fault {
                    reason: other_reason,
                    gpa: other_gpa,
                    level: other_level,
                },
            ) => {
                let untold = reason == Reason::Untold || other_reason == Reason::Untold;
                (untold || reason == other_reason)
                    && same(gpa, other_gpa)
                    && same(level, other_level)
            }
            (Self::Word(word), Self::Word(other))
            | (Self::Executed(word), Self::Executed(other)) => word == other,
            _ => false,
        }
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Access(Probe {
                gpa,
                access,
                who,
                means,
            }) => {
                let what = match access {
                    Access::Read => "read",
                    Access::Write => "write",
                    Access::Execute => "execute",
                };
                let who = match who {
                    Who::Kernel => "kernel",
                    Who::User => "user",
                };
                let means = match means {
                    Means::Question => "as a question",
                    Means::OnBehalf => "on its behalf",
                    Means::Guest => "by the guest",
                    Means::GuestTable => "by the guest's own walk",
                };
                write!(f, "{what} at {gpa:#x} as {who}, {means}")
            }
            Self::Memory(hpa) => write!(f, "the memory at {hpa:#x}"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reached { hpa, memory } => {
                write!(f, "reaches")?;
                hpa.map_or(Ok(()), |hpa| write!(f, " {hpa:#x}"))?;
                memory.map_or(Ok(()), |memory| write!(f, " as {memory:?}"))
            }
            Self::Fault { reason, gpa, level } => {
                write!(f, "faults, {reason:?}")?;
                gpa.map_or(Ok(()), |gpa| write!(f, " at {gpa:#x}"))?;
                level.map_or(Ok(()), |level| write!(f, " on level {level}"))
            }
            Self::NoMemory => write!(f, "reaches no memory"),
            Self::Executed(instruction) => write!(f, "executes {instruction:#x}"),
            Self::Word(word) => write!(f, "holds {word:#x}"),
            Self::Unexpected(answer) => write!(f, "is something else: {answer}"),
        }
    }
}
