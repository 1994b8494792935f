//! The hardware below the engine: memory for tables, and CPUs with [`Caches`].
//!
//! Entries are loom's atomics, so the checker schedules accesses to them; what is written down
//! about them is plain data and changes in the same step. The checker tries two steps in both
//! orders only if they touch the same object of its own, so everything that fills, empties or
//! judges the caches touches one. The access is relaxed: it orders nothing for the code under
//! test.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread::ThreadId;
use slat_table::address::{Gpa, GpaRange, Hpa, PAGE_SIZE};
use slat_table::attributes::{Access, Attributes};
use slat_table::format::{Entry, Format as _};
use slat_table::geometry::Level;
use slat_table::lock::LoomLocks;
use slat_table::platform::{Platform, TableMemory, Tlb, TlbWork};

use super::BREAKS;
use super::caches::{Caches, TABLES, table_number};
use super::tiny::{ENTRIES, Tiny, TinyFeatures, root_level};

/// A machine. Clones are the same machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    entries: Vec<[AtomicU64; ENTRIES]>,
    root_level: Level,
    touched: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    caches: Caches,
    /// Tables handed out so far, and whether they are still in use. None is used twice, so that
    /// a use after free shows.
    tables: Vec<bool>,
    cpus: Vec<ThreadId>,
}

impl Machine {
    /// A machine that nothing has happened on yet. Its guest's addresses have `address_bits` bits.
    pub(crate) fn new(features: TinyFeatures, address_bits: u8) -> Self {
        let entry = || AtomicU64::new(0);
        let root_level = root_level(address_bits);
        Self(Arc::new(Shared {
            entries: (0..TABLES).map(|_| [entry(), entry()]).collect(),
            root_level,
            touched: AtomicU64::new(0),
            state: Mutex::new(State {
                caches: Caches::new(features, root_level),
                tables: Vec::new(),
                cpus: Vec::new(),
            }),
        }))
    }

    /// The host takes `frame` from the guest: no CPU may reach it now or later.
    pub(crate) fn take_frame(&self, frame: Hpa) {
        self.touch_caches();
        self.state().caches.take_frame(frame);
    }

    /// No slot backs `range` any more: no CPU may have a translation for it now or later.
    pub(crate) fn close(&self, range: GpaRange) {
        self.touch_caches();
        self.state().caches.close(range);
    }

    /// The guest, resumed on this CPU after a fault that was said to be handled, does what it
    /// was about to do.
    pub(crate) fn access(&self, gpa: Gpa, access: Access) {
        self.touch_caches();
        let mut state = self.state();
        let cpu = state.cpu();
        state.caches.access(cpu, gpa, access);
    }

    /// The hardware notes in the leaf that maps `gpa` that the guest writes there, as it does in
    /// one step at any moment. Returns whether it found a leaf to note it in.
    pub(crate) fn note_write(&self, gpa: Gpa) -> bool {
        loop {
            let Some((entry, level, raw)) = self.find_leaf(gpa) else {
                return false;
            };
            let Entry::Leaf { hpa, attributes } = Tiny::decode(&BREAKS, level, raw) else {
                return false;
            };
            let noted = Attributes {
                accessed: true,
                dirty: true,
                ..attributes
            };
            let new = Tiny::leaf(&BREAKS, level, hpa, noted).expect("it was a leaf before");
            if self.compare_exchange(entry, raw, new).is_ok() {
                return true;
            }
        }
    }

    /// Where the walk for `gpa` ends, and what is there, unless it is a table.
    fn find_leaf(&self, gpa: Gpa) -> Option<(Hpa, Level, u64)> {
        let mut table = Hpa::new(PAGE_SIZE);
        let mut level = self.0.root_level;
        loop {
            let index = gpa.raw() / Tiny::leaf_step(level) % ENTRIES as u64;
            let entry = Hpa::new(table.raw() + index * 8);
            let raw = self.load(entry, Ordering::Acquire);
            if !Tiny::is_table(level, raw) {
                return Some((entry, level, raw));
            }
            table = Tiny::address(&BREAKS, level, raw);
            level = level.down()?;
        }
    }

