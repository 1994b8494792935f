//! Device memory that is always there: its physical range is known when it is mapped.

use slat::host::{HostPage, PageKind};
use slat_table::address::{Hpa, HpaRange, Hva, HvaRange, PAGE_SHIFT};
use slat_table::attributes::MemoryType;

use crate::window::Window;

/// log2 of the largest block that is reported: no host maps larger ones with an entry. (64 KiB pages
/// of Arm with 52-bit addresses have blocks of 4 TiB.)
const LARGEST_BLOCK_SHIFT: u32 = 42;

/// Physical memory that is mapped linearly: a device's, as a rule (`VM_PFNMAP`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Linear {
    pub(crate) start: Hpa,
    pub(crate) memory: MemoryType,
    pub(crate) kind: PageKind,
}

impl Linear {
    /// The block at `hva`: the largest naturally aligned power of two up to 4 TiB that lies in
    /// `within`, a part of the window. It need not be aligned physically; whoever maps it looks.
    pub(crate) fn page(&self, window: &Window, hva: Hva, within: HvaRange) -> Option<HostPage> {
        let block = (PAGE_SHIFT..=LARGEST_BLOCK_SHIFT)
            .rev()
            .filter_map(|shift| HvaRange::block_around(hva, 1 << shift))
            .find(|block| within.covers(block))?;
        Some(HostPage {
            block,
            hpa: Hpa::new(self.start.raw() + window.offset_of(block.start())),
            writable: window.protection.is_writable(),
            kind: self.kind,
            memory: self.memory,
        })
    }

    /// The physical memory that a window shows.
    pub(crate) fn shown(&self, window: &Window) -> Option<HpaRange> {
        let start = self.start.checked_add(window.offset)?;
        HpaRange::new(start, window.range.bytes()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::Protection;

    fn window(start: u64, bytes: u64) -> Window {
        let range = HvaRange::new(Hva::new(start), bytes).unwrap();
        Window {
            range,
            offset: 0,
            protection: Protection::ReadWrite,
        }
    }

    #[test]
    fn blocks_are_the_largest_that_lie_in_the_vma() {
        let linear = Linear {
            start: Hpa::new(0x900_0000),
            memory: MemoryType::Device,
            kind: PageKind::Pfnmap,
        };
        let cases = [
            // A single page.
            (0x1000, 0x1000, 0x1000, 0x1000),
            // 2 MiB fit around the middle, pages at the end.
            (0x20_0000, 0x20_1000, 0x2f_f000, 0x20_0000),
            (0x20_0000, 0x20_1000, 0x40_0000, 0x1000),
            // Larger powers of two count as well.
            (0x40_0000, 0x40_0000, 0x70_0000, 0x40_0000),
            (0, 0x1_0000_0000, 0x7000_0000, 0x1_0000_0000),
            // Never more than 4 TiB.
            (0, 16 << 40, 0x7000_0000, 4 << 40),
        ];
        for (start, bytes, hva, expected) in cases {
            let window = window(start, bytes);
            let page = linear.page(&window, Hva::new(hva), window.range).unwrap();
            assert_eq!(
                page.block.bytes(),
                expected,
                "at {hva:#x} of {:?}",
                window.range
            );
            assert!(page.block.contains(Hva::new(hva)));
            assert_eq!(
                page.hpa.raw() - 0x900_0000,
                page.block.start().raw() - start
            );
        }
    }
}
