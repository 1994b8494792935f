//! What the engine needs of the machine below: memory for tables, and a way to make the hardware
//! forget translations.
//!
//! The engine touches an entry only through [`TableMemory`], so bare metal inlines to atomics and
//! a model of the machine sees every write. It never issues an instruction itself: what must be
//! forgotten is described by a [`TlbWork`] and handed to a [`Tlb`].

use arrayvec::ArrayVec;

use crate::address::{GpaRange, Hpa};
use crate::attributes::MemoryType;
use crate::geometry::Level;
use crate::lock::Locks;
use crate::sync::Ordering;

/// Memory in which tables live.
///
/// The isolation of the guest rests on these laws:
/// * `allocate` hands out memory that nobody else has until it is freed, aligned to its size and
///   filled with zeros that every CPU and table walker can see;
/// * `load`, `store`, `compare_exchange` and `swap` are single-copy atomic on 8 bytes, carry the
///   ordering given (a table walker counts as an observer) and move values unchanged (the engine
///   deals with byte order);
/// * so are `load_word`, `store_word`, `compare_exchange_word` and `swap_word` on 4 bytes, and they
///   leave the bytes around those alone. Formats with entries of 4 bytes use only these. They are
///   provided, made of the others; a machine that accesses 4 bytes by itself overrides all four.
pub trait TableMemory: Send + Sync {
    /// A zeroed table of `bytes` bytes (a power of two) aligned to its size, or `None`. One at an
    /// address with more bits than the format's pointers hold is given back at once, and counts as
    /// none.
    ///
    /// May be called while the host announces a change, with any of the host's locks held: it
    /// must neither wait for one nor reclaim memory through them. The same goes for `free`.
    fn allocate(&self, bytes: u32) -> Option<Hpa>;

    /// Takes back the table of `bytes` bytes at `table`, which no walker can reach any more.
    fn free(&self, table: Hpa, bytes: u32);

    /// The entry at `entry`.
    fn load(&self, entry: Hpa, order: Ordering) -> u64;

    /// Writes the entry at `entry`.
    fn store(&self, entry: Hpa, value: u64, order: Ordering);

    /// Replaces `old` by `new` at `entry` (acquire and release).
    ///
    /// # Errors
    ///
    /// The value found, if it is not `old`.
    fn compare_exchange(&self, entry: Hpa, old: u64, new: u64) -> Result<(), u64>;

    /// Replaces whatever is at `entry` by `new` (acquire and release) and returns it.
    fn swap(&self, entry: Hpa, new: u64) -> u64;

    /// Writes `value` to the first `entries` entries of `table`, which was allocated and no walker
    /// can reach yet. A machine that can do that faster than one by one overrides it.
    fn fill(&self, table: Hpa, entries: u64, value: u64) {
        for entry in 0..entries {
            self.store(Hpa::new(table.raw() + entry * 8), value, Ordering::Release);
        }
    }

    /// The entry of 4 bytes at `entry`.
    #[inline]
    fn load_word(&self, entry: Hpa, order: Ordering) -> u32 {
        Word::at(entry).of(self.load(Word::at(entry).pair, order))
    }

    /// Writes the entry of 4 bytes at `entry`.
    #[inline]
    fn store_word(&self, entry: Hpa, value: u32, _order: Ordering) {
        // The entry beside it may change at any moment, so no store of 8 bytes will do.
        self.swap_word(entry, value);
    }

    /// Replaces `old` by `new` at `entry`, 4 bytes (acquire and release).
    ///
    /// # Errors
    ///
    /// The value found, if it is not `old`.
    #[inline]
    fn compare_exchange_word(&self, entry: Hpa, old: u32, new: u32) -> Result<(), u32> {
        let word = Word::at(entry);
        let mut pair = self.load(word.pair, Ordering::Acquire);
        loop {
            let found = word.of(pair);
            if found != old {
                return Err(found);
            }
            match self.compare_exchange(word.pair, pair, word.with(pair, new)) {
                Ok(()) => return Ok(()),
                Err(now) => pair = now,
            }
        }
    }

    /// Replaces whatever is at `entry`, 4 bytes, by `new` (acquire and release) and returns it.
    #[inline]
    fn swap_word(&self, entry: Hpa, new: u32) -> u32 {
        let word = Word::at(entry);
        let mut pair = self.load(word.pair, Ordering::Acquire);
        loop {
            match self.compare_exchange(word.pair, pair, word.with(pair, new)) {
                Ok(()) => return word.of(pair),
                Err(now) => pair = now,
            }
        }
    }
}

/// Where an entry of 4 bytes is: in one half of 8 bytes.
#[derive(Clone, Copy)]
struct Word {
    /// Where the 8 bytes are.
    pair: Hpa,
    /// How far up the word stands in them, read as a number by this CPU.
    shift: u32,
}

impl Word {
    #[inline]
    const fn at(entry: Hpa) -> Self {
        let first_by_address = entry.is_aligned(8);
        let first_is_lower = cfg!(target_endian = "little");
        Self {
            pair: entry.align_down(8),
            shift: if first_by_address == first_is_lower {
                0
            } else {
                32
            },
        }
    }

    /// The word in `pair`.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "one half is what is wanted"
    )]
    const fn of(self, pair: u64) -> u32 {
        (pair >> self.shift) as u32
    }

    /// `pair` with `value` for its word.
    #[inline]
    const fn with(self, pair: u64, value: u32) -> u64 {
        let mask = (u32::MAX as u64) << self.shift;
        pair & !mask | (value as u64) << self.shift
    }
}

/// How many separate ranges a [`TlbWork`] keeps before it widens the last one.
pub const TLB_RANGES: usize = 4;

/// As high as any level.
const HIGHEST: Level = Level::new(u8::MAX);