    /// The guest runs no more; its memory may be torn down.
    pub(crate) fn switch_off(&self) {
        self.state().caches.switch_off();
    }

    /// What was found to be wrong first.
    pub(crate) fn verdict(&self) -> Option<String> {
        self.state().caches.verdict()
    }

    /// Tables allocated and not freed.
    pub(crate) fn tables(&self) -> usize {
        self.state().tables.iter().filter(|used| **used).count()
    }

    /// Tells the checker that what this thread does next, and what another does after touching
    /// the caches too, may come in either order.
    pub(crate) fn touch_caches(&self) {
        self.0.touched.fetch_add(1, Ordering::Relaxed);
    }

    /// The same before an access to, or the end of, table number `table`, unless nobody but its
    /// owner has ever seen that one: then the order is all the same.
    fn touch_caches_for(&self, table: usize) {
        let reached = self.state().caches.has_reached(table);
        if reached {
            self.touch_caches();
        }
    }

    /// Never held while anything of loom's is called, so no thread ever waits for it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, entry: Hpa) -> (&AtomicU64, usize, usize) {
        let table = table_number(entry);
        let index = usize::from(!entry.is_aligned(16));
        let mut state = self.state();
        if state.tables.get(table) != Some(&true) {
            let verdict = format!("access to {entry}, which lies in no allocated table");
            state.caches.blame(verdict);
        }
        (&self.0.entries[table][index], table, index)
    }
}

impl State {
    /// The number of the CPU that this thread runs on.
    fn cpu(&mut self) -> usize {
        let id = loom::thread::current().id();
        let known = self.cpus.iter().position(|cpu| *cpu == id);
        known.unwrap_or_else(|| {
            self.cpus.push(id);
            self.cpus.len() - 1
        })
    }
}

impl TableMemory for Machine {
    fn allocate(&self, _: u32) -> Option<Hpa> {
        let mut state = self.state();
        if state.tables.len() == TABLES {
            return None;
        }
        state.tables.push(true);
        let table = Hpa::new(state.tables.len() as u64 * PAGE_SIZE);
        // The first table that anybody allocates is the root.
        state.caches.set_root(table);
        Some(table)
    }

    fn free(&self, table: Hpa, _: u32) {
        let number = table_number(table);
        self.touch_caches_for(number);
        let mut state = self.state();
        state.caches.free(number);
        if !core::mem::replace(&mut state.tables[number], false) {
            state.caches.blame(format!("{table} is freed twice"));
        }
    }

    fn load(&self, entry: Hpa, order: Ordering) -> u64 {
        self.entry(entry).0.load(order)
    }

    fn store(&self, entry: Hpa, value: u64, order: Ordering) {
        self.touch_caches_for(table_number(entry));
        let (word, table, index) = self.entry(entry);
        word.store(value, order);
        self.state().caches.write(table, index, value);
    }

    fn compare_exchange(&self, entry: Hpa, old: u64, new: u64) -> Result<(), u64> {
        self.touch_caches_for(table_number(entry));
        let (word, table, index) = self.entry(entry);
        word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)?;
        self.state().caches.write(table, index, new);
        Ok(())
    }

    fn swap(&self, entry: Hpa, new: u64) -> u64 {
        self.touch_caches_for(table_number(entry));
        let (word, table, index) = self.entry(entry);
        let old = word.swap(new, Ordering::AcqRel);
        self.state().caches.write(table, index, new);
        old
    }
}

impl Tlb for Machine {
    fn flush(&self, work: &TlbWork) {
        self.touch_caches();
        let victims = self.state().caches.victims(work);
        self.touch_caches();
        self.state().caches.flushed(&victims, work);
    }

    fn flush_local(&self, range: GpaRange) {
        self.touch_caches();
        let mut state = self.state();
        let cpu = state.cpu();
        state.caches.flush_local(cpu, range);
    }

    fn publish(&self) {}
}

impl Platform for Machine {
    type Locks = LoomLocks;
}
