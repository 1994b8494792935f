//! Random sequences of operations against a plain map from pages to what they hold.
//!
//! Each step may run with memory that ends after a few allocations; if the operation fails for
//! that, nothing may have changed, and it is run again with memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
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

/// Two 2 MiB blocks, and sixteen pages before and after.
const FIRST: u64 = 0x1_01f0;
const PAGES: u64 = 16 + 2 * 512 + 16;

const LINEAR: u64 = 0x9_0000_0000;
const DRIVER: u64 = 0xa_0000_0000;

const PAGE: usize = 4096;

/// What an image holds.
fn image_byte(offset: usize) -> u8 {
    let mixed = (offset ^ (offset >> 12).wrapping_mul(31)) & 0xff;
    u8::try_from(mixed).unwrap() | 1
}

fn image(pages: u64) -> Arc<[u8]> {
    // The last page is not full.
    (0..usize::try_from(pages).unwrap() * PAGE - 100)
        .map(image_byte)
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Anonymous,
    Image,
    Linear,
    Driver,
}

impl Kind {
    fn is_ram(self) -> bool {
        matches!(self, Self::Anonymous | Self::Image)
    }
}

/// What the model knows of a page.
#[derive(Clone, Debug)]
struct Page {
    /// Which `map` made it.
    mapping: u64,
    kind: Kind,
    writable: bool,
    /// First page and number of pages of its mapping.
    extent: (u64, u64),
    /// What was written to it, if anything.
    written: Option<Vec<u8>>,
}

impl Page {
    fn contents(&self, page: u64) -> Vec<u8> {
        if let Some(written) = &self.written {
            return written.clone();
        }
        match self.kind {
            Kind::Image => {
                let offset = usize::try_from(page - self.extent.0).unwrap() * PAGE;
                let end = usize::try_from(self.extent.1).unwrap() * PAGE - 100;
                let byte = |at| if at < end { image_byte(at) } else { 0 };
                (offset..offset + PAGE).map(byte).collect()
            }
            _ => vec![0; PAGE],
        }
    }
}

/// Why an operation is refused, as far as a caller cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Overlap,
    Hole(u64),
    Device,
    ReadOnly,
    Gone,
    NotResident,
    OutsideVma,
    NotHuge,
    NoMemory,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Map {
        first: u64,
        pages: u64,
        kind: Kind,
        writable: bool,
    },
    Unmap {
        first: u64,
        pages: u64,
    },
    Protect {
        first: u64,
        pages: u64,
        writable: bool,
    },
    Discard {
        first: u64,
        pages: u64,
    },
    Populate {
        first: u64,
        pages: u64,
        write: bool,
    },
    Write {
        at: u64,
        bytes: usize,
        fill: u8,
    },
    Touch {
        page: u64,
        write: bool,
    },
    Peek {
        page: u64,
        write: bool,
    },
    Guest {
        page: u64,
        write: Option<u8>,
    },
    Migrate {
        page: u64,
        huge: bool,
    },
    Split {
        page: u64,
    },
    Revoke,
    Restore,
    RefuseHuge(bool),
}

#[derive(Clone, Copy, Debug)]
struct Step {
    op: Op,
    limit: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Model {
    pages: BTreeMap<u64, Page>,
    mappings: u64,
    revoked: bool,
    /// What the last step should have come to; `None` where that depends on which frames there
    /// are, which the model does not know.
    expected: Option<Result<(), Refusal>>,
}

fn range_of_pages() -> impl Strategy<Value = (u64, u64)> {
    let lengths = prop_oneof![Just(1), 1u64..40, Just(512), Just(PAGES), 1..PAGES];
    let starts = prop_oneof![
        Just(FIRST),
        Just(FIRST + 16),
        Just(FIRST + 528),
        FIRST..FIRST + PAGES
    ];
    (starts, lengths).prop_map(|(first, pages)| (first, pages.min(FIRST + PAGES - first)))
}

fn page() -> impl Strategy<Value = u64> {
    prop_oneof![
        FIRST..FIRST + PAGES,
        Just(FIRST + 16),
        Just(FIRST + 17),
        Just(FIRST + 527)
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => Just(Kind::Anonymous),
        2 => Just(Kind::Image),
        1 => Just(Kind::Linear),
        2 => Just(Kind::Driver),
    ]
}

fn operation() -> impl Strategy<Value = Op> {
    let write_at = FIRST * PAGE_SIZE..(FIRST + PAGES - 3) * PAGE_SIZE;
    prop_oneof![
        6 => (range_of_pages(), kind(), prop::bool::weighted(0.8)).prop_map(
            |((first, pages), kind, writable)| Op::Map { first, pages, kind, writable }),
        1 => range_of_pages().prop_map(|(first, pages)| Op::Unmap { first, pages }),
        2 => (range_of_pages(), any::<bool>()).prop_map(
            |((first, pages), writable)| Op::Protect { first, pages, writable }),
        2 => range_of_pages().prop_map(|(first, pages)| Op::Discard { first, pages }),
        2 => (range_of_pages(), any::<bool>()).prop_map(
            |((first, pages), write)| Op::Populate { first, pages, write }),
        2 => (write_at, 1usize..9000, any::<u8>()).prop_map(
            |(at, bytes, fill)| Op::Write { at, bytes, fill }),
        3 => (page(), any::<bool>()).prop_map(|(page, write)| Op::Touch { page, write }),
        2 => (page(), any::<bool>()).prop_map(|(page, write)| Op::Peek { page, write }),
        4 => (page(), any::<Option<u8>>()).prop_map(|(page, write)| Op::Guest { page, write }),
        3 => (page(), any::<bool>()).prop_map(|(page, huge)| Op::Migrate { page, huge }),
        1 => page().prop_map(|page| Op::Split { page }),
        1 => Just(Op::Revoke),
        1 => Just(Op::Restore),
        1 => any::<bool>().prop_map(Op::RefuseHuge),
    ]
}

impl Model {
    fn hole(&self, first: u64, pages: u64) -> Option<u64> {
        (first..first + pages).find(|page| !self.pages.contains_key(page))
    }

