//! The address space: where host virtual addresses are mapped, unmapped and protected.
//!
//! Lock order: the mmap lock, then an object's lock, then the list of notifiers, then what the
//! notifiers themselves take. The mmap lock is held for writing where VMAs change, which keeps
//! everybody out, and for reading by everything else. What changes an object's frames with the
//! mmap lock held for reading holds the object's lock from before `begin` until after `end`. So
//! whoever resolves sees the state before or after.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;

use slat::notifier::Notifier;
use slat_table::address::{Hva, HvaRange};
use slat_table::lock::{Locks, Mutex, RwLock};

use crate::backing::{Backing, MapError};
use crate::frames::Frames;
use crate::notify::{Bracket, Notifiers};
use crate::ram::{reach, split_edges, straddling};
use crate::resident::free_all;
use crate::stats::{Counters, Statistics};
use crate::vma::{Object, Vma, Vmas};
use crate::window::{Protection, Window};

/// Host virtual memory, with what backs it. Clones are the same address space.
///
/// It ends with [`release`](Self::release), or when the last clone is dropped.
pub struct AddressSpace<F: Frames, L: Locks> {
    pub(crate) shared: Arc<Shared<F, L>>,
}

pub(crate) struct Shared<F: Frames, L: Locks> {
    pub(crate) frames: F,
    // Of its own, because revocable devices tell notifiers without the address space.
    pub(crate) notifiers: Arc<Notifiers<L>>,
    // The mmap lock.
    pub(crate) vmas: L::RwLock<Vmas<L>>,
    counters: L::Mutex<Counters>,
}

/// Why protections were not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtectError {
    /// A page of the range is not mapped.
    #[error("nothing is mapped at {hva}, in the range {range} that is to be protected")]
    Hole {
        /// The range given.
        range: HvaRange,
        /// The first such page.
        hva: Hva,
    },
}

