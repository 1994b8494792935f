//! Dirty bits: none is lost, none invented.
//!
//! Where the hardware keeps dirty bits, a leaf that says dirty is the only record that its page was
//! written. Software may make such a leaf invalid and take the bit with it; it may not replace it
//! by a clean one for the same page, and when it splits a block, what comes with the new table must
//! be as dirty as the block was. And it may say dirty only of a page that somebody wrote or tried
//! to write.

use std::collections::BTreeSet;

use super::ranges::{Disjoint, Span};
use super::story::Did;
use crate::architecture::Leaf;

/// log2 of the unit in which writes are remembered.
const PAGE_SHIFT: u32 = 12;

/// What is known of one VM's written pages.
#[derive(Debug, Default)]
pub(super) struct Dirt {
    /// Pages that the guest wrote or tried to write.
    written: BTreeSet<u64>,
    /// Dirty leaves that were made invalid: where they led (what to add, wrapping, to a guest
    /// address) and who made them so.
    removed: Disjoint<(u64, Did)>,
}

impl Dirt {
    pub(super) fn written(&mut self, gpa: u64) {
        self.written.insert(gpa >> PAGE_SHIFT);
    }

    /// A leaf was made invalid.
    pub(super) fn leaf_removed(&mut self, gpa: Span, leaf: &Leaf, did: Did) {
        if leaf.dirty {
            let offset = leaf.hpa.0.wrapping_sub(gpa.start);
            self.removed.set(gpa, (offset, did));
        }
    }

    /// The dirty leaf for the same page that was last at the start of `gpa`.
    pub(super) fn was_dirty(&self, gpa: Span, leaf: &Leaf) -> Option<Did> {
        let (_, (offset, did)) = self.removed.at(gpa.start)?;
        (gpa.start.wrapping_add(*offset) == leaf.hpa.0).then_some(*did)
    }

    /// Whether somebody wrote, or tried to write, to the pages of `gpa`.
    pub(super) fn may_be_dirty(&self, gpa: Span) -> bool {
        let pages = gpa.start >> PAGE_SHIFT..=(gpa.end - 1) >> PAGE_SHIFT;
        self.written.range(pages).next().is_some()
    }

    /// The pages are somebody else's from now on. This is also the place for a harvest of dirty
    /// bits, once there is one: what it took is clean again.
    pub(super) fn forget(&mut self, gpa: Span) {
        let pages = gpa.start >> PAGE_SHIFT..=(gpa.end - 1) >> PAGE_SHIFT;
        let found: Vec<u64> = self.written.range(pages).copied().collect();
        for page in found {
            self.written.remove(&page);
        }
        self.removed.remove(gpa);
    }

    /// Something is mapped at `gpa` again.
    pub(super) fn mapped(&mut self, gpa: Span) {
        self.removed.remove(gpa);
    }
}
