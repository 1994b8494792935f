//! A real address space, compared with the model after every step.
//!
//! Each step may run with memory that ends after a few allocations; if the operation fails for
//! that, nothing may have changed, and it is run again with memory.

use std::sync::Arc;

use proptest::prelude::*;
use proptest_state_machine::{StateMachineTest, prop_state_machine};
use slat::host::{Host, HostPage, HostView, PageKind, ResolveError};
use slat::vcpu::Denial;
use slat_mm::arena::Arena;
use slat_mm::{
    Backing, ContentsError, DriverDevice, FrameSize, Frames, MapError, MigrateError, ProtectError,
    Protection, SplitError,
};
use slat_table::address::{Hpa, HpaRange, Hva, HvaRange, PAGE_SIZE};
use slat_table::attributes::{Access, MemoryType};
use slat_table::lock::StdLocks;

use crate::guest::{Guest, Space, Stopped, arena, hva, pages};
use crate::model::{FIRST, Kind, Model, Op, PAGE, PAGES, Reference, Refusal, Step, image};

/// Where the devices are in physical memory.
const LINEAR: u64 = 0x9_0000_0000;
const DRIVER: u64 = 0xa_0000_0000;

/// The address space, a guest on it, and its memory.
struct System {
    arena: Arc<Arena>,
    device: DriverDevice<StdLocks>,
    guest: Arc<Guest>,
    space: Space,
}

/// What must be the same after an operation that failed.
#[derive(PartialEq, Eq)]
struct Picture {
    pages: Vec<Result<(Hpa, bool), ResolveError>>,
    resident: slat_mm::stats::FrameCounts,
    allocated: u64,
}

impl System {
    fn new() -> Self {
        let arena = arena(16);
        let space = Space::new(Arc::clone(&arena));
        let guest = Guest::new(&space, pages(FIRST, PAGES));
        let range = HpaRange::new(Hpa::new(DRIVER), PAGES * PAGE_SIZE).unwrap();
        let device = DriverDevice::new(range, MemoryType::Device);
        Self {
            arena,
            device,
            guest,
            space,
        }
    }

    fn picture(&self) -> Picture {
        let view = self.space.view();
        let look = |page: u64| {
            let found = view.peek(hva(page), Access::Read)?;
            let distance = hva(page).raw() - found.block.start().raw();
            Ok((Hpa::new(found.hpa.raw() + distance), found.writable))
        };
        Picture {
            pages: (FIRST..FIRST + PAGES).map(look).collect(),
            resident: self.space.statistics().resident,
            allocated: self.arena.allocated_pages(),
        }
    }

    fn run(&self, op: Op) -> Result<(), Refusal> {
        match op {
            Op::Map {
                first,
                pages: count,
                kind,
                writable,
            } => {
                let distance = (first - FIRST) * PAGE_SIZE;
                let backing = match kind {
                    Kind::Anonymous => Backing::Anonymous,
                    Kind::Image => Backing::Image(image(count)),
                    Kind::Linear => Backing::Linear {
                        hpa: Hpa::new(LINEAR + distance),
                        memory: MemoryType::Device,
                    },
                    Kind::Driver => Backing::Driver {
                        device: self.device.clone(),
                        offset: distance,
                    },
                };
                self.space
                    .map(pages(first, count), protection(writable), backing)
                    .map_err(refused)
            }
            Op::Unmap {
                first,
                pages: count,
            } => {
                self.space.unmap(pages(first, count));
                Ok(())
            }
            Op::Protect {
                first,
                pages: count,
                writable,
            } => self
                .space
                .protect(pages(first, count), protection(writable))
                .map_err(|error| match error {
                    ProtectError::Hole { hva, .. } => Refusal::Hole(hva.raw() / PAGE_SIZE),
                    other => panic!("{other}"),
                }),
            Op::Discard {
                first,
                pages: count,
            } => self
                .space
                .discard(pages(first, count))
                .map_err(refused_contents),
            Op::Populate {
                first,
                pages: count,
                write,
            } => self
                .space
                .populate(pages(first, count), access(write))
                .map_err(refused_contents),
            Op::Write { at, bytes, fill } => self
                .space
                .write(Hva::new(at), &vec![fill; bytes])
                .map_err(refused_contents),
            Op::Touch { page, write } => self
                .guest
                .fault(hva(page), access(write))
                .map(drop)
                .map_err(refused_page),
            Op::Peek { page, write } => self
                .guest
                .peek(hva(page), access(write))
                .map(drop)
                .map_err(refused_page),
            Op::Guest { page, write } => self.guest_access(page, write),
            Op::Migrate { page, huge } => self.migrate(page, huge),
            Op::Split { page } => self.split(page),
            Op::Revoke => {
                let before = self.device.is_revoked();
                assert_eq!(self.device.revoke(), !before);
                Ok(())
            }
            Op::Restore => {
                self.device.restore();
                Ok(())
            }
            Op::RefuseHuge(refuse) => {
                self.arena.refuse_huge(refuse);
                Ok(())
            }
        }
    }

