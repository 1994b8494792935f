//! Neighbouring leaves, encoded before any lock is taken.
//!
//! Whoever maps a range says so in [`Leaves`]: the first entry, from which all others follow by
//! adding the format's step. Where the range holds whole [runs](crate::run) and the format can
//! express them, the leaves of those are encoded too, as one of a run.

use core::ops::Range;

use crate::address::{Gpa, GpaRange, Hpa};
use crate::attributes::Attributes;
use crate::format::{EncodeError, Format};
use crate::geometry::{Geometry, Level, LevelShape};
use crate::platform::Platform;
use crate::table::PageTable;

/// Neighbouring leaves of one level, encoded and ready to install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaves {
    pub(crate) range: GpaRange,
    pub(crate) level: Level,
    /// How many there are.
    pub(crate) count: u64,
    /// The first leaf, where it is alone.
    pub(crate) first: u64,
    /// The first leaf of the first whole run among them, as one of a run.
    pub(crate) runs: Option<u64>,
}

impl Leaves {
    /// What they map.
    pub fn range(&self) -> GpaRange {
        self.range
    }

    /// Their level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The index behind the leaves that lie where one run may be and this one lies.
    pub(crate) fn end_of_piece(&self, index: u64, shape: LevelShape) -> u64 {
        // Runs are aligned, so what counts is the leaf's number among all of its level.
        let first = self.range.start().raw() >> shape.shift;
        let last_of_run = (first + index) | ((1 << shape.run_bits) - 1);
        self.count.min(last_of_run + 1 - first)
    }

    /// The leaf of this index, alone, where `step` leads from one to the next.
    #[inline]
    pub(crate) const fn leaf(&self, index: u64, step: u64) -> u64 {
        self.first.wrapping_add(index.wrapping_mul(step))
    }

    /// The first leaf of the run that these indexes are, if they are a whole run.
    #[inline]
    pub(crate) fn run(&self, indexes: &Range<u64>, shape: LevelShape, step: u64) -> Option<u64> {
        let entries = 1 << shape.run_bits;
        let first = self.runs?;
        (indexes.end - indexes.start == entries).then(|| {
            let before = (self.range.start().raw() >> shape.shift) % entries;
            let start = before.next_multiple_of(entries) - before;
            // What runs are apart is what as many leaves are that stand alone.
            first.wrapping_add((indexes.start - start).wrapping_mul(step))
        })
    }

    /// What the leaf of this index maps first.
    pub(crate) fn gpa(&self, index: u64, geometry: &Geometry) -> Gpa {
        Gpa::new(self.range.start().raw() + index * geometry.entry_bytes(self.level))
    }

    /// The same, none of them one of a run: for leaves that will change one by one.
    #[must_use]
    pub const fn without_runs(mut self) -> Self {
        self.runs = None;
        self
    }
}

/// Why leaves could not be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeavesError {
    /// The format cannot express them.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The range is not whole entries of the level, does not lie in one table, lies beyond the
    /// guest's address width, or the host addresses behind it leave 64 bits.
    #[error("{range} is not a run of entries of one table of level {}", level.index())]
    NotARun {
        /// The range asked for.
        range: GpaRange,
        /// The level asked for.
        level: Level,
    },
    /// The format keeps an address in pieces (Arm with 52 bits does), and counting through the host
    /// addresses would have to carry from one into the other.
    #[error("host addresses behind {front} continue in another piece of the entry")]
    Carry {
        /// The leaves before that. Those behind are to be mapped apart.
        front: GpaRange,
    },
}

impl<F: Format, P: Platform> PageTable<F, P> {
    /// The one of `leaves` around `gpa`, not one of a run. `None` unless they are one run: the rest
    /// of it can do without that leaf, and that leaf without them.
    pub fn one_of_run(&self, leaves: &Leaves, gpa: Gpa) -> Option<Leaves> {
        let Leaves { range, level, .. } = *leaves;
        let one_run =
            leaves.runs.is_some() && self.geometry.run_bytes(level) == Some(range.bytes());
        if !one_run || !range.contains(gpa) {
            return None;
        }
        let index = (gpa.raw() - range.start().raw()) >> self.geometry.shape(level).shift;
        Some(Leaves {
            range: self.geometry.block(level, gpa)?,
            level,
            count: 1,
            first: leaves.leaf(index, F::leaf_step(level)),
            runs: None,
        })
    }

