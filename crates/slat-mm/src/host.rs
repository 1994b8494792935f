//! How guest memory asks an address space: the [`Host`] contract.

use alloc::sync::Weak;
use core::fmt;

use slat::host::{self, Host, HostPage, HostView, ResolveError};
use slat::notifier::Notifier;
use slat_table::address::Hva;
use slat_table::attributes::Access;
use slat_table::lock::{Locks, RwLock};

use crate::address_space::AddressSpace;
use crate::frames::Frames;
use crate::ram::NoFrame;
use crate::stats::FrameCounts;
use crate::vma::{Object, Vma, Vmas};

/// An address space under its mmap lock, held for reading.
pub struct View<'a, L: Locks> {
    vmas: <L::RwLock<Vmas<L>> as RwLock<Vmas<L>>>::Read<'a>,
}

impl<L: Locks> HostView for View<'_, L> {
    fn find_vma(&self, hva: Hva) -> Option<host::Vma> {
        self.vmas.find(hva).map(Vma::described)
    }

    fn peek(&self, hva: Hva, access: Access) -> Result<HostPage, ResolveError> {
        self.vmas
            .at(hva)
            .ok_or(ResolveError::NoVma(hva))?
            .peek(hva, access)
    }
}

impl<L: Locks> fmt::Debug for View<'_, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.vmas.iter().map(Vma::described))
            .finish()
    }
}

// SAFETY: by the number of the promise:
// 0. Every change is made inside a `Bracket`, which tells all who are registered and still there.
// 1. Pages come out of `peek` and `fault` with the mmap lock held for reading and, where the
//    object can change by itself, under the object's lock. What they say depends on the VMA and
//    on the object's frames or the device's state. `map` only adds VMAs. `unmap` and `protect`
//    change them, and their frames, with the mmap lock held for writing; `discard` and `migrate`
//    take and replace frames with the object's lock held from before `begin` until after `end`.
//    All of them announce every page lost, widened to whole frames. A device's pages are taken
//    by `revoke`, under the device's lock, which announces every extent from which `fault` and
//    `peek` have shown anything since the last time; `unmap` announces before it forgets one.
//    Splitting a frame or a VMA changes neither address nor permission. The end of the whole
//    address space first unmaps everything, so that nothing resolves any more, and frees frames
//    only after every notifier's `release` has returned.
// 2. Frames are freed after `Bracket::end`, so nobody gets them before; they are taken out of the
//    object, and replaced, only after `Bracket::begin`. That one frame is not handed out twice is
//    a law of `Frames`.
// 3. Blocks come from `Window::block` and `Linear::page`, which give none that is not inside the
//    VMA and around the address, with the physical address of its first byte; a frame and a
//    device are linear.
#[expect(unsafe_code, reason = "the promise to guest memory is an unsafe trait")]
unsafe impl<F: Frames, L: Locks> Host for AddressSpace<F, L> {
    type View<'a> = View<'a, L>;

    fn register(&self, notifier: Weak<dyn Notifier>) {
        self.register(notifier);
    }

    fn view(&self) -> View<'_, L> {
        View {
            vmas: self.shared.vmas.read(),
        }
    }

    fn fault(&self, hva: Hva, access: Access) -> Result<HostPage, ResolveError> {
        let vmas = self.shared.vmas.read();
        let vma = vmas.at(hva).ok_or(ResolveError::NoVma(hva))?;
        match &vma.object {
            Object::Ram(ram) => {
                vma.check(hva, access)?;
                let mut brought = FrameCounts::default();
                let page = ram.fault(&vma.window, hva, access, &self.shared.frames, &mut brought);
                if brought != FrameCounts::default() {
                    self.count(|counters| counters.faulted += brought);
                }
                page.map_err(|NoFrame(hva)| ResolveError::NoMemory(hva))
            }
            Object::Linear(_) => vma.peek(hva, access),
            Object::Driver(mapping) => {
                vma.check(hva, access)?;
                mapping
                    .fault(&vma.window, hva)
                    .map_err(|_| ResolveError::DeviceGone(hva))
            }
        }
    }
}
