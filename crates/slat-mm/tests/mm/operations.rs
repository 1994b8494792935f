//! One operation at a time: what it does, what it announces, and what it refuses.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::{Arc, mpsc};
use std::thread;

use slat::host::{Host, HostView, PageKind, ResolveError};
use slat::notifier::{Notifier, Ticket};
use slat::vcpu::Denial;
use slat_mm::arena::Arena;
use slat_mm::stats::FrameCounts;
use slat_mm::{
    AddressSpace, Backing, ContentsError, DriverDevice, FrameSize, Frames, MapError, MigrateError,
    ProtectError, Protection, SplitError,
};
use slat_table::address::{Hpa, HpaRange, Hva, HvaRange, PAGE_SIZE, RangeError};
use slat_table::attributes::{Access, MemoryType};
use slat_table::lock::StdLocks;

use crate::guest::{Guest, Space, Stopped, arena, hva, pages};

/// First page of a 2 MiB block.
const BLOCK: u64 = 0x1_0200;
const HUGE: u64 = 0x20_0000;

/// An address space in which a guest sees `range`, backed by anonymous memory.
fn anonymous(range: HvaRange) -> (Arc<Arena>, Space, Arc<Guest>) {
    let arena = arena(16);
    let space = Space::new(Arc::clone(&arena));
    space
        .map(range, Protection::ReadWrite, Backing::Anonymous)
        .unwrap();
    let guest = Guest::new(&space, range);
    (arena, space, guest)
}

fn device(pages: u64) -> DriverDevice<StdLocks> {
    let range = HpaRange::new(Hpa::new(0x10_0000_0000), pages * PAGE_SIZE).unwrap();
    DriverDevice::new(range, MemoryType::Device)
}

fn read(space: &Space, at: Hva) -> u8 {
    let mut byte = [0];
    space.read(at, &mut byte).unwrap();
    byte[0]
}

const fn counts(base: u64, huge: u64) -> FrameCounts {
    FrameCounts { base, huge }
}

#[test]
fn anonymous_memory_takes_the_largest_frame_that_fits() {
    // One whole block, and half of the next.
    let (arena, space, guest) = anonymous(pages(BLOCK, 768));
    let page = guest.fault(hva(BLOCK + 5), Access::Read).unwrap();
    assert_eq!(page.block, pages(BLOCK, 512));
    assert!(page.writable && page.hpa.is_aligned(HUGE));
    let page = guest.fault(hva(BLOCK + 600), Access::Write).unwrap();
    assert_eq!(page.block, pages(BLOCK + 600, 1));
    assert_eq!(space.statistics().resident, counts(1, 1));
    assert_eq!(space.statistics().done.faulted, counts(1, 1));

    space.discard(pages(BLOCK, 768)).unwrap();
    assert_eq!(space.statistics().done.discarded, counts(1, 1));
    arena.refuse_huge(true);
    let page = guest.fault(hva(BLOCK + 5), Access::Read).unwrap();
    assert_eq!(
        page.block,
        pages(BLOCK + 5, 1),
        "pages where no 2 MiB frame can be had"
    );
    arena.refuse_huge(false);
    let page = guest.fault(hva(BLOCK + 6), Access::Read).unwrap();
    assert_eq!(
        page.block,
        pages(BLOCK + 6, 1),
        "pages where something is resident already"
    );
    guest.check();
}

#[test]
fn a_peek_brings_nothing_and_says_how_much_is_absent() {
    let (arena, space, guest) = anonymous(pages(BLOCK + 100, 412));
    guest.fault(hva(BLOCK + 200), Access::Read).unwrap();
    let view = space.view();
    let absent = |page| view.peek(hva(page), Access::Read).unwrap_err();
    assert_eq!(
        absent(BLOCK + 150),
        ResolveError::NotPresent(pages(BLOCK + 100, 100))
    );
    assert_eq!(
        absent(BLOCK + 201),
        ResolveError::NotPresent(pages(BLOCK + 201, 311))
    );
    assert_eq!(absent(BLOCK + 99), ResolveError::NoVma(hva(BLOCK + 99)));
    assert_eq!(
        view.find_vma(Hva::new(0)).unwrap().range,
        pages(BLOCK + 100, 412)
    );
    assert_eq!(view.find_vma(hva(BLOCK + 512)), None);
    assert_eq!(arena.allocated_pages(), 1);
}

