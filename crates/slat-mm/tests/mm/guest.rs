//! A guest on an address space, which watches that the address space keeps its promises.
//!
//! It remembers every answer of `peek` and `fault` that nothing was announced about since (the
//! shadow), and checks at every announcement that the frames behind them have not been freed yet.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use slat::host::{Host, HostPage, HostView, PageKind, ResolveError};
use slat::notifier::{Notifier, Ticket};
use slat::region::Region;
use slat::vcpu::{Denial, FaultError};
use slat::{Config, Fault, GuestMemory, Outcome, SlotId};
use slat_mm::arena::Arena;
use slat_mm::{AddressSpace, Backing, DriverDevice, Protection};
use slat_table::address::{Gpa, GpaRange, Hpa, HpaRange, Hva, HvaRange, PAGE_SIZE};
use slat_table::attributes::{Access, MemoryType};
use slat_table::format::arm64::{Arm64, Arm64Features};
use slat_table::lock::StdLocks;
use slat_table::simulated::SimulatedPlatform;

pub(crate) type Space = AddressSpace<Arc<Arena>, StdLocks>;
pub(crate) type Memory = GuestMemory<Arm64, Space, SimulatedPlatform<StdLocks>>;

/// First page of a 2 MiB block.
pub(crate) const BLOCK: u64 = 0x1_0200;

/// Where the guest sees the first host virtual address of its slot.
pub(crate) const GUEST_BASE: u64 = 0x8000_0000;

/// An arena of `megabytes`, somewhere in physical memory.
pub(crate) fn arena(megabytes: u64) -> Arc<Arena> {
    let range = HpaRange::new(Hpa::new(0x40_4000_0000), megabytes << 20).unwrap();
    Arc::new(Arena::new(range))
}

/// `pages` pages from page number `first` on.
pub(crate) fn pages(first: u64, pages: u64) -> HvaRange {
    HvaRange::new(hva(first), pages * PAGE_SIZE).unwrap()
}

/// The address of page number `page`.
pub(crate) fn hva(page: u64) -> Hva {
    Hva::new(page * PAGE_SIZE)
}

/// An address space in which a guest sees `range`, backed by anonymous memory.
pub(crate) fn anonymous(range: HvaRange) -> (Arc<Arena>, Space, Arc<Guest>) {
    let arena = arena(16);
    let space = Space::new(Arc::clone(&arena));
    space
        .map(range, Protection::ReadWrite, Backing::Anonymous)
        .unwrap();
    let guest = Guest::new(&space, range);
    (arena, space, guest)
}

/// A revocable device of `pages` pages.
pub(crate) fn device(pages: u64) -> DriverDevice<StdLocks> {
    let range = HpaRange::new(Hpa::new(0x10_0000_0000), pages * PAGE_SIZE).unwrap();
    DriverDevice::new(range, MemoryType::Device)
}

/// One slot, and the shadow.
pub(crate) struct Guest {
    pub(crate) memory: Arc<Memory>,
    pub(crate) platform: SimulatedPlatform<StdLocks>,
    arena: Arc<Arena>,
    slot: HvaRange,
    shadow: Mutex<Shadow>,
}

#[derive(Default)]
struct Shadow {
    /// What was answered for a page: where it is, and whether it may be written.
    shown: BTreeMap<Hva, Shown>,
    /// Frames shown before, taken away by brackets that are still open.
    closing: Vec<Hpa>,
    open: usize,
    announced: Vec<HvaRange>,
}

#[derive(Clone, Copy)]
struct Shown {
    hpa: Hpa,
    writable: bool,
    kind: PageKind,
}

