//! Physical memory: what is at each address.
//!
//! Memory is kept in chunks of 2 MiB. A chunk is one word that fills it, and those of its pages in
//! which something else was written. So a device of a gigabyte costs nothing until it is touched,
//! and filling or copying a whole chunk costs only what was written there. RAM that nobody has
//! written holds [`UNTOUCHED`], which is not zero: who forgets to clear a page hands out garbage.
//!
//! Where there is neither RAM nor a device, loads find zeros and stores vanish: only a walker led
//! astray gets there.

use core::ops::Range;
use std::collections::BTreeMap;

use crate::address::Hpa;

pub(crate) const PAGE_SHIFT: u32 = 12;
pub(crate) const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;
const PAGE_WORDS: usize = 512;
const CHUNK_SHIFT: u32 = 21;
pub(crate) const CHUNK_BYTES: u64 = 1 << CHUNK_SHIFT;
const CHUNK_PAGES: usize = 512;

/// What RAM holds before anybody writes to it.
pub(crate) const UNTOUCHED: u64 = 0xa5a5_5a5a_c3c3_3c3c;

type Page = [u64; PAGE_WORDS];

/// 2 MiB of memory.
#[derive(Clone, Debug, Default)]
struct Chunk {
    /// What every word holds in pages that are not listed.
    fill: u64,
    /// The pages that hold something else; empty while there are none.
    pages: Vec<Option<Box<Page>>>,
}

impl Chunk {
    const fn filled(fill: u64) -> Self {
        Self {
            fill,
            pages: Vec::new(),
        }
    }

    fn page(&self, hpa: u64) -> Option<&Page> {
        self.pages.get(page_in_chunk(hpa))?.as_deref()
    }

    fn page_mut(&mut self, hpa: u64) -> &mut Page {
        if self.pages.is_empty() {
            self.pages.resize_with(CHUNK_PAGES, || None);
        }
        let fill = self.fill;
        self.pages[page_in_chunk(hpa)].get_or_insert_with(|| Box::new([fill; PAGE_WORDS]))
    }

    fn fill_page(&mut self, hpa: u64, word: u64) {
        if word != self.fill {
            self.page_mut(hpa).fill(word);
        } else if let Some(page) = self.pages.get_mut(page_in_chunk(hpa)) {
            *page = None;
        }
    }
}

/// RAM and devices.
#[derive(Debug)]
pub(crate) struct Memory {
    ram: Range<u64>,
    /// All of RAM, in order.
    chunks: Vec<Chunk>,
    devices: Vec<Range<u64>>,
    /// The chunks of devices that were touched, by number; all others hold zeros.
    device_chunks: BTreeMap<u64, Chunk>,
}

impl Memory {
    /// # Panics
    ///
    /// If RAM is not made of whole chunks, or a range wraps around.
    pub(crate) fn new(ram: (Hpa, u64), devices: &[(Hpa, u64)]) -> Self {
        assert!(
            ram.0.0.is_multiple_of(CHUNK_BYTES) && ram.1.is_multiple_of(CHUNK_BYTES),
            "RAM at {} of {:#x} bytes is not made of whole 2 MiB",
            ram.0,
            ram.1
        );
        let ram = range(ram.0, ram.1);
        let chunks = (ram.end - ram.start) >> CHUNK_SHIFT;
        Self {
            chunks: (0..chunks).map(|_| Chunk::filled(UNTOUCHED)).collect(),
            ram,
            devices: devices
                .iter()
                .map(|&(start, bytes)| range(start, bytes))
                .collect(),
            device_chunks: BTreeMap::new(),
        }
    }

    /// The aligned word that contains `hpa`.
    pub(crate) fn word(&self, hpa: Hpa) -> u64 {
        let Some(chunk) = self.chunk(hpa.0) else {
            return 0;
        };
        chunk
            .page(hpa.0)
            .map_or(chunk.fill, |page| page[word_in_page(hpa.0)])
    }

    /// Writes the aligned word that contains `hpa`.
    pub(crate) fn set_word(&mut self, hpa: Hpa, value: u64) {
        if let Some(chunk) = self.chunk_mut(hpa.0) {
            chunk.page_mut(hpa.0)[word_in_page(hpa.0)] = value;
        }
    }

    /// Reads bytes.
    pub(crate) fn read(&self, from: Hpa, bytes: &mut [u8]) {
        let mut at = from.0;
        let mut rest = bytes;
        while !rest.is_empty() {
            let skip = (at & 7) as usize;
            let count = rest.len().min(8 - skip);
            let word = self.word(Hpa(at)).to_le_bytes();
            let (head, tail) = rest.split_at_mut(count);
            head.copy_from_slice(&word[skip..skip + count]);
            rest = tail;
            at += count as u64;
        }
    }

