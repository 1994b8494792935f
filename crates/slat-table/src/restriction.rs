//! Taking translations away: unmap, and tidying up of tables. Splitting is in `split.rs`.
//!
//! A [`Restriction`] is a removal in progress over a range. While it lives, the stripes that the
//! range touches are marked, and nobody installs anything under them. Its operations return
//! [`Flush`]es that borrow it, and it keeps what they owe, so the marks cannot be lowered before
//! the flushes are complete (P7). Dropping it lowers the marks and moves the sequences (P8); a
//! host that must first make its own change takes them over as a [`Raised`] and lowers them when
//! it is done.

use core::fmt;

use crate::address::{Gpa, GpaRange};
use crate::cache::TableCache;
use crate::entry::entry_address;
use crate::flush::{Flush, Owed};
use crate::format::Format;
use crate::geometry::Level;
use crate::hold::{Hold, Place};
use crate::platform::{Platform, TlbWork};
use crate::run::Run;
use crate::split::splits_into_leaves;
use crate::stripe::{StripeSet, StripesId, span_around};
use crate::table::PageTable;

/// What becomes of a block, or of a run of leaves, of which only part is to be unmapped.
pub enum PartialBlock<'c, 't, F: Format, P: Platform> {
    /// All of it goes; what was outside the range is faulted in again.
    Drop,
    /// It is split, so that what is outside the range stays. Tables come from the cache, which
    /// is refilled as needed; where that fails, the block is dropped. A run becomes single leaves,
    /// which takes no memory.
    Split(&'c mut TableCache<'t, F, P>),
}

impl<F: Format, P: Platform> fmt::Debug for PartialBlock<'_, '_, F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drop => "Drop",
            Self::Split(_) => "Split",
        })
    }
}

/// Marks left up by a finished removal, for a host that has yet to make its change.
///
/// Hand it back to [`PageTable::lower`]. One that is lost stalls every fault under its stripes
/// for good; nothing unsafe follows.
#[derive(Debug)]
#[must_use = "faults under these stripes stall until PageTable::lower"]
pub struct Raised {
    stripes: StripeSet,
    /// Whose stripes.
    of: StripesId,
}

/// A removal in progress.
#[must_use = "faults under its stripes stall while a restriction lives"]
pub struct Restriction<'t, F: Format, P: Platform> {
    pub(crate) table: &'t PageTable<F, P>,
    // P8: the stripes raised, each once.
    raised: StripeSet,
    // P7: what must be flushed before they are lowered.
    pub(crate) owed: Owed<'t, F, P>,
}

impl<F: Format, P: Platform> PageTable<F, P> {
    /// P5: begins a removal over `range`: marks every stripe it touches.
    pub fn restrict(&self, range: &GpaRange) -> Restriction<'_, F, P> {
        let mut restriction = self.restrict_nothing();
        restriction.cover(range);
        restriction
    }

    /// Begins a removal over no range yet; [`Restriction::cover`] adds ranges.
    pub fn restrict_nothing(&self) -> Restriction<'_, F, P> {
        Restriction {
            table: self,
            raised: StripeSet::EMPTY,
            owed: Owed::nothing(self),
        }
    }

    /// The marks of a removal that has raised none.
    #[inline]
    pub fn nothing_raised(&self) -> Raised {
        Raised {
            stripes: StripeSet::EMPTY,
            of: self.stripes.id(),
        }
    }

    /// P8: ends a removal whose marks were left up. False, and nothing is done, if they are
    /// another table's.
    #[inline]
    pub fn lower(&self, Raised { stripes, of }: Raised) -> bool {
        let ours = of == self.stripes.id();
        if ours {
            self.stripes.lower(stripes);
        }
        ours
    }
}

/// What a step of an unmapping found at its start.
enum Step {
    /// Done up to here.
    Up(Option<Gpa>),
    /// More stripes are needed: those of this block.
    Wider(GpaRange),
    /// The block at this place is to be split.
    Split(Place, GpaRange),
    /// This run is to be broken.
    Break(Run),
}

impl<'t, F: Format, P: Platform> Restriction<'t, F, P> {
    /// P5: extends the removal to `range`.
    pub fn cover(&mut self, range: &GpaRange) {
        let more = self.table.stripes.covering(range).without(self.raised);
        self.table.stripes.raise(more);
        self.raised = self.raised.union(more);
    }

    /// Leaves the marks up after the removal, which is flushed.
    pub fn leave_raised(mut self) -> Raised {
        self.owed.carry_out();
        Raised {
            stripes: core::mem::take(&mut self.raised),
            of: self.table.stripes.id(),
        }
    }