#[test]
fn discarding_a_part_of_a_huge_frame_announces_all_of_it() {
    let (arena, space, guest) = anonymous(pages(BLOCK, 512));
    space.write(hva(BLOCK + 9), &[7]).unwrap();
    guest.fault(hva(BLOCK), Access::Write).unwrap();
    let whole = guest.peek(hva(BLOCK), Access::Read).unwrap();
    space.discard(pages(BLOCK + 10, 2)).unwrap();
    assert_eq!(guest.announced(), [pages(BLOCK, 512)]);
    assert_eq!(arena.allocated_pages(), 510);
    assert_eq!(space.statistics().done.split, 1);
    let rest = guest.peek(hva(BLOCK + 9), Access::Read).unwrap();
    assert_eq!(rest.block, pages(BLOCK + 9, 1));
    assert_eq!(rest.hpa.raw(), whole.hpa.raw() + 9 * PAGE_SIZE);
    assert_eq!(read(&space, hva(BLOCK + 9)), 7);
    assert!(guest.peek(hva(BLOCK + 10), Access::Read).is_err());

    space.discard(pages(BLOCK + 10, 2)).unwrap();
    assert_eq!(guest.announced(), [], "there was nothing to take away");
    guest.check();
}

#[test]
fn unmapping_splits_what_it_cuts() {
    let (arena, space, guest) = anonymous(pages(BLOCK, 1024));
    space.populate(pages(BLOCK, 1024), Access::Read).unwrap();
    assert_eq!(space.statistics().done.populated, counts(0, 2));
    space.unmap(pages(BLOCK + 500, 100));
    assert_eq!(guest.announced(), [pages(BLOCK, 1024)]);
    assert_eq!(arena.allocated_pages(), 924);
    let view = space.view();
    assert_eq!(view.find_vma(hva(BLOCK)).unwrap().range, pages(BLOCK, 500));
    assert_eq!(
        view.find_vma(hva(BLOCK + 500)).unwrap().range,
        pages(BLOCK + 600, 424)
    );
    drop(view);
    space.unmap(pages(0, 100));
    assert_eq!(guest.announced(), [], "nothing is mapped there");
    guest.check();
}

#[test]
fn only_a_loss_of_permission_is_announced() {
    let (_, space, guest) = anonymous(pages(BLOCK, 1024));
    space.populate(pages(BLOCK, 1024), Access::Read).unwrap();
    space
        .protect(pages(BLOCK, 512), Protection::ReadOnly)
        .unwrap();
    assert_eq!(guest.announced(), [pages(BLOCK, 512)]);
    assert_eq!(space.statistics().vmas, 2);
    let denied = Stopped::Denied(Denial::NotPermitted);
    assert_eq!(guest.access(hva(BLOCK), Access::Write), Err(denied));
    guest.access(hva(BLOCK), Access::Read).unwrap();

    space
        .protect(pages(BLOCK, 512), Protection::ReadWrite)
        .unwrap();
    assert_eq!(guest.announced(), []);
    assert_eq!(space.statistics().vmas, 1, "alike again, so merged");
    guest.access(hva(BLOCK), Access::Write).unwrap();
    assert_eq!(
        space.statistics().resident,
        counts(0, 2),
        "whole frames are not split"
    );

    space
        .protect(pages(BLOCK + 511, 2), Protection::ReadOnly)
        .unwrap();
    assert_eq!(guest.announced(), [pages(BLOCK, 1024)]);
    assert_eq!(space.statistics().resident, counts(1024, 0));
    assert_eq!(space.statistics().done.split, 2);
    guest.check();

    let hole = ProtectError::Hole {
        range: pages(BLOCK, 1025),
        hva: hva(BLOCK + 1024),
    };
    assert_eq!(
        space.protect(hole_range(&hole), Protection::ReadOnly),
        Err(hole)
    );
    assert_eq!(guest.announced(), []);
}

fn hole_range(error: &ProtectError) -> HvaRange {
    match error {
        ProtectError::Hole { range, .. } => *range,
        other => panic!("{other}"),
    }
}