impl Guest {
    /// A guest with one slot over `slot`, registered with `space`.
    pub(crate) fn new(space: &Space, slot: HvaRange) -> Arc<Self> {
        let platform = SimulatedPlatform::new();
        let config = Config::new().write_check(slat::config::WriteCheck::Lenient);
        let features = Arm64Features {
            physical_bits: 48,
            force_write_back: true,
            execute_never_extended: true,
            hardware_accessed: false,
            hardware_dirty: false,
            vmid16: false,
            coherent_instruction_cache: true,
        };
        let memory = Memory::new(space.clone(), platform.clone(), features, config).unwrap();
        let guest = Arc::new(Self {
            memory,
            platform,
            arena: Arc::clone(space.frames()),
            slot,
            shadow: Mutex::default(),
        });
        space.register(guest.weak());
        let region = Region::new(SlotId(1), Gpa::new(GUEST_BASE), slot.bytes(), slot.start());
        guest.memory.insert(region).unwrap();
        guest
    }

    pub(crate) fn weak(self: &Arc<Self>) -> Weak<dyn Notifier> {
        let weak: Weak<Self> = Arc::downgrade(self);
        weak
    }

    fn space(&self) -> &Space {
        self.memory.host()
    }

    /// Where the guest sees `hva`.
    pub(crate) fn gpa(&self, hva: Hva) -> Gpa {
        Gpa::new(hva.raw() - self.slot.start().raw() + GUEST_BASE)
    }

    /// Where the guest sees its slot.
    pub(crate) fn slot_range(&self) -> GpaRange {
        GpaRange::new(Gpa::new(GUEST_BASE), self.slot.bytes()).unwrap()
    }

    /// The ranges announced since the last call.
    pub(crate) fn announced(&self) -> Vec<HvaRange> {
        core::mem::take(&mut self.shadow.lock().unwrap().announced)
    }

    /// Asks the host for a page and remembers the answer.
    pub(crate) fn fault(&self, hva: Hva, access: Access) -> Result<HostPage, ResolveError> {
        let page = self.space().fault(hva, access)?;
        self.remember(hva, access, &page);
        Ok(page)
    }

    /// Looks at a page and remembers the answer.
    pub(crate) fn peek(&self, hva: Hva, access: Access) -> Result<HostPage, ResolveError> {
        let page = self.space().view().peek(hva, access)?;
        self.remember(hva, access, &page);
        Ok(page)
    }

    fn remember(&self, hva: Hva, access: Access, page: &HostPage) {
        assert!(page.block.contains(hva));
        assert!(page.writable || access != Access::Write);
        let vma = self.space().view().find_vma(hva).unwrap();
        assert!(
            vma.range.covers(&page.block),
            "{:?} is not in {:?}",
            page.block,
            vma.range
        );
        let mut shadow = self.shadow.lock().unwrap();
        for index in 0..page.block.pages() {
            let hpa = Hpa::new(page.hpa.raw() + index * PAGE_SIZE);
            let shown = Shown {
                hpa,
                writable: page.writable,
                kind: page.kind,
            };
            shadow.shown.insert(
                Hva::new(page.block.start().raw() + index * PAGE_SIZE),
                shown,
            );
        }
    }

    /// Accesses memory as the guest does, faulting until that works. Returns where the page is.
    pub(crate) fn access(&self, hva: Hva, access: Access) -> Result<Hpa, Stopped> {
        let gpa = self.gpa(hva);
        let mut vcpu = self.memory.vcpu();
        // Nothing else runs meanwhile where this is used, so few tries are enough: one to map,
        // one to gain a permission.
        for _ in 0..4 {
            let found = self.memory.translate(gpa);
            if let Some(found) = found.filter(|t| t.attributes.permissions.allow(access)) {
                // What the guest has mapped is an answer that it keeps.
                self.peek(hva, access).unwrap();
                return Ok(Hpa::new(found.hpa.raw() & !(PAGE_SIZE - 1)));
            }
            match vcpu.fault(Fault { gpa, access }) {
                Ok(Outcome::Denied { reason, .. }) => return Err(Stopped::Denied(reason)),
                Ok(_) => {}
                Err(FaultError::HostNoMemory(_)) => return Err(Stopped::NoMemory),
                Err(error) => panic!("{error}"),
            }
        }
        panic!("no progress at {hva}");
    }

