//! What the CPUs' translation caches may hold, and what they must not.
//!
//! The caches are as hostile as they may be. Each CPU holds every translation and every pointer
//! to a table that could ever have been walked, from the moment it appears in memory until a
//! flush that **began** after it disappeared has **ended**. A pointer to a detached table is
//! still followed. So what a guest might reach needs no guest: it is written down, and judged
//! whenever it changes:
//!
//! * no translation reaches a frame that was taken away ([`Caches::take_frame`]);
//! * none exists for guest addresses that no slot backs ([`Caches::close`]);
//! * two translations of one address differ in nothing but permissions, two pointers in nothing
//!   at all (break-before-make).
//!
//! What is wrong is kept as a verdict for the end of the run: a panic in the middle would leave
//! other threads with locks to release outside of the checker's world.

use slat_table::address::{Gpa, GpaRange, Hpa, PAGE_SHIFT};
use slat_table::attributes::{Access, Attributes};
use slat_table::format::{Entry, Format as _};
use slat_table::geometry::Level;
use slat_table::platform::TlbWork;

use super::tiny::{ADDRESS_BITS, ENTRIES, Tiny, TinyFeatures};

const PAGES: usize = 1 << (ADDRESS_BITS as u32 - PAGE_SHIFT);

/// Tables there may be. They are at page 1 of host memory and after.
pub(crate) const TABLES: usize = 24;

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

/// The caches of all CPUs, and the memory that they are filled from.
#[derive(Debug)]
pub(crate) struct Caches {
    features: TinyFeatures,
    values: [[u64; ENTRIES]; TABLES],
    root: Option<Hpa>,
    root_level: Level,
    /// The tables that a CPU could ever have walked.
    reached: [bool; TABLES],
    lines: Vec<Line>,
    next_serial: u64,
    /// Per page, the CPUs that may have cached that nothing is mapped.
    absent: [u32; PAGES],
    taken: Vec<Hpa>,
    closed: Vec<GpaRange>,
    off: bool,
    verdict: Option<String>,
}

impl Caches {
    /// Caches of CPUs that have walked nothing yet. Walks start at `root_level`.
    pub(crate) fn new(features: TinyFeatures, root_level: Level) -> Self {
        Self {
            features,
            values: [[0; ENTRIES]; TABLES],
            root: None,
            root_level,
            reached: [false; TABLES],
            lines: Vec::new(),
            next_serial: 0,
            absent: [u32::MAX; PAGES],
            taken: Vec::new(),
            closed: Vec::new(),
            off: false,
            verdict: None,
        }
    }

    /// Walks start at `root`, unless a root is known already.
    pub(crate) fn set_root(&mut self, root: Hpa) {
        let root = *self.root.get_or_insert(root);
        self.reached[table_number(root)] = true;
    }

    /// Whether a CPU could ever have walked table number `table`. Until then the table is its
    /// owner's alone, and what is done to it changes nothing here.
    pub(crate) fn has_reached(&self, table: usize) -> bool {
        self.reached[table]
    }

    /// The guest runs no more.
    pub(crate) fn switch_off(&mut self) {
        self.lines.clear();
        self.off = true;
    }

    /// Something is wrong.
    pub(crate) fn blame(&mut self, verdict: String) {
        self.verdict.get_or_insert(verdict);
    }

    /// What was wrong first.
    pub(crate) fn verdict(&self) -> Option<String> {
        self.verdict.clone()
    }

    /// No CPU may reach `frame` now or later.
    pub(crate) fn take_frame(&mut self, frame: Hpa) {
        self.taken.push(frame);
        self.judge();
    }

    /// No CPU may have a translation for `range` now or later.
    pub(crate) fn close(&mut self, range: GpaRange) {
        self.closed.push(range);
        self.judge();
    }

    /// The entry `index` of table number `table` is `value` now.
    pub(crate) fn write(&mut self, table: usize, index: usize, value: u64) {
        self.values[table][index] = value;
        self.walk();
        self.judge();
    }

    /// Table number `table` is no table any more: nothing may point to it.
    pub(crate) fn free(&mut self, table: usize) {
        let points = |line: &&Line| match line.cached.what {
            Walked::Table(at) => table_number(at) == table,
            Walked::Leaf(..) => false,
        };
        if let Some(line) = self.lines.iter().find(points).copied() {
            self.blame(format!(
                "a table is freed while a CPU may walk it: {line:?}"
            ));
        }
    }

