//! A trivial host: one mapping of RAM, all of it there, in pages, where it is in physical memory.

use std::sync::Weak;

use slat::host::{Host, HostPage, HostView, PageKind, ResolveError, Vma};
use slat::notifier::Notifier;
use slat_table::address::{Hpa, Hva, HvaRange};
use slat_table::attributes::{Access, MemoryType};

/// Where its RAM begins, in host virtual and in physical addresses.
pub(crate) const BASE: u64 = 1 << 30;
const BYTES: u64 = 1 << 30;

/// The host; answers in blocks of so many bytes.
pub(crate) struct Ram {
    pub(crate) block: u64,
}

impl HostView for &Ram {
    fn find_vma(&self, hva: Hva) -> Option<Vma> {
        let range = HvaRange::new(Hva::new(BASE), BYTES).ok()?;
        (range.end() > hva).then_some(Vma {
            range,
            writable: true,
            kind: PageKind::Ram,
            memory: MemoryType::WriteBack,
        })
    }

    // What is in RAM comes by faults only.
    fn peek(&self, hva: Hva, _: Access) -> Result<HostPage, ResolveError> {
        let page = HvaRange::block_around(hva, self.block).ok_or(ResolveError::NoVma(hva))?;
        Err(ResolveError::NotPresent(page))
    }
}

// SAFETY: the answers never change.
unsafe impl Host for Ram {
    type View<'a> = &'a Self;

    fn register(&self, _: Weak<dyn Notifier>) {}

    fn view(&self) -> &Self {
        self
    }

    #[inline]
    fn fault(&self, hva: Hva, _: Access) -> Result<HostPage, ResolveError> {
        let block = HvaRange::block_around(hva, self.block).ok_or(ResolveError::NoVma(hva))?;
        Ok(HostPage {
            block,
            hpa: Hpa::new(block.start().raw()),
            writable: true,
            kind: PageKind::Ram,
            memory: MemoryType::WriteBack,
        })
    }
}
