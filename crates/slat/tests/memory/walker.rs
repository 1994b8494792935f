//! A table walker of its own: what the hardware would find, from the writes to memory alone.
//!
//! It takes the platform's journal and the root registers, follows the manual (Arm DDI 0487,
//! D8.2 for the walk, D8.3 for the descriptors) and shares no code with the library.

use slat::table::format::arm64::Arm64Root;
use slat::table::simulated::Event;

const WORDS: usize = 512;
const MEMORY_START: u64 = 0x8000_0000;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// The contiguous hint: a permission to TLBs, which changes no translation.
const CONTIGUOUS: u64 = 1 << 52;
/// The manual's level of the pages.
const LAST_LEVEL: u64 = 3;

/// A translation that a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) hpa: u64,
    /// All of the descriptor that is neither address nor type nor hint.
    pub(crate) attributes: u64,
}

impl Found {
    /// `S2AP[1]`: whether the guest may write.
    pub(crate) fn writes(&self) -> bool {
        self.attributes & 1 << 7 != 0
    }
}

/// Memory as the journal tells, and how to walk it.
#[derive(Clone)]
pub(crate) struct Walker {
    pages: Vec<Option<Box<[u64; WORDS]>>>,
    root: u64,
    start_level: u64,
}

impl Walker {
    /// Walks begin where `root` says. Nothing has been written yet.
    pub(crate) fn new(root: Arm64Root) -> Self {
        Self {
            pages: Vec::new(),
            root: root.vttbr & ADDRESS,
            // VTCR_EL2.SL0 for the 4 KiB granule: 0 starts at level 2, 2 at level 0.
            start_level: 2 - (root.vtcr >> 6 & 0b11),
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
        page.map_or(0, |words| u64::from_le(words[offset / 8 % WORDS]))
    }

    /// Takes in what happened. Returns whether memory changed.
    pub(crate) fn see(&mut self, event: &Event) -> bool {
        match event {
            Event::Written { entry, old, new } => {
                let word = self.word(entry.raw());
                assert_eq!(*word, *old, "the journal misses a write to {entry}");
                *word = *new;
                true
            }
            Event::Allocated { table, bytes } => {
                for entry in (table.raw()..table.raw() + u64::from(*bytes)).step_by(8) {
                    *self.word(entry) = 0;
                }
                true
            }
            _ => false,
        }
    }

    /// What a CPU with nothing in its TLBs finds at `gpa`.
    pub(crate) fn walk(&self, gpa: u64) -> Option<Found> {
        let mut table = self.root;
        let mut level = self.start_level;
        loop {
            let shift = 39 - 9 * level;
            // Root tables may lie side by side, so there the index may have more bits.
            let mask = if level == self.start_level {
                u64::MAX
            } else {
                0x1ff
            };
            let descriptor = self.load(table + (gpa >> shift & mask) * 8);
            match (level, descriptor & 0b11) {
                (LAST_LEVEL, 0b11) | (1 | 2, 0b01) => {
                    let offset = gpa & ((1 << shift) - 1);
                    return Some(Found {
                        hpa: (descriptor & ADDRESS) + offset,
                        attributes: descriptor & !ADDRESS & !CONTIGUOUS & !0b11,
                    });
                }
                (0..LAST_LEVEL, 0b11) => table = descriptor & ADDRESS,
                (_, invalid) => {
                    assert_eq!(invalid & 1, 0, "a reserved descriptor {descriptor:#x}");
                    return None;
                }
            }
            level += 1;
        }
    }
}
