//! `slat explain`: what of a memory layout would be mapped when, in which blocks, and why not
//! better.
//!
//! The layout's mappings and slots are made with the real engine on real tables of the layout's
//! format (`engine`, `platform`), on a host that shows memory as Linux would (`zones`) and has none
//! (`host`, `paper`). So what is said was counted, and every change that is proposed (`advice`, `change`)
//! was tried.

mod advice;
mod change;
mod compare;
pub(crate) mod engine;
mod error;
mod estimate;
mod host;
mod paper;
mod platform;
#[cfg(target_os = "linux")]
pub mod process;
mod reasons;
mod text;
mod zones;

use serde::Serialize;
use slat_report::{Blocks, Flushes};

pub use advice::Advise;
pub use compare::{Comparison, Cost, LeftOut, Life};
pub use error::ExamineError;

use crate::layout::{Kind, Layout};
use advice::Fix;
use change::ChangeKind;
use engine::{Facts, PartFacts, SlotFacts};

/// How a layout is examined with the tables of one format.
pub(crate) type Examine = fn(&Layout) -> Result<Facts, ExamineError>;

/// What becomes of a layout. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The format of the guest's tables.
    pub format: &'static str,
    /// Width of a guest physical address in bits.
    pub address_bits: u8,
    /// One for each slot, in the layout's order.
    pub slots: Vec<SlotExplained>,
    /// Entries that map memory, once everything is mapped.
    pub entries: u64,
    /// How many of them lie in runs, which hardware may keep as one translation each.
    pub entries_in_runs: u64,
    /// Bytes of all tables then, the root's included.
    pub table_bytes: u64,
    /// Faults of a guest that touches everything.
    pub faults: u64,
    /// The same if nothing were mapped at creation.
    pub faults_without_creation: u64,
    /// TLB maintenance while everything is mapped.
    pub flushes: Flushes,
    /// TLB maintenance when the host takes every mapping away, one after the other.
    pub removal_flushes: Flushes,
    /// What else there is to know, such as what was left out.
    pub notes: Vec<String>,
}

/// What becomes of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SlotExplained {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// First guest physical address.
    pub gpa: u64,
    /// Size.
    pub bytes: u64,
    /// Host virtual address behind the first byte.
    pub hva: u64,
    /// Tables below the root that it needs, if it shares none with others.
    pub table_bytes: u64,
    /// One for each mapping behind it, or hole.
    pub parts: Vec<PartExplained>,
}

/// What becomes of a part of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PartExplained {
    /// The mapping behind it; `None` for a hole.
    pub mapping: Option<String>,
    /// `ram`, `file`, `pfnmap`, `no access` or `hole`.
    pub kind: String,
    /// Whether it is mapped as device memory.
    pub device: bool,
    /// First guest physical address.
    pub gpa: u64,
    /// First host virtual address.
    pub hva: u64,
    /// Size.
    pub bytes: u64,
    /// When it is mapped.
    pub mapped: When,
    /// Blocks mapped when the slot is created.
    pub at_creation: Blocks,
    /// Blocks mapped by faults of a guest that touches everything.
    pub on_fault: Blocks,
    /// All of those together.
    pub entries: u64,
    /// Faults of a guest that touches everything.
    pub faults: u64,
    /// The same if nothing were mapped at creation.
    pub faults_without_creation: u64,
    /// Why something is not mapped at creation.
    pub not_at_creation: Vec<Because>,
    /// Why something is not mapped in larger blocks.
    pub not_larger: Vec<Because>,
    /// What to change, the best first. Each was tried.
    pub fixes: Vec<Proposal>,
}

/// When a part is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(clippy::exhaustive_enums, reason = "the moments there are")]
pub enum When {
    /// All of it when the slot is created.
    AtCreation,
    /// Some of it when the slot is created, the rest when the guest touches it.
    AtCreationAndOnFault,
    /// When the guest touches it.
    OnFault,
    /// Never.
    Never,
}

/// A reason and how much it concerns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Because {
    /// Bytes concerned.
    pub bytes: u64,
    /// The reason, with the addresses that make it.
    pub reason: String,
    /// Whether it tells nothing that the sizes do not: the part is smaller than a larger block.
    #[serde(skip)]
    obvious: bool,
}

/// A change, and what it gains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Proposal {
    /// `move-hva`, `move-gpa`, `move-hva-and-gpa`, `grow-mapping`, `larger-pages` or
    /// `move-hva-and-larger-pages`.
    pub kind: String,
    /// What to do.
    pub change: String,
    /// Entries of the slots concerned now.
    pub entries_before: u64,
    /// The same with the change made.
    pub entries_after: u64,
}

