//! A RAM object: memory that the address space manages frame by frame.
//!
//! Two kinds differ only in their [`Source`]: anonymous memory, which starts as zeros and takes
//! 2 MiB frames where it can, and an image, whose pages are copied when they are first touched
//! and may be written after they were first written.
//!
//! Fresh frames are allocated and filled without the object's lock, so that one vCPU's fault does
//! not wait for another's zeroing, and then inserted where nobody was faster.

use alloc::vec::Vec;

use slat::host::{HostPage, PageKind};
use slat_table::address::{Hpa, Hva, HvaRange, PAGE_SIZE};
use slat_table::attributes::{Access, MemoryType};
use slat_table::lock::{Locks, Mutex};

use crate::frames::{FrameSize, Frames};
use crate::resident::{Frame, Placed, Resident, free_all};
use crate::source::Source;
use crate::stats::FrameCounts;
use crate::window::Window;

/// There is no frame for the page at this address.
pub(crate) struct NoFrame(pub(crate) Hva);

/// The object.
pub(crate) struct Ram<L: Locks> {
    pub(crate) source: Source,
    pub(crate) resident: L::Mutex<Resident>,
}

impl<L: Locks> Ram<L> {
    pub(crate) fn new(source: Source) -> Self {
        Self {
            source,
            resident: L::Mutex::new(Resident::default()),
        }
    }

    /// The page at `hva`, or else the range in which an access like this needs something done
    /// first.
    pub(crate) fn peek(
        &self,
        window: &Window,
        hva: Hva,
        access: Access,
    ) -> Result<HostPage, Option<HvaRange>> {
        let offset = window.offset_of(hva);
        let resident = self.resident.lock();
        let Some(placed) = resident.around(offset) else {
            return Err(window.seen(resident.gap(offset)));
        };
        if access == Access::Write && !placed.frame.may_write {
            return Err(window.seen(placed.offset..placed.end()));
        }
        page(window, hva, placed).ok_or(None)
    }

    /// The page at `hva`, brought there if need be. Counts what it brings in `brought`.
    pub(crate) fn fault<F: Frames>(
        &self,
        window: &Window,
        hva: Hva,
        access: Access,
        frames: &F,
        brought: &mut FrameCounts,
    ) -> Result<HostPage, NoFrame> {
        loop {
            if let Some(page) = self.touch(window, hva, access) {
                return Ok(page);
            }
            let fresh = self.prepare(window, hva, frames)?;
            let late = self.resident.lock().insert(fresh, brought);
            free_all(frames, late);
        }
    }

    /// Fresh frames for everything in `part` that is not resident, in order. They are not in the
    /// object yet. If there are too few, none is kept.
    pub(crate) fn prepare_all<F: Frames>(
        &self,
        window: &Window,
        part: HvaRange,
        frames: &F,
    ) -> Result<Vec<Placed>, NoFrame> {
        let span = window.span(part);
        let mut fresh: Vec<Placed> = Vec::new();
        let mut at = span.start;
        while at < span.end {
            let found = self.resident.lock().around(at);
            if let Some(placed) = found {
                at = placed.end();
                continue;
            }
            let hva = Hva::new(part.start().raw() + (at - span.start));
            match self.prepare(window, hva, frames) {
                Ok(placed) => {
                    fresh.push(placed);
                    at = placed.end();
                }
                Err(none) => {
                    free_all(frames, fresh);
                    return Err(none);
                }
            }
        }
        Ok(fresh)
    }

    /// The page at `hva` if it is there; a write makes it writable first.
    fn touch(&self, window: &Window, hva: Hva, access: Access) -> Option<HostPage> {
        let offset = window.offset_of(hva);
        let mut resident = self.resident.lock();
        if access == Access::Write {
            // A gain of permission: nobody needs to be told.
            resident.allow_writes(&(offset..offset + 1));
        }
        page(window, hva, resident.around(offset)?)
    }

    /// A fresh frame for the page at `hva`: of 2 MiB if the block around lies in the VMA, nothing
    /// of it is resident, and there is one.
    fn prepare<F: Frames>(&self, window: &Window, hva: Hva, frames: &F) -> Result<Placed, NoFrame> {
        let vacant = |block: &HvaRange| !self.resident.lock().any_in(&window.span(*block));
        let block = window
            .block(hva, FrameSize::Huge.bytes())
            .filter(|_| self.source.prefers_huge())
            .filter(vacant);
        let huge = block.and_then(|block| {
            let hpa = frames.allocate(FrameSize::Huge)?;
            Some((window.offset_of(block.start()), FrameSize::Huge, hpa))
        });
        let base = || {
            let hpa = frames.allocate(FrameSize::Base)?;
            Some((
                window.offset_of(hva.align_down(PAGE_SIZE)),
                FrameSize::Base,
                hpa,
            ))
        };
        let (offset, size, hpa) = huge.or_else(base).ok_or(NoFrame(hva))?;
        self.source.fill(frames, hpa, size, offset);
        let may_write = self.source.starts_writable();
        Ok(Placed {
            offset,
            frame: Frame {
                hpa,
                size,
                may_write,
            },
        })
    }
}

/// `part` and the frames that lie only partly in it.
pub(crate) fn reach(resident: &Resident, window: &Window, part: HvaRange) -> HvaRange {
    straddling(resident, window, part).fold(part, |all, block| all.hull(&block))
}

/// The blocks of frames that lie only partly in `part`: one at each end at most.
pub(crate) fn straddling(
    resident: &Resident,
    window: &Window,
    part: HvaRange,
) -> impl Iterator<Item = HvaRange> {
    let last = Hva::new(part.end().raw() - PAGE_SIZE);
    let frame_at = |hva| {
        let shown = page(window, hva, resident.around(window.offset_of(hva))?)?;
        Some(shown.block).filter(|block| !part.covers(block))
    };
    let first = frame_at(part.start());
    // Both ends may lie in one frame.
    let second = frame_at(last).filter(|block| first != Some(*block));
    first.into_iter().chain(second)
}

/// Makes pages of the frames that lie only partly in `part`; says how many they were.
pub(crate) fn split_edges(resident: &mut Resident, window: &Window, part: HvaRange) -> u64 {
    let span = window.span(part);
    u64::from(resident.split_at(span.start)) + u64::from(resident.split_at(span.end))
}

/// How a frame that holds `hva` is seen through a window: whole, or by the page where it reaches
/// beyond the VMA.
fn page(window: &Window, hva: Hva, placed: Placed) -> Option<HostPage> {
    let whole = window.block(hva, placed.frame.size.bytes());
    let block = whole.or_else(|| window.block(hva, PAGE_SIZE))?;
    let distance = window.offset_of(block.start()) - placed.offset;
    Some(HostPage {
        block,
        hpa: Hpa::new(placed.frame.hpa.raw() + distance),
        writable: placed.frame.may_write && window.protection.is_writable(),
        kind: PageKind::Ram,
        memory: MemoryType::WriteBack,
    })
}
