//! The rules by name, and what is said when one is broken.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::event::Cpu;

/// A rule. The names in kebab case, which traces and reports use, are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Rule {
    /// Registers describe a tree that the architecture does not have, or another one than other CPUs
    /// use for the same VM.
    BadRegisters,
    /// An entry is written in memory that is no allocated table.
    WriteOutsideTables,
    /// A table is allocated or freed that cannot be: its memory is somebody's, or it is none of
    /// that size.
    NoSuchTable,
    /// A pointer to something that is no allocated table of the right size becomes reachable.
    PointerToNoTable,
    /// A table becomes reachable before what is written in it.
    LinkedBeforeVisible,
    /// A table becomes reachable at a second place.
    LinkedTwice,
    /// An entry with bits that the architecture reserves becomes reachable.
    ReservedEncoding,
    /// A table is freed while walkers can reach it.
    TableFreedWhileReachable,
    /// A table is freed while a CPU may hold a pointer to it or translations read from it.
    TableFreedWhileCached,
    /// A table that was cut off is filled or linked elsewhere while a CPU may hold a pointer to it,
    /// and so read for one guest address what is meant for another.
    TableReusedWhileCached,
    /// An entry becomes valid while CPUs may hold one for the same guest address that differs in
    /// address, size or memory type (break-before-make, its second half).
    ConflictingEntries,
    /// Entries that hardware may take for one (Arm's contiguous hint, RISC-V's NAPOT) say different
    /// things.
    RunDisagrees,
    /// A valid entry is replaced by one that differs in address, size or memory type without
    /// being invalid in between (break-before-make, its first half).
    ChangedWhileValid,
    /// An entry that the hardware may be changing is overwritten by a plain store.
    LostHardwareUpdate,
    /// A leaf that says dirty is replaced by one for the same page that does not.
    LostDirtyBit,
    /// A leaf says dirty although nobody wrote to the page.
    InventedDirtyBit,
    /// The host contradicts what it said, without a notice.
    HostBrokeItsWord,
    /// A leaf lies in no slot, or in more than one.
    LeafOutsideSlot,
    /// A leaf maps what the host never granted, or took back.
    LeafWithoutGrant,
    /// A leaf allows writing where the slot or the host does not.
    LeafAllowsTooMuch,
    /// A leaf maps a page to another frame than the host's.
    TwoFramesForOnePage,
    /// A leaf maps memory that is neither an allocated frame nor a device, or that is a table.
    LeafToUnallocatedMemory,
    /// The notifier returned, and a page that the host takes back can still be reached.
    MappedAfterNotice,
    /// A change of slots returned, and a page of a slot that is no more can still be reached.
    MappedAfterSlotRemoval,
    /// A frame is allocated where somebody has memory already.
    FrameAllocatedTwice,
    /// A frame is freed while the host still grants it.
    FrameFreedWhileGranted,
    /// A frame is freed while a guest can still reach it.
    FrameFreedWhileMapped,
    /// A guest runs while CPUs may hold translations of a VM that had its number before.
    VmReusedWhileCached,
    /// The guest reached memory at an address that no slot has.
    AccessOutsideSlots,
    /// The guest reached a table.
    AccessToTable,
    /// The guest reached memory that belongs to nobody.
    AccessToFreeMemory,
    /// The guest reached a page that the host had taken back or never given.
    AccessWithoutGrant,
    /// The guest wrote to a page that it may only read.
    WriteToProtected,
}

impl Rule {
    /// What it demands, in a sentence.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::BadRegisters => {
                "registers describe a tree that the architecture has, and a VM has one"
            }
            Self::WriteOutsideTables => "entries are written in allocated tables only",
            Self::NoSuchTable => "a table is allocated once and freed as what it is",
            Self::PointerToNoTable => "a table pointer points to an allocated table",
            Self::LinkedBeforeVisible => "what a table contains is ordered before its link",
            Self::LinkedTwice => "a table is reachable at one place",
            Self::ReservedEncoding => "entries have no reserved encoding",
            Self::TableFreedWhileReachable => "a table is unlinked before it is freed",
            Self::TableFreedWhileCached => "a table is forgotten by every CPU before it is freed",
            Self::TableReusedWhileCached => {
                "a table is forgotten by every CPU before it is used for something else"
            }
            Self::ConflictingEntries => {
                "an entry that differs is made only when every CPU has forgotten the old one"
            }
            Self::RunDisagrees => "entries that hardware may take for one say the same",
            Self::ChangedWhileValid => {
                "address, size and memory type change only by way of an invalid entry"
            }
            Self::LostHardwareUpdate => "an entry that the hardware updates is changed by exchange",
            Self::LostDirtyBit => "a dirty bit survives until it is harvested",
            Self::InventedDirtyBit => "an entry is dirty only if its page was written",
            Self::HostBrokeItsWord => "what the host answered stays true until a notice",
            Self::LeafOutsideSlot => "a leaf lies in one slot",
            Self::LeafWithoutGrant => "a leaf maps what the host grants",
            Self::LeafAllowsTooMuch => "a leaf allows no more than slot and host do",
            Self::TwoFramesForOnePage => "a page has one frame: the host's",
            Self::LeafToUnallocatedMemory => "a leaf maps allocated frames or a device",
            Self::MappedAfterNotice => {
                "when the notifier returns, nothing can reach what the host takes back"
            }
            Self::MappedAfterSlotRemoval => {
                "when a change of slots returns, nothing can reach what is in no slot"
            }
            Self::FrameAllocatedTwice => "memory is given to one at a time",
            Self::FrameFreedWhileGranted => "a frame is taken back before it is freed",
            Self::FrameFreedWhileMapped => "a frame that can be reached is not freed",
            Self::VmReusedWhileCached => {
                "a VM that ended is forgotten by every CPU before another has its number"
            }
            Self::AccessOutsideSlots => "the guest reaches memory in slots only",
            Self::AccessToTable => "the guest never reaches a table",
            Self::AccessToFreeMemory => "the guest never reaches memory that belongs to nobody",
            Self::AccessWithoutGrant => "the guest reaches only what the host grants",
            Self::WriteToProtected => "the guest writes only where slot and host allow it",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A line of a story: something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The record's step.
    pub step: u64,
    /// The CPU that did it.
    pub cpu: Cpu,
    /// What it was.
    pub text: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, cpu, text } = self;
        write!(f, "  step {step:>6}  cpu {cpu:<2} {text}")
    }
}

/// A rule that was broken, and how it came to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{rule}: {}\n{}  missing: {missing}", rule.sentence(), Told(story))]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// The step of the record that broke it.
    pub step: u64,
    /// The records that matter, in order.
    pub story: Vec<Line>,
    /// What would have been needed.
    pub missing: String,
}

/// Lines, each on its own.
struct Told<'a>(&'a [Line]);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}
