//! Frames in a process's own memory, for tests and simulations.
//!
//! An [`Arena`] counts what it has handed out, can be told to fail, and makes mistakes show: a
//! fresh or freed frame is full of [`POISON`], and freeing what is not allocated panics.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use slat_table::address::{Hpa, HpaRange, PAGE_SIZE};

use crate::frames::{FrameSize, Frames};

/// What every byte of a frame is when nobody has written to it since it was last free.
pub const POISON: u8 = 0xa5;

/// Physical memory that is a vector.
pub struct Arena {
    range: HpaRange,
    state: Mutex<State>,
}

struct State {
    bytes: Vec<u8>,
    // One per 4 KiB page.
    used: Vec<bool>,
    // Allocations that still succeed; `None` is no limit.
    allowance: Option<u64>,
    huge_refused: bool,
    attempts: u64,
}

impl Arena {
    /// Memory that appears at `range`.
    ///
    /// # Panics
    ///
    /// If the process has no room for so many bytes.
    pub fn new(range: HpaRange) -> Self {
        let bytes = usize::try_from(range.bytes()).expect("an arena fits in the process");
        let pages = usize::try_from(range.pages()).expect("an arena fits in the process");
        let state = State {
            bytes: vec![POISON; bytes],
            used: vec![false; pages],
            allowance: None,
            huge_refused: false,
            attempts: 0,
        };
        Self {
            range,
            state: Mutex::new(state),
        }
    }

    /// Lets `allocations` more allocations succeed and all later ones fail; `None` lifts that.
    pub fn limit(&self, allocations: Option<u64>) {
        self.state().allowance = allocations;
    }

    /// Whether allocations of 2 MiB frames fail, as in memory that is fragmented.
    pub fn refuse_huge(&self, refuse: bool) {
        self.state().huge_refused = refuse;
    }

    /// Allocations asked for so far, failed ones included.
    pub fn attempts(&self) -> u64 {
        self.state().attempts
    }

    /// How many 4 KiB pages are handed out now; a 2 MiB frame counts 512.
    pub fn allocated_pages(&self) -> u64 {
        self.state().used.iter().map(|used| u64::from(*used)).sum()
    }

    /// Whether the page at `page` is handed out.
    pub fn is_allocated(&self, page: Hpa) -> bool {
        self.range.contains(page) && self.state().used[self.offset(page) / page_bytes()]
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change below is complete when it can panic, so a poisoned lock guards good state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offset(&self, hpa: Hpa) -> usize {
        assert!(
            self.range.contains(hpa),
            "{hpa} is not in the arena {}",
            self.range
        );
        to_usize(hpa.raw() - self.range.start().raw())
    }

    fn pages(&self, frame: Hpa, size: FrameSize) -> Range<usize> {
        assert!(
            frame.is_aligned(size.bytes()),
            "{frame} is not aligned to {size}"
        );
        let first = self.offset(frame) / page_bytes();
        first..first + to_usize(size.bytes()) / page_bytes()
    }

    fn span(&self, start: Hpa, bytes: usize) -> Range<usize> {
        let start = self.offset(start);
        start..start + bytes
    }
}

impl Frames for Arena {
    fn allocate(&self, size: FrameSize) -> Option<Hpa> {
        let mut state = self.state();
        state.attempts += 1;
        if state.huge_refused && size == FrameSize::Huge {
            return None;
        }
        if let Some(allowance) = &mut state.allowance {
            *allowance = allowance.checked_sub(1)?;
        }
        let start = self.range.start().raw().next_multiple_of(size.bytes());
        let last = self.range.end().raw().checked_sub(size.bytes())?;
        let frame = (start..=last)
            .step_by(to_usize(size.bytes()))
            .map(Hpa::new)
            .find(|frame| !state.used[self.pages(*frame, size)].contains(&true))?;
        state.used[self.pages(frame, size)].fill(true);
        Some(frame)
    }

    fn free(&self, frame: Hpa, size: FrameSize) {
        let mut state = self.state();
        let pages = self.pages(frame, size);
        let all_used = !state.used[pages.clone()].contains(&false);
        assert!(all_used, "{frame} ({size}) is freed but not allocated");
        state.used[pages].fill(false);
        state.bytes[self.span(frame, to_usize(size.bytes()))].fill(POISON);
    }

    fn zero(&self, frame: Hpa, size: FrameSize) {
        self.state().bytes[self.span(frame, to_usize(size.bytes()))].fill(0);
    }

    fn copy(&self, from: Hpa, to: Hpa, size: FrameSize) {
        let bytes = to_usize(size.bytes());
        let to = self.offset(to);
        self.state().bytes.copy_within(self.span(from, bytes), to);
    }

    fn read(&self, from: Hpa, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.state().bytes[self.span(from, bytes.len())]);
    }

    fn write(&self, to: Hpa, bytes: &[u8]) {
        self.state().bytes[self.span(to, bytes.len())].copy_from_slice(bytes);
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("range", &self.range)
            .field("allocated_pages", &self.allocated_pages())
            .finish_non_exhaustive()
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("an arena fits in the process")
}

fn page_bytes() -> usize {
    to_usize(PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(start: u64, bytes: u64) -> Arena {
        Arena::new(HpaRange::new(Hpa::new(start), bytes).unwrap())
    }

    #[test]
    fn a_huge_frame_is_aligned_and_comes_back_in_pieces() {
        let arena = arena(0x1000, 0x60_0000);
        let huge = arena.allocate(FrameSize::Huge).unwrap();
        assert_eq!(huge, Hpa::new(0x20_0000));
        assert_eq!(arena.allocated_pages(), 512);
        for page in 0..512 {
            arena.free(Hpa::new(huge.raw() + page * PAGE_SIZE), FrameSize::Base);
        }
        assert_eq!(arena.allocated_pages(), 0);
        assert_eq!(arena.allocate(FrameSize::Base), Some(Hpa::new(0x1000)));
    }

    #[test]
    fn allocation_fails_when_told_to_or_when_full() {
        let arena = arena(0, 3 * PAGE_SIZE);
        arena.limit(Some(1));
        assert!(arena.allocate(FrameSize::Base).is_some());
        assert_eq!(arena.allocate(FrameSize::Base), None);
        arena.limit(None);
        assert!(arena.allocate(FrameSize::Base).is_some());
        assert!(arena.allocate(FrameSize::Base).is_some());
        assert_eq!(arena.allocate(FrameSize::Base), None);
        assert_eq!(arena.allocate(FrameSize::Huge), None);
        assert_eq!(arena.attempts(), 6);
    }

    #[test]
    fn freed_memory_is_poisoned() {
        let arena = arena(0, PAGE_SIZE);
        let frame = arena.allocate(FrameSize::Base).unwrap();
        arena.zero(frame, FrameSize::Base);
        arena.free(frame, FrameSize::Base);
        let mut byte = [0];
        arena.read(frame, &mut byte);
        assert_eq!(byte, [POISON]);
    }

    #[test]
    #[should_panic(expected = "freed but not allocated")]
    fn a_double_free_panics() {
        let arena = arena(0, PAGE_SIZE);
        let frame = arena.allocate(FrameSize::Base).unwrap();
        arena.free(frame, FrameSize::Base);
        arena.free(frame, FrameSize::Base);
    }
}
