//! The shape of a tree of tables: how many levels, how an address is cut into indexes, how big
//! each table is.
//!
//! Levels count **up from the pages**: level 0 holds the entries that map single pages, the root
//! is the highest. (Arm counts the other way: its level 3 is our level 0.) A *span* is what one
//! level-0 table maps; locks are striped by span.

use crate::address::{Gpa, GpaRange, PAGE_SHIFT};

/// The most levels any format has (EPT with 57 bits, `Sv57x4`, s390 with region-first tables).
pub const MAX_LEVELS: usize = 5;

/// Bytes of the smallest entry of any format (RISC-V `Sv32x4`).
const SMALLEST_ENTRY: u64 = 4;

/// A level of the tree; 0 maps single pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u8);

impl Level {
    /// The level whose entries map single pages.
    pub const PAGE: Self = Self(0);

    /// The level with this number.
    #[inline]
    pub const fn new(number: u8) -> Self {
        Self(number)
    }

    /// The level with this number, which is that of a level of some format.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "no format has that many levels"
    )]
    pub(crate) const fn from_index(index: usize) -> Self {
        debug_assert!(index < MAX_LEVELS, "more levels than any format has");
        Self(index as u8)
    }

    /// Its number, for indexing.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The next level towards the pages, or `None` at the pages.
    #[inline]
    pub const fn down(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The next level towards the root.
    #[inline]
    pub const fn up(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// [`Format::SHIFTS`](crate::format::Format::SHIFTS) of a format whose pages have
/// `1 << page_shift` bytes, where each level translates `index_bits` bits of an address.
pub(crate) const fn level_shifts<const LEVELS: usize>(
    page_shift: u8,
    index_bits: u8,
) -> [u8; LEVELS] {
    let mut shifts = [page_shift; LEVELS];
    let mut level = 1;
    while level < LEVELS {
        shifts[level] = shifts[level - 1] + index_bits;
        level += 1;
    }
    shifts
}

/// The tables of one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelShape {
    /// log2 of the bytes that one entry maps.
    pub shift: u8,
    /// log2 of the number of entries. The root's may be larger than the other tables of its
    /// level would be (Arm concatenates up to 16, RISC-V widens by 2 bits, POWER has 13).
    pub index_bits: u8,
    /// Size and alignment of a table in bytes. May exceed the entries (s390 keeps guest storage
    /// keys behind them).
    pub table_bytes: u32,
    /// Whether an entry of this level may be a leaf.
    pub leaf: bool,
    /// log2 of how many neighbouring leaves, aligned together in both address spaces, hardware may
    /// be told to keep as one translation (Arm's contiguous hint, RISC-V's NAPOT); 0 where it
    /// cannot be told. Counts as 0 in a table that has fewer entries.
    pub run_bits: u8,
}

/// The tree's shape, root included; made by [`Format::geometry`](crate::format::Format::geometry).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Longer than any tree is high: a level is then an index by dropping bits.
    levels: [LevelShape; 8],
    /// One less than the number of entries, by level.
    index_masks: [u64; 8],
    root: Level,
    address_bits: u8,
    end: Gpa,
}

impl Geometry {
    /// A geometry from its levels, pages first, the last being the root.
    ///
    /// `address_bits` is the width of a guest physical address.
    ///
    /// # Errors
    ///
    /// `None` if there are no levels, more than [`MAX_LEVELS`], their index bits do not add up, a
    /// table is too small for the smallest entries there are (see
    /// [`holds_entries_of`](Self::holds_entries_of)), an entry maps less than
    /// [`PAGE_SIZE`](crate::address::PAGE_SIZE), or the tree maps 64 bits or more.
    pub fn new(shapes: &[LevelShape], address_bits: u8) -> Option<Self> {
        let last = shapes.last()?;
        let maps = |shape: &LevelShape| u32::from(shape.shift) + u32::from(shape.index_bits);
        // The end of the last page must be a number too.
        let widest = 63;
        if shapes.len() > MAX_LEVELS || !(u32::from(address_bits)..=widest).contains(&maps(last)) {
            return None;
        }
        if shapes
            .windows(2)
            .any(|pair| maps(&pair[0]) != u32::from(pair[1].shift))
        {
            return None;
        }
        if u32::from(shapes[0].shift) < PAGE_SHIFT {
            return None;
        }
        let mut levels = [*last; 8];
        levels[..shapes.len()].copy_from_slice(shapes);
        // A root may be too small for what is a run in the other tables of its level.
        for level in levels.iter_mut().filter(|of| of.run_bits > of.index_bits) {
            level.run_bits = 0;
        }
        let root = Level::new(u8::try_from(shapes.len() - 1).ok()?);
        let geometry = Self {
            levels,
            index_masks: levels.map(|level| (1 << level.index_bits) - 1),
            root,
            address_bits,
            end: Gpa::new(1 << address_bits),
        };
        geometry
            .holds_entries_of(SMALLEST_ENTRY)
            .then_some(geometry)
    }