    /// The guest on CPU `cpu` accesses `gpa`: whatever is cached must let it.
    pub(crate) fn access(&mut self, cpu: usize, gpa: Gpa, access: Access) {
        let cpu = 1 << cpu;
        if self.features.caches_invalid && self.absent[page_number(gpa.raw())] & cpu != 0 {
            self.blame(format!("the CPU still finds nothing at {gpa}"));
        }
        let refuses = |(line, _, attributes): &(&Line, Hpa, Attributes)| {
            let used = line.cpus & cpu != 0 && line.cached.range.contains(gpa);
            used && !attributes.permissions.allow(access)
        };
        let refusing = self.leaves().find(refuses).map(|(line, ..)| *line);
        if let Some(line) = refusing {
            self.blame(format!("the CPU still refuses {access:?}: {line:?}"));
        }
    }

    /// The lines that a flush of `work` which begins now will have removed when it ends.
    pub(crate) fn victims(&self, work: &TlbWork) -> Vec<u64> {
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
            let at = gpa_of(page);
            if self.is_mapped(at) && ranges.iter().any(|range| range.contains(at)) {
                self.absent[page] &= !cpus;
            }
        }
    }

    /// A flush of `work` ends that found `victims` when it began.
    pub(crate) fn flushed(&mut self, victims: &[u64], work: &TlbWork) {
        self.lines.retain(|line| !victims.contains(&line.serial));
        self.forget_absent(work.ranges(), u32::MAX);
        // Whatever can still be walked is cached again at once.
        self.walk();
    }

    /// CPU `cpu` forgets what it holds for `range`.
    pub(crate) fn flush_local(&mut self, cpu: usize, range: GpaRange) {
        for line in &mut self.lines {
            if !line.in_memory && line.cached.range.overlaps(&range) {
                line.cpus &= !(1 << cpu);
            }
        }
        self.forget_absent(&[range], 1 << cpu);
    }

    /// Every CPU walks everything it can: from the root, and from every pointer it has cached.
    fn walk(&mut self) {
        let Some(root) = self.root.filter(|_| !self.off) else {
            return;
        };
        let mut in_tree = Vec::new();
        self.walk_table(root, self.root_level, 0, &mut in_tree);
        let mut elsewhere = Vec::new();
        for line in self.lines.clone() {
            if let (Walked::Table(table), Some(below)) =
                (line.cached.what, line.cached.level.down())
            {
                let base = line.cached.range.start().raw();
                self.walk_table(table, below, base, &mut elsewhere);
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
            if let Walked::Table(table) = cached.what {
                self.reached[table_number(table)] = true;
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
            if !self.is_mapped(gpa_of(page)) {
                self.absent[page] = u32::MAX;
            }
        }
    }

    fn walk_table(&self, table: Hpa, level: Level, base: u64, found: &mut Vec<Cached>) {
        for (index, raw) in self.values[table_number(table)].into_iter().enumerate() {
            let Some(range) = block(level, base, index) else {
                continue;
            };
            let what = match Tiny::decode(&self.features, level, raw) {
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
                self.walk_table(below, next, range.start().raw(), found);
            }
        }
    }

    fn is_mapped(&self, at: Gpa) -> bool {
        self.leaves()
            .any(|(line, _, _)| line.in_tree && line.cached.range.contains(at))
    }

    fn leaves(&self) -> impl Iterator<Item = (&Line, Hpa, Attributes)> {
        self.lines.iter().filter_map(|line| match line.cached.what {
            Walked::Leaf(hpa, attributes) => Some((line, hpa, attributes)),
            Walked::Table(_) => None,
        })
    }

    fn judge(&mut self) {
        if let Some(verdict) = self.find_fault().filter(|_| !self.off) {
            self.blame(verdict);
        }
    }

    fn find_fault(&self) -> Option<String> {
        for (line, hpa, _) in self.leaves() {
            let range = line.cached.range;
            let reached = |frame: &Hpa| frame.raw().wrapping_sub(hpa.raw()) < range.bytes();
            if let Some(frame) = self.taken.iter().find(|frame| reached(frame)) {
                return Some(format!(
                    "the guest reaches {frame}, which was taken away: {line:?}"
                ));
            }
            if self.closed.iter().any(|closed| closed.overlaps(&range)) {
                return Some(format!("a translation where no slot is: {line:?}"));
            }
        }
        let (one, other) = self.clash().filter(|_| self.features.break_before_make)?;
        Some(format!(
            "changed without break and flush: {one:?} and {other:?}"
        ))
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
}

fn page_number(address: u64) -> usize {
    usize::try_from(address >> PAGE_SHIFT).expect("small addresses")
}

fn gpa_of(page: usize) -> Gpa {
    Gpa::new((page as u64) << PAGE_SHIFT)
}

/// The number of the table around `address`.
pub(crate) fn table_number(address: Hpa) -> usize {
    page_number(address.raw()) - 1
}

fn block(level: Level, base: u64, index: usize) -> Option<GpaRange> {
    let bytes = Tiny::leaf_step(level);
    GpaRange::new(Gpa::new(base + index as u64 * bytes), bytes).ok()
}
