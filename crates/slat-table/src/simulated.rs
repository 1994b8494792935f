//! A machine in ordinary memory, for tests: [`SimulatedPlatform`].
//!
//! It keeps tables in an arena, counts them, lets allocations fail on demand, writes down
//! everything that the engine does ([`Event`]), and lets a test act in the middle of a flush. It
//! is a strict landlord: touching memory that is not an allocated table, or an entry that is not
//! aligned, panics at once, and freed tables are used again as late as possible, so that a use
//! after free shows.
//!
//! The value is a handle. A test keeps a clone, so that it can look at the machine while a
//! [`PageTable`](crate::table::PageTable) uses it and after that is gone.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU64 as Counter, Ordering as CoreOrdering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use crate::address::{GpaRange, Hpa, PAGE_SHIFT, PAGE_SIZE};
use crate::attributes::MemoryType;
use crate::lock::Locks;
use crate::platform::{Platform, TableMemory, Tlb, TlbWork};
use crate::sync::{AtomicU64, Ordering};

/// Host physical address at which the arena starts: aligned for the largest root of any format.
const ARENA_START: u64 = 0x8000_0000;

/// Pages of tables that [`SimulatedPlatform::new`] has room for.
const DEFAULT_PAGES: usize = 4096;

const WORDS_PER_PAGE: usize = 512;

/// What the engine did, in the order in which it was noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A table was handed out, filled with zeros.
    Allocated {
        /// Its address.
        table: Hpa,
        /// Its size.
        bytes: u32,
    },
    /// A table was taken back.
    Freed {
        /// Its address.
        table: Hpa,
        /// Its size.
        bytes: u32,
    },
    /// An entry was written: by a store, a swap, or a compare-exchange that succeeded.
    Written {
        /// The entry's address.
        entry: Hpa,
        /// The value before, in memory order.
        old: u64,
        /// The value now, in memory order.
        new: u64,
    },
    /// Every CPU was made to forget.
    Flushed(TlbWork),
    /// This CPU was made to forget.
    FlushedLocally(GpaRange),
    /// Entries were made visible to table walkers.
    Published,
    /// Host memory was readied for the guest.
    Prepared {
        /// First byte.
        hpa: Hpa,
        /// Size in bytes.
        bytes: u64,
        /// How the guest will see it.
        memory: MemoryType,
        /// Whether the guest may execute it.
        executable: bool,
    },
}

/// Which allocations fail.
#[derive(Clone, Copy, Debug)]
enum Failure {
    None,
    /// The one after so many.
    One(u64),
    /// All after so many.
    From(u64),
}

/// What a test does in the middle of a flush.
type FlushHook = Arc<dyn Fn(&TlbWork) + Send + Sync>;

/// One entry's memory.
struct Word {
    #[cfg(not(slat_loom))]
    value: AtomicU64,
    // The model checker pays for every atomic there is, so one comes to be when it is touched.
    #[cfg(slat_loom)]
    value: OnceLock<AtomicU64>,
}

impl Word {
    #[cfg(not(slat_loom))]
    const fn zero() -> Self {
        Self {
            value: AtomicU64::new(0),
        }
    }

    #[cfg(slat_loom)]
    const fn zero() -> Self {
        Self {
            value: OnceLock::new(),
        }
    }

    #[cfg(not(slat_loom))]
    const fn get(&self) -> &AtomicU64 {
        &self.value
    }

    #[cfg(slat_loom)]
    fn get(&self) -> &AtomicU64 {
        self.value.get_or_init(|| AtomicU64::new(0))
    }

    #[cfg(not(slat_loom))]
    fn clear(&self) {
        self.value.store(0, Ordering::Relaxed);
    }

    #[cfg(slat_loom)]
    fn clear(&self) {
        if let Some(value) = self.value.get() {
            value.store(0, Ordering::Relaxed);
        }
    }
}

/// A page of the arena.
struct Page {
    allocated: AtomicBool,
    words: OnceLock<Box<[Word]>>,
}

impl Page {
    const fn unused() -> Self {
        Self {
            allocated: AtomicBool::new(false),
            words: OnceLock::new(),
        }
    }

    fn words(&self) -> &[Word] {
        self.words
            .get_or_init(|| (0..WORDS_PER_PAGE).map(|_| Word::zero()).collect())
    }
}

/// What has been handed out.
struct Allocator {
    /// First page never handed out.
    fresh: usize,
    /// Tables taken back, by number of pages; the oldest is used first.
    returned: BTreeMap<usize, VecDeque<usize>>,
    failure: Failure,
}

impl Allocator {
    fn fails(&mut self) -> bool {
        match &mut self.failure {
            Failure::None => false,
            Failure::One(0) => {
                self.failure = Failure::None;
                true
            }
            Failure::From(0) => true,
            Failure::One(left) | Failure::From(left) => {
                *left -= 1;
                false
            }
        }
    }