    /// Whether every table has room for its entries, if each takes `bytes` bytes.
    pub fn holds_entries_of(&self, bytes: u64) -> bool {
        self.levels_down().all(|level| {
            let shape = self.shape(level);
            u64::from(shape.table_bytes) >> shape.index_bits >= bytes
        })
    }

    /// Whether every level has the shift of that number in `shifts`.
    pub fn has_shifts(&self, shifts: &[u8]) -> bool {
        self.levels_down()
            .all(|level| shifts.get(level.index()) == Some(&self.shape(level).shift))
    }

    /// The root's level.
    #[inline]
    pub const fn root(&self) -> Level {
        self.root
    }

    /// Width of a guest physical address in bits.
    #[inline]
    pub const fn address_bits(&self) -> u8 {
        self.address_bits
    }

    /// The first guest physical address beyond that width.
    #[inline]
    pub const fn end(&self) -> Gpa {
        self.end
    }

    /// Shape of the tables of `level`; the root's beyond it.
    #[inline]
    pub const fn shape(&self, level: Level) -> &LevelShape {
        &self.levels[level.index() % 8]
    }

    /// Bytes that one entry of `level` maps.
    #[inline]
    pub const fn entry_bytes(&self, level: Level) -> u64 {
        1 << (self.shape(level).shift & 63)
    }

    /// Bytes that a run of leaves of `level` maps; `None` where there are no runs.
    #[inline]
    pub const fn run_bytes(&self, level: Level) -> Option<u64> {
        let LevelShape {
            shift, run_bits, ..
        } = *self.shape(level);
        if run_bits == 0 {
            None
        } else {
            Some(1 << ((shift + run_bits) & 63))
        }
    }

    /// Bytes that one table of `level` maps.
    #[inline]
    pub const fn table_maps(&self, level: Level) -> u64 {
        1 << self.table_shift(level)
    }

    /// log2 of the bytes that one table of `level` maps.
    #[inline]
    pub(crate) const fn table_shift(&self, level: Level) -> u32 {
        ((self.shape(level).shift + self.shape(level).index_bits) & 63) as u32
    }

    /// log2 of the bytes of a span: what one level-0 table maps.
    #[inline]
    pub const fn span_shift(&self) -> u32 {
        self.table_shift(Level::PAGE)
    }

    /// The span around `gpa`.
    #[inline]
    pub fn span(&self, gpa: Gpa) -> Option<GpaRange> {
        let first = &self.levels[0];
        GpaRange::aligned_block(gpa, first.shift + first.index_bits)
    }

    /// Index of `gpa`'s entry in its table of `level`.
    #[inline]
    pub const fn index(&self, level: Level, gpa: Gpa) -> u64 {
        (gpa.raw() >> (self.shape(level).shift & 63)) & self.index_masks[level.index() % 8]
    }

    /// The block that the entry of `level` around `gpa` maps, as far as the guest's addresses go:
    /// an entry of the root may reach further. `None` beyond them.
    #[inline]
    pub fn block(&self, level: Level, gpa: Gpa) -> Option<GpaRange> {
        let start = gpa.align_down(self.entry_bytes(level));
        let end = start.raw().saturating_add(self.entry_bytes(level));
        GpaRange::between(start, Gpa::new(end).min(self.end))
    }

    /// Whether `range` lies inside the guest's address width.
    #[inline]
    pub fn contains(&self, range: &GpaRange) -> bool {
        range.end() <= self.end
    }

    /// The levels from the root down to the pages.
    pub fn levels_down(&self) -> impl Iterator<Item = Level> + use<> {
        (0..=self.root.0).rev().map(Level)
    }

    /// Numbers of entries by level, pages first, as numbers by the bytes that one of them maps.
    pub fn by_size(&self, entries: [u64; MAX_LEVELS]) -> impl Iterator<Item = (u64, u64)> {
        let levels = (0..=self.root.0).map(Level);
        levels.map(move |level| (self.entry_bytes(level), entries[level.index()]))
    }

    /// The levels below the root, pages first.
    pub fn levels_below_root(&self) -> impl Iterator<Item = Level> + use<> {
        (0..self.root.0).map(Level)
    }

