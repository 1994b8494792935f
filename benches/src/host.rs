//! A trivial host: one mapping of RAM, all of it there, in pages, where it is in physical memory.

use core::marker::PhantomData;
use std::sync::Weak;

use slat::host::{Host, HostPage, HostView, PageKind, ResolveError, Vma};
use slat::notifier::Notifier;
use slat_table::address::{Hpa, Hva, HvaRange};
use slat_table::attributes::{Access, MemoryType};
use slat_table::format::Format;
use slat_table::geometry::Level;

/// Where its RAM begins, in host virtual and in physical addresses.
pub(crate) const BASE: u64 = 1 << 30;
const BYTES: u64 = 1 << 30;

/// The host; answers in pages of the format.
pub(crate) struct Ram<F>(PhantomData<F>);

impl<F: Format> Ram<F> {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }

    #[inline]
    fn page(hva: Hva) -> Result<HvaRange, ResolveError> {
        let bytes = 1 << F::shift(Level::PAGE);
        HvaRange::block_around(hva, bytes).ok_or(ResolveError::NoVma(hva))
    }
}

impl<F: Format> HostView for &Ram<F> {
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
        Err(ResolveError::NotPresent(Ram::<F>::page(hva)?))
    }
}

// SAFETY: the answers never change.
unsafe impl<F: Format> Host for Ram<F> {
    type View<'a> = &'a Self;

    fn register(&self, _: Weak<dyn Notifier>) {}

    fn view(&self) -> &Self {
        self
    }

    #[inline]
    fn fault(&self, hva: Hva, _: Access) -> Result<HostPage, ResolveError> {
        let block = Self::page(hva)?;
        Ok(HostPage {
            block,
            hpa: Hpa::new(block.start().raw()),
            writable: true,
            kind: PageKind::Ram,
            memory: MemoryType::WriteBack,
        })
    }
}
