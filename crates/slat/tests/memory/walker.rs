//! A table walker of its own: what the hardware would find, from the writes to memory alone.
//!
//! It takes the platform's journal, from the first allocation on, which is the root's. Entries it
//! has decoded by the format; all else, it does by itself.

use slat::table::address::{Gpa, Hpa};
use slat::table::attributes::Attributes;
use slat::table::format::{ByteOrder, Entry, Format};
use slat::table::simulated::Event;

use crate::rows::Row;

const WORDS: usize = 512;
const MEMORY_START: u64 = 0x8000_0000;

/// A translation that a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) hpa: u64,
    /// That a leaf is one of a run is a permission to TLBs, which changes no translation.
    pub(crate) attributes: Attributes,
}

impl Found {
    /// Whether the guest may write.
    pub(crate) fn writes(&self) -> bool {
        self.attributes.permissions.write
    }
}

/// Memory as the journal tells, and how to walk it.
#[derive(Clone)]
pub(crate) struct Walker<F: Format> {
    row: Row<F>,
    pages: Vec<Option<Box<[u64; WORDS]>>>,
    root: Option<Hpa>,
}

impl<F: Format> Walker<F> {
    /// Nothing has happened yet.
    pub(crate) fn new(row: Row<F>) -> Self {
        Self {
            row,
            pages: Vec::new(),
            root: None,
        }
    }

    fn word(&mut self, entry: u64) -> &mut u64 {
        let offset = usize::try_from(entry - MEMORY_START).expect("small tables");
        let page = offset / (8 * WORDS);
        if self.pages.len() <= page {
            self.pages.resize(page + 1, None);
        }
        let words = self.pages[page].get_or_insert_with(|| Box::new([0; WORDS]));
        &mut words[offset / 8 % WORDS]
    }

    fn load(&self, entry: u64) -> u64 {
        let offset = usize::try_from(entry - MEMORY_START).expect("small tables");
        let page = self
            .pages
            .get(offset / (8 * WORDS))
            .and_then(Option::as_ref);
        let memory = page
            .map_or(0, |words| words[offset / 8 % WORDS])
            .to_ne_bytes();
        let bytes = if F::ENTRY_BYTES == 4 {
            let half = offset % 8;
            &memory[half..half + 4]
        } else {
            &memory[..]
        };
        let fold = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        match F::BYTE_ORDER {
            ByteOrder::Big => bytes.iter().fold(0, fold),
            ByteOrder::Little => bytes.iter().rev().fold(0, fold),
        }
    }

    /// Takes in what happened. Returns where memory changed.
    pub(crate) fn see(&mut self, event: &Event) -> Option<u64> {
        match event {
            Event::Written { entry, old, new } => {
                let word = self.word(entry.raw());
                assert_eq!(*word, *old, "the journal misses a write to {entry}");
                *word = *new;
                Some(entry.raw())
            }
            Event::Allocated { table, bytes } => {
                self.root.get_or_insert(*table);
                for entry in (table.raw()..table.raw() + u64::from(*bytes)).step_by(8) {
                    *self.word(entry) = 0;
                }
                None
            }
            _ => None,
        }
    }

    /// What a CPU with nothing in its TLBs finds at `gpa`; calls `reads` with where it looks, in
    /// units of eight bytes.
    pub(crate) fn walk(&self, gpa: u64, mut reads: impl FnMut(u64)) -> Option<Found> {
        let geometry = &self.row.geometry;
        let mut table = self.root.expect("a root").raw();
        for level in geometry.levels_down() {
            let entry = table + geometry.index(level, Gpa::new(gpa)) * F::ENTRY_BYTES;
            reads(entry & !7);
            match F::decode(&self.row.features, level, self.load(entry)) {
                Entry::Empty => return None,
                Entry::Table(below) => table = below.raw(),
                Entry::Leaf { hpa, attributes } => {
                    let alone = geometry.entry_bytes(level);
                    let run = geometry.run_bytes(level);
                    let bytes = run.filter(|_| attributes.contiguous).unwrap_or(alone);
                    let attributes = Attributes {
                        contiguous: false,
                        ..attributes
                    };
                    let hpa = hpa.raw() + gpa % bytes;
                    return Some(Found { hpa, attributes });
                }
                Entry::Foreign(raw) => panic!("{raw:#x} at {entry:#x} is no entry of the format"),
            }
        }
        None
    }
}
