//! The hardware below the engine: memory for tables, and CPUs whose translation caches hold
//! whatever an architecture lets them hold.
//!
//! The caches are as hostile as they may be. Each CPU holds every translation and every pointer
//! to a table that could ever have been walked, from the moment it appears in memory until a
//! flush that **began** after it disappeared has **ended**. A pointer to a detached table is
//! still followed. So what a guest might reach needs no guest: it is written down, and judged
//! whenever it changes:
//!
//! * no translation reaches a frame that was taken away ([`Machine::take_frame`]);
//! * none exists for guest addresses that no slot backs ([`Machine::close`]);
//! * two translations of one address differ in nothing but permissions, two pointers in nothing
//!   at all (break-before-make);
//! * a table is freed only when nothing points to it.
//!
//! Entries are loom's atomics, so the checker schedules accesses to them; what is written down
//! about them is plain data and changes in the same step. `caches` stands for the caches as a
//! whole: flush and judge touch it, so that they are tried in every order.

use std::sync::{Arc, Mutex, MutexGuard};

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread::ThreadId;
use slat_table::address::{Gpa, GpaRange, Hpa, PAGE_SIZE};
use slat_table::attributes::{Access, Attributes};
use slat_table::format::{Entry, Format as _};
use slat_table::geometry::Level;
use slat_table::lock::LoomLocks;
use slat_table::platform::{Platform, TableMemory, Tlb, TlbWork};

use super::tiny::{ADDRESS_BITS, ENTRIES, Tiny, TinyFeatures};

/// Tables there are; none is used twice, so that a use after free shows.
const TABLES: usize = 24;
const TOP: Level = Level::new(2);
const PAGES: u64 = (1 << ADDRESS_BITS) / PAGE_SIZE;

/// A machine. Clones are the same machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    features: TinyFeatures,
    entries: Vec<[AtomicU64; ENTRIES]>,
    caches: AtomicU64,
    state: Mutex<State>,
}

/// What the caches may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cached {
    what: Walked,
    /// The guest addresses it serves.
    range: GpaRange,
    /// Level of the entry it was read from.
    level: Level,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Walked {
    Table(Hpa),
    Leaf(Hpa, Attributes),
}

#[derive(Clone, Copy, Debug)]
struct Line {
    serial: u64,
    cached: Cached,
    /// Whether a walk from the root still finds it.
    in_tree: bool,
    /// Whether a walk from anywhere still finds it.
    in_memory: bool,
    /// The CPUs that hold it, one bit each.
    cpus: u32,
}

#[derive(Debug)]
struct State {
    values: [[u64; ENTRIES]; TABLES],
    allocated: Vec<bool>,
    root: Option<Hpa>,
    lines: Vec<Line>,
    next_serial: u64,
    /// Per page, the CPUs that may have cached that nothing is mapped.
    absent: [u32; PAGES as usize],
    cpus: Vec<ThreadId>,
    taken: Vec<Hpa>,
    closed: Vec<GpaRange>,
    off: bool,
}

impl Machine {
    /// A machine that nothing has happened on yet.
    pub(crate) fn new(features: TinyFeatures) -> Self {
        let entry = || AtomicU64::new(0);
        Self(Arc::new(Shared {
            features,
            entries: (0..TABLES).map(|_| [entry(), entry()]).collect(),
            caches: AtomicU64::new(0),
            state: Mutex::new(State::new()),
        }))
    }

    /// The host takes `frame` from the guest: no CPU may reach it now or later.
    pub(crate) fn take_frame(&self, frame: Hpa) {
        self.judge(|state| state.taken.push(frame));
    }

    /// No slot backs `range` any more: no CPU may have a translation for it now or later.
    pub(crate) fn close(&self, range: GpaRange) {
        self.judge(|state| state.closed.push(range));
    }

    /// The guest, resumed on this CPU after a fault that was said to be handled, does what it
    /// was about to do. Whatever the CPU has cached must let it.
    pub(crate) fn access(&self, gpa: Gpa, access: Access) {
        self.touch_caches();
        let mut state = self.state();
        let cpu = 1 << state.cpu();
        let page = (gpa.raw() / PAGE_SIZE) as usize;
        if self.0.features.caches_invalid {
            let absent = state.absent[page] & cpu != 0;
            assert!(!absent, "the CPU still finds nothing at {gpa}: {state:#?}");
        }
        let mine = |line: &&Line| line.cpus & cpu != 0 && line.cached.range.contains(gpa);
        for line in state.lines.iter().filter(mine) {
            if let Walked::Leaf(_, attributes) = line.cached.what {
                let allowed = attributes.permissions.allow(access);
                assert!(allowed, "the CPU still refuses {access:?}: {line:?}");
            }
        }
    }

    /// The guest runs no more; its memory may be torn down.
    pub(crate) fn switch_off(&self) {
        let mut state = self.state();
        state.lines.clear();
        state.off = true;
    }

    /// Tables allocated and not freed.
    pub(crate) fn tables(&self) -> usize {
        self.state().allocated.iter().filter(|used| **used).count()
    }

