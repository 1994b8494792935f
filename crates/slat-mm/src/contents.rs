//! Bringing memory, giving it back, and reading and writing it for the guest.
//!
//! These are what a VMM does to its own memory: `madvise` with `MADV_POPULATE_READ`,
//! `MADV_POPULATE_WRITE` and `MADV_DONTNEED`, and plain loads and stores by a loader. None of
//! them applies to device memory.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use slat_table::address::{Hpa, Hva, HvaRange, PAGE_SIZE};
use slat_table::attributes::Access;
use slat_table::lock::{Locks, Mutex, RwLock};

use crate::address_space::AddressSpace;
use crate::frames::Frames;
use crate::notify::Bracket;
use crate::ram::{NoFrame, Ram, reach, split_edges};
use crate::resident::{Placed, free_all};
use crate::stats::FrameCounts;
use crate::vma::{Object, Vmas};
use crate::window::Window;

/// Why memory could not be read, written, brought or given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContentsError {
    /// A page is not mapped.
    #[error("nothing is mapped at {0}")]
    Hole(Hva),
    /// There is device memory in the range.
    #[error("{0} maps device memory, which is not the host's to fill")]
    Device(HvaRange),
    /// A mapping in the range may not be written.
    #[error("{0} may not be written")]
    ReadOnly(HvaRange),
    /// The memory for a page could not be had.
    #[error("there is no memory for a page at {0}")]
    NoMemory(Hva),
    /// The bytes do not fit in the address space.
    #[error("{bytes:#x} bytes from {hva} wrap around the address space")]
    Wraps {
        /// The address given.
        hva: Hva,
        /// How many bytes were to be read or written.
        bytes: usize,
    },
}

/// A RAM object, through which window it is seen, and which part of that is concerned.
struct Part<L: Locks> {
    ram: Arc<Ram<L>>,
    window: Window,
    range: HvaRange,
}

impl<F: Frames, L: Locks> AddressSpace<F, L> {
    /// Brings memory for all of `range`, as if each page had been accessed by `access`.
    ///
    /// # Errors
    ///
    /// [`ContentsError`]; no memory has been brought then.
    pub fn populate(&self, range: HvaRange, access: Access) -> Result<(), ContentsError> {
        let vmas = self.shared.vmas.read();
        self.bring(&ram_parts(&vmas, range, access)?, access)
    }

    /// Gives the memory of `range` back. What is accessed later starts afresh: as zeros, or as
    /// the image says. A 2 MiB frame that lies only partly in the range becomes pages.
    ///
    /// # Errors
    ///
    /// [`ContentsError::Hole`] or [`ContentsError::Device`]; nothing has been given back then.
    pub fn discard(&self, range: HvaRange) -> Result<(), ContentsError> {
        let mut bracket = Bracket::new();
        let vmas = self.shared.vmas.read();
        for Part { ram, window, range } in ram_parts(&vmas, range, Access::Read)? {
            let span = window.span(range);
            let mut resident = ram.resident.lock();
            if !resident.any_in(&span) {
                // Nothing was ever shown to anybody.
                continue;
            }
            bracket.begin(&self.shared.notifiers, reach(&resident, &window, range));
            let split = split_edges(&mut resident, &window, range);
            let counts = resident.count(span.clone());
            let gone = resident.take(span);
            bracket.end();
            free_all(&self.shared.frames, gone);
            self.count(|counters| {
                counters.split += split;
                counters.discarded += counts;
            });
        }
        Ok(())
    }

    /// Writes `bytes` at `hva`, as the host itself would: brings the memory first. Guests that
    /// have the memory mapped see the bytes.
    ///
    /// # Errors
    ///
    /// [`ContentsError`]; nothing has been written or brought then.
    pub fn write(&self, hva: Hva, bytes: &[u8]) -> Result<(), ContentsError> {
        let Some(range) = pages_around(hva, bytes.len())? else {
            return Ok(());
        };
        // For writing, so that no discard comes between bringing the memory and writing to it.
        let vmas = self.shared.vmas.write();
        self.bring(&ram_parts(&vmas, range, Access::Write)?, Access::Write)?;
        for (at, piece) in pieces(hva, bytes.len()) {
            let vma = vmas.at(at).ok_or(ContentsError::Hole(at))?;
            let page = vma
                .peek(at, Access::Write)
                .map_err(|_| ContentsError::NoMemory(at))?;
            let distance = at.raw() - page.block.start().raw();
            self.shared
                .frames
                .write(Hpa::new(page.hpa.raw() + distance), &bytes[piece]);
        }
        Ok(())
    }

