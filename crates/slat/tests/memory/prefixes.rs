//! Every prefix of the table writes of every operation.
//!
//! The hardware may walk the tables between any two writes. Whatever the operation, and wherever
//! it stands, a walk for a page finds what was there before the operation, what will be there
//! after it, or nothing. The walks are made by a walker that knows the writes alone.

use slat::notifier::Notifier;
use slat::region::{Mapping as When, SlotId};
use slat::table::attributes::Access;
use slat::table::geometry::Level;
use slat::table::simulated::Event;

use crate::scripted_host::hva_range;
use crate::vm::{BLOCK, GIB, GPA, HVA, PAGE, Vm, fault, gpa_range, region};
use crate::watched::{BLOCKS, COPIED, REGISTERS, Watched};

/// Slot 1 from `GPA` on, mapped on fault.
fn on_fault(bytes: u64, hva: u64) -> slat::Region {
    region(1, GPA, bytes, hva).mapping(When::OnFault)
}

#[test]
fn faults_on_pages_and_blocks() {
    let mut watched = Watched::new(1024);
    let insert = |vm: &Vm| {
        vm.memory.insert(on_fault(BLOCK, COPIED)).unwrap();
        let blocks = region(2, GPA + BLOCK, BLOCK, BLOCKS).mapping(When::OnFault);
        vm.memory.insert(blocks).unwrap();
    };
    watched.run("creation", insert);
    watched.read(GPA);
    watched.read(GPA + 511 * PAGE);
    watched.write(GPA);
    watched.write(GPA + 7 * PAGE);
    watched.read(GPA + BLOCK + 9 * PAGE);
    assert_eq!(watched.vm.leaf_bytes(GPA + BLOCK), BLOCK);
    watched.read(GPA + BLOCK);
    watched.end();
}

#[test]
fn a_fault_that_turns_pages_into_a_block_and_one_that_turns_it_back() {
    let mut watched = Watched::new(512);
    watched.run("creation", |vm| {
        vm.memory.insert(on_fault(BLOCK, BLOCKS)).unwrap();
        vm.host.put_ram(BLOCKS, PAGE, 0x4000_0000);
    });
    watched.read(GPA);
    watched.read(GPA + PAGE);
    watched.vm.host.put_ram(BLOCKS, BLOCK, 0x4000_0000);
    // The first breaks the table that is in the way, the second makes the block.
    watched.read(GPA + 2 * PAGE);
    watched.read(GPA + 2 * PAGE);
    assert_eq!(watched.vm.leaf_bytes(GPA), BLOCK);
    watched.host_changes("a migration", hva_range(BLOCKS + PAGE, PAGE));
    watched.read(GPA + PAGE);
    watched.end();
}

#[test]
fn creation_prefault_and_removal() {
    let mut watched = Watched::new(1024 + 16);
    let bytes = 2 * BLOCK + 16 * PAGE;
    watched.vm.host.put_ram(HVA + 5 * PAGE, PAGE, 0x4000_0000);
    watched.run("creation", |vm| {
        vm.memory.insert(region(1, GPA, bytes, HVA)).unwrap()
    });
    watched.run("a prefault", |vm| {
        let range = gpa_range(GPA + 3 * PAGE, BLOCK);
        vm.memory.vcpu().prefault(&range).unwrap()
    });
    // Shares its first table with what is left of the other.
    let neighbour = region(2, GPA + bytes, BLOCK, REGISTERS);
    watched.run("creation", |vm| vm.memory.insert(neighbour).unwrap());
    watched.run("a removal that prunes", |vm| {
        vm.memory.remove(SlotId(1)).unwrap();
    });
    watched.run("the last removal", |vm| {
        vm.memory.remove(SlotId(2)).unwrap();
    });
    watched.end();
}