    fn take(&mut self, pages: usize, capacity: usize) -> Option<usize> {
        if self.fails() {
            return None;
        }
        let first = self.fresh.next_multiple_of(pages);
        if first + pages <= capacity {
            self.fresh = first + pages;
            return Some(first);
        }
        self.returned.get_mut(&pages)?.pop_front()
    }
}

struct Machine {
    pages: Box<[Page]>,
    allocator: Mutex<Allocator>,
    journal: Mutex<Vec<Event>>,
    recording: AtomicBool,
    flush_hook: Mutex<Option<FlushHook>>,
    live_tables: Counter,
    live_bytes: Counter,
    allocations: Counter,
    flushes: Counter,
    local_flushes: Counter,
    publications: Counter,
}

impl Machine {
    fn word(&self, entry: Hpa, what: &str) -> &Word {
        assert!(entry.is_aligned(8), "{what} of the unaligned entry {entry}");
        let offset = entry.raw().checked_sub(ARENA_START);
        let page = offset.and_then(|offset| self.pages.get(page_number(offset)));
        match page {
            Some(page) if page.allocated.load(CoreOrdering::Acquire) => {
                &page.words()[(entry.raw() % PAGE_SIZE / 8) as usize]
            }
            Some(_) => panic!("{what} of {entry}, which lies in no allocated table"),
            None => panic!("{what} of {entry}, which is not table memory"),
        }
    }

    fn note(&self, event: Event) {
        if self.recording.load(CoreOrdering::Acquire) {
            locked(&self.journal).push(event);
        }
    }
}

const fn page_number(offset: u64) -> usize {
    (offset >> PAGE_SHIFT) as usize
}

/// A panic elsewhere has already failed the test; what it left behind may still be looked at.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A [`Platform`] in ordinary memory, with locks of the family `L`. Clones are the same machine.
pub struct SimulatedPlatform<L> {
    machine: Arc<Machine>,
    locks: PhantomData<fn() -> L>,
}

impl<L> SimulatedPlatform<L> {
    /// A machine with room for 16 MiB of tables, which take memory only when they are touched.
    pub fn new() -> Self {
        Self::with_pages(DEFAULT_PAGES)
    }

    /// A machine with room for `pages` pages (4 KiB each) of tables.
    pub fn with_pages(pages: usize) -> Self {
        let allocator = Allocator {
            fresh: 0,
            returned: BTreeMap::new(),
            failure: Failure::None,
        };
        let machine = Machine {
            pages: (0..pages).map(|_| Page::unused()).collect(),
            allocator: Mutex::new(allocator),
            journal: Mutex::new(Vec::new()),
            recording: AtomicBool::new(false),
            flush_hook: Mutex::new(None),
            live_tables: Counter::new(0),
            live_bytes: Counter::new(0),
            allocations: Counter::new(0),
            flushes: Counter::new(0),
            local_flushes: Counter::new(0),
            publications: Counter::new(0),
        };
        Self {
            machine: Arc::new(machine),
            locks: PhantomData,
        }
    }

    /// Tables allocated and not yet freed.
    pub fn live_tables(&self) -> u64 {
        self.machine.live_tables.load(CoreOrdering::SeqCst)
    }

    /// Bytes of the tables allocated and not yet freed.
    pub fn live_bytes(&self) -> u64 {
        self.machine.live_bytes.load(CoreOrdering::SeqCst)
    }

    /// Allocations asked for so far, those that failed included.
    pub fn allocations(&self) -> u64 {
        self.machine.allocations.load(CoreOrdering::SeqCst)
    }

    /// Calls of [`Tlb::flush`] so far.
    pub fn flushes(&self) -> u64 {
        self.machine.flushes.load(CoreOrdering::SeqCst)
    }

    /// Calls of [`Tlb::flush_local`] so far.
    pub fn local_flushes(&self) -> u64 {
        self.machine.local_flushes.load(CoreOrdering::SeqCst)
    }

    /// Calls of [`Tlb::publish`] so far.
    pub fn publications(&self) -> u64 {
        self.machine.publications.load(CoreOrdering::SeqCst)
    }

    /// Makes one allocation fail: the one after `skip` more that succeed.
    pub fn fail_allocation(&self, skip: u64) {
        locked(&self.machine.allocator).failure = Failure::One(skip);
    }

    /// Makes all allocations fail, after `skip` more that succeed.
    pub fn fail_allocations_from(&self, skip: u64) {
        locked(&self.machine.allocator).failure = Failure::From(skip);
    }

    /// Lets allocations succeed again, as long as there is room.
    pub fn allow_allocations(&self) {
        locked(&self.machine.allocator).failure = Failure::None;
    }

