//! An observer that rebuilds memory, and the most that a TLB may hold, from the journal of a
//! [`SimulatedPlatform`](slat_table::simulated::SimulatedPlatform), and objects to what the
//! hardware must not see.
//!
//! It knows only the format and the geometry. Everything that was ever reachable counts as cached
//! until a flush covers it; that is the most hostile TLB there is. One leaf of a run counts for all
//! addresses of the run.

use std::collections::{BTreeMap, HashMap, HashSet};

use slat_table::address::{Gpa, GpaRange, Hpa};
use slat_table::attributes::Attributes;
use slat_table::format::{ByteOrder, Entry, Format};
use slat_table::geometry::{Geometry, Level};
use slat_table::platform::{TableMemory, TlbWork};
use slat_table::simulated::Event;

use crate::setup::Machine;

/// A translation as a table walk finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Walked {
    pub(crate) hpa: Hpa,
    pub(crate) level: Level,
    pub(crate) attributes: Attributes,
}

/// A table that a walker can reach.
#[derive(Clone, Copy, Debug)]
struct Reachable {
    level: Level,
    start: u64,
}

/// Something that was reachable, no longer is, and may still be cached.
#[derive(Clone, Copy, Debug)]
struct Stale {
    range: GpaRange,
    level: Level,
    what: Entry,
}

/// See the module.
pub(crate) struct Observer<F: Format> {
    features: F::Features,
    geometry: Geometry,
    root: Option<Hpa>,
    memory: HashMap<u64, u64>,
    reachable: BTreeMap<u64, Reachable>,
    stale: Vec<Stale>,
    /// Entries written since everything was last settled.
    written: HashSet<u64>,
    /// The hardware asks for a break and a flush before an entry changes what it maps.
    breaks: bool,
}

impl<F: Format> Observer<F> {
    pub(crate) fn new(features: F::Features, geometry: Geometry) -> Self {
        Self {
            breaks: F::rules(&features).break_before_make,
            features,
            geometry,
            root: None,
            memory: HashMap::new(),
            reachable: BTreeMap::new(),
            stale: Vec::new(),
            written: HashSet::new(),
        }
    }

    /// Takes in one event; the addresses for which it changed what a walker sees.
    pub(crate) fn see(&mut self, event: &Event) -> Option<GpaRange> {
        match event {
            Event::Allocated { table, .. } => {
                if self.root.is_none() {
                    self.root = Some(*table);
                    let root = Reachable {
                        level: self.geometry.root(),
                        start: 0,
                    };
                    self.reachable.insert(table.raw(), root);
                }
                None
            }
            Event::Freed { table, bytes } => {
                self.freed(*table, *bytes);
                None
            }
            Event::Written { entry, old, new } if F::ENTRY_BYTES == 4 => {
                self.words_written(entry.raw(), *old, *new)
            }
            Event::Written { entry, old, new } => self.written(entry.raw(), *old, *new),
            Event::Flushed(work) => {
                self.stale.retain(|stale| !forgotten(work, stale));
                None
            }
            Event::FlushedLocally(_) | Event::Published | Event::Prepared { .. } => None,
        }
    }

    /// Nothing that was removed may still be cached, and no run is there in part.
    pub(crate) fn expect_settled(&mut self) {
        assert!(self.stale.is_empty(), "still cached: {:?}", self.stale);
        for entry in core::mem::take(&mut self.written) {
            self.expect_whole_run(entry);
        }
    }

    /// The neighbours of a leaf of a run are leaves of the same run.
    fn expect_whole_run(&self, entry: u64) {
        let Some((level, block)) = self.entry(entry) else {
            return;
        };
        let Some(bytes) = self.geometry.run_bytes(level) else {
            return;
        };
        let said = self.run_of(entry, level, &block, bytes);
        let in_run = |entry: &Entry| matches!(entry, Entry::Leaf { attributes, .. } if attributes.contiguous);
        if !said.iter().any(in_run) {
            return;
        }
        let plainly = |entry: &Entry| match *entry {
            Entry::Leaf { hpa, attributes } => Some((hpa, unmarked(attributes))),
            _ => None,
        };
        let first = plainly(&said[0]);
        let alike = said
            .iter()
            .all(|entry| in_run(entry) && plainly(entry) == first);
        assert!(alike, "a run in part around {block}: {said:?}");
    }

