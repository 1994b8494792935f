//! Notifiers that come and go, the end of an address space, and memory that runs out.

use std::sync::Arc;

use slat::host::{Host, HostView, ResolveError};
use slat_mm::{AddressSpace, Backing, FrameSize, MapError, Protection};
use slat_table::address::{Hva, HvaRange, PAGE_SIZE};
use slat_table::attributes::Access;
use slat_table::lock::StdLocks;

use crate::guest::{BLOCK, Guest, Space, anonymous, arena, device, hva, pages};

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
    // What was brought for the first mapping goes back when the second has none.
    let second = |space: &Space| {
        let next = pages(BLOCK + 8, 8);
        space
            .map(next, Protection::ReadWrite, Backing::Anonymous)
            .unwrap();
    };
    let both = |space: &Space, _: &Guest| space.populate(pages(BLOCK, 16), Access::Read).is_ok();
    assert_eq!(fail_each_allocation(pages(BLOCK, 8), second, both), 16);
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