/// Explains `layout`, with proposals of the kind that `advise` allows.
///
/// # Errors
///
/// [`ExamineError`], if it is too large or the engine refuses it.
pub fn explain(layout: &Layout, advise: Advise) -> Result<Explanation, ExamineError> {
    let facts = engine::examine(layout)?;
    let indexed = layout.slots.iter().zip(&facts.slots).enumerate();
    let slots: Vec<_> = indexed
        .map(|(index, (slot, of_slot))| {
            let part = |part: &PartFacts| {
                let fixes = advice::fixes(layout, &facts, index, part, advise);
                explain_part(layout, part, fixes)
            };
            SlotExplained {
                id: slot.id,
                name: slot.name.clone(),
                gpa: slot.gpa,
                bytes: slot.bytes,
                hva: slot.hva,
                table_bytes: of_slot.table_bytes,
                parts: of_slot.parts.iter().map(part).collect(),
            }
        })
        .collect();
    Ok(total(layout, &facts, slots))
}

fn total(layout: &Layout, facts: &Facts, slots: Vec<SlotExplained>) -> Explanation {
    let parts = || facts.slots.iter().flat_map(|slot| &slot.parts);
    let entries = facts.slots.iter().map(SlotFacts::entries).sum();
    Explanation {
        format: layout.format.name(),
        address_bits: layout.address_bits,
        slots,
        entries,
        entries_in_runs: parts().map(|part| part.in_runs).sum(),
        table_bytes: facts.table_bytes,
        faults: parts().map(|part| part.faults).sum(),
        faults_without_creation: parts().map(|part| part.faults_for_all).sum(),
        flushes: facts.flushes,
        removal_flushes: facts.removal_flushes,
        notes: Vec::new(),
    }
}

fn explain_part(layout: &Layout, part: &PartFacts, fixes: Vec<Fix>) -> PartExplained {
    let mapping = part.mapping.map(|index| &layout.mappings[index]);
    let sizes = layout.format.sizes();
    let because = |reasons: &[(slat::report::Reason, u64)]| {
        let one = |(reason, bytes): &(_, u64)| Because {
            bytes: *bytes,
            reason: reasons::detailed(*reason, part, mapping, &sizes),
            obvious: reasons::is_obvious(*reason, *bytes, part, &sizes),
        };
        reasons.iter().map(one).collect()
    };
    PartExplained {
        mapping: mapping.map(|mapping| mapping.name.clone()),
        kind: mapping.map_or_else(|| "hole".to_owned(), |mapping| mapping.kind.to_string()),
        device: mapping.is_some_and(|mapping| matches!(mapping.kind, Kind::Pfnmap { .. })),
        gpa: part.gpa,
        hva: part.hva,
        bytes: part.bytes,
        mapped: when(part),
        at_creation: part.at_creation.clone(),
        on_fault: part.on_fault.clone(),
        entries: part.entries(),
        faults: part.faults,
        faults_without_creation: part.faults_for_all,
        not_at_creation: match mapping {
            Some(mapping) if mapping.kind == Kind::NoAccess => vec![Because {
                bytes: part.bytes,
                reason: "the process itself may not access it".to_owned(),
                obvious: false,
            }],
            _ => because(&part.unmapped),
        },
        not_larger: because(&part.limited),
        fixes: fixes.into_iter().map(proposal).collect(),
    }
}

fn when(part: &PartFacts) -> When {
    match (part.at_creation.bytes(), part.on_fault.bytes()) {
        (0, 0) => When::Never,
        (0, _) => When::OnFault,
        (_, 0) => When::AtCreation,
        (_, _) => When::AtCreationAndOnFault,
    }
}

fn proposal(fix: Fix) -> Proposal {
    let kind = match fix.change.kind() {
        ChangeKind::GrowMapping => "grow-mapping",
        ChangeKind::MoveHva => "move-hva",
        ChangeKind::MoveGpa => "move-gpa",
        ChangeKind::MoveHvaAndGpa => "move-hva-and-gpa",
        ChangeKind::LargerPages => "larger-pages",
        ChangeKind::MoveHvaAndLargerPages => "move-hva-and-larger-pages",
    };
    Proposal {
        kind: kind.to_owned(),
        change: fix.text,
        entries_before: fix.before,
        entries_after: fix.after,
    }
}