    /// A leaf of a run decodes to the run's first address, but has that of its own page.
    fn expect_own_address(&self, level: Level, range: &GpaRange, raw: u64) {
        let Entry::Leaf { hpa, attributes } = self.decode(level, raw) else {
            return;
        };
        if !attributes.contiguous {
            return;
        }
        let run = self.cached(level, *range, Entry::Leaf { hpa, attributes });
        let own = Hpa::new(hpa.raw() + (range.start().raw() - run.start().raw()));
        let expected = F::leaf(&self.features, level, own, attributes);
        assert_eq!(expected, Ok(in_order::<F>(raw)), "{range} of {run}");
    }

    /// What the entries say that make up a run, if one is there, with this one.
    fn run_of(&self, entry: u64, level: Level, block: &GpaRange, bytes: u64) -> Vec<Entry> {
        let shift = self.geometry.shape(level).shift;
        let index = (block.start().raw() & (bytes - 1)) >> shift;
        let first = entry - index * F::ENTRY_BYTES;
        (0..bytes >> shift)
            .map(|index| self.read(level, first + index * F::ENTRY_BYTES))
            .collect()
    }

    /// The entry at `address`, decoded.
    fn read(&self, level: Level, address: u64) -> Entry {
        let raw = self.memory.get(&address).copied().unwrap_or(0);
        self.decode(level, raw)
    }

    /// Two entries of four bytes share what a journal calls an entry.
    fn words_written(&mut self, pair: u64, old: u64, new: u64) -> Option<GpaRange> {
        let halves = |value: u64| {
            let bytes = value.to_ne_bytes();
            [&bytes[..4], &bytes[4..]]
                .map(|half| u64::from(u32::from_ne_bytes(half.try_into().expect("four bytes"))))
        };
        let (old, new) = (halves(old), halves(new));
        let mut changed = None;
        for (index, address) in [pair, pair + 4].into_iter().enumerate() {
            if old[index] != new[index] {
                assert_eq!(changed, None, "one write changed two entries");
                changed = self.written(address, old[index], new[index]);
            }
        }
        changed
    }

    fn freed(&mut self, table: Hpa, bytes: u32) {
        assert!(
            !self.reachable.contains_key(&table.raw()),
            "{table} freed while it is linked"
        );
        for stale in &self.stale {
            assert_ne!(
                stale.what,
                Entry::Table(table),
                "{table} freed before the flush"
            );
        }
        let end = table.raw() + u64::from(bytes);
        for entry in (table.raw()..end).step_by(F::ENTRY_BYTES.try_into().expect("4 or 8")) {
            self.memory.remove(&entry);
        }
    }

    fn written(&mut self, entry: u64, old: u64, new: u64) -> Option<GpaRange> {
        let known = self.memory.insert(entry, new);
        assert_eq!(
            known.unwrap_or(0),
            old,
            "the journal misses a write to {entry:#x}"
        );
        let (level, range) = self.entry(entry)?;
        self.written.insert(entry);
        // The root is filled with empty entries before any CPU knows of it.
        let was = known.map_or(Entry::Empty, |old| self.decode(level, old));
        let now = self.decode(level, new);
        self.expect_own_address(level, &range, new);
        match (was, now) {
            (Entry::Empty, Entry::Empty) => {}
            (Entry::Empty, _) => self.made(level, range, now),
            (_, Entry::Empty) => self.broken(level, range, was),
            (
                Entry::Leaf {
                    hpa,
                    attributes: old,
                },
                Entry::Leaf {
                    hpa: to,
                    attributes: new,
                },
            ) => {
                let same =
                    hpa == to && old.memory == new.memory && old.contiguous == new.contiguous;
                assert!(
                    same,
                    "{range} changes from {was:?} to {now:?} without a break"
                );
                let kept = old.permissions.union(new.permissions) == new.permissions;
                assert!(kept, "{range} loses permissions: {was:?} to {now:?}");
                let one_by_one = old.contiguous && old.permissions != new.permissions;
                assert!(!one_by_one, "a run of two kinds: {was:?} and {now:?}");
            }
            _ if self.breaks => panic!("{range} changes from {was:?} to {now:?} without a break"),
            _ => {
                self.broken(level, range, was);
                self.made(level, range, now);
            }
        }
        Some(range)
    }