    fn guest_access(&self, page: u64, write: Option<u8>) -> Result<(), Refusal> {
        let result = self.guest.access(hva(page), access(write.is_some()));
        let frame = result.map_err(|stopped| match stopped {
            Stopped::Denied(Denial::NoMapping) => Refusal::Hole(page),
            Stopped::Denied(Denial::NotPermitted) => Refusal::ReadOnly,
            Stopped::Denied(Denial::DeviceGone) => Refusal::Gone,
            Stopped::Denied(other) => panic!("denied: {other:?}"),
            Stopped::NoMemory => Refusal::NoMemory,
        })?;
        let device = self.space.view().find_vma(hva(page)).unwrap().kind == PageKind::Pfnmap;
        if let Some(fill) = write
            && !device
        {
            self.arena.write(Hpa::new(frame.raw() + 77), &[fill]);
        }
        Ok(())
    }

    /// Whether a page is resident, and the size in bytes of the block it is shown in.
    fn block_at(&self, page: u64) -> Option<u64> {
        let shown = self.space.view().peek(hva(page), Access::Read).ok()?;
        (shown.kind == PageKind::Ram).then_some(shown.block.bytes())
    }

    fn migrate(&self, page: u64, huge: bool) -> Result<(), Refusal> {
        let size = if huge {
            FrameSize::Huge
        } else {
            FrameSize::Base
        };
        let block = HvaRange::block_around(hva(page), size.bytes()).unwrap();
        let first = block.start().raw() / PAGE_SIZE;
        let resident = (first..first + block.pages()).any(|page| self.block_at(page).is_some());
        let vma = self
            .space
            .view()
            .find_vma(hva(page))
            .filter(|v| v.range.contains(hva(page)));
        match self.space.migrate(hva(page), size) {
            Ok(to) => {
                let shown = self.space.view().peek(hva(page), Access::Read).unwrap();
                assert_eq!((shown.block, shown.hpa), (block, to));
                assert!(resident && to.is_aligned(size.bytes()));
                Ok(())
            }
            Err(MigrateError::Hole(_)) => {
                assert_eq!(vma, None);
                Err(Refusal::Hole(page))
            }
            Err(MigrateError::Device(_)) => {
                assert_eq!(vma.unwrap().kind, PageKind::Pfnmap);
                Err(Refusal::Device)
            }
            Err(MigrateError::NotResident(_)) => {
                assert!(!resident);
                Err(Refusal::NotResident)
            }
            Err(MigrateError::BlockOutsideVma { .. }) => {
                assert!(!vma.unwrap().range.covers(&block));
                Err(Refusal::OutsideVma)
            }
            Err(MigrateError::NoFrame { .. }) => Err(Refusal::NoMemory),
            Err(other) => panic!("{other}"),
        }
    }