    /// Writes bytes.
    pub(crate) fn write(&mut self, to: Hpa, bytes: &[u8]) {
        let mut at = to.0;
        let mut rest = bytes;
        while !rest.is_empty() {
            let skip = (at & 7) as usize;
            let count = rest.len().min(8 - skip);
            let mut word = self.word(Hpa(at)).to_le_bytes();
            let (head, tail) = rest.split_at(count);
            word[skip..skip + count].copy_from_slice(head);
            self.set_word(Hpa(at), u64::from_le_bytes(word));
            rest = tail;
            at += count as u64;
        }
    }

    /// Fills memory with one word.
    ///
    /// # Panics
    ///
    /// If start or size is no multiple of 8.
    pub(crate) fn fill(&mut self, start: Hpa, bytes: u64, word: u64) {
        assert_words(start, bytes);
        for piece in pieces(start.0, None, bytes) {
            let Some(chunk) = self.chunk_mut(piece.start) else {
                continue;
            };
            match piece.bytes {
                CHUNK_BYTES => *chunk = Chunk::filled(word),
                PAGE_BYTES => chunk.fill_page(piece.start, word),
                _ => chunk.page_mut(piece.start)[piece.words()].fill(word),
            }
        }
    }

    /// Copies memory.
    ///
    /// # Panics
    ///
    /// If an address or the size is no multiple of 8.
    pub(crate) fn copy(&mut self, from: Hpa, to: Hpa, bytes: u64) {
        assert_words(from, bytes);
        assert_words(to, bytes);
        for piece in pieces(from.0, Some(to.0), bytes) {
            let target = to.0 + (piece.start - from.0);
            let source = self.chunk(piece.start);
            match piece.bytes {
                CHUNK_BYTES => {
                    let copy = source.cloned().unwrap_or_default();
                    if let Some(chunk) = self.chunk_mut(target) {
                        *chunk = copy;
                    }
                }
                PAGE_BYTES => {
                    let fill = source.map_or(0, |chunk| chunk.fill);
                    let page = source.and_then(|chunk| chunk.page(piece.start)).copied();
                    match (self.chunk_mut(target), page) {
                        (Some(chunk), Some(page)) => *chunk.page_mut(target) = page,
                        (Some(chunk), None) => chunk.fill_page(target, fill),
                        (None, _) => {}
                    }
                }
                _ => {
                    for offset in (0..piece.bytes).step_by(8) {
                        let word = self.word(Hpa(piece.start + offset));
                        self.set_word(Hpa(target + offset), word);
                    }
                }
            }
        }
    }

    fn chunk(&self, hpa: u64) -> Option<&Chunk> {
        if self.ram.contains(&hpa) {
            self.chunks.get(chunk_number(hpa - self.ram.start))
        } else {
            self.device_chunks.get(&(hpa >> CHUNK_SHIFT))
        }
    }

    fn chunk_mut(&mut self, hpa: u64) -> Option<&mut Chunk> {
        if self.ram.contains(&hpa) {
            self.chunks.get_mut(chunk_number(hpa - self.ram.start))
        } else if self.devices.iter().any(|device| device.contains(&hpa)) {
            Some(self.device_chunks.entry(hpa >> CHUNK_SHIFT).or_default())
        } else {
            None
        }
    }
}

/// Part of a range that lies in one chunk and is a chunk, a page or less.
struct Piece {
    start: u64,
    bytes: u64,
}

impl Piece {
    /// Which words of its page it is.
    fn words(&self) -> Range<usize> {
        let first = word_in_page(self.start);
        first..first + usize::try_from(self.bytes / 8).expect("at most a page")
    }
}

/// Cuts a range into pieces, each as large as the alignment of `start` and of `other`, which is as
/// far into another range, lets it be.
fn pieces(start: u64, other: Option<u64>, bytes: u64) -> impl Iterator<Item = Piece> {
    let end = start + bytes;
    let mut at = start;
    core::iter::from_fn(move || {
        let left = end - at;
        if left == 0 {
            return None;
        }
        let alignment = at | other.map_or(0, |other| other + (at - start));
        let fits = |size: u64| alignment.is_multiple_of(size) && left >= size;
        let bytes = if fits(CHUNK_BYTES) {
            CHUNK_BYTES
        } else if fits(PAGE_BYTES) {
            PAGE_BYTES
        } else {
            // Up to the next page boundary of either, so that the piece lies in one page.
            let room = |address: u64| PAGE_BYTES - address % PAGE_BYTES;
            let there = other.map_or(u64::MAX, |other| room(other + (at - start)));
            room(at).min(there).min(left)
        };
        let piece = Piece { start: at, bytes };
        at += bytes;
        Some(piece)
    })
}

