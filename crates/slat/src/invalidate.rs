//! Taking pages away from the guest before the host changes them.
//!
//! The order is P5 to P8: find the slots through the index, mark their stripes, unmap, flush, and
//! only then return to the host. The marks stay up until the host says that it is done, so that
//! a fault which asked the host before the change cannot install what it was told.

use core::fmt;

use slat_table::address::{GpaRange, Hva, HvaRange, PAGE_SIZE};
use slat_table::cache::TableCache;
use slat_table::format::Format;
use slat_table::lock::Mutex;
use slat_table::platform::Platform;
use slat_table::restriction::{PartialBlock, Raised};

use crate::host::Host;
use crate::index::Found;
use crate::memory::GuestMemory;
use crate::notifier::{Notifier, Ticket};
use crate::region::Slot;
use crate::stats::count;

/// An invalidation under way; dropping it ends it.
///
/// The host's change belongs between its making and its dropping. Keep that short: faults that
/// meet it stall. Forgetting it stalls them for good; nothing unsafe follows.
#[must_use = "the invalidation ends when this is dropped: make the change before"]
pub struct Invalidation<'m, F: Format, H: Host, P: Platform> {
    memory: &'m GuestMemory<F, H, P>,
    ticket: Option<Ticket>,
}

impl<F: Format, H: Host, P: Platform> GuestMemory<F, H, P> {
    /// Takes every translation of `range` away from the guest. When this returns, no guest
    /// access reaches the pages that were there; until the result is dropped, none is mapped.
    #[inline]
    pub fn invalidate(&self, range: HvaRange) -> Invalidation<'_, F, H, P> {
        Invalidation {
            memory: self,
            ticket: Some(self.begin(range)),
        }
    }

    /// Takes every translation of `range` away, beginning with what `first` found. Leaves the marks
    /// up.
    #[inline(never)]
    fn take_away(&self, range: &HvaRange, first: Found) -> Raised {
        let mut restriction = self.table.restrict_nothing();
        self.for_each_slot(range, Some(first), |_, gpa| {
            let mut tables = TableCache::new(&self.table);
            // What the host keeps around a page it changes stays mapped for the guest.
            drop(restriction.unmap(&gpa, PartialBlock::Split(&mut tables)));
        });
        count(&self.counters.invalidations_hit);
        restriction.leave_raised()
    }

    /// Calls `act` with the slot that was found first in a search for `range`, and every one that
    /// a search finds after it, and the guest addresses concerned.
    fn for_each_slot(
        &self,
        range: &HvaRange,
        first: Option<Found>,
        mut act: impl FnMut(&Slot, GpaRange),
    ) {
        let mut found = first;
        while let Some((at, slot)) = found {
            if let Some(gpa) = slot.gpa_of(range) {
                act(&slot, gpa);
            }
            found = self.index.lock().next(range, at);
        }
    }

    /// The first slot that a search for `range` finds.
    fn first_slot(&self, range: &HvaRange) -> Option<Found> {
        self.index.lock().first(range)
    }
}

impl<F: Format, H: Host, P: Platform> Notifier for GuestMemory<F, H, P> {
    #[inline]
    fn begin(&self, range: HvaRange) -> Ticket {
        count(&self.counters.invalidations);
        let mut index = self.index.lock();
        let active = index.begin(range);
        let first = index.first(&range);
        drop(index);
        // Most changes of a host are to memory that no guest has.
        let raised = match first {
            None => self.table.nothing_raised(),
            Some(first) => self.take_away(&range, first),
        };
        Ticket {
            begun: Some((raised, active)),
        }
    }

    #[inline]
    fn end(&self, ticket: Ticket) {
        if let Some((raised, active)) = ticket.begun
            && self.table.lower(raised)
        {
            self.index.lock().end(active);
        }
    }

    fn age(&self, range: HvaRange) -> bool {
        count(&self.counters.agings);
        let mut young = false;
        let first = self.first_slot(&range);
        self.for_each_slot(&range, first, |_, gpa| young |= self.table.age(&gpa));
        young
    }

    fn test_young(&self, range: HvaRange) -> bool {
        count(&self.counters.agings);
        let mut young = false;
        let first = self.first_slot(&range);
        self.for_each_slot(&range, first, |_, gpa| young |= self.table.test_young(&gpa));
        young
    }

    fn release(&self) {
        // Through the index, which also has slots that are no longer published but not yet
        // unmapped (P11).
        if let Ok(all) = HvaRange::new(Hva::new(0), !(PAGE_SIZE - 1)) {
            self.end(self.begin(all));
        }
    }
}

impl<F: Format, H: Host, P: Platform> Drop for Invalidation<'_, F, H, P> {
    #[inline]
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.memory.end(ticket);
        }
    }
}

impl<F: Format, H: Host, P: Platform> fmt::Debug for Invalidation<'_, F, H, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invalidation")
            .field("ticket", &self.ticket)
            .finish_non_exhaustive()
    }
}