    fn split(&self, page: u64) -> Result<(), Refusal> {
        let before = self.block_at(page);
        match self.space.split(hva(page)) {
            Ok(()) => {
                assert_eq!(before, Some(FrameSize::Huge.bytes()));
                assert_eq!(self.block_at(page), Some(PAGE_SIZE));
                Ok(())
            }
            Err(SplitError::Hole(_)) => Err(Refusal::Hole(page)),
            Err(SplitError::Device(_)) => Err(Refusal::Device),
            Err(SplitError::NotHuge(_)) => {
                assert_ne!(before, Some(FrameSize::Huge.bytes()));
                Err(Refusal::NotHuge)
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// Compares everything with the model, but the contents of untouched pages only of those that
    /// `sampled` says.
    fn compare(&self, model: &Model, sampled: impl Fn(u64) -> bool) {
        self.guest.check();
        let view = self.space.view();
        let mut bytes = vec![0; PAGE];
        for number in FIRST..FIRST + PAGES {
            let vma = view
                .find_vma(hva(number))
                .filter(|vma| vma.range.contains(hva(number)));
            let peeked = view.peek(hva(number), Access::Read);
            let Some(page) = model.pages.get(&number) else {
                assert_eq!(vma, None);
                assert_eq!(peeked, Err(ResolveError::NoVma(hva(number))));
                continue;
            };
            let vma = vma.unwrap();
            assert_eq!(vma.writable, page.writable);
            assert_eq!(vma.kind == PageKind::Ram, page.kind.is_ram());
            if let Err(ResolveError::NotPresent(absent)) = peeked {
                assert!(absent.contains(hva(number)) && vma.range.covers(&absent));
            }
            match page.kind {
                Kind::Linear => assert_eq!(address(number, &peeked.unwrap()), LINEAR),
                Kind::Driver if model.revoked => assert!(peeked.is_err()),
                Kind::Driver => {
                    if let Ok(shown) = peeked {
                        assert_eq!(address(number, &shown), DRIVER);
                    }
                }
                Kind::Anonymous | Kind::Image if page.written.is_none() && !sampled(number) => {}
                Kind::Anonymous | Kind::Image => {
                    self.space.read(hva(number), &mut bytes).unwrap();
                    assert!(
                        bytes == page.contents(number),
                        "the contents of {}",
                        hva(number)
                    );
                }
            }
        }
        drop(view);
        let statistics = self.space.statistics();
        assert_eq!(
            statistics.resident.bytes() / PAGE_SIZE,
            self.arena.allocated_pages()
        );
        assert_eq!(statistics.vmas, model.vmas(), "{:?}", self.space);
    }
}

/// The physical address at which page `FIRST` would be, if all were as linear as `shown`.
fn address(number: u64, shown: &HostPage) -> u64 {
    let distance = hva(number).raw() - shown.block.start().raw();
    shown.hpa.raw() + distance - (number - FIRST) * PAGE_SIZE
}

fn access(write: bool) -> Access {
    if write { Access::Write } else { Access::Read }
}

fn protection(writable: bool) -> Protection {
    if writable {
        Protection::ReadWrite
    } else {
        Protection::ReadOnly
    }
}

fn refused(error: MapError) -> Refusal {
    match error {
        MapError::Overlap { .. } => Refusal::Overlap,
        other => panic!("{other}"),
    }
}

fn refused_contents(error: ContentsError) -> Refusal {
    match error {
        ContentsError::Hole(hva) => Refusal::Hole(hva.raw() / PAGE_SIZE),
        ContentsError::Device(_) => Refusal::Device,
        ContentsError::ReadOnly(_) => Refusal::ReadOnly,
        ContentsError::NoMemory(_) => Refusal::NoMemory,
        other => panic!("{other}"),
    }
}

fn refused_page(error: ResolveError) -> Refusal {
    match error {
        ResolveError::NoVma(hva) => Refusal::Hole(hva.raw() / PAGE_SIZE),
        ResolveError::NotPermitted { .. } => Refusal::ReadOnly,
        ResolveError::DeviceGone(_) => Refusal::Gone,
        ResolveError::NotPresent(_) => Refusal::NotResident,
        ResolveError::NoMemory(_) => Refusal::NoMemory,
        other => panic!("{other}"),
    }
}

impl StateMachineTest for System {
    type SystemUnderTest = Self;
    type Reference = Reference;

    fn init_test(_: &Model) -> Self {
        Self::new()
    }

    fn apply(system: Self, model: &Model, step: Step) -> Self {
        let Step { op, limit } = step;
        let before = system.picture();
        system.arena.limit(limit);
        let mut result = system.run(op);
        system.arena.limit(None);
        if result == Err(Refusal::NoMemory) {
            assert!(
                system.picture() == before,
                "{op:?} failed but changed something"
            );
            system.arena.refuse_huge(false);
            result = system.run(op);
        }
        if let Some(expected) = model.expected {
            assert_eq!(result, expected, "{op:?}");
        }
        system.compare(model, |page| page % 16 == 1);
        system
    }

    fn teardown(system: Self, model: Model) {
        system.compare(&model, |_| true);
        let Self {
            arena,
            device,
            guest,
            space,
        } = system;
        space.release();
        assert_eq!(arena.allocated_pages(), 0);
        let leaves = guest.memory.table().count_leaves(&guest.slot_range());
        assert_eq!(
            leaves.iter().sum::<u64>(),
            0,
            "a guest reaches memory that is gone"
        );
        assert!(guest.fault(hva(FIRST), Access::Read).is_err());
        drop((space, device));
        let platform = guest.platform.clone();
        drop(guest);
        assert_eq!(platform.live_tables(), 0);
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        ..ProptestConfig::default()
    })]

    #[test]
    fn an_address_space_is_a_map_of_pages(sequential 1..40 => System);
}
