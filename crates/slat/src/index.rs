//! Which slots an invalidation finds, and which invalidations are under way.
//!
//! A slot enters this index before any fault can see it and leaves it only when its last entry
//! is gone and flushed (P10, P11), so nothing is ever mapped that an invalidation does not find.
//! Both facts live under one lock, because a slot may enter only while no invalidation of its
//! host range is under way: that one would end without having covered it.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;

use slat_table::address::{Hva, HvaRange};

use crate::region::Slot;

/// How many invalidations under way are known by their ranges.
const RECORDED: usize = 8;

/// Names an invalidation under way: the place of its range if that is recorded, a number from
/// [`RECORDED`] on otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ActiveId(u64);

impl ActiveId {
    /// Never the same for two that are under way.
    pub(crate) const fn number(self) -> u64 {
        self.0
    }
}

struct Indexed {
    slot: Slot,
    hva: HvaRange,
    /// The highest end of this and all entries before it: host ranges may overlap, so entries
    /// sorted by start are not sorted by end.
    reach: u64,
}

/// Where a search for slots stands.
///
/// A transaction may replace a slot by another of the same id, and both are here until the old
/// one's entries are gone. So an id names no entry; entries that agree in all of this map the
/// same pages to the same place, and unmapping one unmaps the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cursor {
    hva: u64,
    gpa: u64,
    bytes: u64,
}

/// A slot, and where the search stands that found it.
pub(crate) type Found = (Cursor, Slot);

#[derive(Default)]
pub(crate) struct InvalidationIndex {
    /// In the order of their cursors: by start of the host range first.
    slots: Vec<Indexed>,
    /// What lies between the lowest start and the highest end of their host ranges.
    hull: Option<HvaRange>,
    /// The ranges of invalidations under way.
    active: [Option<HvaRange>; RECORDED],
    /// Invalidations under way whose ranges are not in `active`. They count as overlapping
    /// everything, so that an invalidation needs no memory.
    unrecorded: u32,
    /// How many have not been recorded so far.
    overflowed: u64,
}

impl InvalidationIndex {
    /// Makes room, so that entering `more` slots cannot fail.
    pub(crate) fn reserve(&mut self, more: usize) -> Result<(), TryReserveError> {
        self.slots.try_reserve(more)
    }

    /// Whether an invalidation of a part of `range` is under way.
    pub(crate) fn is_active(&self, range: &HvaRange) -> bool {
        self.unrecorded != 0
            || self
                .active
                .iter()
                .flatten()
                .any(|active| active.overlaps(range))
    }

    /// Lets invalidations find `slot` from now on.
    pub(crate) fn enter(&mut self, slot: Slot) {
        let entry = Indexed {
            slot,
            hva: slot.hva_range(),
            reach: 0,
        };
        let key = entry.cursor();
        let at = self.slots.partition_point(|entry| entry.cursor() < key);
        self.slots.insert(at, entry);
        self.update_reach(at);
    }

    /// Invalidations find `slot` no more: nothing of it is mapped.
    pub(crate) fn leave(&mut self, slot: &Slot) {
        if let Some(at) = self.slots.iter().position(|entry| entry.slot == *slot) {
            self.slots.remove(at);
            self.update_reach(at);
        }
    }

    fn update_reach(&mut self, from: usize) {
        let mut reach = from
            .checked_sub(1)
            .map_or(0, |before| self.slots[before].reach);
        for entry in &mut self.slots[from..] {
            reach = reach.max(entry.hva.end().raw());
            entry.reach = reach;
        }
        let [first, last] = [self.slots.first(), self.slots.last()];
        self.hull = first
            .zip(last)
            .and_then(|(first, last)| HvaRange::between(first.hva.start(), Hva::new(last.reach)));
    }

    /// Begins an invalidation of `range`.
    #[inline]
    pub(crate) fn begin(&mut self, range: HvaRange) -> ActiveId {
        for (number, place) in (0..).zip(&mut self.active) {
            if place.is_none() {
                *place = Some(range);
                return ActiveId(number);
            }
        }
        self.begin_unrecorded()
    }

    #[cold]
    fn begin_unrecorded(&mut self) -> ActiveId {
        self.unrecorded += 1;
        self.overflowed += 1;
        ActiveId(RECORDED as u64 + self.overflowed)
    }

    /// Ends the invalidation named `id`.
    #[inline]
    pub(crate) fn end(&mut self, id: ActiveId) {
        let place = usize::try_from(id.0).ok();
        match place.and_then(|place| self.active.get_mut(place)) {
            Some(place) => *place = None,
            None => self.unrecorded -= 1,
        }
    }

    /// The first slot whose host range overlaps `range`.
    #[inline]
    pub(crate) fn first(&self, range: &HvaRange) -> Option<Found> {
        // Most of what a host changes is nowhere near.
        if !self.hull.is_some_and(|hull| hull.overlaps(range)) {
            return None;
        }
        let reaches = |entry: &Indexed| entry.reach > range.start().raw();
        let first = self.slots.partition_point(|entry| !reaches(entry));
        self.first_from(first, range)
    }

