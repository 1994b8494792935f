//! Which leaf is chosen, and what it allows.

use super::*;
use crate::config::Config;
use crate::region::{Region, SlotId};
use crate::testing::{FEATURES, geometry};
use slat_table::address::PAGE_SIZE;
use slat_table::format::arm64::Arm64;
use slat_table::geometry::LevelShape;

const BLOCK: u64 = 2 << 20;
const HVA: u64 = 0x7f00_0000_0000;

fn slot(region: Region) -> Slot {
    region.validate(&Config::new(), &geometry()).unwrap()
}

fn region() -> Region {
    let gpa = Gpa::new(4 * BLOCK);
    Region::new(SlotId(1), gpa, 4 * BLOCK, Hva::new(HVA))
}

fn page() -> HostPage {
    HostPage {
        block: HvaRange::new(Hva::new(HVA), 4 * BLOCK).unwrap(),
        hpa: Hpa::new(0x8000_0000),
        writable: true,
        kind: PageKind::Ram,
        memory: MemoryType::WriteBack,
    }
}

fn request(slot: &Slot, access: Access) -> Request<'_> {
    Request {
        slot,
        generation: 1,
        gpa: Gpa::new(5 * BLOCK + PAGE_SIZE),
        access,
        reach: Reach::Leaf,
    }
}

fn around(gpa: Gpa) -> GpaRange {
    GpaRange::block_around(gpa, PAGE_SIZE).unwrap()
}

#[test]
fn a_logged_slot_is_mapped_in_pages() {
    let size = |region: Region| {
        let slot = slot(region);
        let request = request(&slot, Access::Write);
        plan(&geometry(), &request, &around(request.gpa), &page())
            .unwrap()
            .range
            .bytes()
    };
    assert_eq!(size(region()), BLOCK);
    assert_eq!(size(region().log_dirty()), PAGE_SIZE);
    let never_written = region().log_dirty().read_only();
    assert_eq!(size(never_written), BLOCK);
}

#[test]
fn a_logged_page_becomes_writable_by_a_write_only() {
    let logged = slot(region().log_dirty());
    for access in [Access::Read, Access::Write, Access::Execute] {
        let request = request(&logged, access);
        let given = attributes::<Arm64>(&request, &page(), &FEATURES).unwrap();
        assert_eq!(given.permissions.write, access == Access::Write);
    }
}

#[test]
fn an_answer_about_another_place_is_refused() {
    let slot = slot(region());
    let request = request(&slot, Access::Read);
    for block in [HVA - BLOCK, HVA + 2 * BLOCK] {
        let elsewhere = HostPage {
            block: HvaRange::new(Hva::new(block), BLOCK).unwrap(),
            ..page()
        };
        let plan = plan(&geometry(), &request, &around(request.gpa), &elsewhere);
        assert!(matches!(plan, Err(PopulateError::HostBlock { .. })));
    }
}

/// A tree whose pages have 4 KiB, with runs of 64 KiB.
fn with_runs() -> Geometry {
    let shape = |shift, run_bits| LevelShape {
        shift,
        index_bits: 9,
        table_bytes: 4096,
        leaf: true,
        run_bits,
    };
    Geometry::new(&[shape(12, 4), shape(21, 0), shape(30, 0)], 39).unwrap()
}

/// What is planned at `gpa` where the host maps `bytes` bytes from `hpa` on.
fn planned(slot: &Slot, reach: Reach, gpa: u64, bytes: u64, hpa: u64) -> (GpaRange, u64) {
    let gpa = Gpa::new(gpa);
    let request = Request {
        gpa,
        reach,
        ..request(slot, Access::Read)
    };
    let page = HostPage {
        block: HvaRange::new(Hva::new(HVA), bytes).unwrap(),
        hpa: Hpa::new(hpa),
        ..page()
    };
    let plan = plan(&with_runs(), &request, &around(gpa), &page).unwrap();
    (plan.range, plan.leaf)
}