#[test]
fn granting_a_part_of_a_huge_frame_announces_the_split() {
    let (_, space, guest) = anonymous(pages(BLOCK, 512));
    space.populate(pages(BLOCK, 512), Access::Read).unwrap();
    space
        .protect(pages(BLOCK, 512), Protection::ReadOnly)
        .unwrap();
    guest.access(hva(BLOCK), Access::Read).unwrap();
    guest.announced();
    space
        .protect(pages(BLOCK + 3, 1), Protection::ReadWrite)
        .unwrap();
    assert_eq!(guest.announced(), [pages(BLOCK, 512)]);
    guest.access(hva(BLOCK + 3), Access::Write).unwrap();
    let denied = Stopped::Denied(Denial::NotPermitted);
    assert_eq!(guest.access(hva(BLOCK + 4), Access::Write), Err(denied));
    guest.check();
}

#[test]
fn an_image_is_copied_when_read_and_writable_when_written() {
    let arena = arena(16);
    let space = Space::new(Arc::clone(&arena));
    let image: Arc<[u8]> = (0..5000u32).map(|at| (at % 251) as u8 + 1).collect();
    let range = pages(BLOCK, 2);
    let backing = || Backing::Image(Arc::clone(&image));
    let long = MapError::ImageTooShort {
        range: pages(BLOCK, 3),
        bytes: 5000,
    };
    let mapped = space.map(pages(BLOCK, 3), Protection::ReadWrite, backing());
    assert_eq!(mapped, Err(long));
    space.map(range, Protection::ReadWrite, backing()).unwrap();
    let guest = Guest::new(&space, range);

    let page = guest.fault(hva(BLOCK), Access::Read).unwrap();
    assert!(!page.writable);
    let absent = guest.peek(hva(BLOCK), Access::Write);
    assert_eq!(absent, Err(ResolveError::NotPresent(pages(BLOCK, 1))));
    let again = guest.fault(hva(BLOCK), Access::Write).unwrap();
    assert_eq!((again.writable, again.hpa), (true, page.hpa));
    assert_eq!(guest.announced(), [], "a gain needs no notice");

    let frame = guest.access(hva(BLOCK + 1), Access::Read).unwrap();
    let mut last = [0xff; 4096];
    arena.read(frame, &mut last);
    assert_eq!(last[..904], image[4096..]);
    assert!(last[904..].iter().all(|byte| *byte == 0));

    space.write(hva(BLOCK), &[0xee]).unwrap();
    assert_eq!(read(&space, hva(BLOCK)), 0xee);
    space.discard(range).unwrap();
    assert_eq!(read(&space, hva(BLOCK)), image[0], "afresh from the image");
    assert_eq!(arena.allocated_pages(), 0, "reading brings nothing");
    guest.check();
}

#[test]
fn a_linear_device_is_there_at_once_and_exclusive() {
    let space = Space::new(arena(4));
    let range = pages(BLOCK, 1024);
    let backing = |hpa| Backing::Linear {
        hpa: Hpa::new(hpa),
        memory: MemoryType::Device,
    };
    space
        .map(range, Protection::ReadWrite, backing(0x900_0000))
        .unwrap();
    let guest = Guest::new(&space, range);
    let leaves = guest.memory.table().count_leaves(&guest.slot_range());
    assert_eq!(
        leaves.iter().sum::<u64>(),
        2,
        "mapped when the region was created"
    );
    let page = guest.peek(hva(BLOCK + 700), Access::Write).unwrap();
    assert_eq!(
        (page.kind, page.memory),
        (PageKind::Pfnmap, MemoryType::Device)
    );
    assert_eq!(
        page.hpa.raw() - 0x900_0000,
        page.block.start().raw() - range.start().raw()
    );

    let map = |first, hpa| space.map(pages(first, 4), Protection::ReadWrite, backing(hpa));
    let overlap = MapError::Overlap {
        range: pages(BLOCK + 1022, 4),
        existing: range,
    };
    assert_eq!(map(BLOCK + 1022, 0), Err(overlap));
    let hpa = HpaRange::new(Hpa::new(0x93f_f000), 4 * PAGE_SIZE).unwrap();
    assert_eq!(
        map(0, 0x93f_f000),
        Err(MapError::InUse {
            hpa,
            existing: range
        })
    );
    let unaligned = MapError::Physical(RangeError::StartUnaligned { start: 0x123 });
    assert_eq!(map(0, 0x123), Err(unaligned));
    let start = 0u64.wrapping_sub(PAGE_SIZE);
    let wraps = MapError::Physical(RangeError::Wraps {
        start,
        bytes: 4 * PAGE_SIZE,
    });
    assert_eq!(map(0, start), Err(wraps));
    map(0, 0x940_0000).unwrap();

    let shared = HpaRange::new(Hpa::new(0x900_0000), 4 * PAGE_SIZE).unwrap();
    let driver = DriverDevice::new(shared, MemoryType::Device);
    let backing = Backing::Driver {
        device: driver,
        offset: 0,
    };
    let refused = space.map(pages(16, 4), Protection::ReadWrite, backing);
    assert_eq!(
        refused,
        Err(MapError::InUse {
            hpa: shared,
            existing: range
        })
    );
}