    fn judge(&self, change: impl FnOnce(&mut State)) {
        self.touch_caches();
        let mut state = self.state();
        change(&mut state);
        state.judge(self.0.features);
    }

    fn touch_caches(&self) {
        self.0.caches.fetch_add(1, Ordering::Relaxed);
    }

    /// Never held while anything of loom's is called, so no thread ever waits for it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn entry(&self, entry: Hpa) -> (&AtomicU64, usize, usize) {
        let (table, index) = (table_number(entry), (entry.raw() % PAGE_SIZE / 8) as usize);
        let allocated = self.state().allocated.get(table) == Some(&true);
        assert!(
            allocated || std::thread::panicking(),
            "access to {entry}, which lies in no allocated table"
        );
        (&self.0.entries[table][index], table, index)
    }

    fn written(&self, table: usize, index: usize, value: u64) {
        let mut state = self.state();
        state.values[table][index] = value;
        state.walk(self.0.features);
        state.judge(self.0.features);
    }
}

fn table_number(address: Hpa) -> usize {
    (address.raw() / PAGE_SIZE - 1) as usize
}

fn block(level: Level, base: u64, index: usize) -> Option<GpaRange> {
    let bytes = Tiny::leaf_step(level);
    GpaRange::new(Gpa::new(base + index as u64 * bytes), bytes).ok()
}

impl State {
    fn new() -> Self {
        Self {
            values: [[0; ENTRIES]; TABLES],
            allocated: Vec::new(),
            root: None,
            lines: Vec::new(),
            next_serial: 0,
            absent: [u32::MAX; PAGES as usize],
            cpus: Vec::new(),
            taken: Vec::new(),
            closed: Vec::new(),
            off: false,
        }
    }

    /// The number of the CPU that this thread runs on.
    fn cpu(&mut self) -> usize {
        let id = loom::thread::current().id();
        let known = self.cpus.iter().position(|cpu| *cpu == id);
        known.unwrap_or_else(|| {
            self.cpus.push(id);
            self.cpus.len() - 1
        })
    }

    /// Every CPU walks everything it can: from the root, and from every pointer it has cached.
    fn walk(&mut self, features: TinyFeatures) {
        let Some(root) = self.root.filter(|_| !self.off) else {
            return;
        };
        let mut in_tree = Vec::new();
        self.walk_table(features, root, TOP, 0, &mut in_tree);
        let mut elsewhere = Vec::new();
        for line in self.lines.clone() {
            if let (Walked::Table(table), Some(below)) =
                (line.cached.what, line.cached.level.down())
            {
                let base = line.cached.range.start().raw();
                self.walk_table(features, table, below, base, &mut elsewhere);
            }
        }
        for line in &mut self.lines {
            line.in_tree &= in_tree.contains(&line.cached);
            line.in_memory &= line.in_tree || elsewhere.contains(&line.cached);
        }
        for cached in in_tree.iter().chain(&elsewhere) {
            let rooted = in_tree.contains(cached);
            let known = |line: &&mut Line| line.in_memory && line.cached == *cached;
            if let Some(line) = self.lines.iter_mut().find(known) {
                line.in_tree |= rooted;
                line.cpus = u32::MAX;
                continue;
            }
            self.next_serial += 1;
            self.lines.push(Line {
                serial: self.next_serial,
                cached: *cached,
                in_tree: rooted,
                in_memory: true,
                cpus: u32::MAX,
            });
        }
        for page in 0..PAGES {
            if !self.is_mapped(page) {
                self.absent[page as usize] = u32::MAX;
            }
        }
    }

    fn walk_table(
        &self,
        features: TinyFeatures,
        table: Hpa,
        level: Level,
        base: u64,
        found: &mut Vec<Cached>,
    ) {
        for (index, raw) in self.values[table_number(table)].into_iter().enumerate() {
            let Some(range) = block(level, base, index) else {
                continue;
            };
            let what = match Tiny::decode(&features, level, raw) {
                Entry::Leaf { hpa, attributes } => Walked::Leaf(hpa, attributes),
                Entry::Table(below) => Walked::Table(below),
                Entry::Empty | Entry::Foreign(_) => continue,
            };
            let cached = Cached { what, range, level };
            if found.contains(&cached) {
                continue;
            }
            found.push(cached);
            if let (Walked::Table(below), Some(next)) = (what, level.down()) {
                self.walk_table(features, below, next, range.start().raw(), found);
            }
        }
    }

    fn is_mapped(&self, page: u64) -> bool {
        self.leaves().any(|(line, _, _)| {
            line.in_tree && line.cached.range.contains(Gpa::new(page * PAGE_SIZE))
        })
    }

    fn leaves(&self) -> impl Iterator<Item = (&Line, Hpa, Attributes)> {
        self.lines.iter().filter_map(|line| match line.cached.what {
            Walked::Leaf(hpa, attributes) => Some((line, hpa, attributes)),
            Walked::Table(_) => None,
        })
    }

