//! Asking about tables by a guest that loads, stores and executes: what is the same for every
//! architecture on which the guest's own translation, if any, stays out of the way.

use std::collections::HashMap;

use anyhow::Result;
use slat_oracle_protocol::script::{Access, Means, Probe, Regime, Who};
use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, Execute, Permissions};
use slat_table::format::{ByteOrder, Format, Rules};
use slat_table::geometry::Level;

use super::asking::Asking;
use super::attributes;
use super::judge::{Drawing, Outcome, Plan, Reason};
use super::placement;
use super::random::Random;
use super::sheet::{Ground, Meets, Sheet};

/// Fewest accesses for each tree: with fewer, much of what is drawn would never be looked at.
const FEWEST: usize = 450;

/// Addresses to choose from for each tree.
const ADDRESSES: usize = 1200;

/// The number that the trees' VM has.
const VMID: u16 = 0x123;

/// What an architecture adds.
pub(crate) trait Subject {
    /// Its tables.
    type Format: Format;

    /// The machine's memory.
    const GROUND: Ground;

    /// Guest physical addresses of more bits cannot be asked for.
    const ADDRESS_BITS: u8;

    /// The registers that put the guest on tables with this root and so many levels. What else the
    /// machine needs in memory is put there.
    fn registers(root: <Self::Format as Format>::Root, levels: u8, asking: &mut Asking)
    -> [u64; 4];

    /// Eight bytes, as a little-endian number, that say where they are when they are executed, and
    /// what they say then.
    fn code(hpa: u64) -> (u64, u64);

    /// Whether the MMU can be asked where a load would end, with no memory needed there.
    const QUESTIONS: bool = false;

    /// How the guest stores a number.
    const BYTE_ORDER: ByteOrder = ByteOrder::Little;

    /// What must come of an access.
    fn expected(meets: &Meets, access: Access) -> Outcome {
        usual(meets, access)
    }
}

/// What must come of an access where the tables are all that counts.
pub(crate) fn usual(meets: &Meets, access: Access) -> Outcome {
    let fault = |reason, level: Option<Level>| Outcome::Fault {
        reason,
        gpa: None,
        level: level.and_then(|level| u8::try_from(level.index()).ok()),
    };
    match *meets {
        Meets::Beyond => fault(Reason::NotMapped, None),
        Meets::Nothing(level) => fault(Reason::NotMapped, Some(level)),
        Meets::Leaf {
            level, attributes, ..
        } if !allows(attributes.permissions, access) => fault(Reason::NotAllowed, Some(level)),
        Meets::Leaf { hpa, .. } => Outcome::Reached {
            hpa: Some(hpa),
            memory: None,
        },
    }
}

/// Whether a leaf allows an access of the guest's kernel.
fn allows(permissions: Permissions, access: Access) -> bool {
    match access {
        Access::Read => permissions.read,
        Access::Write => permissions.write,
        Access::Execute => matches!(permissions.execute, Execute::Always | Execute::Privileged),
    }
}

/// Tables to be drawn.
#[derive(Clone, Debug)]
pub(crate) struct Kind<F: Format> {
    /// What makes them differ from others of the format, in words.
    pub(crate) words: String,
    pub(crate) features: F::Features,
    pub(crate) address_bits: u8,
}

/// Draws a tree of each kind and asks about it, each in a boot of its own.
pub(crate) fn one_by_one<S: Subject>(
    kinds: &[Kind<S::Format>],
    drawing: &Drawing,
    cpu: &'static str,
) -> Result<Vec<Plan>> {
    let mut random = Random::new(drawing.seed);
    let wanted = drawing.checks.div_ceil(kinds.len()).max(FEWEST);
    let plan = |kind| {
        let mut asking = Asking::default();
        survey::<S>(kind, wanted, drawing.flip, &mut random, &mut asking)?;
        Ok(asking.into_plan(cpu))
    };
    kinds.iter().map(plan).collect()
}

/// Draws a tree of this kind and asks about it.
fn survey<S: Subject>(
    kind: &Kind<S::Format>,
    wanted: usize,
    flip: Option<u32>,
    random: &mut Random,
    asking: &mut Asking,
) -> Result<()> {
    let mut sheet = Sheet::new(kind.features, kind.address_bits, &S::GROUND.tables)?;
    let attributes = attributes::drawn(random);
    let code_gpa = placement::draw(&mut sheet, &S::GROUND, &attributes, random)?;
    sheet.write(asking.script(), code_gpa, flip)?;
    let levels = sheet.table().geometry().levels_down().count();
    let regime = Regime {
        registers: S::registers(sheet.table().root(VMID), u8::try_from(levels)?, asking),
        code_gpa,
        code_hpa: S::GROUND.code_hpa,
    };
    let Kind {
        words,
        address_bits,
        ..
    } = kind;
    let name = S::Format::NAME;
    asking.enter(&format!("{name}, {address_bits} bits{words}"), regime);
    let mut addresses = placement::addresses(&sheet, ADDRESSES.max(wanted), random);
    addresses.retain(|gpa| S::ADDRESS_BITS == 64 || gpa >> S::ADDRESS_BITS == 0);
    let mut surveyor = Surveyor::<S> {
        sheet: &sheet,
        features: kind.features,
        rules: S::Format::rules(&kind.features),
        asking: &mut *asking,
        used: HashMap::new(),
        look: flip.is_none(),
    };
    let before = surveyor.asking.accesses();
    while surveyor.asking.accesses() - before < wanted {
        surveyor.ask(*random.pick(&addresses))?;
    }
    Ok(())
}

