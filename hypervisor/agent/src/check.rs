//! `check`: a workload that notices when its memory or its files change behind its back.
//!
//! It fills memory with a seeded pattern, then goes round and round: every page is compared with
//! what was written last and rewritten with the next round's pattern, and between stretches of
//! memory the files are read and their checksums compared. The host may migrate, discard and
//! restore, split or write-protect any of that memory meanwhile; none of it may show.
//!
//! Each file begins with the checksum of its remaining bytes, eight bytes little-endian, as
//! `cargo xtask boot` writes them into the initramfs.

use core::ffi::CStr;

use crate::command::Failure;
use crate::console::say;
use crate::counter;
use crate::pattern::{Checksum, next, page_start};
use crate::syscall::{self, File, Open};

/// Words in a page of 4 KiB.
const PAGE_WORDS: usize = 512;

/// Pages between two looks at the clock and at the next file.
const STRETCH: usize = 2048;

/// What to do.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    /// For how long, at least; the pass that is under way is finished.
    pub(crate) seconds: u64,
    /// How much memory, in bytes.
    pub(crate) bytes: u64,
    /// The seed of the pattern.
    pub(crate) seed: u64,
    /// The files to read.
    pub(crate) files: &'a [&'a CStr],
}

/// What was done and found.
#[derive(Debug, Default)]
struct Tally {
    pages: u64,
    files: u64,
    memory_mismatches: u64,
    file_mismatches: u64,
}

/// Does `work`, prints the counts, and fails if anything did not match.
pub(crate) fn run(work: &Work<'_>) -> Result<(), Failure> {
    let pages = usize::try_from(work.bytes / 4096).map_err(|_| Failure::Number)?;
    let memory = syscall::map_memory(work.bytes)?.cast::<[u64; PAGE_WORDS]>();
    // SAFETY: the kernel mapped that many bytes of zeroed memory, page-aligned, for this call
    // alone, and they stay mapped until the program ends.
    let memory = unsafe { core::slice::from_raw_parts_mut(memory, pages) };

    let mut tally = Tally::default();
    let mut files = work.files.iter().cycle();
    let end = counter::ticks() + work.seconds * counter::frequency();
    let mut round = 0;
    fill(memory, work.seed);
    while round == 0 || counter::ticks() < end {
        for (stretch, pages) in memory.chunks_mut(STRETCH).enumerate() {
            for (index, page) in pages.iter_mut().enumerate() {
                let number = (stretch * STRETCH + index) as u64;
                if !verify_and_rewrite(page, work.seed, number, round) {
                    tally.memory_mismatches += 1;
                    say!("mismatch page={number} round={round}");
                }
                tally.pages += 1;
            }
            if let Some(file) = files.next() {
                if !file_is_whole(file)? {
                    tally.file_mismatches += 1;
                    say!("mismatch file={}", file.to_str().unwrap_or("?"));
                }
                tally.files += 1;
            }
        }
        round += 1;
    }

    let Tally {
        pages,
        files,
        memory_mismatches,
        file_mismatches,
    } = tally;
    let mismatches = memory_mismatches + file_mismatches;
    say!("check rounds={round} pages={pages} files={files} mismatches={mismatches}");
    if mismatches == 0 {
        Ok(())
    } else {
        Err(Failure::Mismatch)
    }
}

/// Writes round 0's pattern into every page.
fn fill(memory: &mut [[u64; PAGE_WORDS]], seed: u64) {
    for (number, page) in memory.iter_mut().enumerate() {
        let mut word = page_start(seed, number as u64, 0);
        for place in page {
            *place = word;
            word = next(word);
        }
    }
}

/// Says whether `page` holds `round`'s pattern, and writes that of the next round.
fn verify_and_rewrite(page: &mut [u64; PAGE_WORDS], seed: u64, number: u64, round: u64) -> bool {
    let mut expected = page_start(seed, number, round);
    let mut replacement = page_start(seed, number, round + 1);
    let mut difference = 0;
    for place in page {
        difference |= *place ^ expected;
        *place = replacement;
        expected = next(expected);
        replacement = next(replacement);
    }
    difference == 0
}

/// Says whether a file's bytes still have the checksum that it begins with.
fn file_is_whole(path: &CStr) -> Result<bool, Failure> {
    let file = File::open(path, Open::Read)?;
    let mut recorded = [0; 8];
    if file.read(&mut recorded)? != recorded.len() {
        return Ok(false);
    }
    let mut checksum = Checksum::new();
    let mut buffer = [0; 16 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(checksum.value() == u64::from_le_bytes(recorded)),
            length => checksum.update(&buffer[..length.min(16 << 10)]),
        }
    }
}
