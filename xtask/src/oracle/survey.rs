//! Asking about tables by a guest that loads, stores and executes: what is the same for every
//! architecture on which the guest's own translation, if any, stays out of the way.

use anyhow::Result;
use slat_oracle_protocol::script::{Access, Means, Probe, Regime, Who};
use slat_table::attributes::{Execute, Permissions};
use slat_table::format::{ByteOrder, Format};
use slat_table::geometry::Level;

use super::asker::{Asker, Guest, unmark};
use super::asking::Asking;
use super::attributes;
use super::judge::{Drawing, Outcome, Plan, Reason};
use super::placement;
use super::random::Random;
use super::sheet::{Ground, Meets, Sheet};

/// Fewest accesses for each tree: with fewer, much of what is drawn would never be looked at.
const FEWEST: usize = 200;

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

    /// Code of at most eight bytes that says where it is when it is executed, and what it says then.
    fn code(hpa: u64) -> (Vec<u8>, u64);

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
        registers: S::registers(sheet.table().root(VMID)?, u8::try_from(levels)?, asking),
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
    let guest = Guest {
        code: S::code,
        order: S::BYTE_ORDER,
        memory: S::GROUND.memory,
    };
    let mut asker = Asker::new(&sheet, asking, guest, flip.is_none());
    let mut count = 0;
    while count < wanted {
        count += ask::<S>(&mut asker, *random.pick(&addresses))?;
    }
    Ok(())
}

/// Asks about an address in every way there is; returns how many accesses that are.
fn ask<S: Subject>(asker: &mut Asker<'_, S::Format>, gpa: u64) -> Result<usize> {
    let mut ways = [Access::Read, Access::Write, Access::Execute]
        .map(|access| (gpa & !7, access, Means::Guest))
        .to_vec();
    if S::QUESTIONS {
        ways.push((gpa, Access::Read, Means::Question));
    }
    let before = asker.asking.accesses();
    for (gpa, access, means) in ways {
        let probe = Probe {
            gpa,
            access,
            who: Who::Kernel,
            means,
        };
        let meets = asker.sheet.meets(gpa)?;
        let expected = at(S::expected(&meets, access), gpa);
        if means == Means::Question {
            asker.question(probe, &meets, expected);
        } else {
            asker.access(probe, &meets, expected)?;
        }
    }
    Ok(asker.asking.accesses() - before)
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

/// What came of an access that went through, given what the guest's register held then: it has
/// what was loaded, or what was executed put there.
pub(crate) fn completed(access: Access, register: u64) -> Outcome {
    match access {
        Access::Read => Outcome::Reached {
            hpa: Some(unmark(register)),
            memory: None,
        },
        Access::Write => Outcome::Reached {
            hpa: None,
            memory: None,
        },
        Access::Execute => Outcome::Executed(register),
    }
}