#[test]
fn transactions_that_replace_slots() {
    let mut watched = Watched::new(1024);
    watched.vm.host.put_ram(HVA, PAGE, 0x4000_0000);
    watched.vm.host.put_ram(BLOCKS, BLOCK, 0x8000_0000);
    watched.run("creation", |vm| {
        let (one, other) = (
            region(1, GPA, BLOCK, HVA),
            region(2, GPA + BLOCK, BLOCK, BLOCKS),
        );
        let both = vm.memory.transaction().create(one).create(other);
        both.commit().unwrap()
    });
    watched.run("two slots that change places", |vm| {
        let (one, other) = (
            region(1, GPA + BLOCK, BLOCK, HVA),
            region(2, GPA, BLOCK, BLOCKS),
        );
        let change = vm.memory.transaction().delete(SlotId(1)).delete(SlotId(2));
        change.create(one).create(other).commit().unwrap()
    });
    assert_eq!(watched.vm.leaf_bytes(GPA), BLOCK);
    watched.run("a slot that becomes two, one read-only", |vm| {
        let half = BLOCK / 2;
        let low = region(2, GPA, half, BLOCKS);
        let high = region(3, GPA + half, half, BLOCKS + half).read_only();
        let change = vm.memory.transaction().delete(SlotId(2));
        change.create(low).create(high).commit().unwrap()
    });
    assert_eq!(
        watched.vm.sees(GPA + BLOCK / 2),
        Some((0x8000_0000 + BLOCK / 2, false))
    );
    watched.end();
}

#[test]
fn invalidations_of_pages_parts_of_blocks_and_everything() {
    let mut watched = Watched::new(1536);
    watched.vm.host.put_ram(BLOCKS, BLOCK, 0x8000_0000);
    watched.vm.host.put_ram(BLOCKS + BLOCK, BLOCK, 0x9000_0000);
    watched.run("creation", |vm| {
        vm.memory.insert(region(1, GPA, 2 * BLOCK, BLOCKS)).unwrap();
        vm.memory
            .insert(region(2, GPA + 2 * BLOCK, BLOCK, HVA))
            .unwrap()
    });
    watched.read(GPA + 2 * BLOCK + PAGE);
    watched.host_changes("a page", hva_range(HVA + PAGE, PAGE));
    watched.host_changes("a page of a block", hva_range(BLOCKS + 3 * PAGE, PAGE));
    watched.host_changes("the edge of a block and of its neighbour", {
        hva_range(BLOCKS + BLOCK - PAGE, 2 * PAGE)
    });
    watched.vm.machine.fail_allocations_from(0);
    watched.host_changes(
        "a part of a block without memory",
        hva_range(BLOCKS + BLOCK + 8 * PAGE, PAGE),
    );
    watched.vm.machine.allow_allocations();
    watched.run("release", |vm| vm.memory.release());
    assert_eq!(watched.vm.mapped_bytes(), 0);
    watched.end();
}

#[test]
fn a_gigabyte_that_is_cut_in_two_steps() {
    let mut watched = Watched::new(512);
    // Of the rest, a page of every block.
    let others = (1..GIB / BLOCK).map(|block| GPA + block * BLOCK + 11 * PAGE);
    watched.pages.extend(others);
    let bytes = GIB;
    watched.run("creation", |vm| {
        vm.memory.insert(region(1, GPA, bytes, REGISTERS)).unwrap()
    });
    assert_eq!(watched.vm.leaf_bytes(GPA), GIB);
    watched.host_changes(
        "a page of a gigabyte",
        hva_range(REGISTERS + 5 * PAGE, PAGE),
    );
    assert_eq!(watched.vm.leaf_bytes(GPA), PAGE);
    assert_eq!(watched.vm.leaf_bytes(GPA + BLOCK), BLOCK);
    watched.end();
}

