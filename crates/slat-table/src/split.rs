//! Splitting: a block becomes a table of smaller leaves, a run of leaves single ones.
//!
//! Either is a removal followed by an installation. What stands there is taken out and flushed
//! with nothing held; then the pieces are put in its place, unless someone else's removal began or
//! ended in between: then it is simply gone, and faults bring its pages back. Where the format
//! lets a block be replaced at once, that is done.

use crate::address::{Gpa, GpaRange, Hpa};
use crate::attributes::Attributes;
use crate::cache::TableCache;
use crate::entry::entry_address;
use crate::flush::{Flush, Owed};
use crate::format::{Entry, Format};
use crate::geometry::Level;
use crate::hold::Place;
use crate::platform::{Platform, TlbWork};
use crate::restriction::Restriction;
use crate::run::{Run, is_in_run};
use crate::table::PageTable;

/// A block being split into entries of the next level.
struct Half {
    level: Level,
    block: GpaRange,
    hpa: Hpa,
    attributes: Attributes,
}

impl<'t, F: Format, P: Platform> Restriction<'t, F, P> {
    /// Replaces every block in `range` that is larger than an entry of `to` by a table, with all
    /// attributes kept, down to entries of `to`; a run of those becomes single leaves. Best effort:
    /// a block stays as it is if there is no memory for its table, and is gone (to be faulted in
    /// again) if a removal met it half way.
    pub fn split(
        &mut self,
        range: &GpaRange,
        to: Level,
        tables: &mut TableCache<'_, F, P>,
    ) -> Flush<'_, 't, F, P> {
        let mut owed = self.owed.take();
        self.cover(range);
        let mut rest = self.table.within_address_width(range);
        while let Some(todo) = rest {
            let hold = self.table.hold_stripes(self.table.stripes.of(todo.start()));
            let place = hold.descend(todo.start(), to);
            drop(hold);
            let Some(run) = self.table.run_at(place, todo.start()) else {
                break;
            };
            if !run.is_alone() && place.level >= to {
                self.cover(&run.range);
                self.break_run(&run, None, &mut owed);
                continue;
            }
            let leaf = matches!(
                self.table.decode(place.level, place.raw),
                Entry::Leaf { .. }
            );
            let wanted = leaf && place.level > to && splits_into_leaves(self.table, place.level);
            if wanted && tables.fill().is_ok() {
                self.cover(&run.range);
                if self.split_block(place, &run.range, None, tables, &mut owed) {
                    continue;
                }
            }
            rest = todo.from(run.range.end());
        }
        self.owed = owed;
        Flush::of(&mut self.owed)
    }

    /// Splits the block at `place` into a table of the next level, leaving out children that lie
    /// wholly in `without`. `tables` has a table for that level; `block`'s stripes are marked.
    /// False if the block is still there.
    pub(crate) fn split_block(
        &self,
        place: Place,
        block: &GpaRange,
        without: Option<&GpaRange>,
        tables: &mut TableCache<'_, F, P>,
        owed: &mut Owed<'_, F, P>,
    ) -> bool {
        let Some(below) = place.level.down() else {
            return false;
        };
        let hold = self.table.hold(block);
        let now = hold.descend(block.start(), place.level);
        if now.level != place.level {
            return true;
        }
        let (hpa, mut attributes) = match self.table.decode(now.level, now.raw) {
            Entry::Leaf { hpa, attributes } if !attributes.contiguous => (hpa, attributes),
            Entry::Empty | Entry::Table(_) | Entry::Leaf { .. } => return true,
            // Not ours to take apart.
            Entry::Foreign(_) => return false,
        };
        let mut old = now.raw;
        let broken = self.table.rules().break_before_make;
        if broken {
            old = self.table.swap(now.entry, F::empty(now.level));
            if let Entry::Leaf {
                attributes: last, ..
            } = self.table.decode(now.level, old)
            {
                attributes = last;
            }
        }
        let sequences = hold.sequences();
        drop(hold);
        owed.add(&TlbWork::leaves(*block, place.level));
        if broken {
            owed.carry_out();
            old = F::empty(place.level);
        }
        let Some(child) = tables.take(below) else {
            return broken;
        };
        let half = Half {
            level: below,
            block: *block,
            hpa,
            attributes,
        };
        let full = self.fill_child(child, &half, without);
        let hold = self.table.hold(block);
        // Between the two holds someone else may have begun, or even finished, a removal that
        // found nothing here. Then what we are about to write back is not ours to write.
        let undisturbed = !hold.others_active() && hold.sequences() == sequences;
        let link = F::table(self.table.features(), place.level, child);
        let linked =
            full && undisturbed && self.table.compare_exchange(now.entry, old, link).is_ok();
        drop(hold);
        if linked {
            self.table.platform().publish();
        } else {
            self.table.free_table(below, child);
        }
        linked || broken
    }