#[test]
fn what_is_not_ram_cannot_be_filled_or_moved() {
    let space = Space::new(arena(4));
    let range = pages(BLOCK, 4);
    let backing = Backing::Linear {
        hpa: Hpa::new(0),
        memory: MemoryType::Device,
    };
    space.map(range, Protection::ReadWrite, backing).unwrap();
    let at = hva(BLOCK + 1);
    assert_eq!(space.discard(range), Err(ContentsError::Device(range)));
    assert_eq!(
        space.populate(range, Access::Read),
        Err(ContentsError::Device(range))
    );
    assert_eq!(space.write(at, &[1]), Err(ContentsError::Device(range)));
    assert_eq!(space.read(at, &mut [1]), Err(ContentsError::Device(range)));
    assert_eq!(
        space.migrate(at, FrameSize::Base),
        Err(MigrateError::Device(range))
    );
    assert_eq!(space.split(at), Err(SplitError::Device(range)));
    let hole = hva(BLOCK + 4);
    assert_eq!(
        space.discard(pages(BLOCK + 4, 1)),
        Err(ContentsError::Hole(hole))
    );
    assert_eq!(
        space.migrate(hole, FrameSize::Base),
        Err(MigrateError::Hole(hole))
    );
    assert_eq!(space.split(hole), Err(SplitError::Hole(hole)));
}

#[test]
fn writing_needs_permission_and_reaches_across_mappings() {
    let (_, space, _guest) = anonymous(pages(BLOCK, 2));
    space
        .map(
            pages(BLOCK + 2, 1),
            Protection::ReadOnly,
            Backing::Anonymous,
        )
        .unwrap();
    let end = Hva::new(hva(BLOCK + 2).raw() - 2);
    let read_only = ContentsError::ReadOnly(pages(BLOCK + 2, 1));
    assert_eq!(space.write(end, &[1, 2, 3]), Err(read_only));
    assert_eq!(space.statistics().resident, counts(0, 0), "all or nothing");
    space
        .protect(pages(BLOCK + 2, 1), Protection::ReadWrite)
        .unwrap();
    space.write(end, &[1, 2, 3]).unwrap();
    assert_eq!(space.statistics().resident, counts(2, 0));
    let mut bytes = [9; 4];
    space.read(Hva::new(end.raw() - 1), &mut bytes).unwrap();
    assert_eq!(bytes, [0, 1, 2, 3]);
    let wraps = ContentsError::Wraps {
        hva: Hva::new(u64::MAX),
        bytes: 4,
    };
    assert_eq!(space.read(Hva::new(u64::MAX), &mut bytes), Err(wraps));
    assert_eq!(space.write(Hva::new(u64::MAX), &[]), Ok(()));
}