    /// Starts to write down [`Event`]s; [`take_events`](Self::take_events) hands them out.
    pub fn record(&self) {
        self.machine.recording.store(true, CoreOrdering::Release);
    }

    /// The events since the last call. One thread's are in order; those of several threads are
    /// in the order in which they were noted, which is shortly after they happened.
    pub fn take_events(&self) -> Vec<Event> {
        core::mem::take(&mut *locked(&self.machine.journal))
    }

    /// Has `hook` called in every flush from now on, before it counts as done. No lock of the
    /// machine is held, so the hook may use the page table: what it does happens between the
    /// removal and the end of the flush.
    pub fn on_flush(&self, hook: impl Fn(&TlbWork) + Send + Sync + 'static) {
        *locked(&self.machine.flush_hook) = Some(Arc::new(hook));
    }

    /// Takes away what [`on_flush`](Self::on_flush) set.
    pub fn clear_flush_hook(&self) {
        *locked(&self.machine.flush_hook) = None;
    }
}

impl<L> Default for SimulatedPlatform<L> {
    fn default() -> Self {
        Self::new()
    }
}

impl<L> Clone for SimulatedPlatform<L> {
    fn clone(&self) -> Self {
        Self {
            machine: Arc::clone(&self.machine),
            locks: PhantomData,
        }
    }
}

impl<L> fmt::Debug for SimulatedPlatform<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedPlatform")
            .field("live_tables", &self.live_tables())
            .field("live_bytes", &self.live_bytes())
            .field("allocations", &self.allocations())
            .field("flushes", &self.flushes())
            .finish_non_exhaustive()
    }
}

impl<L> TableMemory for SimulatedPlatform<L> {
    fn allocate(&self, bytes: u32) -> Option<Hpa> {
        assert!(bytes.is_power_of_two(), "a table of {bytes} bytes");
        let machine = &*self.machine;
        machine.allocations.fetch_add(1, CoreOrdering::SeqCst);
        let pages = pages_of(bytes);
        let first = locked(&machine.allocator).take(pages, machine.pages.len())?;
        for page in &machine.pages[first..first + pages] {
            for word in page.words.get().into_iter().flatten() {
                word.clear();
            }
            page.allocated.store(true, CoreOrdering::Release);
        }
        machine.live_tables.fetch_add(1, CoreOrdering::SeqCst);
        machine
            .live_bytes
            .fetch_add(u64::from(bytes), CoreOrdering::SeqCst);
        let table = Hpa::new(ARENA_START + first as u64 * PAGE_SIZE);
        machine.note(Event::Allocated { table, bytes });
        Some(table)
    }

    fn free(&self, table: Hpa, bytes: u32) {
        let machine = &*self.machine;
        let pages = pages_of(bytes);
        let first = page_number(table.raw().wrapping_sub(ARENA_START));
        assert!(
            table.is_aligned(pages as u64 * PAGE_SIZE),
            "{table} freed as {bytes} bytes"
        );
        for number in first..first + pages {
            let was = machine
                .pages
                .get(number)
                .is_some_and(|page| page.allocated.swap(false, CoreOrdering::AcqRel));
            assert!(was, "{table} freed, but not allocated");
        }
        machine.live_tables.fetch_sub(1, CoreOrdering::SeqCst);
        machine
            .live_bytes
            .fetch_sub(u64::from(bytes), CoreOrdering::SeqCst);
        machine.note(Event::Freed { table, bytes });
        locked(&machine.allocator)
            .returned
            .entry(pages)
            .or_default()
            .push_back(first);
    }

    fn load(&self, entry: Hpa, order: Ordering) -> u64 {
        self.machine.word(entry, "load").get().load(order)
    }

    fn store(&self, entry: Hpa, value: u64, order: Ordering) {
        let word = self.machine.word(entry, "store").get();
        if self.machine.recording.load(CoreOrdering::Acquire) {
            let old = word.swap(value, Ordering::AcqRel);
            self.machine.note(Event::Written {
                entry,
                old,
                new: value,
            });
        } else {
            word.store(value, order);
        }
    }

    fn compare_exchange(&self, entry: Hpa, old: u64, new: u64) -> Result<(), u64> {
        let word = self.machine.word(entry, "compare-exchange").get();
        word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)?;
        self.machine.note(Event::Written { entry, old, new });
        Ok(())
    }

    fn swap(&self, entry: Hpa, new: u64) -> u64 {
        let old = self
            .machine
            .word(entry, "swap")
            .get()
            .swap(new, Ordering::AcqRel);
        self.machine.note(Event::Written { entry, old, new });
        old
    }
}

/// Pages that a table takes up; one smaller than a page has a page to itself.
const fn pages_of(bytes: u32) -> usize {
    (bytes as usize).div_ceil(1 << PAGE_SHIFT)
}