/// What the hardware must forget about one VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlbWork {
    ranges: ArrayVec<GpaRange, TLB_RANGES>,
    not_only_leaves: bool,
    smallest_leaf: Option<Level>,
    largest_leaf: Option<Level>,
}

impl TlbWork {
    /// Work that forgets the leaves of `level` in `range`, and nothing above them.
    pub fn leaves(range: GpaRange, level: Level) -> Self {
        Self {
            ranges: core::iter::once(range).collect(),
            not_only_leaves: false,
            smallest_leaf: Some(level),
            largest_leaf: Some(level),
        }
    }

    /// Work that forgets everything in `range`: leaves of any level and cached upper entries.
    pub fn everything_in(range: GpaRange) -> Self {
        Self {
            ranges: core::iter::once(range).collect(),
            not_only_leaves: true,
            smallest_leaf: Some(Level::PAGE),
            largest_leaf: Some(HIGHEST),
        }
    }

    /// Whether there is nothing to forget.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The guest physical ranges to forget.
    pub fn ranges(&self) -> &[GpaRange] {
        &self.ranges
    }

    /// Whether only leaf entries have changed, so that cached upper entries may stay.
    #[inline]
    pub fn only_leaves(&self) -> bool {
        !self.not_only_leaves
    }

    /// The lowest level at which leaves have changed: its entries' size is the largest stride
    /// that misses none.
    #[inline]
    pub fn smallest_leaf(&self) -> Level {
        self.smallest_leaf.unwrap_or(Level::PAGE)
    }

    /// The highest level at which leaves may have changed, for hardware that finds a translation
    /// only if it is told its size (POWER).
    #[inline]
    pub fn largest_leaf(&self) -> Level {
        self.largest_leaf.unwrap_or(HIGHEST)
    }

    /// Adds everything that `other` forgets. Ranges that touch become one.
    pub fn merge(&mut self, other: &Self) {
        self.not_only_leaves |= other.not_only_leaves;
        self.smallest_leaf = match (self.smallest_leaf, other.smallest_leaf) {
            (Some(ours), Some(theirs)) => Some(ours.min(theirs)),
            (ours, theirs) => ours.or(theirs),
        };
        self.largest_leaf = self.largest_leaf.max(other.largest_leaf);
        for range in &other.ranges {
            self.add(*range);
        }
    }

    fn add(&mut self, range: GpaRange) {
        let touches =
            |known: &GpaRange| range.start() <= known.end() && known.start() <= range.end();
        if let Some(known) = self.ranges.iter_mut().find(|known| touches(known)) {
            *known = known.hull(&range);
        } else if let Err(full) = self.ranges.try_push(range)
            && let Some(last) = self.ranges.last_mut()
        {
            *last = last.hull(&full.element());
        }
    }
}

/// How much was invalidated to carry out a [`TlbWork`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there is no third way")]
pub enum Extent {
    /// Nothing: there was nothing to forget.
    Nothing,
    /// So many entries, one by one.
    Entries(u64),
    /// Everything that the VM has.
    Everything,
}

/// The machine's translation caches, as far as they hold translations of one VM.
///
/// The isolation of the guest rests on `flush`: when it returns, no CPU has, or will get from an
/// entry changed before the call, a translation that `work` names. That includes translations
/// combined from the guest's own tables and ours (Arm ARM D8.14: invalidation by IPA does not
/// reach those, a VMID-wide stage-1 invalidation must follow), and partial walks unless
/// [`TlbWork::only_leaves`].
pub trait Tlb: Send + Sync {
    /// Makes every CPU forget what `work` names. Returns when that is complete. Called with no
    /// stripe held. Must not need progress of code that waits for a lock of ours.
    fn flush(&self, work: &TlbWork);

    /// Makes this CPU forget what it holds for `range`: leaves, and where invalid entries may be
    /// cached the upper entries too, since a table may just have been linked above `range`.
    fn flush_local(&self, range: GpaRange);

    /// Makes entries written before visible to every table walker (Arm: `DSB ISHST`).
    fn publish(&self);

    /// Readies host memory that a leaf is about to show to the guest: what the host wrote must
    /// be seen by a guest that bypasses caches, and by its instruction fetches. `bytes` bytes at
    /// `hpa`; `executable` says whether the guest may fetch from it. Called with no stripe held.
    /// Nothing to do where caches are coherent.
    fn prepare(&self, hpa: Hpa, bytes: u64, memory: MemoryType, executable: bool) {
        let _ = (hpa, bytes, memory, executable);
    }
}

/// Everything below the engine: one value per VM.
pub trait Platform: TableMemory + Tlb + 'static {
    /// The locks to use.
    type Locks: Locks;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_four_bytes_is_a_half_that_leaves_the_other_alone() {
        let pair = u64::from_ne_bytes([0x11, 0x22, 0x33, 0x44, 0xd5, 0xe6, 0xf7, 0x88]);
        let halves = [0x1000, 0x1004].map(|entry| Word::at(Hpa::new(entry)));
        assert!(halves.iter().all(|half| half.pair == Hpa::new(0x1000)));
        let words = halves.map(|half| half.of(pair).to_ne_bytes());
        assert_eq!(words, [[0x11, 0x22, 0x33, 0x44], [0xd5, 0xe6, 0xf7, 0x88]]);
        let value = u32::from_ne_bytes([0xa1, 0xb2, 0xc3, 0xd4]);
        let written = halves.map(|half| half.with(pair, value).to_ne_bytes());
        let first = [0xa1, 0xb2, 0xc3, 0xd4, 0xd5, 0xe6, 0xf7, 0x88];
        let second = [0x11, 0x22, 0x33, 0x44, 0xa1, 0xb2, 0xc3, 0xd4];
        assert_eq!(written, [first, second]);
    }
}