#[test]
fn a_migration_keeps_the_contents_and_the_guest_follows() {
    let (arena, space, guest) = anonymous(pages(BLOCK, 600));
    arena.refuse_huge(true);
    for (page, byte) in [(0, 1), (3, 4), (511, 9)] {
        space.write(hva(BLOCK + page), &[byte]).unwrap();
    }
    arena.refuse_huge(false);
    let before = guest.access(hva(BLOCK + 3), Access::Write).unwrap();

    let to = space.migrate(hva(BLOCK + 3), FrameSize::Base).unwrap();
    assert_eq!(guest.announced(), [pages(BLOCK + 3, 1)]);
    assert_ne!(to, before);
    assert_eq!(guest.access(hva(BLOCK + 3), Access::Read), Ok(to));
    assert!(!arena.is_allocated(before));

    let to = space.migrate(hva(BLOCK + 100), FrameSize::Huge).unwrap();
    assert_eq!(guest.announced(), [pages(BLOCK, 512)]);
    assert_eq!(space.statistics().resident, counts(0, 1));
    for (page, byte) in [(0, 1), (1, 0), (3, 4), (511, 9)] {
        assert_eq!(read(&space, hva(BLOCK + page)), byte, "page {page}");
    }
    let frame = guest.access(hva(BLOCK + 9), Access::Read).unwrap();
    assert_eq!(frame.raw(), to.raw() + 9 * PAGE_SIZE);

    space.migrate(hva(BLOCK + 3), FrameSize::Base).unwrap();
    assert_eq!(
        guest.announced(),
        [pages(BLOCK, 512)],
        "the frame around it is split"
    );
    assert_eq!(space.statistics().resident, counts(512, 0));
    assert_eq!(read(&space, hva(BLOCK + 3)), 4);
    assert_eq!(space.statistics().done.migrated, counts(2, 1));

    let outside = MigrateError::BlockOutsideVma {
        hva: hva(BLOCK + 512),
        vma: pages(BLOCK, 600),
    };
    assert_eq!(
        space.migrate(hva(BLOCK + 512), FrameSize::Huge),
        Err(outside)
    );
    let absent = MigrateError::NotResident(hva(BLOCK + 512));
    assert_eq!(
        space.migrate(hva(BLOCK + 512), FrameSize::Base),
        Err(absent)
    );
    guest.check();
}

#[test]
fn a_split_changes_only_how_the_guest_maps_it() {
    let (_, space, guest) = anonymous(pages(BLOCK, 512));
    assert_eq!(
        space.split(hva(BLOCK)),
        Err(SplitError::NotHuge(hva(BLOCK)))
    );
    let before = guest.access(hva(BLOCK + 77), Access::Write).unwrap();
    space.split(hva(BLOCK + 5)).unwrap();
    assert_eq!(guest.announced(), [pages(BLOCK, 512)]);
    assert_eq!(guest.access(hva(BLOCK + 77), Access::Write), Ok(before));
    let leaves = guest.memory.table().count_leaves(&guest.slot_range());
    assert_eq!(
        leaves.iter().sum::<u64>(),
        1,
        "one page, where there was a block"
    );
    assert_eq!(
        space.split(hva(BLOCK)),
        Err(SplitError::NotHuge(hva(BLOCK)))
    );
    guest.check();
}

#[test]
fn a_driver_shows_pages_on_demand_and_takes_them_away() {
    let device = device(1024);
    let space = Space::new(arena(4));
    let backing = |offset| Backing::Driver {
        device: device.clone(),
        offset,
    };
    let range = pages(BLOCK, 512);
    space
        .map(range, Protection::ReadWrite, backing(HUGE))
        .unwrap();
    let guest = Guest::new(&space, pages(BLOCK, 1024));
    let absent = guest.peek(hva(BLOCK), Access::Read);
    assert_eq!(absent, Err(ResolveError::NotPresent(range)));
    assert!(device.revoke());
    assert_eq!(guest.announced(), [], "nothing was shown");
    device.restore();

    let at = device.range().start().raw() + HUGE;
    assert_eq!(
        guest.access(hva(BLOCK + 1), Access::Write),
        Ok(Hpa::new(at + PAGE_SIZE))
    );
    assert_eq!(
        guest.peek(hva(BLOCK + 2), Access::Read).unwrap().block,
        range
    );

    assert!(device.revoke());
    assert_eq!(guest.announced(), [range]);
    assert!(!device.revoke(), "revoked already");
    assert!(device.is_revoked());
    let gone = Stopped::Denied(Denial::DeviceGone);
    assert_eq!(guest.access(hva(BLOCK + 1), Access::Read), Err(gone));
    guest.check();

    device.restore();
    assert!(
        guest.peek(hva(BLOCK + 1), Access::Read).is_err(),
        "only on demand"
    );
    guest.access(hva(BLOCK + 1), Access::Read).unwrap();

    // What is unmapped is announced then, and not once more.
    space.unmap(pages(BLOCK, 256));
    assert_eq!(guest.announced(), [pages(BLOCK, 256)]);
    device.revoke();
    assert_eq!(guest.announced(), [pages(BLOCK + 256, 256)]);
    device.restore();
    space.unmap(range);

    let outside = MapError::OutsideDevice {
        offset: HUGE,
        bytes: 513 * 4096,
        device: device.range(),
    };
    let map = |offset| space.map(pages(BLOCK, 513), Protection::ReadOnly, backing(offset));
    assert_eq!(map(HUGE), Err(outside));
    assert_eq!(map(5), Err(MapError::OffsetUnaligned { offset: 5 }));
}