    /// Removes every translation of `range`. A table that `range` covers is dropped whole.
    ///
    /// Needs no memory to succeed.
    pub fn unmap(
        &mut self,
        range: &GpaRange,
        mut partial: PartialBlock<'_, '_, F, P>,
    ) -> Flush<'_, 't, F, P> {
        let mut owed = self.owed.take();
        self.cover(range);
        let mut skipped = StripeSet::EMPTY;
        let mut wide: Option<GpaRange> = None;
        // Pages go whole, so nothing of one that the range touches is put back.
        let whole = self.table.within_address_width(range);
        let mut rest = whole;
        while let Some(todo) = rest {
            // Only what covers a span can cover a table.
            let span = span_around::<F>(todo.start());
            let can_detach =
                span.is_some_and(|span| todo.covers(&span)) && owed.make_room_for_table();
            let unmapping = Unmapping {
                todo,
                wide,
                can_detach,
            };
            let step = self.unmap_step(&unmapping, &partial, &mut owed, &mut skipped);
            wide = None;
            match step {
                Step::Up(end) => rest = end.and_then(|end| todo.from(end)),
                Step::Wider(block) => {
                    self.cover(&block);
                    wide = Some(block);
                }
                Step::Split(place, block) => {
                    let split = match &mut partial {
                        PartialBlock::Split(tables) => {
                            tables.fill().is_ok()
                                && self.split_block(
                                    place,
                                    &block,
                                    whole.as_ref(),
                                    tables,
                                    &mut owed,
                                )
                        }
                        PartialBlock::Drop => false,
                    };
                    if !split {
                        partial = PartialBlock::Drop;
                    }
                }
                Step::Break(run) => self.break_run(&run, whole.as_ref(), &mut owed),
            }
        }
        // P6 for what was skipped without holding its stripes.
        if !skipped.is_empty() && self.table.hold_stripes(skipped).others_active() {
            owed.add(&TlbWork::everything_in(*range));
        }
        self.owed = owed;
        Flush::of(&mut self.owed)
    }

    fn unmap_step(
        &self,
        unmapping: &Unmapping,
        partial: &PartialBlock<'_, '_, F, P>,
        owed: &mut Owed<'_, F, P>,
        skipped: &mut StripeSet,
    ) -> Step {
        let Unmapping {
            todo,
            wide,
            can_detach,
        } = unmapping;
        let at = todo.start();
        let hold = match wide {
            Some(block) => self.table.hold(block),
            None => self.table.hold_stripes(self.table.stripes.of(at)),
        };
        let place = self.first_removable(&hold, todo, *can_detach);
        let Some(run) = self.table.run_at(place, at) else {
            return Step::Up(None);
        };
        let block = run.range;
        let stripes = self.table.stripes.covering(&block);
        if hold.others_active() {
            // P6: someone else may have removed entries here whose flush is not complete.
            let span = span_around::<F>(at).map_or(block, |span| span.hull(&block));
            owed.add(&TlbWork::everything_in(span));
        }
        if place.level == Level::PAGE {
            return self.unmap_pages(todo, place, partial, owed);
        }
        if F::is_empty(place.level, place.raw) {
            // No stripe need be held to know that it stays empty: all are marked, so nobody
            // installs anything (P3).
            *skipped = skipped.union(stripes.without(hold.stripes()));
            return Step::Up(Some(block.end()));
        }
        if !hold.stripes().covers(stripes) || !self.raised.covers(stripes) {
            return Step::Wider(block);
        }
        if F::is_table(place.level, place.raw) {
            self.table.swap(place.entry, F::empty(place.level));
            if let Some(below) = place.level.down() {
                owed.detach(
                    F::address(self.table.features(), place.level, place.raw),
                    below,
                    block,
                );
            }
        } else {
            if !todo.covers(&block) && partial.splits(self.table, &run) {
                return if run.is_alone() {
                    Step::Split(place, block)
                } else {
                    Step::Break(run)
                };
            }
            for entry in run.each::<F>() {
                self.table.swap(entry, F::empty(place.level));
            }
            owed.add(&TlbWork::leaves(block, place.level));
        }
        Step::Up(Some(block.end()))
    }

    /// The highest entry at the start of `todo` that can be dealt with whole: a leaf, an empty
    /// one, or a table that `todo` covers.
    fn first_removable(&self, hold: &Hold<'_, F, P>, todo: &GpaRange, can_detach: bool) -> Place {
        let geometry = self.table.geometry();
        let mut lowest = geometry.root();
        loop {
            let place = hold.descend(todo.start(), lowest);
            let covered = geometry
                .block(place.level, todo.start())
                .is_some_and(|block| todo.covers(&block));
            let whole_table = can_detach && covered;
            if !F::is_table(place.level, place.raw) || whole_table {
                return place;
            }
            match place.level.down() {
                Some(below) => lowest = below,
                None => return place,
            }
        }
    }