/// What the hardware must have noted in a leaf by now.
#[derive(Clone, Copy, Debug)]
struct Used {
    accessed: bool,
    dirty: bool,
}

/// Asks about one tree.
struct Surveyor<'a, S: Subject> {
    sheet: &'a Sheet<S::Format>,
    features: <S::Format as Format>::Features,
    rules: Rules,
    asking: &'a mut Asking,
    /// Leaves that were reached, by the address of the entry.
    used: HashMap<u64, Used>,
    /// Whether to look at entries after an access.
    look: bool,
}

impl<S: Subject> Surveyor<'_, S> {
    /// Asks about an address in every way there is.
    fn ask(&mut self, gpa: u64) -> Result<()> {
        if S::QUESTIONS {
            self.question(gpa)?;
        }
        for access in [Access::Read, Access::Write, Access::Execute] {
            self.access(gpa & !7, access)?;
        }
        Ok(())
    }

    /// Asks the MMU where a load would end.
    fn question(&mut self, gpa: u64) -> Result<()> {
        let expected = S::expected(&self.sheet.meets(gpa)?, Access::Read);
        self.asking.access(
            Probe {
                gpa,
                access: Access::Read,
                who: Who::Kernel,
                means: Means::Question,
            },
            expected,
        );
        Ok(())
    }

    /// Has the guest make an access.
    fn access(&mut self, gpa: u64, access: Access) -> Result<()> {
        let probe = Probe {
            gpa,
            access,
            who: Who::Kernel,
            means: Means::Guest,
        };
        let meets = self.sheet.meets(gpa)?;
        let expected = S::expected(&meets, access);
        let (Outcome::Reached { .. }, Meets::Leaf { hpa, .. }) = (expected, &meets) else {
            self.asking.access(probe, at(expected, gpa));
            return Ok(());
        };
        if !S::GROUND.memory.contains(hpa) {
            // Memory that is not the guest's, or none.
            return Ok(());
        }
        self.put(*hpa, mark(*hpa));
        match access {
            Access::Read => self.asking.access(probe, expected),
            Access::Write => {
                let memory = None;
                let expected = Outcome::Reached { hpa: None, memory };
                self.asking.access(probe, expected);
                self.asking.memory(*hpa, self.stored(probe.stored()));
            }
            Access::Execute => {
                let (code, number) = S::code(*hpa);
                self.asking.put(*hpa, code);
                self.asking.access(probe, Outcome::Executed(number));
            }
        }
        self.look(&meets, access)
    }

    /// Puts a number into memory as the guest would.
    fn put(&mut self, hpa: u64, number: u64) {
        self.asking.put(hpa, self.stored(number));
    }

    /// A number that the guest stores, as a little-endian number.
    #[expect(clippy::unused_self, reason = "what differs is the guest's")]
    fn stored(&self, number: u64) -> u64 {
        in_memory(S::BYTE_ORDER, number)
    }

    /// Looks at the entry after an access that went through: the hardware must have set the bits
    /// that it keeps, and nothing else.
    fn look(&mut self, meets: &Meets, access: Access) -> Result<()> {
        let Meets::Leaf {
            hpa,
            level,
            attributes,
            entry,
        } = *meets
        else {
            return Ok(());
        };
        let Attributes {
            accessed, dirty, ..
        } = attributes;
        let used = self.used.entry(entry).or_insert(Used { accessed, dirty });
        used.accessed |= self.rules.hardware_accessed;
        used.dirty |= self.rules.hardware_dirty && access == Access::Write;
        if !self.look {
            return Ok(());
        }
        let after = Attributes {
            accessed: used.accessed,
            dirty: used.dirty,
            ..attributes
        };
        let bytes = self.sheet.table().geometry().entry_bytes(level);
        let start = Hpa::new(hpa & !(bytes - 1));
        let raw = S::Format::leaf(&self.features, level, start, after)?;
        self.asking
            .memory(entry, in_memory(S::Format::BYTE_ORDER, raw));
        Ok(())
    }
}

/// A number in memory, as a little-endian number.
fn in_memory(order: ByteOrder, number: u64) -> u64 {
    match order {
        ByteOrder::Little => number,
        ByteOrder::Big => number.swap_bytes(),
    }
}

/// The same fault, at this address.
fn at(expected: Outcome, gpa: u64) -> Outcome {
    match expected {
        Outcome::Fault { reason, level, .. } => Outcome::Fault {
            reason,
            gpa: Some(gpa),
            level,
        },
        other => other,
    }
}

/// A word that says where it is.
fn mark(hpa: u64) -> u64 {
    !hpa.rotate_left(20)
}

/// Where a loaded word says that it is.
fn loaded(word: u64) -> Outcome {
    Outcome::Reached {
        hpa: Some((!word).rotate_right(20)),
        memory: None,
    }
}

/// What came of an access that went through, given what the guest's register held then: it has
/// what was loaded, or what was executed put there.
pub(crate) fn completed(access: Access, register: u64) -> Outcome {
    match access {
        Access::Read => loaded(register),
        Access::Write => Outcome::Reached {
            hpa: None,
            memory: None,
        },
        Access::Execute => Outcome::Executed(register),
    }
}