#[test]
fn a_revocation_reaches_every_address_space() {
    let device = device(16);
    let guests = [0, 1].map(|_| {
        let space = Space::new(arena(4));
        let backing = Backing::Driver {
            device: device.clone(),
            offset: 0,
        };
        space
            .map(pages(BLOCK, 16), Protection::ReadWrite, backing)
            .unwrap();
        let guest = Guest::new(&space, pages(BLOCK, 16));
        guest.access(hva(BLOCK), Access::Read).unwrap();
        guest
    });
    device.revoke();
    for guest in &guests {
        assert_eq!(guest.announced(), [pages(BLOCK, 16)]);
        guest.check();
    }
}

/// Revokes a device the first time that it is told of anything.
struct Revoker {
    guest: Arc<Guest>,
    device: DriverDevice<StdLocks>,
    done: AtomicBool,
}

impl Notifier for Revoker {
    fn begin(&self, range: HvaRange) -> Ticket {
        if !self.done.swap(true, Ordering::Relaxed) {
            self.device.revoke();
        }
        self.guest.memory.begin(range)
    }

    fn end(&self, ticket: Ticket) {
        self.guest.memory.end(ticket);
    }

    fn age(&self, _: HvaRange) -> bool {
        true
    }

    fn test_young(&self, _: HvaRange) -> bool {
        true
    }

    fn release(&self) {}
}

#[test]
fn a_revocation_takes_no_mmap_lock() {
    // The unmapping holds the mmap lock for writing when it tells the notifier, and the notifier
    // revokes a device of the same address space: with the mmap lock that would wait for itself.
    let (done, finished) = mpsc::channel();
    thread::spawn(move || {
        let (_, space, guest) = anonymous(pages(BLOCK, 16));
        let device = device(16);
        let backing = Backing::Driver {
            device: device.clone(),
            offset: 0,
        };
        space
            .map(pages(BLOCK + 32, 16), Protection::ReadWrite, backing)
            .unwrap();
        guest.fault(hva(BLOCK + 32), Access::Read).unwrap();
        let revoker = Revoker {
            guest: Arc::clone(&guest),
            device,
            done: AtomicBool::new(false),
        };
        let revoker = Arc::new(revoker);
        let notifier: Arc<dyn Notifier> = Arc::<Revoker>::clone(&revoker);
        space.register(Arc::downgrade(&notifier));
        space.unmap(pages(BLOCK, 16));
        assert_eq!(guest.announced(), [pages(BLOCK, 16), pages(BLOCK + 32, 16)]);
        done.send(revoker.device.is_revoked()).unwrap();
    });
    assert_eq!(finished.recv_timeout(Duration::from_mins(1)), Ok(true));
}

#[test]
fn notifiers_come_and_go() {
    let (_, space, guest) = anonymous(pages(BLOCK, 16));
    let second = Guest::new(&space, pages(BLOCK, 16));
    let protect = |protection| space.protect(pages(BLOCK, 16), protection).unwrap();
    protect(Protection::ReadOnly);
    assert_eq!((guest.announced().len(), second.announced().len()), (1, 1));
    assert!(space.unregister(&second.weak()));
    assert!(!space.unregister(&second.weak()));
    protect(Protection::ReadWrite);
    protect(Protection::ReadOnly);
    assert_eq!((guest.announced().len(), second.announced().len()), (1, 0));
    assert_eq!(space.statistics().notifications, 2);
    drop(guest);
    protect(Protection::ReadWrite);
    protect(Protection::ReadOnly);
}

#[test]
fn every_notifier_is_asked_whether_a_page_is_young() {
    let (_, space, guest) = anonymous(pages(BLOCK, 16));
    let second = Guest::new(&space, pages(BLOCK, 16));
    let range = pages(BLOCK, 16);
    assert!(!space.test_young(range));
    guest.access(hva(BLOCK), Access::Read).unwrap();
    second.access(hva(BLOCK), Access::Read).unwrap();
    assert!(space.test_young(range));
    assert!(space.age(range));
    assert!(!space.test_young(range), "both have forgotten");
}