    /// The next slot after `cursor` whose host range overlaps `range`.
    ///
    /// Searching in steps, each under the lock, needs no memory. Slots that leave in between
    /// have nothing mapped; none that overlaps can enter.
    pub(crate) fn next(&self, range: &HvaRange, cursor: Cursor) -> Option<Found> {
        let first = self.slots.partition_point(|entry| entry.cursor() <= cursor);
        self.first_from(first, range)
    }

    fn first_from(&self, first: usize, range: &HvaRange) -> Option<Found> {
        self.slots[first..]
            .iter()
            .take_while(|entry| entry.hva.start() < range.end())
            .find(|entry| entry.hva.overlaps(range))
            .map(|entry| (entry.cursor(), entry.slot))
    }
}

impl Indexed {
    fn cursor(&self) -> Cursor {
        Cursor {
            hva: self.hva.start().raw(),
            gpa: self.slot.range().start().raw(),
            bytes: self.hva.bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::region::{Region, SlotId};
    use crate::testing::geometry;
    use proptest::prelude::*;
    use slat_table::address::Gpa;

    fn slot(id: u32, hva_page: u64, pages: u64) -> Slot {
        let gpa = Gpa::new(u64::from(id) << 24);
        Region::new(SlotId(id), gpa, pages << 12, Hva::new(hva_page << 12))
            .validate(&Config::new(), &geometry())
            .unwrap()
    }

    fn found(index: &InvalidationIndex, range: &HvaRange) -> Vec<Slot> {
        let mut found = Vec::new();
        let mut next = index.first(range);
        while let Some((cursor, slot)) = next {
            found.push(slot);
            next = index.next(range, cursor);
        }
        found
    }

    #[test]
    fn slots_of_one_id_are_told_apart_while_one_replaces_the_other() {
        let mut index = InvalidationIndex::default();
        let (old, new, shorter) = (slot(1, 8, 4), slot(1, 2, 4), slot(1, 8, 2));
        index.enter(old);
        index.enter(new);
        index.enter(shorter);
        let all = HvaRange::new(Hva::new(0), 64 << 12).unwrap();
        assert_eq!(found(&index, &all), [new, shorter, old]);
        index.leave(&old);
        assert_eq!(found(&index, &all), [new, shorter]);
    }

    #[test]
    fn an_invalidation_that_could_not_be_recorded_counts_as_overlapping_everything() {
        let mut index = InvalidationIndex::default();
        let range = |at| HvaRange::new(Hva::new(at), 1 << 12).unwrap();
        let (here, there) = (range(0), range(1 << 20));
        let recorded = [(); RECORDED].map(|()| index.begin(here));
        assert!(index.is_active(&here) && !index.is_active(&there));
        let [first, second] = [(); 2].map(|()| index.begin(here));
        assert_ne!(first.number(), second.number());
        index.end(first);
        assert!(index.is_active(&there));
        index.end(second);
        assert!(!index.is_active(&there) && index.is_active(&here));
        for id in recorded {
            index.end(id);
        }
        assert!(!index.is_active(&here));
        let again = index.begin(there);
        assert!(!index.is_active(&here), "there is room again");
        index.end(again);
    }

    #[test]
    fn the_end_of_one_invalidation_is_not_taken_for_that_of_another() {
        let mut index = InvalidationIndex::default();
        let ranges = [0, 1 << 20, 1 << 21].map(|at| HvaRange::new(Hva::new(at), 1 << 12).unwrap());
        let active = ranges.map(|range| index.begin(range));
        assert_ne!(active[0].number(), active[1].number());
        assert_ne!(active[1].number(), active[2].number());
        index.end(active[1]);
        assert_eq!(
            ranges.map(|range| index.is_active(&range)),
            [true, false, true]
        );
    }

    #[test]
    fn room_that_cannot_be_had_is_refused_before_anything_is_entered() {
        assert!(
            InvalidationIndex::default()
                .reserve(usize::MAX / 2)
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn a_search_finds_exactly_the_slots_that_overlap(
            ranges in proptest::collection::vec((0u64..64, 1u64..16), 0..12),
            gone in proptest::collection::vec(0u32..12, 0..4),
            at in 0u64..80,
            pages in 1u64..20,
        ) {
            let mut index = InvalidationIndex::default();
            let mut model = Vec::new();
            for (id, (hva, pages)) in (0..).zip(&ranges) {
                index.enter(slot(id, *hva, *pages));
                model.push(slot(id, *hva, *pages));
            }
            for id in gone {
                if let Some(at) = model.iter().position(|slot: &Slot| slot.id() == SlotId(id)) {
                    index.leave(&model.swap_remove(at));
                }
            }
            let range = HvaRange::new(Hva::new(at << 12), pages << 12).unwrap();
            let mut found: Vec<_> = found(&index, &range).iter().map(Slot::id).collect();
            found.sort_unstable();
            let mut expected: Vec<_> = model
                .iter()
                .filter(|slot| slot.hva_range().overlaps(&range))
                .map(Slot::id)
                .collect();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