    /// Encodes the leaves of `level` that map `range` to host memory from `hpa` on. Which of them
    /// become one of a run does not depend on [`Attributes::contiguous`], but on where they are.
    ///
    /// # Errors
    ///
    /// [`LeavesError`], if the format cannot express them, they are no neighbours in one table, or
    /// they have to be mapped in two steps.
    #[inline]
    pub fn leaves(
        &self,
        range: GpaRange,
        hpa: Hpa,
        level: Level,
        attributes: Attributes,
    ) -> Result<Leaves, LeavesError> {
        let root = self.geometry.root();
        let last = range.end().raw() - 1;
        // The root is one table, wherever the format's tables of its level would end.
        let one_table = (range.start().raw() ^ last) >> F::shift(level.up()) == 0 || level == root;
        let bytes = 1 << F::shift(level);
        let whole = range.start().is_aligned(bytes) && range.end().is_aligned(bytes);
        let exists = level <= root && self.geometry.contains(&range);
        if !(one_table && whole && exists) {
            return Err(LeavesError::NotARun { range, level });
        }
        if !self.geometry.shape(level).leaf {
            return Err(EncodeError::NoLeaf(level).into());
        }
        let attributes = Attributes {
            contiguous: false,
            ..attributes
        };
        let leaves = Leaves {
            range,
            level,
            count: range.bytes() >> F::shift(level),
            first: F::leaf(&self.features, level, hpa, attributes)?,
            runs: None,
        };
        if leaves.count == 1 {
            Ok(leaves)
        } else {
            self.with_neighbours(leaves, hpa, attributes)
        }
    }

    /// The same leaves, of which only the first is known so far, with all others.
    #[inline(never)]
    fn with_neighbours(
        &self,
        leaves: Leaves,
        hpa: Hpa,
        attributes: Attributes,
    ) -> Result<Leaves, LeavesError> {
        let Leaves {
            range,
            level,
            first,
            ..
        } = leaves;
        self.check_last(range, hpa, level, attributes, first)?;
        let runs = self.runs(range, hpa, level, attributes);
        Ok(Leaves { runs, ..leaves })
    }

    /// Checks that the last leaf of a range can be encoded, and is what stepping from the first
    /// leads to.
    fn check_last(
        &self,
        range: GpaRange,
        hpa: Hpa,
        level: Level,
        attributes: Attributes,
        first: u64,
    ) -> Result<(), LeavesError> {
        let shift = self.geometry.shape(level).shift;
        let not_a_run = LeavesError::NotARun { range, level };
        let is_stepped_to = |steps: u64| {
            let hpa = hpa.checked_add(steps << shift).ok_or(not_a_run)?;
            let encoded = F::leaf(&self.features, level, hpa, attributes)?;
            let stepped = first.wrapping_add(steps.wrapping_mul(F::leaf_step(level)));
            Ok::<_, LeavesError>(encoded == stepped)
        };
        let last = (range.bytes() >> shift) - 1;
        if is_stepped_to(last)? {
            return Ok(());
        }
        // What carries once does so from there on.
        let (mut fits, mut carries) = (0, last);
        while carries - fits > 1 {
            let middle = fits.midpoint(carries);
            if is_stepped_to(middle)? {
                fits = middle;
            } else {
                carries = middle;
            }
        }
        let front = GpaRange::new(range.start(), (fits + 1) << shift);
        Err(front.map_or(not_a_run, |front| LeavesError::Carry { front }))
    }

    /// The first leaf of the whole runs in `range`, if guest and host addresses are aligned alike and
    /// the format can express them; their last leaf is checked like that of the range.
    fn runs(&self, range: GpaRange, hpa: Hpa, level: Level, attributes: Attributes) -> Option<u64> {
        let run_bytes = self.geometry.run_bytes(level)?;
        let LevelShape {
            shift, run_bits, ..
        } = *self.geometry.shape(level);
        let start = range.start().raw().next_multiple_of(run_bytes);
        let end = range.end().align_down(run_bytes);
        let inside = GpaRange::between(Gpa::new(start), end)?;
        let offset = start - range.start().raw();
        let hpa = hpa.checked_add(offset)?;
        if !hpa.is_aligned(run_bytes) {
            return None;
        }
        let attributes = Attributes {
            contiguous: true,
            ..attributes
        };
        let encode = |hpa| F::leaf(&self.features, level, hpa, attributes).ok();
        let first = encode(hpa)?;
        let leaves = inside.bytes() >> shift;
        let last = encode(hpa.checked_add(inside.bytes() - (1 << shift))?)?;
        let steps = ((leaves >> run_bits) - 1).wrapping_mul(F::leaf_step(level) << run_bits);
        let steps_inside = ((1 << run_bits) - 1u64).wrapping_mul(F::run_step(level));
        let stepped = first.wrapping_add(steps).wrapping_add(steps_inside);
        (stepped == last).then_some(first)
    }
}