    /// Reads what is at `hva` into `bytes`. Brings no memory: what is not there is read from where
    /// it would come from.
    ///
    /// # Errors
    ///
    /// [`ContentsError`]; `bytes` is as it was then.
    pub fn read(&self, hva: Hva, bytes: &mut [u8]) -> Result<(), ContentsError> {
        let Some(range) = pages_around(hva, bytes.len())? else {
            return Ok(());
        };
        let vmas = self.shared.vmas.read();
        let parts = ram_parts(&vmas, range, Access::Read)?;
        for (at, piece) in pieces(hva, bytes.len()) {
            let bytes = &mut bytes[piece];
            for Part { ram, window, .. } in parts.iter().filter(|part| part.range.contains(at)) {
                let offset = window.offset_of(at);
                // Held while reading, so that the frame is not given to somebody else meanwhile.
                let resident = ram.resident.lock();
                match resident.around(offset) {
                    Some(Placed {
                        offset: start,
                        frame,
                    }) => {
                        self.shared
                            .frames
                            .read(Hpa::new(frame.hpa.raw() + offset - start), bytes);
                    }
                    None => ram.source.read(offset, bytes),
                }
            }
        }
        Ok(())
    }

    /// Brings memory for all of `parts`, or none.
    fn bring(&self, parts: &[Part<L>], access: Access) -> Result<(), ContentsError> {
        let frames = &self.shared.frames;
        let mut fresh: Vec<Vec<Placed>> = Vec::new();
        for Part { ram, window, range } in parts {
            match ram.prepare_all(window, *range, frames) {
                Ok(more) => fresh.push(more),
                Err(NoFrame(hva)) => {
                    free_all(frames, fresh.into_iter().flatten());
                    return Err(ContentsError::NoMemory(hva));
                }
            }
        }
        let mut brought = FrameCounts::default();
        for (Part { ram, window, range }, fresh) in parts.iter().zip(fresh) {
            let mut resident = ram.resident.lock();
            for placed in fresh {
                free_all(frames, resident.insert(placed, &mut brought));
            }
            if access == Access::Write {
                resident.allow_writes(&window.span(*range));
            }
        }
        self.count(|counters| counters.populated += brought);
        Ok(())
    }
}

/// The RAM objects in `range`, all of which must be RAM that allows `access`.
fn ram_parts<L: Locks>(
    vmas: &Vmas<L>,
    range: HvaRange,
    access: Access,
) -> Result<Vec<Part<L>>, ContentsError> {
    if let Some(hva) = vmas.hole_in(range) {
        return Err(ContentsError::Hole(hva));
    }
    vmas.parts(range)
        .map(|(vma, part)| match &vma.object {
            Object::Ram(_) if !vma.window.protection.allows(access) => {
                Err(ContentsError::ReadOnly(vma.range()))
            }
            Object::Ram(ram) => Ok(Part {
                ram: Arc::clone(ram),
                window: vma.window,
                range: part,
            }),
            Object::Linear(_) | Object::Driver(_) => Err(ContentsError::Device(vma.range())),
        })
        .collect()
}

/// The pages that `bytes` bytes at `hva` touch; `None` for no bytes.
fn pages_around(hva: Hva, bytes: usize) -> Result<Option<HvaRange>, ContentsError> {
    if bytes == 0 {
        return Ok(None);
    }
    let wraps = ContentsError::Wraps { hva, bytes };
    let end = hva.checked_add(bytes as u64).ok_or(wraps)?;
    let end = end.raw().checked_next_multiple_of(PAGE_SIZE).ok_or(wraps)?;
    let range = HvaRange::between(hva.align_down(PAGE_SIZE), Hva::new(end)).ok_or(wraps)?;
    Ok(Some(range))
}

/// `bytes` bytes at `hva` page by page: the address of each piece, and which bytes it is. The
/// bytes do not wrap.
fn pieces(hva: Hva, bytes: usize) -> impl Iterator<Item = (Hva, Range<usize>)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let at = Hva::new(hva.raw() + done as u64);
        let room = PAGE_SIZE - at.raw() % PAGE_SIZE;
        let left = bytes - done;
        let piece = done..done + usize::try_from(room).map_or(left, |room| room.min(left));
        done = piece.end;
        (!piece.is_empty()).then_some((at, piece))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_stay_in_their_pages() {
        let all: Vec<_> = pieces(Hva::new(0x1ffe), 0x1004).collect();
        let expected = [
            (0x1ffe, 0..2),
            (0x2000, 2..0x1002),
            (0x3000, 0x1002..0x1004),
        ];
        assert_eq!(all, expected.map(|(at, piece)| (Hva::new(at), piece)));
        assert_eq!(pieces(Hva::new(0x1000), 0).count(), 0);
    }

    #[test]
    fn bytes_at_the_end_of_the_address_space_wrap() {
        let last = Hva::new(u64::MAX);
        let wraps = ContentsError::Wraps {
            hva: last,
            bytes: 2,
        };
        assert_eq!(pages_around(last, 2), Err(wraps));
        assert_eq!(pages_around(last, 0), Ok(None));
    }
}
