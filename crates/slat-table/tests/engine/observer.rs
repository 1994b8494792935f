//! An observer that rebuilds memory, and the most that a TLB may hold, from the journal of a
//! [`SimulatedPlatform`](slat_table::simulated::SimulatedPlatform), and objects to what the
//! hardware must not see.
//!
//! It knows only the format and the geometry. Everything that was ever reachable counts as cached
//! until a flush covers it; that is the most hostile TLB there is.

use std::collections::{BTreeMap, HashMap};

use slat_table::address::{Gpa, GpaRange, Hpa};
use slat_table::attributes::Attributes;
use slat_table::format::{ByteOrder, Entry, Format};
use slat_table::geometry::{Geometry, Level};
use slat_table::platform::TlbWork;
use slat_table::simulated::Event;

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
            Event::Written { entry, old, new } => self.written(entry.raw(), *old, *new),
            Event::Flushed(work) => {
                self.stale.retain(|stale| !forgotten(work, stale));
                None
            }
            Event::FlushedLocally(_) | Event::Published | Event::Prepared { .. } => None,
        }
    }

    /// Nothing that was removed may still be cached.
    pub(crate) fn expect_settled(&self) {
        assert!(self.stale.is_empty(), "still cached: {:?}", self.stale);
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
        for entry in (table.raw()..table.raw() + u64::from(bytes)).step_by(8) {
            self.memory.remove(&entry);
        }
    }

    fn written(&mut self, entry: u64, old: u64, new: u64) -> Option<GpaRange> {
        let known = self.memory.insert(entry, new).unwrap_or(0);
        assert_eq!(known, old, "the journal misses a write to {entry:#x}");
        let (level, range) = self.entry(entry)?;
        let was = self.decode(level, old);
        let now = self.decode(level, new);
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
                let same = hpa == to && old.memory == new.memory;
                assert!(
                    same,
                    "{range} changes from {was:?} to {now:?} without a break"
                );
                let kept = old.permissions.union(new.permissions) == new.permissions;
                assert!(kept, "{range} loses permissions: {was:?} to {now:?}");
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
        let raw = match F::BYTE_ORDER {
            ByteOrder::Little => u64::from_le_bytes(raw.to_ne_bytes()),
            ByteOrder::Big => u64::from_be_bytes(raw.to_ne_bytes()),
        };
        F::decode(&self.features, level, raw)
    }

    /// Level and range of an entry in a reachable table.
    fn entry(&self, entry: u64) -> Option<(Level, GpaRange)> {
        let (&table, found) = self.reachable.range(..=entry).next_back()?;
        let shape = self.geometry.shape(found.level);
        let index = (entry - table) / 8;
        if index >> shape.index_bits != 0 {
            return None;
        }
        let start = Gpa::new(found.start + (index << shape.shift));
        Some((
            found.level,
            self.geometry
                .block(found.level, start)
                .expect("within 63 bits"),
        ))
    }

    /// An empty entry became valid: whatever was there before must be out of all caches.
    fn made(&mut self, level: Level, range: GpaRange, now: Entry) {
        let overlaps = |stale: &&Stale| self.breaks && stale.range.overlaps(&range);
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
                ) => stale.range == range && a == b && x.memory == y.memory,
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
            range,
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
                range,
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
                let raw = *self.memory.get(&(table.raw() + index * 8))?;
                let entry = self.decode(level, raw);
                let gpa = Gpa::new(start + (index << shape.shift));
                (entry != Entry::Empty).then(|| (entry, self.geometry.block(level, gpa).unwrap()))
            })
            .collect()
    }

    /// Walks the tables as the hardware would.
    pub(crate) fn walk(&self, gpa: u64) -> Option<Walked> {
        let mut table = self.root?;
        let mut level = self.geometry.root();
        loop {
            let entry = table.raw() + self.geometry.index(level, Gpa::new(gpa)) * 8;
            let raw = self.memory.get(&entry).copied().unwrap_or(0);
            match self.decode(level, raw) {
                Entry::Empty => return None,
                Entry::Table(below) => {
                    table = below;
                    level = level.down()?;
                }
                Entry::Leaf { hpa, attributes } => {
                    let offset = gpa & (self.geometry.entry_bytes(level) - 1);
                    let hpa = Hpa::new(hpa.raw() + offset);
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