    fn in_range(&self, first: u64, pages: u64) -> impl Iterator<Item = &Page> {
        self.pages.range(first..first + pages).map(|(_, page)| page)
    }

    /// Whether the range is RAM that allows the access.
    fn ram(&self, first: u64, pages: u64, write: bool) -> Result<(), Refusal> {
        if let Some(hole) = self.hole(first, pages) {
            return Err(Refusal::Hole(hole));
        }
        // The first page that is wrong decides.
        self.in_range(first, pages).try_for_each(|page| {
            if !page.kind.is_ram() {
                Err(Refusal::Device)
            } else if write && !page.writable {
                Err(Refusal::ReadOnly)
            } else {
                Ok(())
            }
        })
    }

    fn one(&self, page: u64, write: bool) -> Result<&Page, Refusal> {
        let found = self.pages.get(&page).ok_or(Refusal::Hole(page))?;
        if write && !found.writable {
            return Err(Refusal::ReadOnly);
        }
        if found.kind == Kind::Driver && self.revoked {
            return Err(Refusal::Gone);
        }
        Ok(found)
    }

    fn fill(&mut self, at: u64, bytes: usize, fill: u8) {
        for address in at..at + bytes as u64 {
            let number = address / PAGE_SIZE;
            let page = self.pages.get_mut(&number).unwrap();
            if page.written.is_none() {
                page.written = Some(page.contents(number));
            }
            let written = page.written.as_mut().unwrap();
            written[usize::try_from(address % PAGE_SIZE).unwrap()] = fill;
        }
    }

    fn run(&mut self, op: Op) -> Option<Result<(), Refusal>> {
        let result = match op {
            Op::Map { first, pages, .. } if self.in_range(first, pages).next().is_some() => {
                Err(Refusal::Overlap)
            }
            Op::Map {
                first,
                pages,
                kind,
                writable,
            } => {
                self.mappings += 1;
                let page = Page {
                    mapping: self.mappings,
                    kind,
                    writable,
                    extent: (first, pages),
                    written: None,
                };
                self.pages
                    .extend((first..first + pages).map(|number| (number, page.clone())));
                Ok(())
            }
            Op::Unmap { first, pages } => {
                self.pages
                    .retain(|page, _| !(first..first + pages).contains(page));
                Ok(())
            }
            Op::Protect {
                first,
                pages,
                writable,
            } => self
                .hole(first, pages)
                .map_or(Ok(()), |hole| Err(Refusal::Hole(hole)))
                .map(|()| {
                    for (_, page) in self.pages.range_mut(first..first + pages) {
                        page.writable = writable;
                    }
                }),
            Op::Discard { first, pages } => self.ram(first, pages, false).map(|()| {
                for (_, page) in self.pages.range_mut(first..first + pages) {
                    page.written = None;
                }
            }),
            Op::Populate {
                first,
                pages,
                write,
            } => self.ram(first, pages, write),
            Op::Write { at, bytes, fill } => {
                let first = at / PAGE_SIZE;
                let end = (at + bytes as u64).div_ceil(PAGE_SIZE);
                self.ram(first, end - first, true)
                    .map(|()| self.fill(at, bytes, fill))
            }
            Op::Touch { page, write } => self.one(page, write).map(drop),
            Op::Guest { page, write } => match (self.one(page, write.is_some()), write) {
                (Ok(found), Some(fill)) if found.kind.is_ram() => {
                    self.fill(page * PAGE_SIZE + 77, 1, fill);
                    Ok(())
                }
                (result, _) => result.map(drop),
            },
            Op::Peek { .. } | Op::Migrate { .. } | Op::Split { .. } => return None,
            Op::Revoke => {
                self.revoked = true;
                Ok(())
            }
            Op::Restore => {
                self.revoked = false;
                Ok(())
            }
            Op::RefuseHuge(_) => Ok(()),
        };
        Some(result)
    }

    /// How many VMAs there should be, when all that can be is merged.
    fn vmas(&self) -> u64 {
        let mut count = 0;
        let mut last: Option<(u64, u64, bool)> = None;
        for (number, page) in &self.pages {
            let goes_on = last == Some((number.wrapping_sub(1), page.mapping, page.writable));
            count += u64::from(!goes_on);
            last = Some((*number, page.mapping, page.writable));
        }
        count
    }
}

struct Reference;

impl ReferenceStateMachine for Reference {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        Just(Model::default()).boxed()
    }

    fn transitions(_: &Model) -> BoxedStrategy<Step> {
        let limit = prop_oneof![2 => Just(None), 1 => (0u64..4).prop_map(Some)];
        (operation(), limit)
            .prop_map(|(op, limit)| Step { op, limit })
            .boxed()
    }

    fn apply(mut state: Model, step: &Step) -> Model {
        state.expected = state.run(step.op);
        state
    }
}

/// The address space, a guest on it, and its memory.
struct System {
    arena: Arc<Arena>,
    device: DriverDevice<StdLocks>,
    guest: Arc<Guest>,
    space: Space,
}

/// What must be the same after an operation that failed.
#[derive(Debug, PartialEq, Eq)]
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
        let before = limit.map(|_| system.picture());
        system.arena.limit(limit);
        let mut result = system.run(op);
        system.arena.limit(None);
        if result == Err(Refusal::NoMemory) {
            assert_eq!(Some(system.picture()), before, "only for want of memory");
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
