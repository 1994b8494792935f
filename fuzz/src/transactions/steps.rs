//! Steps of a sequence, made of bytes. Numbers are folded into what is worth trying: a few slots,
//! and places and sizes in a few blocks.

use arbitrary::{Arbitrary, Unstructured};
use slat_table::address::PAGE_SIZE;
use slat_table::attributes::Access;

use super::BLOCK;

/// Longer sequences find no more than several shorter ones.
const MOST_STEPS: usize = 64;

/// What is done, in order.
#[derive(Clone, Debug)]
pub struct Input {
    pub(super) steps: Vec<Step>,
}

impl<'a> Arbitrary<'a> for Input {
    /// As many steps as there are bytes for. What is derived for a `Vec` tosses a coin after each
    /// element, and would mostly stop at the first.
    fn arbitrary(bytes: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let mut steps = Vec::new();
        while !bytes.is_empty() && steps.len() < MOST_STEPS {
            steps.push(bytes.arbitrary()?);
        }
        Ok(Self { steps })
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Step {
    Create(Asked),
    Delete(u8),
    /// Deletes the slot of this id, if there is one, and creates it anew, all or nothing.
    Replace(Asked),
    Fault(Place, Doing),
    Prefault(Place, Size),
    /// Changes what the host has.
    Host(Change, Spot, Size),
    /// Begins an invalidation that stays.
    Open(Spot, Size),
    /// Ends the oldest of those.
    Close,
    /// Lets an allocation of a table fail: the one after so many.
    FailTable(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) id: u8,
    /// Whose guest addresses it is at: its own but for small numbers, so that most slots do not
    /// overlap.
    pub(super) window: u8,
    pub(super) gpa: Spot,
    pub(super) hva: Spot,
    pub(super) size: Size,
    pub(super) read_only: bool,
    pub(super) on_fault: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Change {
    Protect,
    Unprotect,
    Discard,
    Migrate,
    MigrateHuge,
    Populate,
    Split,
    Age,
}

/// What a guest does to memory.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Doing {
    Reading,
    Writing,
    Executing,
}

impl Doing {
    pub(super) fn access(self) -> Access {
        match self {
            Self::Reading => Access::Read,
            Self::Writing => Access::Write,
            Self::Executing => Access::Execute,
        }
    }
}

/// A place in a few blocks: at the start of one, or at a page of it.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Spot {
    block: u8,
    page: Option<u16>,
}

impl Spot {
    pub(super) fn bytes(self) -> u64 {
        let page = u64::from(self.page.unwrap_or(0) % 512);
        u64::from(self.block % 7) * BLOCK + page * PAGE_SIZE
    }
}

/// A page of a slot, chosen among those there are when the step is made; for small numbers in
/// `outside`, any address.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) slot: u8,
    pub(super) outside: u8,
    pub(super) spot: Spot,
}

/// A size of a few pages or blocks.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Size {
    blocks: u8,
    pages: Option<u16>,
}

impl Size {
    pub(super) fn bytes(self) -> u64 {
        let pages = self.pages.map_or(0, |pages| u64::from(pages % 512));
        (u64::from(self.blocks % 3) * BLOCK + pages * PAGE_SIZE).max(PAGE_SIZE)
    }
}
