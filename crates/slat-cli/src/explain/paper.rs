//! Frames on paper: addresses of host memory without the memory.
//!
//! To explain how terabytes would be mapped, nobody needs terabytes. [`PaperFrames`] hands out
//! frame addresses, each once, and forgets what is written to them. Only page tables are real.

use core::sync::atomic::{AtomicU64, Ordering};

use slat_mm::{FrameSize, Frames};
use slat_table::address::{Hpa, PAGE_SIZE};

use crate::layout::DEVICE_END;

/// Where physical addresses end (48 bits).
const END: u64 = 1 << 48;

/// Where gigantic pages come from: the upper half of what frames have.
const GIGANTIC: u64 = DEVICE_END + (END - DEVICE_END) / 2;

/// A supply of addresses above all devices.
#[derive(Debug)]
pub(crate) struct PaperFrames {
    /// The next 2 MiB frame.
    huge: AtomicU64,
    /// The next 4 KiB frame; at the start of a 2 MiB frame, there is none and one must be opened.
    small: AtomicU64,
    /// The next range of gigantic pages.
    gigantic: AtomicU64,
}

impl PaperFrames {
    pub(crate) const fn new() -> Self {
        Self {
            huge: AtomicU64::new(DEVICE_END),
            small: AtomicU64::new(0),
            gigantic: AtomicU64::new(GIGANTIC),
        }
    }

    /// An address for `bytes` bytes of gigantic pages.
    pub(crate) fn gigantic(&self, bytes: u64) -> Hpa {
        Hpa::new(self.gigantic.fetch_add(bytes, Ordering::Relaxed))
    }

    fn huge_frame(&self) -> Option<u64> {
        let frame = self
            .huge
            .fetch_add(FrameSize::Huge.bytes(), Ordering::Relaxed);
        (frame < GIGANTIC).then_some(frame)
    }
}

impl Frames for PaperFrames {
    fn allocate(&self, size: FrameSize) -> Option<Hpa> {
        let frame = match size {
            FrameSize::Huge => self.huge_frame()?,
            FrameSize::Base => {
                // One thread explains, so nobody comes between the load and the store.
                let next = self.small.load(Ordering::Relaxed);
                let open = !next.is_multiple_of(FrameSize::Huge.bytes());
                let frame = if open { next } else { self.huge_frame()? };
                self.small.store(frame + PAGE_SIZE, Ordering::Relaxed);
                frame
            }
        };
        Some(Hpa::new(frame))
    }

    fn free(&self, _: Hpa, _: FrameSize) {}

    fn zero(&self, _: Hpa, _: FrameSize) {}

    fn copy(&self, _: Hpa, _: Hpa, _: FrameSize) {}

    fn read(&self, _: Hpa, bytes: &mut [u8]) {
        bytes.fill(0);
    }

    fn write(&self, _: Hpa, _: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_frame_is_handed_out_once_and_aligned() {
        let frames = PaperFrames::new();
        let mut pages = BTreeSet::new();
        for round in 0..2000 {
            let size = if round % 3 == 0 {
                FrameSize::Huge
            } else {
                FrameSize::Base
            };
            let frame = frames.allocate(size).unwrap();
            assert!(frame.is_aligned(size.bytes()));
            for page in 0..size.bytes() / PAGE_SIZE {
                assert!(pages.insert(frame.raw() + page * PAGE_SIZE), "twice");
            }
        }
    }
}
