//! Host memory on paper: physical addresses without the memory.
//!
//! To explain how terabytes would be mapped, nobody needs terabytes. [`Ground`] says where in
//! physical memory the RAM behind each mapping would be, around the devices; only page tables are
//! real. RAM is placed linearly and as its host virtual address is, so that the host could map it
//! in any of its sizes; which it does map, `zones` says.

use slat_mm::{FrameSize, Frames};
use slat_table::address::Hpa;

use crate::layout::{Kind, Layout};

/// The host's physical addresses, and which of them are taken.
#[derive(Debug)]
pub(crate) struct Ground {
    /// First and end of each range taken, in order.
    taken: Vec<(u64, u64)>,
    /// The end of the addresses.
    end: u64,
    /// RAM lies where its host virtual address is, modulo this.
    step: u64,
}

impl Ground {
    /// The addresses that the format of `layout` can hold, without its devices. RAM is to agree
    /// with its host virtual address modulo `step`.
    pub(crate) fn of(layout: &Layout, step: u64) -> Self {
        let devices = layout.mappings.iter().filter_map(|mapping| {
            let Kind::Pfnmap { hpa } = mapping.kind else {
                return None;
            };
            Some((hpa, hpa.saturating_add(mapping.bytes)))
        });
        let mut taken: Vec<_> = devices.collect();
        taken.sort_unstable();
        Self {
            taken,
            end: layout.format.host_end(),
            step,
        }
    }

    /// The lowest place for `bytes` bytes of RAM at `hva`, which is taken from now on.
    pub(crate) fn take(&mut self, hva: u64, bytes: u64) -> Option<Hpa> {
        let wanted = hva % self.step;
        let mut free = 0_u64;
        let mut at = 0;
        loop {
            let (next, after) = self.taken.get(at).copied().unwrap_or((self.end, self.end));
            // The first address from `free` on that is `wanted` modulo the step.
            let up = (wanted + self.step - free % self.step) % self.step;
            let start = free.checked_add(up)?;
            if start.checked_add(bytes)? <= next {
                self.taken.insert(at, (start, start + bytes));
                return Some(Hpa::new(start));
            }
            if at >= self.taken.len() {
                return None;
            }
            free = free.max(after);
            at += 1;
        }
    }
}

/// No frames at all: nothing on paper is allocated page by page.
#[derive(Debug)]
pub(crate) struct NoFrames;

impl Frames for NoFrames {
    fn allocate(&self, _: FrameSize) -> Option<Hpa> {
        None
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

    fn ground(taken: &[(u64, u64)]) -> Ground {
        Ground {
            taken: taken.to_vec(),
            end: 0x1_0000,
            step: 0x1000,
        }
    }

    #[test]
    fn ram_lies_as_its_virtual_address_does_beside_devices() {
        let mut ground = ground(&[(0x1000, 0x3000), (0x4000, 0x5000)]);
        let mut take = |hva, bytes| ground.take(hva, bytes).map(Hpa::raw);
        assert_eq!(take(0x7000, 0x1000), Some(0));
        assert_eq!(take(0x9000, 0x1000), Some(0x3000));
        assert_eq!(take(0x9800, 0x800), Some(0x5800));
        assert_eq!(take(0x9000, 0x9000), Some(0x6000));
        assert_eq!(take(0x9000, 0x2000), None, "only a page is left at the end");
        assert_eq!(take(0x9000, 0x1000), Some(0xf000));
        assert_eq!(take(0x9000, 0x1000), None);
    }
}
