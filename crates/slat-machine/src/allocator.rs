//! Who has which part of RAM: the free blocks, the tables and the frames.
//!
//! Whatever is given back is given out again, because that is what makes a stale translation
//! hurt. The seed says when: *soonest*, so that somebody else has the page while the stale
//! translation is still warm, or *latest*, so that the page lies free, poisoned, meanwhile.

use std::collections::{BTreeMap, VecDeque};

use crate::address::Hpa;
use crate::memory::{PAGE_BYTES, PAGE_SHIFT};
use crate::random::Random;

/// 1 GiB: log2 of the pages of the largest block.
const LARGEST: u32 = 18;

/// What memory was given out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A table.
    Table,
    /// A guest's page or block.
    Frame,
}

/// A run of pages that somebody has.
#[derive(Clone, Copy, Debug)]
struct Owned {
    pages: u64,
    purpose: Purpose,
}

/// What is free and what is not. Blocks are powers of two of pages, aligned to their size.
#[derive(Debug)]
pub(crate) struct Allocator {
    /// First pages of free blocks by log2 of their size; those given back last at the back.
    free: Vec<VecDeque<u64>>,
    owned: BTreeMap<u64, Owned>,
    soonest: bool,
    /// Whether anything was given back since free blocks were last joined.
    joinable: bool,
}

impl Allocator {
    pub(crate) fn new(ram: (Hpa, u64), random: &mut Random) -> Self {
        let mut allocator = Self {
            free: vec![VecDeque::new(); LARGEST as usize + 1],
            owned: BTreeMap::new(),
            soonest: random.half(),
            joinable: false,
        };
        let first = ram.0.0 >> PAGE_SHIFT;
        allocator.add(first, first + (ram.1 >> PAGE_SHIFT));
        allocator
    }

    /// Memory of `bytes`, aligned to its size; `None` if no block is large enough.
    ///
    /// # Panics
    ///
    /// If `bytes` is no power of two.
    pub(crate) fn allocate(&mut self, bytes: u64, purpose: Purpose) -> Option<Hpa> {
        let order = order(bytes);
        if order > LARGEST {
            return None;
        }
        let first = self.take(order).or_else(|| {
            if !core::mem::take(&mut self.joinable) {
                return None;
            }
            self.join();
            self.take(order)
        })?;
        let pages = 1 << order;
        self.owned.insert(first, Owned { pages, purpose });
        Some(Hpa(first << PAGE_SHIFT))
    }

    /// Takes memory back. A frame may come back in aligned pieces, one by one.
    ///
    /// # Panics
    ///
    /// If it was not given out, for this purpose and with this size.
    pub(crate) fn give_back(&mut self, start: Hpa, bytes: u64, purpose: Purpose) {
        let order = order(bytes);
        let (first, pages) = (start.0 >> PAGE_SHIFT, 1 << order);
        let below = self.owned.range(..=first).next_back();
        match below.map(|(from, owned)| (*from, *owned)) {
            Some((from, owned))
                if start.0.is_multiple_of(bytes.max(PAGE_BYTES))
                    && owned.purpose == purpose
                    && (from == first && owned.pages == pages
                        || purpose == Purpose::Frame && first + pages <= from + owned.pages) =>
            {
                self.disown((from, owned), first, pages);
            }
            other => panic!("{start} given back as a {purpose:?} of {bytes:#x} bytes: {other:?}"),
        }
        self.free[order as usize].push_back(first);
        self.joinable = true;
    }

    /// Leaves the owner what it has beside the `pages` pages from `first` on.
    fn disown(&mut self, (from, owned): (u64, Owned), first: u64, pages: u64) {
        self.owned.remove(&from);
        let (after, end) = (first + pages, from + owned.pages);
        for (from, end) in [(from, first), (after, end)] {
            if from < end {
                let pages = end - from;
                self.owned.insert(from, Owned { pages, ..owned });
            }
        }
    }

    /// Whether `hpa` lies in a table.
    pub(crate) fn is_table(&self, hpa: Hpa) -> bool {
        let page = hpa.0 >> PAGE_SHIFT;
        self.owned
            .range(..=page)
            .next_back()
            .is_some_and(|(first, owned)| {
                page < first + owned.pages && owned.purpose == Purpose::Table
            })
    }

    /// Bytes that nobody has.
    pub(crate) fn free_bytes(&self) -> u64 {
        let blocks = self.free.iter().enumerate();
        blocks
            .map(|(order, blocks)| (blocks.len() as u64) << order << PAGE_SHIFT)
            .sum()
    }