    fn decode(&self, level: Level, raw: u64) -> Entry {
        let raw = in_order::<F>(raw);
        F::decode(&self.features, level, raw)
    }

    /// Level and range of an entry in a reachable table.
    fn entry(&self, entry: u64) -> Option<(Level, GpaRange)> {
        let (&table, found) = self.reachable.range(..=entry).next_back()?;
        let shape = self.geometry.shape(found.level);
        let index = (entry - table) / F::ENTRY_BYTES;
        if index >> shape.index_bits != 0 {
            return None;
        }
        Some((
            found.level,
            self.block(found.level, found.start + (index << shape.shift)),
        ))
    }

    /// What an entry maps, as far as the guest's addresses go; those beyond stay empty.
    fn block(&self, level: Level, start: u64) -> GpaRange {
        let whole = GpaRange::block_around(Gpa::new(start), self.geometry.entry_bytes(level));
        let block = self.geometry.block(level, Gpa::new(start));
        block.or(whole).expect("within 63 bits")
    }

    /// What a walker may cache of an entry that maps `range` by itself.
    fn cached(&self, level: Level, range: GpaRange, entry: Entry) -> GpaRange {
        match (entry, self.geometry.run_bytes(level)) {
            (Entry::Leaf { attributes, .. }, Some(bytes)) if attributes.contiguous => {
                GpaRange::block_around(range.start(), bytes).expect("within 63 bits")
            }
            _ => range,
        }
    }

    /// An empty entry became valid: whatever was there before must be out of all caches.
    fn made(&mut self, level: Level, range: GpaRange, now: Entry) {
        let cached = self.cached(level, range, now);
        let in_run = |entry: &Entry| matches!(entry, Entry::Leaf { attributes, .. } if attributes.contiguous);
        let overlaps = |stale: &&Stale| {
            // A run and a single leaf for one address are two sizes in one TLB.
            let breaks = self.breaks || in_run(&now) || in_run(&stale.what);
            breaks && stale.range.overlaps(&cached)
        };
        for stale in self.stale.iter().filter(overlaps) {
            let same = match (stale.what, now) {
                (
                    Entry::Leaf {
                        hpa: a,
                        attributes: x,
                    },
                    Entry::Leaf {
                        hpa: b,
                        attributes: y,
                    },
                ) => stale.range == cached && a == b && x.memory == y.memory,
                _ => false,
            };
            assert!(
                same,
                "{now:?} made at {range} before the flush of {stale:?}"
            );
        }
        if let Entry::Table(table) = now {
            let below = level.down().expect("no table below pages");
            self.link(table, below, range.start().raw());
        }
    }

    fn link(&mut self, table: Hpa, level: Level, start: u64) {
        let again = self
            .reachable
            .insert(table.raw(), Reachable { level, start });
        assert!(again.is_none(), "{table} linked twice");
        for (entry, range) in self.entries(table, level, start) {
            if let Entry::Table(below) = entry {
                self.link(below, level.down().expect("a level"), range.start().raw());
            }
        }
    }

    fn broken(&mut self, level: Level, range: GpaRange, was: Entry) {
        self.stale.push(Stale {
            range: self.cached(level, range, was),
            level,
            what: was,
        });
        if let Entry::Table(table) = was {
            self.unlink(table);
        }
    }

    fn unlink(&mut self, table: Hpa) {
        let gone = self.reachable.remove(&table.raw()).expect("a linked table");
        for (entry, range) in self.entries(table, gone.level, gone.start) {
            self.stale.push(Stale {
                range: self.cached(gone.level, range, entry),
                level: gone.level,
                what: entry,
            });
            if let Entry::Table(below) = entry {
                self.unlink(below);
            }
        }
    }

    /// The entries of a table that are not empty.
    fn entries(&self, table: Hpa, level: Level, start: u64) -> Vec<(Entry, GpaRange)> {
        let shape = self.geometry.shape(level);
        (0..1u64 << shape.index_bits)
            .filter_map(|index| {
                let entry = self.read(level, table.raw() + index * F::ENTRY_BYTES);
                let start = start + (index << shape.shift);
                (entry != Entry::Empty).then(|| (entry, self.block(level, start)))
            })
            .collect()
    }

