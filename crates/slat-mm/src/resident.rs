//! Which frames hold the contents of a RAM object.
//!
//! A frame is kept by the byte offset in the object at which it starts; frames never overlap.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use slat_table::address::{Hpa, PAGE_SIZE};

use crate::frames::{FrameSize, Frames};
use crate::stats::FrameCounts;

/// A frame in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) hpa: Hpa,
    pub(crate) size: FrameSize,
    /// Whether a write needs no further fault, as far as the object is concerned.
    pub(crate) may_write: bool,
}

impl Frame {
    /// The frame in pages, with their distance from its start.
    fn pages(self) -> impl Iterator<Item = (u64, Self)> {
        (0..self.size.bytes() / PAGE_SIZE).map(move |index| {
            let distance = index * PAGE_SIZE;
            let hpa = Hpa::new(self.hpa.raw() + distance);
            (
                distance,
                Self {
                    hpa,
                    size: FrameSize::Base,
                    ..self
                },
            )
        })
    }
}

/// A frame and where in its object it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Bytes from the start of the object.
    pub(crate) offset: u64,
    pub(crate) frame: Frame,
}

impl Placed {
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.frame.size.bytes()
    }
}

/// Gives frames back that nobody can reach.
pub(crate) fn free_all<F: Frames>(frames: &F, gone: impl IntoIterator<Item = Placed>) {
    for Placed { frame, .. } in gone {
        frames.free(frame.hpa, frame.size);
    }
}

/// The frames of one object.
#[derive(Debug, Default)]
pub(crate) struct Resident {
    frames: BTreeMap<u64, Frame>,
}

impl Resident {
    /// The frame that holds the byte at `offset`.
    pub(crate) fn around(&self, offset: u64) -> Option<Placed> {
        let (&start, &frame) = self.frames.range(..=offset).next_back()?;
        let placed = Placed {
            offset: start,
            frame,
        };
        (offset < placed.end()).then_some(placed)
    }

    /// The bytes around `offset`, where nothing is resident, up to the next frames.
    pub(crate) fn gap(&self, offset: u64) -> Range<u64> {
        let before = self.frames.range(..=offset).next_back();
        let start = before.map_or(0, |(start, frame)| start + frame.size.bytes());
        let end = self
            .frames
            .range(offset..)
            .next()
            .map_or(u64::MAX, |(start, _)| *start);
        start..end
    }

    /// Whether anything of `span` is resident.
    pub(crate) fn any_in(&self, span: &Range<u64>) -> bool {
        self.around(span.start).is_some() || self.frames.range(span.clone()).next().is_some()
    }

    /// The frames that start in `span`, counted.
    pub(crate) fn count(&self, span: Range<u64>) -> FrameCounts {
        let mut counts = FrameCounts::default();
        for frame in self.frames.range(span).map(|(_, frame)| frame) {
            counts.add(frame.size);
        }
        counts
    }

    /// Lets pages in `span` be written without another fault.
    pub(crate) fn allow_writes(&mut self, span: &Range<u64>) {
        let first = self
            .around(span.start)
            .map_or(span.start, |placed| placed.offset);
        for frame in self
            .frames
            .range_mut(first..span.end)
            .map(|(_, frame)| frame)
        {
            frame.may_write = true;
        }
    }

    /// Adds what is `fresh` where nothing is resident, counts it in `added`, and returns what
    /// found its place taken.
    pub(crate) fn insert(&mut self, fresh: Placed, added: &mut FrameCounts) -> Vec<Placed> {
        if !self.any_in(&(fresh.offset..fresh.end())) {
            self.frames.insert(fresh.offset, fresh.frame);
            added.add(fresh.frame.size);
            return Vec::new();
        }
        let mut left = Vec::new();
        for (distance, frame) in fresh.frame.pages() {
            let page = Placed {
                offset: fresh.offset + distance,
                frame,
            };
            if self.around(page.offset).is_some() {
                left.push(page);
            } else {
                self.frames.insert(page.offset, frame);
                added.add(FrameSize::Base);
            }
        }
        left
    }

    /// Makes pages of the 2 MiB frame that `offset` lies inside, if there is one and `offset` is
    /// not its start. Returns whether it did.
    pub(crate) fn split_at(&mut self, offset: u64) -> bool {
        match self.around(offset) {
            Some(placed) if placed.offset != offset => self.split(placed),
            _ => false,
        }
    }

    /// Makes pages of a 2 MiB frame. Returns whether it was one.
    pub(crate) fn split(&mut self, placed: Placed) -> bool {
        if placed.frame.size == FrameSize::Base {
            return false;
        }
        for (distance, page) in placed.frame.pages() {
            self.frames.insert(placed.offset + distance, page);
        }
        true
    }

    /// Removes the frames that start in `span`. Frames that lie only partly in it must have been
    /// split.
    pub(crate) fn take(&mut self, span: Range<u64>) -> Vec<Placed> {
        self.frames
            .extract_if(span, |_, _| true)
            .map(|(offset, frame)| Placed { offset, frame })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HUGE: u64 = 0x20_0000;

    fn placed(offset: u64, hpa: u64, size: FrameSize) -> Placed {
        Placed {
            offset,
            frame: Frame {
                hpa: Hpa::new(hpa),
                size,
                may_write: true,
            },
        }
    }

    #[test]
    fn a_split_frame_keeps_every_page_where_it_was() {
        let mut resident = Resident::default();
        let mut added = FrameCounts::default();
        let huge = placed(HUGE, 0x4000_0000, FrameSize::Huge);
        assert_eq!(resident.insert(huge, &mut added), []);
        assert!(!resident.split_at(HUGE), "an edge splits nothing");
        assert!(resident.split_at(HUGE + 0x5000));
        assert!(!resident.split_at(HUGE + 0x5000), "split already");
        let page = resident.around(HUGE + 0x5fff).unwrap();
        assert_eq!(page, placed(HUGE + 0x5000, 0x4000_5000, FrameSize::Base));
        assert_eq!(
            resident.count(0..4 * HUGE),
            FrameCounts { base: 512, huge: 0 }
        );
        assert_eq!(resident.take(HUGE + 0x1000..HUGE + 0x3000).len(), 2);
        assert_eq!(
            resident.count(0..4 * HUGE),
            FrameCounts { base: 510, huge: 0 }
        );
    }

    #[test]
    fn a_frame_that_lost_a_race_fills_only_what_is_vacant() {
        let mut resident = Resident::default();
        let mut added = FrameCounts::default();
        let first = placed(0x3000, 0x9000, FrameSize::Base);
        assert_eq!(resident.insert(first, &mut added), []);
        let left = resident.insert(placed(0, 0x20_0000, FrameSize::Huge), &mut added);
        assert_eq!(left, [placed(0x3000, 0x20_3000, FrameSize::Base)]);
        assert_eq!(added, FrameCounts { base: 512, huge: 0 });
        assert_eq!(resident.around(0x3000), Some(first));
        assert_eq!(
            resident.around(0x4000),
            Some(placed(0x4000, 0x20_4000, FrameSize::Base))
        );
    }
}