fn range(start: Hpa, bytes: u64) -> Range<u64> {
    let end = start.0.checked_add(bytes);
    start.0..end.unwrap_or_else(|| panic!("{bytes:#x} bytes at {start} wrap around"))
}

fn assert_words(start: Hpa, bytes: u64) {
    assert!(
        start.0.is_multiple_of(8) && bytes.is_multiple_of(8),
        "{bytes:#x} bytes at {start} are not whole words"
    );
}

fn chunk_number(offset: u64) -> usize {
    usize::try_from(offset >> CHUNK_SHIFT).expect("RAM is smaller than the address space")
}

const fn page_in_chunk(hpa: u64) -> usize {
    (hpa >> PAGE_SHIFT) as usize % CHUNK_PAGES
}

const fn word_in_page(hpa: u64) -> usize {
    (hpa >> 3) as usize % PAGE_WORDS
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: Hpa = Hpa(0x4000_0000);
    const DEVICE: Hpa = Hpa(0x900_0000);

    fn memory() -> Memory {
        Memory::new((RAM, 4 * CHUNK_BYTES), &[(DEVICE, 1 << 30)])
    }

    fn at(offset: u64) -> Hpa {
        Hpa(RAM.0 + offset)
    }

    #[test]
    fn bytes_come_back_from_where_they_were_written() {
        let mut memory = memory();
        let text: Vec<u8> = (0..100).collect();
        memory.write(at(PAGE_BYTES - 37), &text);
        let mut back = [0; 100];
        memory.read(at(PAGE_BYTES - 37), &mut back);
        assert_eq!(back.as_slice(), text);
        assert_eq!(memory.word(at(PAGE_BYTES + 64)), UNTOUCHED);
    }

    #[test]
    fn a_fill_covers_its_range_and_no_more() {
        let mut memory = memory();
        memory.fill(at(PAGE_BYTES - 16), CHUNK_BYTES + PAGE_BYTES, 7);
        assert_eq!(memory.word(at(PAGE_BYTES - 24)), UNTOUCHED);
        assert_eq!(memory.word(at(PAGE_BYTES - 16)), 7);
        assert_eq!(memory.word(at(CHUNK_BYTES)), 7);
        assert_eq!(memory.word(at(CHUNK_BYTES + 2 * PAGE_BYTES - 24)), 7);
        assert_eq!(
            memory.word(at(CHUNK_BYTES + 2 * PAGE_BYTES - 16)),
            UNTOUCHED
        );
    }

    #[test]
    fn filling_a_whole_chunk_forgets_its_pages() {
        let mut memory = memory();
        memory.set_word(at(0x1000), 1);
        memory.fill(RAM, CHUNK_BYTES, 0);
        assert_eq!(memory.word(at(0x1000)), 0);
        assert!(memory.chunks[0].pages.is_empty());
    }

    #[test]
    fn a_copy_is_exact_at_every_alignment() {
        for (from, to, bytes) in [
            (0, 2 * CHUNK_BYTES, 2 * CHUNK_BYTES),
            (0x3000, 2 * CHUNK_BYTES + 0x5000, 0x4000),
            (0x3008, 2 * CHUNK_BYTES + 0x5ff0, 0x4018),
        ] {
            let mut memory = memory();
            for offset in (0..0x8000).step_by(0x208) {
                memory.set_word(at(offset), offset + 1);
            }
            memory.copy(at(from), at(to), bytes);
            for offset in (0..bytes.min(0x9000)).step_by(8) {
                assert_eq!(
                    memory.word(at(to + offset)),
                    memory.word(at(from + offset)),
                    "{from:#x} to {to:#x}, {offset:#x}"
                );
            }
            if bytes < CHUNK_BYTES {
                assert_eq!(memory.word(at(to + bytes)), UNTOUCHED);
                assert_eq!(memory.word(at(to - 8)), UNTOUCHED);
            }
        }
    }

    #[test]
    fn devices_cost_nothing_until_touched_and_hold_zeros() {
        let mut memory = memory();
        assert_eq!(memory.word(Hpa(DEVICE.0 + 0x1234_5678)), 0);
        assert!(memory.device_chunks.is_empty());
        memory.set_word(Hpa(DEVICE.0 + 8), 3);
        assert_eq!(memory.word(Hpa(DEVICE.0 + 8)), 3);
        memory.copy(DEVICE, RAM, PAGE_BYTES);
        assert_eq!((memory.word(at(0)), memory.word(at(8))), (0, 3));
    }

    #[test]
    fn where_nothing_is_stores_vanish() {
        let mut memory = memory();
        memory.set_word(Hpa(0x10), 5);
        assert_eq!(memory.word(Hpa(0x10)), 0);
    }
}