    /// Checks that everything answered and not announced since is still true, and that whatever
    /// the guest can reach is what the host has there, with no more permission.
    pub(crate) fn check(&self) {
        let view = self.space().view();
        let shadow = self.shadow.lock().unwrap();
        assert_eq!(shadow.open, 0, "every bracket was closed");
        for (hva, shown) in &shadow.shown {
            let access = if shown.writable {
                Access::Write
            } else {
                Access::Read
            };
            let now = view.peek(*hva, access);
            let now = now.unwrap_or_else(|error| panic!("{hva} was shown, but now: {error}"));
            let hpa = now.hpa.raw() + (hva.raw() - now.block.start().raw());
            assert_eq!((hpa, now.kind), (shown.hpa.raw(), shown.kind), "at {hva}");
        }
        for leaf in self.leaves(self.slot) {
            for index in 0..leaf.pages() {
                let hva = Hva::new(leaf.start().raw() + index * PAGE_SIZE);
                let mapped = self.memory.translate(self.gpa(hva)).unwrap();
                let page = view.peek(hva, Access::Read);
                let page = page.unwrap_or_else(|error| panic!("a guest reaches {hva}: {error}"));
                let hpa = page.hpa.raw() + (hva.raw() - page.block.start().raw());
                assert_eq!(
                    mapped.hpa.raw(),
                    hpa,
                    "the guest reaches another frame at {hva}"
                );
                assert!(page.writable || !mapped.attributes.permissions.write);
            }
        }
    }

    /// What the guest has mapped of `range`, leaf by leaf.
    fn leaves(&self, range: HvaRange) -> Vec<HvaRange> {
        let guest_range = GpaRange::new(self.gpa(range.start()), range.bytes()).unwrap();
        let mut leaves = Vec::new();
        self.memory.table().for_each_leaf(&guest_range, |leaf, _| {
            let leaf = leaf.intersection(&guest_range).unwrap();
            let start = leaf.start().raw() - GUEST_BASE + self.slot.start().raw();
            leaves.push(HvaRange::new(Hva::new(start), leaf.bytes()).unwrap());
        });
        leaves
    }

    fn assert_not_freed(&self, hpa: Hpa) {
        assert!(
            self.arena.is_allocated(hpa),
            "{hpa} was freed before the bracket ended"
        );
    }
}

/// Why a guest's access does not go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    Denied(Denial),
    NoMemory,
}

impl Notifier for Guest {
    fn begin(&self, range: HvaRange) -> Ticket {
        let ticket = self.memory.begin(range);
        if let Some(mine) = range.intersection(&self.slot) {
            assert_eq!(
                self.leaves(mine),
                [],
                "the guest still reaches a part of {range}"
            );
        }
        let mut shadow = self.shadow.lock().unwrap();
        let taken: Vec<_> = shadow
            .shown
            .extract_if(range.start()..range.end(), |_, _| true)
            .collect();
        let frames = taken
            .iter()
            .filter(|(_, shown)| shown.kind == PageKind::Ram);
        shadow.closing.extend(frames.map(|(_, shown)| shown.hpa));
        shadow
            .closing
            .iter()
            .for_each(|hpa| self.assert_not_freed(*hpa));
        shadow.open += 1;
        shadow.announced.push(range);
        ticket
    }

    fn end(&self, ticket: Ticket) {
        let mut shadow = self.shadow.lock().unwrap();
        shadow
            .closing
            .iter()
            .for_each(|hpa| self.assert_not_freed(*hpa));
        shadow.open -= 1;
        if shadow.open == 0 {
            shadow.closing.clear();
        }
        drop(shadow);
        self.memory.end(ticket);
    }

    fn age(&self, range: HvaRange) -> bool {
        self.memory.age(range)
    }

    fn test_young(&self, range: HvaRange) -> bool {
        self.memory.test_young(range)
    }

    fn release(&self) {
        let mut shadow = self.shadow.lock().unwrap();
        let ram = shadow
            .shown
            .values()
            .filter(|shown| shown.kind == PageKind::Ram);
        ram.for_each(|shown| self.assert_not_freed(shown.hpa));
        shadow.shown.clear();
        drop(shadow);
        self.memory.release();
    }
}
