//! Device mappings: always there, or as long as a driver lets them.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::{Arc, mpsc};
use std::thread;

use slat::host::{Host as _, HostView as _, PageKind, ResolveError};
use slat::notifier::{Notifier, Ticket};
use slat::vcpu::Denial;
use slat_mm::{
    Backing, ContentsError, DriverDevice, FrameSize, MapError, MigrateError, Protection, SplitError,
};
use slat_table::address::{Hpa, HpaRange, Hva, HvaRange, PAGE_SIZE, RangeError};
use slat_table::attributes::{Access, MemoryType};
use slat_table::lock::StdLocks;

use crate::guest::{BLOCK, Guest, Space, Stopped, anonymous, arena, device, hva, pages};

const HUGE: u64 = FrameSize::Huge.bytes();

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
fn a_device_can_be_write_protected() {
    let linear = Backing::Linear {
        hpa: Hpa::new(0x900_0000),
        memory: MemoryType::Device,
    };
    let driver = Backing::Driver {
        device: device(16),
        offset: 0,
    };
    for backing in [linear, driver] {
        let space = Space::new(arena(4));
        let range = pages(BLOCK, 16);
        space.map(range, Protection::ReadWrite, backing).unwrap();
        let guest = Guest::new(&space, range);
        let frame = guest.access(hva(BLOCK + 3), Access::Write).unwrap();
        space
            .protect(pages(BLOCK + 2, 4), Protection::ReadOnly)
            .unwrap();
        assert_eq!(guest.announced(), [pages(BLOCK + 2, 4)]);
        let denied = Stopped::Denied(Denial::NotPermitted);
        assert_eq!(guest.access(hva(BLOCK + 3), Access::Write), Err(denied));
        assert_eq!(guest.access(hva(BLOCK + 3), Access::Read), Ok(frame));
        guest.check();
        space
            .protect(pages(BLOCK + 2, 4), Protection::ReadWrite)
            .unwrap();
        assert_eq!(guest.announced(), []);
        assert_eq!(guest.access(hva(BLOCK + 3), Access::Write), Ok(frame));
    }
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
fn ram_that_a_driver_hands_out_is_ram_in_blocks_as_large_as_it_is_aligned() {
    const GIB: u64 = 1 << 30;
    let space = Space::new(arena(4));
    let range = HvaRange::new(Hva::new(2 * GIB), 2 * GIB).unwrap();
    let frames = HpaRange::new(Hpa::new(4 * GIB), 2 * GIB).unwrap();
    let backing = Backing::Driver {
        device: DriverDevice::ram(frames),
        offset: 0,
    };
    space.map(range, Protection::ReadWrite, backing).unwrap();
    let vma = space.view().find_vma(range.start()).unwrap();
    assert_eq!(
        (vma.kind, vma.memory),
        (PageKind::Ram, MemoryType::WriteBack)
    );
    let absent = space.view().peek(range.start(), Access::Read);
    assert_eq!(absent, Err(ResolveError::NotPresent(range)));
    let page = space.fault(range.start(), Access::Write).unwrap();
    assert_eq!((page.block, page.hpa), (range, frames.start()));
    assert_eq!(
        (page.kind, page.memory),
        (PageKind::Ram, MemoryType::WriteBack)
    );
    assert_eq!(space.view().peek(range.start(), Access::Write), Ok(page));
}

#[test]
fn a_device_of_which_all_parts_are_alike_again_is_one_vma() {
    let linear = Backing::Linear {
        hpa: Hpa::new(0x900_0000),
        memory: MemoryType::Device,
    };
    let driver = Backing::Driver {
        device: device(8),
        offset: 0,
    };
    for backing in [linear, driver] {
        let space = Space::new(arena(4));
        let range = pages(BLOCK, 8);
        space.map(range, Protection::ReadWrite, backing).unwrap();
        let vma = || space.view().find_vma(hva(BLOCK)).map(|vma| vma.range);
        let middle = pages(BLOCK + 2, 4);
        space.protect(middle, Protection::ReadOnly).unwrap();
        assert_eq!(vma(), Some(pages(BLOCK, 2)));
        space.protect(middle, Protection::ReadWrite).unwrap();
        assert_eq!(vma(), Some(range));
    }
}

#[test]
fn devices_side_by_side_stay_apart() {
    let space = Space::new(arena(4));
    let one = device(8);
    let memory = HpaRange::new(Hpa::new(0x20_0000_0000), 8 * PAGE_SIZE).unwrap();
    let other = DriverDevice::new(memory, MemoryType::Device);
    // The second goes on at the offset at which the first ends.
    for (first, device, offset) in [(BLOCK, one, 0), (BLOCK + 4, other, 4 * PAGE_SIZE)] {
        let backing = Backing::Driver { device, offset };
        space
            .map(pages(first, 4), Protection::ReadWrite, backing)
            .unwrap();
    }
    let vma = |page| space.view().find_vma(hva(page)).map(|vma| vma.range);
    assert_eq!(vma(BLOCK), Some(pages(BLOCK, 4)));
    assert_eq!(vma(BLOCK + 4), Some(pages(BLOCK + 4, 4)));
}
