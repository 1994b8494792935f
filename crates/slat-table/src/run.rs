//! Runs: neighbouring leaves of one table that hardware may keep as one translation.
//!
//! Some formats let an entry say that it and its neighbours, aligned together in both address
//! spaces, map one piece of memory alike (Arm's contiguous hint, RISC-V's NAPOT pages). A TLB may
//! then use any of these entries for the addresses of all, so they come and go together: the
//! tables never hold some leaves of a run without the others, and what is done to one leaf is done
//! to its run. How long a run is, [`LevelShape::run_bits`](crate::geometry::LevelShape::run_bits)
//! says. A leaf that is not one of a run is a run of one.

use crate::address::{Gpa, GpaRange, Hpa};
use crate::attributes::Attributes;
use crate::entry::entry_address;
use crate::format::{Entry, Format};
use crate::geometry::Level;
use crate::hold::{Place, Tree};
use crate::platform::Platform;
use crate::table::PageTable;

/// Entries that come and go together: those of a run, or one entry alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// What they map.
    pub(crate) range: GpaRange,
    pub(crate) level: Level,
    /// The first entry.
    pub(crate) first: Hpa,
    /// How many there are.
    pub(crate) entries: u64,
}

impl Run {
    pub(crate) const fn is_alone(&self) -> bool {
        self.entries == 1
    }

    /// The addresses of its entries.
    pub(crate) fn each<F: Format>(&self) -> impl Iterator<Item = Hpa> + use<F> {
        let first = self.first;
        (0..self.entries).map(move |index| entry_address::<F>(first, index))
    }
}

/// Whether `raw`, found at `level`, is a leaf of a run.
#[inline]
pub(crate) fn is_in_run<F: Format>(level: Level, raw: u64) -> bool {
    !F::is_empty(level, raw) && !F::is_table(level, raw) && F::is_in_run(level, raw)
}

impl<F: Format, P: Platform> PageTable<F, P> {
    /// The run of the entry at `place`, which was found for `gpa`. `None` if its end is no number.
    #[inline]
    pub(crate) fn run_at(&self, place: Place, gpa: Gpa) -> Option<Run> {
        let Place { entry, level, raw } = place;
        let alone = self.geometry.block(level, gpa)?;
        let bytes = match self.geometry.run_bytes(level) {
            Some(bytes) if is_in_run::<F>(level, raw) => bytes,
            _ => {
                return Some(Run {
                    range: alone,
                    level,
                    first: entry,
                    entries: 1,
                });
            }
        };
        let range = GpaRange::block_around(gpa, bytes)?;
        let shift = self.geometry.shape(level).shift;
        let before = (alone.start().raw() - range.start().raw()) >> shift;
        Some(Run {
            range,
            level,
            first: Hpa::new(entry.raw() - before * F::ENTRY_BYTES),
            entries: bytes >> shift,
        })
    }

    /// Bytes that a leaf of `level` maps; together with the others of its run, if it is one of a
    /// run.
    #[inline]
    pub(crate) fn leaf_bytes(&self, level: Level, in_run: bool) -> u64 {
        let alone = self.geometry.entry_bytes(level);
        if in_run {
            self.geometry.run_bytes(level).unwrap_or(alone)
        } else {
            alone
        }
    }

    /// The host address behind `gpa`, which a leaf of `level` maps that decodes to `hpa`.
    #[inline]
    pub(crate) fn hpa_behind(
        &self,
        gpa: Gpa,
        level: Level,
        hpa: Hpa,
        attributes: Attributes,
    ) -> Hpa {
        Hpa::new(hpa.raw() | gpa.raw() & (self.leaf_bytes(level, attributes.contiguous) - 1))
    }

    /// `attributes`, those of one leaf of `run`, with what the hardware noted in any of its leaves:
    /// it may note that a run was used or written in one of them only.
    pub(crate) fn with_notes(&self, run: &Run, mut attributes: Attributes) -> Attributes {
        for entry in run.each::<F>() {
            if let Entry::Leaf { attributes: of, .. } = self.decode(run.level, self.load(entry)) {
                attributes.accessed |= of.accessed;
                attributes.dirty |= of.dirty;
            }
        }
        attributes
    }
}

impl<F: Format, P: Platform> Tree<'_, F, P> {
    /// Changes what every leaf of `run` says. False if the format cannot express it.
    pub(crate) fn change_run(self, run: &Run, change: impl Fn(Attributes) -> Attributes) -> bool {
        let table = self.table;
        let bytes = table.geometry.entry_bytes(run.level);
        let mut expressed = true;
        for (index, entry) in (0..).zip(run.each::<F>()) {
            let (level, raw) = (run.level, table.load(entry));
            let place = Place { entry, level, raw };
            expressed &= self.change_leaf(place, index * bytes, &change);
        }
        expressed
    }
}