    /// The levels at which a leaf may stand, largest first.
    pub fn leaf_levels(&self) -> impl Iterator<Item = Level> + '_ {
        self.levels_down().filter(|level| self.shape(*level).leaf)
    }

    /// The same, smallest first.
    #[inline]
    pub fn leaf_levels_up(&self) -> impl Iterator<Item = Level> + '_ {
        let levels = (0..=self.root.0).map(Level);
        levels.filter(|level| self.shape(*level).leaf)
    }

    /// The sizes of leaves in bytes, largest first, each with its level: a run of leaves that
    /// hardware may keep as one counts as a size of its own.
    pub fn leaf_sizes(&self) -> impl Iterator<Item = (Level, u64)> + '_ {
        self.leaf_levels().flat_map(|level| {
            let run = self.run_bytes(level).into_iter();
            run.chain([self.entry_bytes(level)])
                .map(move |bytes| (level, bytes))
        })
    }

    /// The fewest bytes of tables that can map the pages in `ranges` with leaves no larger than
    /// `largest`: the root, and each lower table that some range needs, once.
    ///
    /// The ranges must be sorted and must not overlap.
    pub fn minimum_table_bytes(&self, ranges: &[(GpaRange, Level)]) -> u64 {
        let mut bytes = u64::from(self.shape(self.root).table_bytes);
        for number in 0..self.root.0 {
            let level = Level::new(number);
            let shift = self.shape(level).shift + self.shape(level).index_bits;
            let mut next_free = 0;
            let mut tables = 0;
            for (range, leaf) in ranges.iter().filter(|(_, leaf)| *leaf <= level) {
                debug_assert!(*leaf <= level);
                let first = (range.start().raw() >> shift).max(next_free);
                let after = ((range.end().raw() - 1) >> shift) + 1;
                tables += after.saturating_sub(first);
                next_free = next_free.max(after);
            }
            bytes += tables * u64::from(self.shape(level).table_bytes);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn shape(shift: u8, index_bits: u8) -> LevelShape {
        LevelShape {
            shift,
            index_bits,
            table_bytes: 8u32.checked_shl(index_bits.into()).unwrap_or(0),
            leaf: true,
            run_bits: 0,
        }
    }

    #[test]
    fn levels_must_fit_together() {
        let two = [shape(12, 9), shape(21, 11)];
        assert!(Geometry::new(&two, 32).is_some());
        assert_eq!(Geometry::new(&two, 33), None, "more than the root maps");
        assert_eq!(Geometry::new(&[], 32), None);
        assert_eq!(Geometry::new(&[shape(11, 9)], 20), None, "half a page");
        assert_eq!(
            Geometry::new(&[shape(12, 9), shape(20, 12)], 32),
            None,
            "they overlap"
        );
        assert_eq!(Geometry::new(&[shape(12, 9); 6], 21), None, "too many");
        assert_eq!(Geometry::new(&[shape(200, 100)], 40), None);
        assert_eq!(
            Geometry::new(&[shape(12, 52)], 40),
            None,
            "the end of 64 bits is no number"
        );
        let with_tables_of = |table_bytes| {
            let shape = LevelShape {
                table_bytes,
                ..shape(12, 9)
            };
            Geometry::new(&[shape], 21)
        };
        assert_eq!(with_tables_of(1024), None, "entries do not fit");
        let small = with_tables_of(2048).unwrap();
        assert!(small.holds_entries_of(4) && !small.holds_entries_of(8));
        assert!(with_tables_of(4096).unwrap().holds_entries_of(8));
    }

    #[test]
    fn runs_are_sizes_of_leaves() {
        let run = |shape: LevelShape, run_bits| LevelShape { run_bits, ..shape };
        let levels = [run(shape(12, 9), 4), shape(21, 9), run(shape(30, 9), 1)];
        let sizes = |levels: &[LevelShape]| -> Vec<_> {
            let geometry = Geometry::new(levels, 39).unwrap();
            let sizes = geometry.leaf_sizes();
            sizes.map(|(level, bytes)| (level.index(), bytes)).collect()
        };
        let expected = [
            (2, 2 << 30),
            (2, 1 << 30),
            (1, 2 << 20),
            (0, 1 << 16),
            (0, 1 << 12),
        ];
        assert_eq!(sizes(&levels), expected);
        let no_leaf = LevelShape {
            leaf: false,
            ..levels[2]
        };
        assert_eq!(sizes(&[levels[0], levels[1], no_leaf]), expected[2..]);
        let small_root = LevelShape {
            index_bits: 3,
            ..levels[0]
        };
        let small = Geometry::new(&[small_root], 15).unwrap();
        assert_eq!(
            small.run_bytes(Level::PAGE),
            None,
            "eight entries are no run of sixteen"
        );
    }

    #[test]
    fn the_fewest_tables_are_counted_once_each() {
        let levels = [shape(12, 9), shape(21, 9), shape(30, 9)];
        let geometry = Geometry::new(&levels, 39).unwrap();
        let range = |start, bytes| GpaRange::new(Gpa::new(start), bytes).unwrap();
        let (mib2, gib) = (Level::new(1), Level::new(2));
        assert_eq!(geometry.minimum_table_bytes(&[]), 4096);
        let one_page = [(range(0x1000, 0x1000), Level::PAGE)];
        assert_eq!(geometry.minimum_table_bytes(&one_page), 3 * 4096);
        let mixed = [
            (range(0, 0x1000), Level::PAGE),
            (range(0x5000, 0x1000), Level::PAGE),
            (range(1 << 21, 1 << 21), mib2),
            (range(3 << 21, 0x1000), Level::PAGE),
            (range(1 << 30, 1 << 30), gib),
        ];
        // Root, one table of 2 MiB entries, two of pages.
        assert_eq!(geometry.minimum_table_bytes(&mixed), 4 * 4096);
        let across = [(range((1 << 30) - 0x1000, 0x2000), Level::PAGE)];
        assert_eq!(geometry.minimum_table_bytes(&across), 5 * 4096);
    }

    /// Pages, blocks of 2 MiB and of 1 GiB, 40 bits: a root wider than the others.
    fn three_levels() -> Geometry {
        let shapes = [shape(12, 9), shape(21, 9), shape(30, 10)];
        Geometry::new(&shapes, 40).unwrap()
    }

    #[test]
    fn an_address_is_cut_into_indexes() {
        let geometry = three_levels();
        let gpa = Gpa::new(515 << 30 | 5 << 21 | 7 << 12 | 0x123);
        let indexes = [0, 1, 2].map(|number| geometry.index(Level::new(number), gpa));
        assert_eq!(indexes, [7, 5, 515]);
        assert_eq!((geometry.address_bits(), geometry.span_shift()), (40, 21));
        let maps = [0, 1, 2].map(|number| geometry.table_maps(Level::new(number)));
        assert_eq!(maps, [1 << 21, 1 << 30, 1 << 40]);
    }

    #[test]
    fn spans_and_blocks_lie_around_their_address() {
        let geometry = three_levels();
        let range = |start, bytes| GpaRange::new(Gpa::new(start), bytes).ok();
        let gpa = Gpa::new((5 << 21) + 0x7123);
        assert_eq!(geometry.span(gpa), range(5 << 21, 2 << 20));
        let block = |number| geometry.block(Level::new(number), gpa);
        assert_eq!(block(0), range((5 << 21) + 0x7000, 0x1000));
        assert_eq!(block(1), range(5 << 21, 2 << 20));
        assert_eq!(block(2), range(0, 1 << 30));
        assert_eq!(geometry.block(Level::PAGE, Gpa::new(1 << 40)), None);
        let last = range((1 << 40) - 0x1000, 0x1000).unwrap();
        assert!(geometry.contains(&last));
        assert!(!geometry.contains(&range((1 << 40) - 0x1000, 0x2000).unwrap()));
    }

    #[test]
    fn levels_are_listed_from_either_end() {
        let geometry = three_levels();
        let numbers =
            |levels: Vec<Level>| levels.iter().map(|level| level.index()).collect::<Vec<_>>();
        assert_eq!(numbers(geometry.levels_down().collect()), [2, 1, 0]);
        assert_eq!(numbers(geometry.levels_below_root().collect()), [0, 1]);
        let mut up: Vec<_> = geometry.leaf_levels().collect();
        up.reverse();
        assert!(!up.is_empty() && geometry.leaf_levels_up().eq(up));
        assert_eq!(Level::PAGE.down(), None);
        assert_eq!(Level::new(2).down(), Some(Level::new(1)));
        let sizes: Vec<_> = geometry.by_size([4, 3, 2, 1, 0]).collect();
        assert_eq!(sizes, [(1 << 12, 4), (1 << 21, 3), (1 << 30, 2)]);
    }

    #[test]
    fn a_range_that_ends_with_a_table_needs_no_table_behind_it() {
        let geometry = three_levels();
        let span = GpaRange::new(Gpa::new(5 << 21), 2 << 20).unwrap();
        let table = |number| u64::from(geometry.shape(Level::new(number)).table_bytes);
        let fewest = geometry.minimum_table_bytes(&[(span, Level::PAGE)]);
        assert_eq!(fewest, table(0) + table(1) + table(2));
    }
}