impl<F: Frames, L: Locks> AddressSpace<F, L> {
    /// An address space in which nothing is mapped, with memory from `frames`.
    pub fn new(frames: F) -> Self {
        let shared = Shared {
            frames,
            notifiers: Arc::new(Notifiers::new()),
            vmas: L::RwLock::new(Vmas::new()),
            counters: L::Mutex::new(Counters::default()),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Where the memory comes from.
    pub fn frames(&self) -> &F {
        &self.shared.frames
    }

    /// Maps `backing` at `range`, where nothing is mapped yet. Brings no memory.
    ///
    /// # Errors
    ///
    /// [`MapError`]; nothing is mapped then.
    pub fn map(
        &self,
        range: HvaRange,
        protection: Protection,
        backing: Backing<L>,
    ) -> Result<(), MapError> {
        let mut vmas = self.shared.vmas.write();
        if vmas.released {
            return Err(MapError::Released { range });
        }
        if let Some((existing, _)) = vmas.parts(range).next() {
            return Err(MapError::Overlap {
                range,
                existing: existing.range(),
            });
        }
        backing.check(range, &vmas)?;
        let (object, offset) = backing.into_object(&self.shared.notifiers);
        vmas.insert(Vma {
            window: Window {
                range,
                offset,
                protection,
            },
            object,
        });
        Ok(())
    }

    /// Unmaps whatever is mapped in `range` and gives its memory back.
    pub fn unmap(&self, range: HvaRange) {
        let mut bracket = Bracket::new();
        let mut vmas = self.shared.vmas.write();
        for (vma, part) in vmas.parts(range) {
            bracket.begin(&self.shared.notifiers, affected(vma, part));
        }
        let gone = vmas.remove(range);
        let mut split = 0;
        let mut frames = Vec::new();
        for Vma { window, object } in &gone {
            match object {
                Object::Ram(ram) => {
                    let mut resident = ram.resident.lock();
                    split += split_edges(&mut resident, window, window.range);
                    frames.extend(resident.take(window.span(window.range)));
                }
                Object::Linear(_) => {}
                Object::Driver(mapping) => mapping.forget(window.range),
            }
        }
        bracket.end();
        free_all(&self.shared.frames, frames);
        self.count(|counters| counters.split += split);
    }

    /// Changes what may be done in `range`, all of which must be mapped.
    ///
    /// Taking the permission to write away is announced to the notifiers, granting it is not. A
    /// 2 MiB frame that lies only partly in the range becomes pages either way.
    ///
    /// # Errors
    ///
    /// [`ProtectError`]; nothing has changed then.
    pub fn protect(&self, range: HvaRange, protection: Protection) -> Result<(), ProtectError> {
        let mut bracket = Bracket::new();
        let mut vmas = self.shared.vmas.write();
        if let Some(hva) = vmas.hole_in(range) {
            return Err(ProtectError::Hole { range, hva });
        }
        let parts: Vec<_> = vmas
            .parts(range)
            .filter(|(vma, _)| vma.window.protection != protection)
            .map(|(vma, part)| (vma.window, vma.object.clone(), part))
            .collect();
        for (window, object, part) in &parts {
            self.announce_protection(&mut bracket, window, object, *part, protection);
        }
        let mut split = 0;
        for (window, object, part) in &parts {
            if let Object::Ram(ram) = object {
                split += split_edges(&mut ram.resident.lock(), window, *part);
            }
            vmas.change(*part, |window| window.protection = protection);
        }
        vmas.merge_around(range);
        bracket.end();
        self.count(|counters| {
            counters.split += split;
            counters.protected += u64::from(!parts.is_empty());
        });
        Ok(())
    }

    fn announce_protection(
        &self,
        bracket: &mut Bracket,
        window: &Window,
        object: &Object<L>,
        part: HvaRange,
        protection: Protection,
    ) {
        let notifiers = &self.shared.notifiers;
        match (object, protection) {
            (Object::Ram(ram), Protection::ReadOnly) => {
                let reach = reach(&ram.resident.lock(), window, part);
                bracket.begin(notifiers, reach);
            }
            (Object::Ram(ram), Protection::ReadWrite) => {
                // A gain, but the frames at the edges are split.
                let split: Vec<_> = straddling(&ram.resident.lock(), window, part).collect();
                for block in split {
                    bracket.begin(notifiers, block);
                }
            }
            (_, Protection::ReadOnly) => bracket.begin(notifiers, part),
            (_, Protection::ReadWrite) => {}
        }
    }

    /// Ends the address space, as the end of a process does: everything is unmapped for good,
    /// notifiers are told ([`Notifier::release`]), and the memory is given back.
    pub fn release(&self) {
        self.shared.release();
    }

    /// Has `notifier` told of every change from now on. Register before the first resolve.
    ///
    /// A notifier is called with locks of the address space held, so it must not call back.
    pub fn register(&self, notifier: Weak<dyn Notifier>) {
        self.shared.notifiers.register(notifier);
    }

    /// Leaves `notifier` alone from now on; a change under way is still ended. From here on it must
    /// not use anything that this address space has shown it. Returns whether it was registered.
    pub fn unregister(&self, notifier: &Weak<dyn Notifier>) -> bool {
        self.shared.notifiers.unregister(notifier)
    }

    /// Whether any guest used a page of `range` since the last call, and forgets it. A hint.
    pub fn age(&self, range: HvaRange) -> bool {
        // Every notifier is asked: each has marks to clear.
        let live = self.shared.notifiers.live();
        live.iter()
            .fold(false, |young, notifier| young | notifier.age(range))
    }

    /// Whether any guest used a page of `range` since [`age`](Self::age) was last called. A hint.
    pub fn test_young(&self, range: HvaRange) -> bool {
        self.shared
            .notifiers
            .live()
            .iter()
            .any(|notifier| notifier.test_young(range))
    }

    /// What the address space holds and has done.
    pub fn statistics(&self) -> Statistics {
        let vmas = self.shared.vmas.read();
        let mut statistics = Statistics {
            notifications: self.shared.notifiers.brackets(),
            done: *self.shared.counters.lock(),
            ..Statistics::default()
        };
        for vma in vmas.iter() {
            statistics.vmas += 1;
            if let Object::Ram(ram) = &vma.object {
                statistics.resident += ram.resident.lock().count(vma.window.span(vma.range()));
            }
        }
        statistics
    }

    pub(crate) fn count(&self, count: impl FnOnce(&mut Counters)) {
        count(&mut self.shared.counters.lock());
    }
}

/// What is announced when `part` of a VMA goes: it, and what shares a frame with it.
fn affected<L: Locks>(vma: &Vma<L>, part: HvaRange) -> HvaRange {
    match &vma.object {
        Object::Ram(ram) => reach(&ram.resident.lock(), &vma.window, part),
        Object::Linear(_) | Object::Driver(_) => part,
    }
}

impl<F: Frames, L: Locks> Shared<F, L> {
    fn release(&self) {
        // A notifier's `release` wants nothing to be resolved any more, and may wait for locks that
        // come before the mmap lock: so it is called after this guard is gone, not inside.
        let gone = self.vmas.write().release();
        // Devices keep their record of what was shown until everybody was told, so that a
        // revocation meanwhile does not return too early.
        for notifier in self.notifiers.live() {
            notifier.release();
        }
        for Vma { window, object } in &gone {
            if let Object::Ram(ram) = object {
                let frames = ram.resident.lock().take(window.span(window.range));
                free_all(&self.frames, frames);
            }
        }
    }
}

impl<F: Frames, L: Locks> Drop for Shared<F, L> {
    fn drop(&mut self) {
        self.release();
    }
}

impl<F: Frames, L: Locks> Clone for AddressSpace<F, L> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<F: Frames, L: Locks> fmt::Debug for AddressSpace<F, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vmas = self.shared.vmas.read();
        f.debug_list()
            .entries(vmas.iter().map(Vma::described))
            .finish()
    }
}