    /// The entry that maps `gpa`, or would: where it is, its level and its value.
    pub(crate) fn find(&self, gpa: u64) -> Option<(u64, Level, u64)> {
        let mut table = self.root?;
        let mut level = self.geometry.root();
        loop {
            let index = self.geometry.index(level, Gpa::new(gpa));
            let entry = table.raw() + index * F::ENTRY_BYTES;
            let Entry::Table(below) = self.read(level, entry) else {
                let raw = self.memory.get(&entry).copied().unwrap_or(0);
                return Some((entry, level, in_order::<F>(raw)));
            };
            table = below;
            level = level.down()?;
        }
    }

    /// Replaces an entry as the hardware would when it notes something in it.
    pub(crate) fn write(machine: &Machine, entry: u64, old: u64, new: u64) {
        let entry = Hpa::new(entry);
        let word = |value| u32::try_from(in_order::<F>(value)).expect("an entry of four bytes");
        let written = if F::ENTRY_BYTES == 4 {
            machine
                .compare_exchange_word(entry, word(old), word(new))
                .is_ok()
        } else {
            let (old, new) = (in_order::<F>(old), in_order::<F>(new));
            machine.compare_exchange(entry, old, new).is_ok()
        };
        assert!(written, "{entry} is not what the journal says");
    }

    /// Walks the tables as the hardware would.
    pub(crate) fn walk(&self, gpa: u64) -> Option<Walked> {
        let mut table = self.root?;
        let mut level = self.geometry.root();
        loop {
            let index = self.geometry.index(level, Gpa::new(gpa));
            let entry = table.raw() + index * F::ENTRY_BYTES;
            match self.read(level, entry) {
                Entry::Empty => return None,
                Entry::Table(below) => {
                    table = below;
                    level = level.down()?;
                }
                Entry::Leaf {
                    hpa,
                    mut attributes,
                } => {
                    let block = self.geometry.block(level, Gpa::new(gpa))?;
                    let cached = self.cached(level, block, self.read(level, entry));
                    if attributes.contiguous {
                        for of in self.run_of(entry, level, &block, cached.bytes()) {
                            if let Entry::Leaf { attributes: of, .. } = of {
                                attributes.accessed |= of.accessed;
                                attributes.dirty |= of.dirty;
                            }
                        }
                    }
                    let hpa = Hpa::new(hpa.raw() + (gpa - cached.start().raw()));
                    return Some(Walked {
                        hpa,
                        level,
                        attributes,
                    });
                }
                Entry::Foreign(raw) => panic!("foreign entry {raw:#x} for {gpa:#x}"),
            }
        }
    }
}

/// An entry's value from its bytes read as a number, or the other way round.
fn in_order<F: Format>(raw: u64) -> u64 {
    match (F::BYTE_ORDER, u32::try_from(raw)) {
        (ByteOrder::Little, Ok(word)) if F::ENTRY_BYTES == 4 => word.to_le().into(),
        (ByteOrder::Big, Ok(word)) if F::ENTRY_BYTES == 4 => word.to_be().into(),
        (ByteOrder::Little, _) => raw.to_le(),
        (ByteOrder::Big, _) => raw.to_be(),
    }
}

/// Attributes without what the hardware may note in one leaf of a run and not in the others.
pub(crate) fn unmarked(attributes: Attributes) -> Attributes {
    Attributes {
        accessed: false,
        dirty: false,
        ..attributes
    }
}

/// Whether carrying out `work` makes every CPU forget `stale`.
fn forgotten(work: &TlbWork, stale: &Stale) -> bool {
    let hint_allows = match stale.what {
        Entry::Table(_) => !work.only_leaves(),
        _ => work.smallest_leaf() <= stale.level,
    };
    hint_allows && covered(work.ranges(), stale.range)
}

/// Whether the ranges together cover `range`.
fn covered(ranges: &[GpaRange], range: GpaRange) -> bool {
    let mut next = range.start();
    while let Some(cover) = ranges.iter().find(|cover| cover.contains(next)) {
        next = cover.end();
        if next >= range.end() {
            return true;
        }
    }
    false
}
