//! Moving memory to other frames while a guest uses it.
//!
//! A host does this to make huge frames (`khugepaged`), to undo them, to empty a range of physical
//! memory, to balance nodes. A guest must not notice.

use alloc::sync::Arc;

use slat_table::address::{Hpa, Hva, HvaRange};
use slat_table::lock::{Locks, Mutex, RwLock};

use crate::address_space::AddressSpace;
use crate::frames::{FrameSize, Frames};
use crate::notify::Bracket;
use crate::ram::{Ram, reach, split_edges};
use crate::resident::{Frame, Placed, free_all};
use crate::stats::FrameCounts;
use crate::vma::{Object, Vmas};
use crate::window::Window;

/// Why memory was not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MigrateError {
    /// Nothing is mapped.
    #[error("nothing is mapped at {0}")]
    Hole(Hva),
    /// Device memory cannot be moved.
    #[error("{0} maps device memory, which cannot be moved")]
    Device(HvaRange),
    /// There is no memory to move.
    #[error("no memory is resident at {0}")]
    NotResident(Hva),
    /// The block around the address does not lie in one mapping.
    #[error("the 2 MiB block around {hva} does not lie in the mapping {vma}")]
    BlockOutsideVma {
        /// The address given.
        hva: Hva,
        /// The mapping that it lies in.
        vma: HvaRange,
    },
    /// There is no frame to move to.
    #[error("there is no {size} frame to move {hva} to")]
    NoFrame {
        /// The address given.
        hva: Hva,
        /// The size of frame that was needed.
        size: FrameSize,
    },
}

/// Why a frame was not split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// Nothing is mapped.
    #[error("nothing is mapped at {0}")]
    Hole(Hva),
    /// Device memory has no frames.
    #[error("{0} maps device memory, which has no frames")]
    Device(HvaRange),
    /// There is no 2 MiB frame.
    #[error("no 2 MiB frame holds {0}")]
    NotHuge(Hva),
}

impl<F: Frames, L: Locks> AddressSpace<F, L> {
    /// Moves the memory around `hva` to a fresh frame of `size`, whose address is returned.
    ///
    /// [`Base`](FrameSize::Base) moves the page at `hva`, and first makes pages of the 2 MiB frame
    /// that it may be in. [`Huge`](FrameSize::Huge) moves the whole 2 MiB block, collapsing pages
    /// into one frame; pages of which there is none yet are brought with it.
    ///
    /// # Errors
    ///
    /// [`MigrateError`]; nothing has changed then.
    pub fn migrate(&self, hva: Hva, size: FrameSize) -> Result<Hpa, MigrateError> {
        let mut bracket = Bracket::new();
        let vmas = self.shared.vmas.read();
        let (ram, window) = ram_at(&vmas, hva).map_err(|none| match none {
            NoRam::Hole => MigrateError::Hole(hva),
            NoRam::Device(range) => MigrateError::Device(range),
        })?;
        let block = window
            .block(hva, size.bytes())
            .ok_or(MigrateError::BlockOutsideVma {
                hva,
                vma: window.range,
            })?;
        let span = window.span(block);
        let frames = &self.shared.frames;

        let mut resident = ram.resident.lock();
        if !resident.any_in(&span) {
            return Err(MigrateError::NotResident(hva));
        }
        let to = frames
            .allocate(size)
            .ok_or(MigrateError::NoFrame { hva, size })?;
        bracket.begin(&self.shared.notifiers, reach(&resident, &window, block));
        // Only now that no guest writes any more may the contents be copied.
        let split = split_edges(&mut resident, &window, block);
        let old = resident.take(span.clone());
        let may_write = gather(&ram, frames, &old, span.start, to, size);
        let moved = Placed {
            offset: span.start,
            frame: Frame {
                hpa: to,
                size,
                may_write,
            },
        };
        let mut migrated = FrameCounts::default();
        let unplaced = resident.insert(moved, &mut migrated);
        bracket.end();
        free_all(frames, old.into_iter().chain(unplaced));
        self.count(|counters| {
            counters.split += split;
            counters.migrated += migrated;
        });
        Ok(to)
    }

    /// Makes pages of the 2 MiB frame that holds `hva`. They stay where they are; guests map them
    /// one by one from now on.
    ///
    /// # Errors
    ///
    /// [`SplitError`]; nothing has changed then.
    pub fn split(&self, hva: Hva) -> Result<(), SplitError> {
        let mut bracket = Bracket::new();
        let vmas = self.shared.vmas.read();
        let (ram, window) = ram_at(&vmas, hva).map_err(|none| match none {
            NoRam::Hole => SplitError::Hole(hva),
            NoRam::Device(range) => SplitError::Device(range),
        })?;
        let block = window
            .block(hva, FrameSize::Huge.bytes())
            .ok_or(SplitError::NotHuge(hva))?;
        let mut resident = ram.resident.lock();
        let placed = resident
            .around(window.offset_of(hva))
            .filter(|placed| placed.frame.size == FrameSize::Huge)
            .ok_or(SplitError::NotHuge(hva))?;
        bracket.begin(&self.shared.notifiers, block);
        resident.split(placed);
        bracket.end();
        self.count(|counters| counters.split += 1);
        Ok(())
    }
}

/// Copies what the `old` frames hold to the frame at `to`, which shows the object from `start`
/// on, and fills the gaps between them. Returns whether all of it may be written.
fn gather<F: Frames, L: Locks>(
    ram: &Ram<L>,
    frames: &F,
    old: &[Placed],
    start: u64,
    to: Hpa,
    size: FrameSize,
) -> bool {
    let resident: u64 = old.iter().map(|placed| placed.frame.size.bytes()).sum();
    let complete = resident == size.bytes();
    if !complete {
        ram.source.fill(frames, to, size, start);
    }
    for Placed { offset, frame } in old {
        frames.copy(frame.hpa, Hpa::new(to.raw() + (offset - start)), frame.size);
    }
    let filled_may_write = complete || ram.source.starts_writable();
    filled_may_write && old.iter().all(|placed| placed.frame.may_write)
}

enum NoRam {
    Hole,
    Device(HvaRange),
}

/// The RAM object at `hva`, and the window through which it is seen.
fn ram_at<L: Locks>(vmas: &Vmas<L>, hva: Hva) -> Result<(Arc<Ram<L>>, Window), NoRam> {
    let vma = vmas.at(hva).ok_or(NoRam::Hole)?;
    match &vma.object {
        Object::Ram(ram) => Ok((Arc::clone(ram), vma.window)),
        Object::Linear(_) | Object::Driver(_) => Err(NoRam::Device(vma.range())),
    }
}
