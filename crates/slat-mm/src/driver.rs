//! Device memory whose driver decides from moment to moment whether it can be reached.
//!
//! This is how `vfio-pci` maps a BAR: nothing is there until somebody touches it, then the driver
//! inserts the page; and when the device is reset or its memory decoding is turned off, the
//! driver takes all pages away at once. It does so **without the mmap lock**, from wherever it is,
//! so a [`DriverDevice`] itself knows where it is mapped and whom to tell.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::fmt;

use slat::host::{HostPage, PageKind};
use slat_table::address::{HpaRange, Hva, HvaRange};
use slat_table::attributes::MemoryType;
use slat_table::lock::{Locks, Mutex};

use crate::device::Linear;
use crate::extents::Extents;
use crate::notify::{Bracket, Notifiers};
use crate::window::Window;

/// A device whose memory can be revoked and restored at any time. Clones are the same device.
///
/// Map it with [`Backing::Driver`](crate::Backing::Driver), in as many places and address spaces
/// as need be.
pub struct DriverDevice<L: Locks> {
    device: Arc<Device<L>>,
}

struct Device<L: Locks> {
    range: HpaRange,
    memory: MemoryType,
    kind: PageKind,
    state: L::Mutex<State<L>>,
}

/// Everything that a revocation needs, under the device's lock, which comes after the mmap locks.
struct State<L: Locks> {
    revoked: bool,
    mappings: BTreeMap<MappingId, Mapped<L>>,
    next: MappingId,
}

type MappingId = u64;

/// Where the device is mapped.
struct Mapped<L: Locks> {
    notifiers: Arc<Notifiers<L>>,
    // The addresses at which the driver has inserted pages.
    present: Extents,
}

impl<L: Locks> DriverDevice<L> {
    /// A device with its memory at `range`, which behaves as `memory` says. It is accessible.
    pub fn new(range: HpaRange, memory: MemoryType) -> Self {
        Self::of(range, memory, PageKind::Pfnmap)
    }

    /// RAM at `range` that a driver hands out, linear and in blocks as large as it is aligned: what
    /// hugetlbfs is to Linux. The guest may execute it. It is accessible.
    pub fn ram(range: HpaRange) -> Self {
        Self::of(range, MemoryType::WriteBack, PageKind::Ram)
    }

    fn of(range: HpaRange, memory: MemoryType, kind: PageKind) -> Self {
        let state = State {
            revoked: false,
            mappings: BTreeMap::new(),
            next: 0,
        };
        Self {
            device: Arc::new(Device {
                range,
                memory,
                kind,
                state: L::Mutex::new(state),
            }),
        }
    }

    /// Its physical memory.
    pub fn range(&self) -> HpaRange {
        self.device.range
    }

    /// Takes the device's memory away from everybody. When this returns, nobody reaches it, and
    /// faults on it fail until [`restore`](Self::restore). Takes no mmap lock. Returns whether
    /// the device was accessible before.
    pub fn revoke(&self) -> bool {
        let mut bracket = Bracket::new();
        let mut state = self.device.state.lock();
        for mapped in state.mappings.values() {
            for extent in mapped.present.iter() {
                bracket.begin(&mapped.notifiers, extent);
            }
        }
        for mapped in state.mappings.values_mut() {
            mapped.present.clear();
        }
        let accessible = !core::mem::replace(&mut state.revoked, true);
        bracket.end();
        accessible
    }

    /// Makes the device accessible again; its pages come back as they are touched.
    pub fn restore(&self) {
        self.device.state.lock().revoked = false;
    }

    /// Whether the device is revoked now.
    pub fn is_revoked(&self) -> bool {
        self.device.state.lock().revoked
    }

    /// Notes that an address space maps the device.
    pub(crate) fn map(&self, notifiers: Arc<Notifiers<L>>) -> DriverMapping<L> {
        let mut state = self.device.state.lock();
        let id = state.next;
        state.next += 1;
        state.mappings.insert(
            id,
            Mapped {
                notifiers,
                present: Extents::default(),
            },
        );
        DriverMapping {
            device: Arc::clone(&self.device),
            id,
        }
    }
}

impl<L: Locks> Clone for DriverDevice<L> {
    fn clone(&self) -> Self {
        Self {
            device: Arc::clone(&self.device),
        }
    }
}

impl<L: Locks> fmt::Debug for DriverDevice<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DriverDevice")
            .field("range", &self.device.range)
            .field("memory", &self.device.memory)
            .finish_non_exhaustive()
    }
}

/// One mapping of a device, kept by the VMAs that are left of it.
pub(crate) struct DriverMapping<L: Locks> {
    device: Arc<Device<L>>,
    id: MappingId,
}

/// The device is revoked.
pub(crate) struct Revoked;

impl<L: Locks> DriverMapping<L> {
    /// The whole device, as if it were always there.
    pub(crate) fn linear(&self) -> Linear {
        Linear {
            start: self.device.range.start(),
            memory: self.device.memory,
            kind: self.device.kind,
        }
    }

    /// The page at `hva` if the driver has inserted it, or else the range around it in which it
    /// has not.
    pub(crate) fn peek(&self, window: &Window, hva: Hva) -> Result<HostPage, Option<HvaRange>> {
        let state = self.device.state.lock();
        let present = &state.mappings.get(&self.id).ok_or(None)?.present;
        let Some(extent) = present.around(hva) else {
            return Err(present.gap(hva, window.range));
        };
        let within = extent.intersection(&window.range).ok_or(None)?;
        self.linear().page(window, hva, within).ok_or(None)
    }

    /// The page at `hva`, inserted if need be.
    pub(crate) fn fault(&self, window: &Window, hva: Hva) -> Result<HostPage, Revoked> {
        let mut state = self.device.state.lock();
        if state.revoked {
            return Err(Revoked);
        }
        let page = self
            .linear()
            .page(window, hva, window.range)
            .ok_or(Revoked)?;
        if let Some(mapped) = state.mappings.get_mut(&self.id) {
            mapped.present.insert(page.block);
        }
        Ok(page)
    }

    /// Forgets what was inserted in `range`, which is being unmapped.
    pub(crate) fn forget(&self, range: HvaRange) {
        if let Some(mapped) = self.device.state.lock().mappings.get_mut(&self.id) {
            mapped.present.remove(range);
        }
    }
}

impl<L: Locks> Drop for DriverMapping<L> {
    fn drop(&mut self) {
        self.device.state.lock().mappings.remove(&self.id);
    }
}