    /// Empties the entries of one level-0 table from `place` on, as far as `todo` and the span
    /// go; before that, what becomes of a run that lies only partly in `todo` is up to `partial`.
    fn unmap_pages(
        &self,
        todo: &GpaRange,
        place: Place,
        partial: &PartialBlock<'_, '_, F, P>,
        owed: &mut Owed<'_, F, P>,
    ) -> Step {
        let inside = span_around::<F>(todo.start()).and_then(|span| span.intersection(todo));
        let Some(inside) = inside else {
            return Step::Up(None);
        };
        let mut part = inside;
        let mut first = place.entry;
        for run in self.runs_at_ends(&inside, place).into_iter().flatten() {
            if partial.splits(self.table, &run) {
                return Step::Break(run);
            }
            if run.range.start() < part.start() {
                first = run.first;
            }
            part = part.hull(&run.range);
        }
        let empty = F::empty(Level::PAGE);
        let shift = self.table.geometry().shape(Level::PAGE).shift;
        let mut found = false;
        for index in 0..part.bytes() >> shift {
            let entry = entry_address::<F>(first, index);
            if !F::is_empty(Level::PAGE, self.table.load(entry)) {
                self.table.swap(entry, empty);
                found = true;
            }
        }
        if found {
            owed.add(&TlbWork::leaves(part, Level::PAGE));
        }
        Step::Up(Some(inside.end()))
    }

    /// The runs of pages that begin before or end after `inside`, a part of one span whose first
    /// entry is at `place`.
    fn runs_at_ends(&self, inside: &GpaRange, place: Place) -> [Option<Run>; 2] {
        let geometry = self.table.geometry();
        let Some(bytes) = geometry.run_bytes(Level::PAGE) else {
            return [None; 2];
        };
        let last = (inside.bytes() >> geometry.shape(Level::PAGE).shift) - 1;
        let ends = [
            (0, inside.start(), inside.start()),
            (last, Gpa::new(inside.end().raw() - 1), inside.end()),
        ];
        ends.map(|(index, page, end)| {
            if end.is_aligned(bytes) {
                return None;
            }
            let entry = entry_address::<F>(place.entry, index);
            let place = Place {
                entry,
                level: Level::PAGE,
                raw: self.table.load(entry),
            };
            let run = self.table.run_at(place, page)?;
            (!run.is_alone()).then_some(run)
        })
    }

    /// Frees tables at the edges of `range` that map nothing any more: what a removal that does
    /// not cover them whole leaves behind.
    pub fn prune(&mut self, range: &GpaRange) -> Flush<'_, 't, F, P> {
        let mut owed = self.owed.take();
        let inside = self.table.within_address_width(range);
        let edges = inside.map(|range| [range.start(), Gpa::new(range.end().raw() - 1)]);
        for edge in edges.into_iter().flatten() {
            for below in self.table.geometry().levels_below_root() {
                self.prune_table(edge, below, &mut owed);
            }
        }
        self.owed = owed;
        Flush::of(&mut self.owed)
    }

    /// Frees the table of level `below` around `edge`, if it is empty.
    fn prune_table(&mut self, edge: Gpa, below: Level, owed: &mut Owed<'_, F, P>) {
        let level = below.up();
        let Some(block) = self.table.geometry().block(level, edge) else {
            return;
        };
        let seems_empty = || {
            let hold = self.table.hold_stripes(self.table.stripes.of(edge));
            let place = hold.descend(edge, level);
            place.level == level && self.is_empty_table(place)
        };
        // To look again with all stripes marked and held stalls the whole VM for a moment.
        if !seems_empty() || !owed.make_room_for_table() {
            return;
        }
        self.cover(&block);
        let hold = self.table.hold(&block);
        let place = hold.descend(edge, level);
        if place.level == level && self.is_empty_table(place) {
            let child = F::address(self.table.features(), level, place.raw);
            self.table.swap(place.entry, F::empty(level));
            owed.detach(child, below, block);
        }
    }

    /// Whether the entry at `place` points to a table whose entries are all empty.
    fn is_empty_table(&self, place: Place) -> bool {
        let Some(below) = place.level.down() else {
            return false;
        };
        let child = F::address(self.table.features(), place.level, place.raw);
        let is_empty =
            |index| F::is_empty(below, self.table.load(entry_address::<F>(child, index)));
        F::is_table(place.level, place.raw) && (0..self.table.entries(below)).all(is_empty)
    }
}

/// Where an unmapping stands.
struct Unmapping {
    todo: GpaRange,
    /// A block whose stripes are all needed.
    wide: Option<GpaRange>,
    /// Whether there is room to keep a detached table.
    can_detach: bool,
}

impl<F: Format, P: Platform> PartialBlock<'_, '_, F, P> {
    /// Whether this leaf, or run of leaves, is to be taken apart.
    fn splits(&self, table: &PageTable<F, P>, run: &Run) -> bool {
        matches!(self, Self::Split(_)) && (!run.is_alone() || splits_into_leaves(table, run.level))
    }
}

impl<F: Format, P: Platform> Drop for Restriction<'_, F, P> {
    fn drop(&mut self) {
        self.owed.carry_out();
        self.table.stripes.lower(self.raised);
    }
}

impl<F: Format, P: Platform> fmt::Debug for Restriction<'_, F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restriction")
            .field("raised", &self.raised)
            .finish_non_exhaustive()
    }
}