    /// Writes the entries of the unlinked table `child`; false if the format refuses one.
    fn fill_child(&self, child: Hpa, half: &Half, without: Option<&GpaRange>) -> bool {
        let geometry = self.table.geometry();
        let bytes = geometry.entry_bytes(half.level);
        for index in 0..self.table.entries(half.level) {
            let offset = index * bytes;
            let gpa = Gpa::new(half.block.start().raw() + offset);
            if self.lies_in(without, half.level, gpa) {
                continue;
            }
            let Some(hpa) = half.hpa.checked_add(offset) else {
                return false;
            };
            let encoded = F::leaf(self.table.features(), half.level, hpa, half.attributes);
            let Ok(raw) = encoded else { return false };
            self.table.store(entry_address::<F>(child, index), raw);
        }
        true
    }

    /// Breaks `run` into single leaves, with all attributes kept, leaving out those that lie wholly
    /// in `without`. Its stripes are marked. Afterwards it is gone in any case: single leaves stand
    /// in its place, or, where a removal met it half way, none.
    ///
    /// This breaks and flushes before it makes, whatever the format asks for: a TLB that had the
    /// run and one of its leaves side by side would have two translations for one address.
    pub(crate) fn break_run(
        &self,
        run: &Run,
        without: Option<&GpaRange>,
        owed: &mut Owed<'_, F, P>,
    ) {
        let hold = self.table.hold(&run.range);
        let now = hold.descend(run.range.start(), run.level);
        let same = now.level == run.level && now.entry == run.first;
        if !same || !is_in_run::<F>(now.level, now.raw) {
            return;
        }
        let Some((base, attributes)) = self.empty_run(run) else {
            return;
        };
        let sequences = hold.sequences();
        drop(hold);
        owed.add(&TlbWork::leaves(run.range, run.level));
        owed.carry_out();
        let hold = self.table.hold(&run.range);
        // As in `split_block`: what someone else has removed meanwhile is not put back.
        if hold.others_active() || hold.sequences() != sequences {
            return;
        }
        let bytes = self.table.geometry().entry_bytes(run.level);
        for (index, entry) in (0..).zip(run.each::<F>()) {
            let offset = index * bytes;
            let gpa = Gpa::new(run.range.start().raw() + offset);
            if self.lies_in(without, run.level, gpa) {
                continue;
            }
            let hpa = Hpa::new(base.raw() + offset);
            if let Ok(raw) = F::leaf(self.table.features(), run.level, hpa, attributes) {
                // Nobody can have put anything here; if somebody did, it stays.
                let _ = self.table.compare_exchange(entry, F::empty(run.level), raw);
            }
        }
        drop(hold);
        self.table.platform().publish();
    }

    /// Empties all entries of `run`; what they said, as single leaves: the first one's address,
    /// and attributes that have whatever the hardware noted in any of them.
    fn empty_run(&self, run: &Run) -> Option<(Hpa, Attributes)> {
        let mut said: Option<(Hpa, Attributes)> = None;
        for entry in run.each::<F>() {
            // P9: with a swap, so that no note is lost.
            let old = self.table.swap(entry, F::empty(run.level));
            let Entry::Leaf { hpa, attributes } = self.table.decode(run.level, old) else {
                continue;
            };
            let (_, all) = said.get_or_insert((hpa, attributes));
            all.accessed |= attributes.accessed;
            all.dirty |= attributes.dirty;
            all.contiguous = false;
        }
        said
    }

    /// Whether all that the entry of `level` around `gpa` maps lies in `range`.
    fn lies_in(&self, range: Option<&GpaRange>, level: Level, gpa: Gpa) -> bool {
        let block = self.table.geometry().block(level, gpa);
        range.is_some_and(|range| block.is_some_and(|block| range.covers(&block)))
    }
}

/// Whether the pieces of a block of `level` can be leaves.
pub(crate) fn splits_into_leaves<F: Format, P: Platform>(
    table: &PageTable<F, P>,
    level: Level,
) -> bool {
    level
        .down()
        .is_some_and(|below| table.geometry().shape(below).leaf)
}