    /// The first page of some free block.
    pub(crate) fn free_page(&self, random: &mut Random) -> Option<Hpa> {
        let blocks = self.free.iter().map(VecDeque::len).sum();
        if blocks == 0 {
            return None;
        }
        let first = self.free.iter().flatten().nth(random.below(blocks))?;
        Some(Hpa(first << PAGE_SHIFT))
    }

    fn take(&mut self, order: u32) -> Option<u64> {
        let from = (order..=LARGEST).find(|size| !self.free[*size as usize].is_empty())?;
        let blocks = &mut self.free[from as usize];
        let first = if self.soonest {
            blocks.pop_back()
        } else {
            blocks.pop_front()
        }?;
        for size in order..from {
            self.free[size as usize].push_back(first + (1 << size));
        }
        Some(first)
    }

    /// Makes one block of neighbours wherever possible.
    fn join(&mut self) {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (order, blocks) in self.free.iter_mut().enumerate() {
            runs.extend(blocks.drain(..).map(|first| (first, first + (1 << order))));
        }
        runs.sort_unstable();
        runs.dedup_by(|next, run| {
            let adjacent = run.1 == next.0;
            if adjacent {
                run.1 = next.1;
            }
            adjacent
        });
        for (first, end) in runs {
            self.add(first, end);
        }
    }

    /// Makes a run of pages free, in the largest aligned blocks.
    fn add(&mut self, first: u64, end: u64) {
        let mut at = first;
        while at < end {
            let order = at.trailing_zeros().min((end - at).ilog2()).min(LARGEST);
            self.free[order as usize].push_back(at);
            at += 1 << order;
        }
    }
}

/// log2 of the pages that `bytes` take up; less than a page has a page to itself.
fn order(bytes: u64) -> u32 {
    assert!(
        bytes.is_power_of_two(),
        "{bytes:#x} bytes are no power of two"
    );
    bytes.max(PAGE_BYTES).ilog2() - PAGE_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEGABYTE: u64 = 1 << 20;

    fn allocator(seed: u64) -> Allocator {
        Allocator::new((Hpa(0x4020_0000), 6 * MEGABYTE), &mut Random::new(seed))
    }

    fn allocate(allocator: &mut Allocator, bytes: u64) -> Option<Hpa> {
        allocator.allocate(bytes, Purpose::Frame)
    }

    #[test]
    fn memory_is_aligned_and_nobody_shares_any() {
        let mut allocator = allocator(3);
        let mut taken = Vec::new();
        for bytes in [4096, 2 * MEGABYTE, 16384, 64, 4096, 2 * MEGABYTE] {
            let start = allocate(&mut allocator, bytes).unwrap();
            let bytes = bytes.max(4096);
            assert!(start.0.is_multiple_of(bytes));
            taken.push((start.0, start.0 + bytes));
        }
        taken.sort_unstable();
        assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    }

    #[test]
    fn pages_given_back_make_a_block_again() {
        let mut allocator = allocator(1);
        let pages: Vec<Hpa> =
            core::iter::from_fn(|| allocate(&mut allocator, PAGE_BYTES)).collect();
        assert_eq!(pages.len(), 3 * 512);
        for page in pages {
            allocator.give_back(page, PAGE_BYTES, Purpose::Frame);
        }
        for _ in 0..3 {
            assert!(allocate(&mut allocator, 2 * MEGABYTE).is_some());
        }
        assert_eq!(allocate(&mut allocator, PAGE_BYTES), None);
    }

    #[test]
    fn the_seed_decides_whether_a_page_is_reused_soonest_or_latest() {
        let reused_at_once = |seed| {
            let mut allocator = allocator(seed);
            let page = allocate(&mut allocator, PAGE_BYTES).unwrap();
            allocator.give_back(page, PAGE_BYTES, Purpose::Frame);
            allocate(&mut allocator, PAGE_BYTES) == Some(page)
        };
        assert!((0..20).any(reused_at_once));
        assert!(!(0..20).all(reused_at_once));
    }

    #[test]
    fn only_the_inside_of_a_table_is_a_table() {
        let mut allocator = allocator(1);
        let table = allocator.allocate(16384, Purpose::Table).unwrap();
        assert!(allocator.is_table(Hpa(table.0 + 16376)));
        assert!(!allocator.is_table(Hpa(table.0 + 16384)));
        let frame = allocate(&mut allocator, 4096).unwrap();
        assert!(!allocator.is_table(frame));
        allocator.give_back(table, 16384, Purpose::Table);
        assert!(!allocator.is_table(table));
    }

    #[test]
    #[should_panic(expected = "given back as a Table")]
    fn a_frame_cannot_be_given_back_as_a_table() {
        let mut allocator = allocator(1);
        let frame = allocate(&mut allocator, 4096).unwrap();
        allocator.give_back(frame, 4096, Purpose::Table);
    }
}