#[test]
fn a_run_is_a_size_of_leaf() {
    const RUN: u64 = 64 << 10;
    let (plain, logged) = (slot(region()), slot(region().log_dirty()));
    let start = 4 * BLOCK;
    let range = |offset, bytes| GpaRange::new(Gpa::new(start + offset), bytes).unwrap();
    let at = |offset| start + offset;
    // A fault maps the run around it, if the host's block and addresses allow.
    let one = |slot: &Slot, bytes, hpa| planned(slot, Reach::Leaf, at(RUN + PAGE_SIZE), bytes, hpa);
    assert_eq!(one(&plain, 2 * RUN, 1 << 32), (range(RUN, RUN), RUN));
    let page = (range(RUN + PAGE_SIZE, PAGE_SIZE), PAGE_SIZE);
    assert_eq!(
        one(&plain, 2 * RUN - PAGE_SIZE, 1 << 32),
        page,
        "the block ends in it"
    );
    assert_eq!(
        one(&plain, 2 * RUN, (1 << 32) + PAGE_SIZE),
        page,
        "not congruent"
    );
    assert_eq!(one(&logged, 2 * RUN, 1 << 32), page, "logged page by page");
    assert_eq!(one(&plain, BLOCK, 1 << 32), (range(0, BLOCK), BLOCK));
    // More than one leaf: of one size each time.
    let many = |slot: &Slot, offset, bytes, hpa| planned(slot, Reach::Run, at(offset), bytes, hpa);
    let odd = 3 * RUN + 2 * PAGE_SIZE;
    assert_eq!(many(&plain, 0, odd, 1 << 32), (range(0, 3 * RUN), RUN));
    let tail = (range(3 * RUN, 2 * PAGE_SIZE), PAGE_SIZE);
    assert_eq!(many(&plain, 3 * RUN, odd, 1 << 32), tail);
    let askew = (range(0, odd), PAGE_SIZE);
    assert_eq!(many(&plain, 0, odd, (1 << 32) + PAGE_SIZE), askew);
    assert_eq!(many(&logged, 0, odd, 1 << 32), askew);
}

#[test]
fn pages_lead_to_where_a_run_can_begin() {
    const RUN: u64 = 64 << 10;
    // The slot begins in the middle of a run.
    let start = 4 * BLOCK + 3 * PAGE_SIZE;
    let slot = slot(Region::new(
        SlotId(1),
        Gpa::new(start),
        BLOCK,
        Hva::new(HVA),
    ));
    let hpa = (1 << 32) + 3 * PAGE_SIZE;
    let to = |end: u64| GpaRange::between(Gpa::new(start), Gpa::new(end)).unwrap();
    let first = planned(&slot, Reach::Run, start, BLOCK, hpa);
    assert_eq!(first, (to(4 * BLOCK + RUN), PAGE_SIZE));
    let second = planned(&slot, Reach::Run, 4 * BLOCK + RUN, BLOCK, hpa);
    assert_eq!(
        (second.0.bytes(), second.1),
        (BLOCK - RUN, RUN),
        "to the end of the span"
    );
}

#[test]
fn a_host_block_smaller_than_the_formats_page_is_refused() {
    let page_bytes = 64 << 10;
    let shape = |shift| LevelShape {
        shift,
        index_bits: 13,
        table_bytes: 65536,
        leaf: true,
        run_bits: 0,
    };
    let geometry = Geometry::new(&[shape(16), shape(29)], 40).unwrap();
    let slot = region().validate(&Config::new(), &geometry).unwrap();
    let request = request(&slot, Access::Read);
    let at = request.gpa.align_down(page_bytes);
    let hva = HVA + (at.raw() - slot.range().start().raw());
    let shown = |start, bytes| HostPage {
        block: HvaRange::new(Hva::new(start), bytes).unwrap(),
        ..page()
    };
    let all = GpaRange::new(at, page_bytes).unwrap();
    let whole = plan(&geometry, &request, &all, &shown(hva, page_bytes)).unwrap();
    assert_eq!(whole.range, all);
    for (start, bytes) in [(hva, PAGE_SIZE), (hva + PAGE_SIZE, page_bytes)] {
        let block = HvaRange::new(Hva::new(start), bytes).unwrap();
        let (gpa, page) = (at, page_bytes);
        let refused = plan(&geometry, &request, &all, &shown(start, bytes)).map(|_| ());
        assert_eq!(refused, Err(PopulateError::HostBlock { gpa, block, page }));
    }
}
