//! One operation at a time: what it does, what it announces, and what it refuses.

use std::sync::Arc;

use slat::host::{Host, HostView, ResolveError};
use slat::vcpu::Denial;
use slat_mm::stats::FrameCounts;
use slat_mm::{
    Backing, ContentsError, FrameSize, Frames, MapError, MigrateError, ProtectError, Protection,
    SplitError,
};
use slat_table::address::{Hva, HvaRange, PAGE_SIZE};
use slat_table::attributes::Access;

use crate::guest::{BLOCK, Guest, Space, Stopped, anonymous, arena, hva, pages};

const HUGE: u64 = FrameSize::Huge.bytes();

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
    assert_eq!(space.statistics().done.split, 2, "one at either end");
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
    assert_eq!(space.statistics().done.protected, 3);
    space
        .protect(pages(BLOCK + 511, 2), Protection::ReadOnly)
        .unwrap();
    assert_eq!(space.statistics().done.protected, 3, "nothing changed");
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
    let two_pages = Backing::Image(vec![1; 2 << 12].into());
    let bytes = 2 << 12;
    let range_of_three = pages(BLOCK, 3);
    assert_eq!(
        space.map(range_of_three, Protection::ReadWrite, two_pages),
        Err(MapError::ImageTooShort {
            range: range_of_three,
            bytes
        })
    );
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
fn a_collapsed_image_is_writable_only_if_all_of_it_was_written() {
    let space = Space::new(arena(16));
    let block = pages(BLOCK, 512);
    let image: Arc<[u8]> = vec![5; 0x20_0000].into();
    space
        .map(block, Protection::ReadWrite, Backing::Image(image))
        .unwrap();
    let guest = Guest::new(&space, block);
    guest.access(hva(BLOCK + 1), Access::Write).unwrap();
    space.migrate(hva(BLOCK + 1), FrameSize::Huge).unwrap();
    let page = guest.peek(hva(BLOCK + 1), Access::Read).unwrap();
    assert_eq!((page.block, page.writable), (block, false));
    assert_eq!(read(&space, hva(BLOCK + 2)), 5);

    space.populate(block, Access::Write).unwrap();
    space.migrate(hva(BLOCK + 1), FrameSize::Huge).unwrap();
    assert!(guest.peek(hva(BLOCK + 1), Access::Read).unwrap().writable);
    guest.check();
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
    let done = space.statistics().done;
    assert_eq!((done.migrated, done.split), (counts(2, 1), 1));

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
    assert_eq!(space.statistics().done.split, 1);
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
fn an_access_that_the_protection_does_not_allow_is_refused() {
    let (_, space, guest) = anonymous(pages(BLOCK, 2));
    guest.fault(hva(BLOCK), Access::Write).unwrap();
    space
        .protect(pages(BLOCK, 2), Protection::ReadOnly)
        .unwrap();
    for (hva, access) in [(hva(BLOCK), Access::Write), (hva(BLOCK + 1), Access::Write)] {
        let refused = Err(ResolveError::NotPermitted { hva, access });
        assert_eq!(space.fault(hva, access), refused);
        assert_eq!(space.view().peek(hva, access), refused);
    }
    assert!(space.fault(hva(BLOCK), Access::Read).is_ok());
}

#[test]
fn a_frame_that_reaches_beyond_its_vma_is_seen_page_by_page() {
    let (_, space, guest) = anonymous(pages(BLOCK, 512));
    let whole = guest.fault(hva(BLOCK), Access::Write).unwrap();
    space
        .protect(pages(BLOCK + 256, 256), Protection::ReadOnly)
        .unwrap();
    for page in [BLOCK + 5, BLOCK + 300] {
        let seen = space.view().peek(hva(page), Access::Read).unwrap();
        assert_eq!(seen.block, pages(page, 1));
        assert_eq!(seen.hpa.raw(), whole.hpa.raw() + (page - BLOCK) * PAGE_SIZE);
    }
}