impl<L> Tlb for SimulatedPlatform<L> {
    fn flush(&self, work: &TlbWork) {
        let hook = locked(&self.machine.flush_hook).clone();
        if let Some(hook) = hook {
            hook(work);
        }
        self.machine.flushes.fetch_add(1, CoreOrdering::SeqCst);
        self.machine.note(Event::Flushed(work.clone()));
    }

    fn flush_local(&self, range: GpaRange) {
        self.machine
            .local_flushes
            .fetch_add(1, CoreOrdering::SeqCst);
        self.machine.note(Event::FlushedLocally(range));
    }

    fn publish(&self) {
        self.machine.publications.fetch_add(1, CoreOrdering::SeqCst);
        self.machine.note(Event::Published);
    }

    fn prepare(&self, hpa: Hpa, bytes: u64, memory: MemoryType, executable: bool) {
        self.machine.note(Event::Prepared {
            hpa,
            bytes,
            memory,
            executable,
        });
    }
}

impl<L: Locks> Platform for SimulatedPlatform<L> {
    type Locks = L;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::StdLocks;

    type Machine = SimulatedPlatform<StdLocks>;

    #[test]
    fn tables_are_aligned_zeroed_and_counted() {
        let machine = Machine::with_pages(16);
        let small = machine.allocate(4096).unwrap();
        let large = machine.allocate(16384).unwrap();
        assert!(large.is_aligned(16384) && small != large);
        assert_eq!(
            (machine.live_tables(), machine.live_bytes()),
            (2, 4096 + 16384)
        );
        machine.store(large, 7, Ordering::Release);
        machine.free(large, 16384);
        machine.free(small, 4096);
        assert_eq!((machine.live_tables(), machine.live_bytes()), (0, 0));
        let again: Vec<Hpa> = (0..3).map_while(|_| machine.allocate(16384)).collect();
        assert!(
            again.contains(&large),
            "room for three, one of them used before"
        );
        assert!(
            again
                .iter()
                .all(|table| machine.load(*table, Ordering::Acquire) == 0)
        );
        assert_eq!(machine.allocate(16384), None);
    }

    #[test]
    fn allocations_fail_on_demand() {
        let machine = Machine::new();
        machine.fail_allocation(1);
        let got: Vec<bool> = (0..4).map(|_| machine.allocate(4096).is_some()).collect();
        assert_eq!(got, [true, false, true, true]);
        machine.fail_allocations_from(1);
        let got: Vec<bool> = (0..3).map(|_| machine.allocate(4096).is_some()).collect();
        assert_eq!(got, [true, false, false]);
        machine.allow_allocations();
        assert!(machine.allocate(4096).is_some());
    }

    #[test]
    #[should_panic(expected = "lies in no allocated table")]
    fn a_freed_table_cannot_be_read() {
        let machine = Machine::new();
        let table = machine.allocate(4096).unwrap();
        machine.free(table, 4096);
        machine.load(table, Ordering::Acquire);
    }

    #[test]
    #[should_panic(expected = "not allocated")]
    fn a_table_cannot_be_freed_twice() {
        let machine = Machine::new();
        let table = machine.allocate(4096).unwrap();
        machine.free(table, 4096);
        machine.free(table, 4096);
    }

    #[test]
    fn an_entry_of_four_bytes_changes_without_its_neighbour() {
        let machine = Machine::new();
        let table = machine.allocate(4096).unwrap();
        let (left, right) = (table, table.checked_add(4).unwrap());
        let order = Ordering::Acquire;
        for (here, beside) in [(left, right), (right, left)] {
            machine.store_word(beside, 0x89ab_cdef, Ordering::Release);
            machine.store_word(here, 1, Ordering::Release);
            assert_eq!(machine.swap_word(here, 2), 1);
            assert_eq!(machine.compare_exchange_word(here, 1, 3), Err(2));
            assert_eq!(machine.compare_exchange_word(here, 2, 3), Ok(()));
            assert_eq!(machine.load_word(here, order), 3);
            assert_eq!(machine.load_word(beside, order), 0x89ab_cdef);
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&machine.load_word(left, order).to_ne_bytes());
            bytes[4..].copy_from_slice(&machine.load_word(right, order).to_ne_bytes());
            assert_eq!(machine.load(table, order).to_ne_bytes(), bytes);
        }
    }

    #[test]
    fn events_say_what_was_written() {
        let machine = Machine::new();
        let table = machine.allocate(4096).unwrap();
        machine.record();
        machine.store(table, 1, Ordering::Release);
        assert_eq!(machine.compare_exchange(table, 0, 9), Err(1));
        assert_eq!(machine.swap(table, 2), 1);
        machine.publish();
        let written = |old, new| Event::Written {
            entry: table,
            old,
            new,
        };
        assert_eq!(
            machine.take_events(),
            [written(0, 1), written(1, 2), Event::Published]
        );
        assert!(machine.take_events().is_empty());
    }
}
