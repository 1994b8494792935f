//! The set of slots, as vCPUs see it.
//!
//! A set never changes: a transaction makes a new one with a higher generation and publishes it
//! in one step, so a reader sees the old set or the new. vCPUs keep a snapshot and compare
//! generations (P1); nothing shared is written when they look a slot up.

use alloc::sync::Arc;
use alloc::vec::Vec;

use slat_table::address::Gpa;
use slat_table::lock::{Locks, RwLock};
use slat_table::sync::{AtomicU64, Ordering};

use crate::region::{Slot, SlotId};

/// Slots in ascending order of guest address; none overlap.
#[derive(Debug, Default)]
pub struct SlotSet {
    generation: u64,
    slots: Vec<Slot>,
}

impl SlotSet {
    /// Number of the publication; each transaction raises it.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The slots, in ascending order of guest address.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The slot that backs `gpa`. `hint` is where the last search ended; it is looked at first.
    #[inline]
    pub fn find(&self, gpa: Gpa, hint: &mut usize) -> Option<&Slot> {
        if let Some(slot) = self.slots.get(*hint)
            && slot.range().contains(gpa)
        {
            return Some(slot);
        }
        let index = self.slots.partition_point(|slot| slot.range().end() <= gpa);
        let slot = self
            .slots
            .get(index)
            .filter(|slot| slot.range().contains(gpa))?;
        *hint = index;
        Some(slot)
    }

    /// The slot named `id`.
    pub fn by_id(&self, id: SlotId) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.id() == id)
    }

    /// The set that follows this one, with `slots`, sorted here.
    pub(crate) fn successor(&self, mut slots: Vec<Slot>) -> Self {
        slots.sort_unstable_by_key(|slot| slot.range().start());
        Self {
            generation: self.generation + 1,
            slots,
        }
    }
}

/// The published set.
pub(crate) struct Published<L: Locks> {
    generation: AtomicU64,
    set: L::RwLock<Arc<SlotSet>>,
}

impl<L: Locks> Published<L> {
    pub(crate) fn new() -> Self {
        Self {
            generation: AtomicU64::new(0),
            set: L::RwLock::new(Arc::default()),
        }
    }

    /// P1, P3: the generation of the newest set.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn snapshot(&self) -> Arc<SlotSet> {
        Arc::clone(&self.set.read())
    }

    /// The point of no return of a transaction.
    pub(crate) fn publish(&self, set: Arc<SlotSet>) {
        let mut published = self.set.write();
        self.generation.store(set.generation, Ordering::Release);
        *published = set;
    }
}