#[test]
fn splits_and_aging() {
    let mut watched = Watched::new(1024);
    watched.run("creation", |vm| {
        vm.memory
            .insert(region(1, GPA, 2 * BLOCK, REGISTERS))
            .unwrap()
    });
    watched.run("a split", |vm| {
        vm.memory.split(&gpa_range(GPA + PAGE, PAGE), Level::PAGE);
    });
    assert_eq!(watched.vm.leaf_bytes(GPA), PAGE);
    assert_eq!(watched.vm.leaf_bytes(GPA + BLOCK), BLOCK);
    let young = hva_range(REGISTERS + 7 * PAGE, BLOCK);
    assert!(watched.run("aging", |vm| vm.memory.age(young)));
    assert!(!watched.run("a look", |vm| vm.memory.test_young(young)));
    // Breaks the pages that are in the way, then makes the block.
    watched.read(GPA + 9 * PAGE);
    watched.read(GPA + 9 * PAGE);
    assert!(watched.run("aging again", |vm| vm.memory.age(young)));
    watched.end();
}

/// A small generator of numbers that look random (`splitmix64`).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn page(&mut self) -> u64 {
        // Small numbers come more often: there the operations meet.
        let end = [4, 64, 1024][usize::try_from(self.below(3)).unwrap()];
        self.below(end) * PAGE
    }
}

/// What slot 1 may show: everything that the host has, one mapping at a time.
const SHOWN: [u64; 4] = [HVA, BLOCKS, COPIED, REGISTERS];

#[test]
fn anything_in_any_order() {
    let mut random = Random(5);
    let mut watched = Watched::new(1024);
    let mut shown = SHOWN[0];
    watched.run("creation", |vm| {
        vm.memory.insert(on_fault(2 * BLOCK, shown)).unwrap()
    });
    for _ in 0..160 {
        let (at, bytes) = (random.page(), PAGE + random.page().min(64 * PAGE));
        let range = hva_range(shown + at, bytes);
        let guest = gpa_range(GPA + at, bytes);
        match random.below(8) {
            0..3 => {
                let access = [Access::Read, Access::Write][usize::from(at % (2 * PAGE) == 0)];
                watched.run("a fault", |vm| {
                    fault(&mut vm.memory.vcpu(), GPA + at, access)
                });
            }
            3 => drop(watched.run("a prefault", |vm| vm.memory.vcpu().prefault(&guest))),
            4 => watched.run("a discard", |vm| {
                vm.host_changes(range, |host| host.discard(range));
            }),
            5 => watched.host_changes("a migration", range),
            6 => watched.run("a split and a look", |vm| {
                vm.memory.split(&guest, Level::PAGE);
                vm.memory.age(range);
            }),
            _ => {
                shown = SHOWN[usize::try_from(random.below(4)).unwrap()];
                watched.run("another slot", |vm| {
                    let change = vm.memory.transaction().delete(SlotId(1));
                    change
                        .create(region(1, GPA, 2 * BLOCK, shown))
                        .commit()
                        .unwrap()
                });
            }
        }
    }
    watched.end();
}

#[test]
fn a_walk_that_finds_something_else_in_the_middle_is_noticed() {
    let mut watched = Watched::new(2);
    watched.run("creation", |vm| {
        vm.memory.insert(on_fault(2 * PAGE, HVA)).unwrap()
    });
    watched.read(GPA);
    let shown = watched.walker.walk(GPA).unwrap();
    watched.vm.host_changes(hva_range(HVA, PAGE), |host| {
        host.migrate(hva_range(HVA, PAGE));
    });
    watched.vm.read(GPA);
    let mut events = watched.vm.machine.take_events();
    let last = events
        .iter()
        .rposition(|event| matches!(event, Event::Written { .. }))
        .unwrap();
    let Event::Written { entry, old, new } = events[last].clone() else {
        unreachable!("it was found for that");
    };
    // A third page on the way from the old one to the new one.
    let stray = new ^ 0x77_0000;
    events[last] = Event::Written {
        entry,
        old,
        new: stray,
    };
    events.push(Event::Written {
        entry,
        old: stray,
        new,
    });
    let stranger = watched.judge(&events).unwrap_err();
    assert_eq!((stranger.gpa, stranger.before), (GPA, Some(shown)));
}