    fn judge(&self, features: TinyFeatures) {
        if self.off || std::thread::panicking() {
            return;
        }
        for (line, hpa, attributes) in self.leaves() {
            let range = line.cached.range;
            let reached = |frame: &Hpa| frame.raw().wrapping_sub(hpa.raw()) < range.bytes();
            if let Some(frame) = self.taken.iter().find(|frame| reached(frame)) {
                panic!("the guest reaches the frame {frame}, which was taken away: {line:?}");
            }
            if self.closed.iter().any(|closed| closed.overlaps(&range)) {
                panic!("the guest has a translation where no slot is: {line:?}");
            }
        }
        if let Some((one, other)) = self.clash().filter(|_| features.break_before_make) {
            panic!("changed without break and flush: {one:?} and {other:?}");
        }
    }

    /// Two lines for one address that differ in more than permissions.
    fn clash(&self) -> Option<(&Line, &Line)> {
        let clashes = |one: &Line, other: &Line| {
            let same_level = one.cached.level == other.cached.level;
            one.cached.range.overlaps(&other.cached.range)
                && match (one.cached.what, other.cached.what) {
                    (Walked::Leaf(one, a), Walked::Leaf(other, b)) => {
                        !same_level || one != other || a.memory != b.memory
                    }
                    (one, other) => same_level && one != other,
                }
        };
        self.lines.iter().enumerate().find_map(|(at, one)| {
            let other = self.lines[at + 1..]
                .iter()
                .find(|other| clashes(one, other))?;
            Some((one, other))
        })
    }

    /// The lines that a flush of `work` which begins now will have removed when it ends.
    fn victims(&self, work: &TlbWork) -> Vec<u64> {
        let hit = |line: &&Line| {
            let named = work
                .ranges()
                .iter()
                .any(|range| range.overlaps(&line.cached.range));
            let removed = match line.cached.what {
                Walked::Table(_) => !line.in_tree && !work.only_leaves(),
                // What a walk from a stale pointer finds comes back as long as that pointer
                // is cached; a leaf smaller than the stride may be stepped over.
                Walked::Leaf(..) if work.only_leaves() => {
                    !line.in_memory && line.cached.level >= work.smallest_leaf()
                }
                Walked::Leaf(..) => !line.in_tree,
            };
            named && removed
        };
        self.lines
            .iter()
            .filter(hit)
            .map(|line| line.serial)
            .collect()
    }

    /// Marks on `cpus` forget in `ranges` that nothing was mapped where now something is.
    fn forget_absent(&mut self, ranges: &[GpaRange], cpus: u32) {
        for page in 0..PAGES {
            let at = Gpa::new(page * PAGE_SIZE);
            if self.is_mapped(page) && ranges.iter().any(|range| range.contains(at)) {
                self.absent[page as usize] &= !cpus;
            }
        }
    }
}

impl TableMemory for Machine {
    fn allocate(&self, _: u32) -> Option<Hpa> {
        let mut state = self.state();
        if state.allocated.len() == TABLES {
            return None;
        }
        state.allocated.push(true);
        let table = Hpa::new(state.allocated.len() as u64 * PAGE_SIZE);
        // The first table anybody allocates is the root.
        state.root.get_or_insert(table);
        Some(table)
    }

    fn free(&self, table: Hpa, _: u32) {
        let mut state = self.state();
        let pointed_to = |line: &Line| line.cached.what == Walked::Table(table);
        let held = state.lines.iter().find(|line| pointed_to(line)).copied();
        let was = std::mem::replace(&mut state.allocated[table_number(table)], false);
        if std::thread::panicking() {
            return;
        }
        assert!(was, "{table} is freed twice");
        if let Some(line) = held {
            panic!("{table} is freed while a CPU may walk it: {line:?}");
        }
    }

    fn load(&self, entry: Hpa, order: Ordering) -> u64 {
        self.entry(entry).0.load(order)
    }

    fn store(&self, entry: Hpa, value: u64, order: Ordering) {
        let (word, table, index) = self.entry(entry);
        word.store(value, order);
        self.written(table, index, value);
    }

    fn compare_exchange(&self, entry: Hpa, old: u64, new: u64) -> Result<(), u64> {
        let (word, table, index) = self.entry(entry);
        word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)?;
        self.written(table, index, new);
        Ok(())
    }

    fn swap(&self, entry: Hpa, new: u64) -> u64 {
        let (word, table, index) = self.entry(entry);
        let old = word.swap(new, Ordering::AcqRel);
        self.written(table, index, new);
        old
    }
}

impl Tlb for Machine {
    fn flush(&self, work: &TlbWork) {
        self.touch_caches();
        let victims = self.state().victims(work);
        self.touch_caches();
        let mut state = self.state();
        state.lines.retain(|line| !victims.contains(&line.serial));
        state.forget_absent(work.ranges(), u32::MAX);
        // Whatever can still be walked is cached again at once.
        state.walk(self.0.features);
    }

    fn flush_local(&self, range: GpaRange) {
        self.touch_caches();
        let mut state = self.state();
        let cpu = 1 << state.cpu();
        for line in &mut state.lines {
            if !line.in_memory && line.cached.range.overlaps(&range) {
                line.cpus &= !cpu;
            }
        }
        state.forget_absent(&[range], cpu);
    }

    fn publish(&self) {}
}

impl Platform for Machine {
    type Locks = LoomLocks;
}
