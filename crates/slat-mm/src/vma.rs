//! The host's mappings: which addresses show what.
//!
//! A VMA shows a part of an object. Protecting or unmapping a part of a VMA splits it; VMAs that
//! have become alike are merged again. The object, and with it the frames, stays the same.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use slat::host::{self, HostPage, PageKind, ResolveError};
use slat_table::address::{HpaRange, Hva, HvaRange};
use slat_table::attributes::{Access, MemoryType};
use slat_table::lock::Locks;

use crate::device::Linear;
use crate::driver::DriverMapping;
use crate::ram::Ram;
use crate::window::Window;

/// What a VMA shows.
pub(crate) enum Object<L: Locks> {
    Ram(Arc<Ram<L>>),
    Linear(Linear),
    Driver(Arc<DriverMapping<L>>),
}

impl<L: Locks> Object<L> {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ram(one), Self::Ram(other)) => Arc::ptr_eq(one, other),
            (Self::Linear(one), Self::Linear(other)) => one == other,
            (Self::Driver(one), Self::Driver(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl<L: Locks> Clone for Object<L> {
    fn clone(&self) -> Self {
        match self {
            Self::Ram(ram) => Self::Ram(Arc::clone(ram)),
            Self::Linear(linear) => Self::Linear(*linear),
            Self::Driver(mapping) => Self::Driver(Arc::clone(mapping)),
        }
    }
}

/// A mapping.
pub(crate) struct Vma<L: Locks> {
    pub(crate) window: Window,
    pub(crate) object: Object<L>,
}

impl<L: Locks> Vma<L> {
    pub(crate) fn range(&self) -> HvaRange {
        self.window.range
    }

    /// How the contract with guest memory describes it.
    pub(crate) fn described(&self) -> host::Vma {
        let (kind, memory) = match &self.object {
            Object::Ram(_) => (PageKind::Ram, MemoryType::WriteBack),
            Object::Linear(linear) => (linear.kind, linear.memory),
            Object::Driver(mapping) => {
                let linear = mapping.linear();
                (linear.kind, linear.memory)
            }
        };
        let writable = self.window.protection.is_writable();
        host::Vma {
            range: self.range(),
            writable,
            kind,
            memory,
        }
    }

    /// The page at `hva`, if nothing has to be done for an access like this.
    pub(crate) fn peek(&self, hva: Hva, access: Access) -> Result<HostPage, ResolveError> {
        self.check(hva, access)?;
        let page = match &self.object {
            Object::Ram(ram) => ram.peek(&self.window, hva, access),
            Object::Linear(linear) => linear.page(&self.window, hva, self.range()).ok_or(None),
            Object::Driver(mapping) => mapping.peek(&self.window, hva),
        };
        page.map_err(|absent| ResolveError::NotPresent(absent.unwrap_or(self.range())))
    }

    /// Whether an access like this is permitted.
    pub(crate) fn check(&self, hva: Hva, access: Access) -> Result<(), ResolveError> {
        if self.window.protection.allows(access) {
            Ok(())
        } else {
            Err(ResolveError::NotPermitted { hva, access })
        }
    }

    /// The physical memory shown, if it is a device's.
    pub(crate) fn device_memory(&self) -> Option<HpaRange> {
        match &self.object {
            Object::Ram(_) => None,
            Object::Linear(linear) => linear.shown(&self.window),
            Object::Driver(mapping) => mapping.linear().shown(&self.window),
        }
    }
}

/// All mappings of an address space. They never overlap.
pub(crate) struct Vmas<L: Locks> {
    /// Whether the address space has been released: nothing is mapped any more, for good.
    pub(crate) released: bool,
    // By first address.
    tree: BTreeMap<Hva, Vma<L>>,
}

impl<L: Locks> Vmas<L> {
    pub(crate) fn new() -> Self {
        Self {
            released: false,
            tree: BTreeMap::new(),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Vma<L>> {
        self.tree.values()
    }

    /// The VMA that contains `hva`.
    pub(crate) fn at(&self, hva: Hva) -> Option<&Vma<L>> {
        let (_, vma) = self.tree.range(..=hva).next_back()?;
        vma.range().contains(hva).then_some(vma)
    }

    /// The VMA with the lowest addresses that ends after `hva`.
    pub(crate) fn find(&self, hva: Hva) -> Option<&Vma<L>> {
        self.at(hva)
            .or_else(|| self.tree.range(hva..).next().map(|(_, vma)| vma))
    }

    /// The VMAs that share pages with `range`, each with what it shares, in order.
    pub(crate) fn parts(&self, range: HvaRange) -> impl Iterator<Item = (&Vma<L>, HvaRange)> {
        let first = self
            .at(range.start())
            .map_or(range.start(), |vma| vma.range().start());
        self.tree
            .range(first..range.end())
            .filter_map(move |(_, vma)| Some((vma, vma.range().intersection(&range)?)))
    }

    /// The first address in `range` that no VMA contains.
    pub(crate) fn hole_in(&self, range: HvaRange) -> Option<Hva> {
        let mut covered = range.start();
        for (_, part) in self.parts(range) {
            if part.start() > covered {
                break;
            }
            covered = part.end();
        }
        (covered < range.end()).then_some(covered)
    }

    /// Adds a VMA where there is none, and merges it with its neighbours.
    pub(crate) fn insert(&mut self, vma: Vma<L>) {
        let range = vma.range();
        self.tree.insert(range.start(), vma);
        self.merge_around(range);
    }

    /// Makes `range`, which lies in one VMA, a VMA of its own and changes its window.
    pub(crate) fn change(&mut self, range: HvaRange, change: impl FnOnce(&mut Window)) {
        self.isolate(range);
        if let Some(vma) = self.tree.get_mut(&range.start()) {
            change(&mut vma.window);
        }
    }

    /// Removes all that is in `range`, and returns it.
    pub(crate) fn remove(&mut self, range: HvaRange) -> Vec<Vma<L>> {
        self.isolate(range);
        let gone = self
            .tree
            .extract_if(range.start()..range.end(), |_, _| true);
        gone.map(|(_, vma)| vma).collect()
    }

    /// Removes everything for good, and returns it.
    pub(crate) fn release(&mut self) -> Vec<Vma<L>> {
        self.released = true;
        core::mem::take(&mut self.tree).into_values().collect()
    }

    /// Merges VMAs that go on from each other, at the edges of `range` and inside.
    pub(crate) fn merge_around(&mut self, range: HvaRange) {
        let starts: Vec<Hva> = self
            .tree
            .range(range.start()..=range.end())
            .map(|(start, _)| *start)
            .collect();
        for start in starts {
            self.merge_at(start);
        }
    }

    /// Merges the VMA that starts at `start` with the one before it, if they go on.
    fn merge_at(&mut self, start: Hva) {
        let Some(next) = self.tree.get(&start) else {
            return;
        };
        let Some((_, before)) = self.tree.range(..start).next_back() else {
            return;
        };
        if !before.object.is_same(&next.object) {
            return;
        }
        let Some(joined) = before.window.joined(&next.window) else {
            return;
        };
        self.tree.remove(&start);
        if let Some(before) = self.tree.get_mut(&joined.range.start()) {
            before.window = joined;
        }
    }

    fn isolate(&mut self, range: HvaRange) {
        self.split_at(range.start());
        self.split_at(range.end());
    }

    /// Makes `hva` a boundary between VMAs.
    fn split_at(&mut self, hva: Hva) {
        let Some(vma) = self.at(hva) else { return };
        let whole = vma.window;
        let object = vma.object.clone();
        let before = HvaRange::between(whole.range.start(), hva);
        let after = HvaRange::between(hva, whole.range.end());
        let (Some(before), Some(after)) = (before, after) else {
            return;
        };
        for part in [before, after] {
            let vma = Vma {
                window: whole.narrowed(part),
                object: object.clone(),
            };
            self.tree.insert(part.start(), vma);
        }
    }
}
