//! How the machine's memory is divided: the hypervisor's heap, and frames for everything else
//! (guest memory and its tables).

use alloc::vec::Vec;

use thiserror::Error;

use crate::machine::Machine;
use crate::span::{BLOCK_SIZE, Span};

/// One part in this many of the free memory becomes heap: bookkeeping for each page of a guest
/// that is mapped in pages takes tens of bytes, of 4096.
const HEAP_SHARE: u64 = 32;
/// The least that becomes heap.
const LEAST_HEAP: u64 = 8 << 20;

/// What the parts of the machine's memory are for. All addresses are host-physical.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Division {
    /// The hypervisor's heap: a piece of its own, and what lies below the hypervisor.
    pub heap: Vec<Span>,
    /// What frames are made of: whole pages.
    pub frames: Vec<Span>,
}

/// A machine without enough memory in one piece for the hypervisor's heap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no free piece of memory has the {needed} bytes that the hypervisor's heap needs")]
#[non_exhaustive]
pub struct DivisionError {
    /// Bytes that the heap needs.
    pub needed: u64,
}

impl Division {
    /// Divides what is free: RAM without `image` (the hypervisor), `tree` (its device tree), what
    /// firmware keeps, and the modules.
    ///
    /// # Errors
    ///
    /// A [`DivisionError`] if there is no room for the heap.
    pub fn new(machine: &Machine, image: Span, tree: Span) -> Result<Self, DivisionError> {
        let modules = core::iter::once(&machine.kernel).chain(machine.ramdisk.as_ref());
        let taken: Vec<Span> = machine
            .reserved
            .iter()
            .copied()
            .chain(modules.map(|module| module.span))
            .chain([image, tree])
            .map(Span::whole_pages)
            .collect();
        let mut frames: Vec<Span> = machine
            .ram
            .iter()
            .flat_map(|bank| bank.without(&taken))
            .collect();
        let free: u64 = frames.iter().map(|span| span.size()).sum();
        let needed = (free / HEAP_SHARE)
            .max(LEAST_HEAP)
            .next_multiple_of(BLOCK_SIZE);
        let error = DivisionError { needed };
        // The end of the largest piece: what is left of it stays in one piece.
        let largest = frames
            .iter_mut()
            .max_by_key(|span| span.size())
            .ok_or(error)?;
        let start = largest
            .end()
            .checked_sub(needed)
            .map(|start| start & !(BLOCK_SIZE - 1));
        let start = start
            .filter(|start| *start >= largest.start())
            .ok_or(error)?;
        let mut heap = alloc::vec![Span::new(start, largest.end() - start).ok_or(error)?];
        *largest = Span::new(largest.start(), start - largest.start()).ok_or(error)?;
        // The guest's memory begins where the machine's does. If its first frame came from there
        // too, nobody could see that it is translated.
        frames.retain(|span| {
            let below = span.end() <= image.start();
            heap.extend(below.then_some(*span));
            !below
        });
        Ok(Self { heap, frames })
    }
}

#[cfg(test)]
mod tests {
    use dtoolkit::fdt::Fdt;

    use super::*;
    use crate::testing::MachineTree;

    fn span(start: u64, end: u64) -> Span {
        Span::new(start, end - start).expect("a test's range")
    }

    fn machine(ram_size: u64) -> Machine {
        let blob = MachineTree {
            ram_size,
            ..MachineTree::default()
        }
        .build();
        Machine::read(&Fdt::new(&blob).expect("valid")).expect("complete")
    }

    #[test]
    fn nothing_is_given_away_twice_and_nothing_is_lost() {
        let machine = machine(1 << 30);
        let (image, tree) = (
            span(0x4020_0000, 0x4030_0000),
            span(0x4800_0000, 0x4800_1234),
        );
        let division = Division::new(&machine, image, tree).expect("room");
        let taken = [
            image,
            tree,
            machine.kernel.span,
            span(0x5400_0000, 0x5401_3000),
        ];
        let parts = [division.frames.clone(), division.heap.clone()].concat();
        for (index, part) in parts.iter().enumerate() {
            assert!(taken.iter().all(|other| !part.overlaps(*other)), "{part}");
            assert!(
                parts[index + 1..]
                    .iter()
                    .all(|other| !part.overlaps(*other)),
                "{part}"
            );
            assert_eq!(*part, part.whole_pages());
        }
        let sum = |spans: &[Span]| {
            spans
                .iter()
                .map(|span| span.whole_pages().size())
                .sum::<u64>()
        };
        assert_eq!(sum(&parts) + sum(&taken), 1 << 30);
        assert_eq!(sum(&division.heap), (32 << 20) + (2 << 20));
        assert!(
            division
                .frames
                .iter()
                .all(|span| span.start() >= image.end())
        );
    }

    #[test]
    fn a_machine_that_is_too_small_is_refused() {
        let machine = machine(6 << 20);
        let nothing = span(0, 0);
        let error = Division::new(&machine, nothing, nothing);
        assert_eq!(error, Err(DivisionError { needed: 8 << 20 }));
    }
}