#[test]
fn a_release_takes_everything_for_good() {
    let (arena, space, guest) = anonymous(pages(BLOCK, 600));
    let device = device(16);
    let backing = Backing::Driver {
        device: device.clone(),
        offset: 0,
    };
    space
        .map(pages(0, 16), Protection::ReadWrite, backing)
        .unwrap();
    guest.fault(hva(3), Access::Read).unwrap();
    guest.access(hva(BLOCK), Access::Write).unwrap();
    space.release();
    assert_eq!(arena.allocated_pages(), 0);
    let leaves = guest.memory.table().count_leaves(&guest.slot_range());
    assert_eq!(leaves.iter().sum::<u64>(), 0);
    let nothing = ResolveError::NoVma(hva(BLOCK));
    assert_eq!(space.fault(hva(BLOCK), Access::Read), Err(nothing));
    let range = pages(BLOCK, 1);
    let mapped = space.map(range, Protection::ReadOnly, Backing::Anonymous);
    assert_eq!(mapped, Err(MapError::Released { range }));
    device.revoke();
    assert_eq!(guest.announced(), [], "the device is mapped nowhere");
}

#[test]
fn the_last_handle_gives_everything_back() {
    let arena = arena(4);
    let space = AddressSpace::<_, StdLocks>::new(Arc::clone(&arena));
    space
        .map(pages(BLOCK, 512), Protection::ReadWrite, Backing::Anonymous)
        .unwrap();
    space.write(hva(BLOCK), &[1]).unwrap();
    let other = space.clone();
    drop(space);
    assert_eq!(arena.allocated_pages(), 512);
    drop(other);
    assert_eq!(arena.allocated_pages(), 0);
}

/// Runs `operation` with memory for 0, 1, 2, ... allocations until it succeeds. Each time that it
/// fails, everything must be as before. Returns how often it failed.
fn fail_each_allocation(
    range: HvaRange,
    prepare: impl Fn(&Space),
    operation: impl Fn(&Space, &Guest) -> bool,
) -> u64 {
    for limit in 0.. {
        let (arena, space, guest) = anonymous(range);
        prepare(&space);
        let look = || {
            let view = space.view();
            let page = |page| view.peek(hva(page), Access::Read);
            let first = range.start().raw() / PAGE_SIZE;
            let shown: Vec<_> = (first..first + range.pages()).map(page).collect();
            (shown, arena.allocated_pages(), space.statistics().resident)
        };
        let before = look();
        arena.limit(Some(limit));
        let succeeded = operation(&space, &guest);
        arena.limit(None);
        guest.check();
        if succeeded {
            return limit;
        }
        assert_eq!(look(), before, "allocation {limit} failed");
    }
    unreachable!("some limit is enough")
}

#[test]
fn whichever_allocation_fails_nothing_has_changed() {
    let block = pages(BLOCK, 512);
    let pages_of_block = |space: &Space| {
        space.frames().refuse_huge(true);
        space.write(hva(BLOCK), &[1]).unwrap();
        space.frames().refuse_huge(false);
    };
    let populate =
        |space: &Space, _: &Guest| space.populate(pages(BLOCK, 700), Access::Write).is_ok();
    // A 2 MiB frame, then pages.
    assert_eq!(
        fail_each_allocation(pages(BLOCK, 700), |_| (), populate),
        1 + 188
    );
    // The failure of the 2 MiB frame is no failure.
    let fault = |_: &Space, guest: &Guest| guest.fault(hva(BLOCK), Access::Write).is_ok();
    assert_eq!(fail_each_allocation(block, |_| (), fault), 1);
    let access = |_: &Space, guest: &Guest| guest.access(hva(BLOCK + 1), Access::Write).is_ok();
    assert_eq!(fail_each_allocation(block, pages_of_block, access), 1);
    let end = Hva::new(hva(BLOCK + 4).raw() - 1);
    let write = |space: &Space, _: &Guest| space.write(end, &[1, 2]).is_ok();
    assert_eq!(fail_each_allocation(block, pages_of_block, write), 2);
    let migrate = |space: &Space, _: &Guest| space.migrate(hva(BLOCK), FrameSize::Huge).is_ok();
    assert_eq!(fail_each_allocation(block, pages_of_block, migrate), 1);
}
