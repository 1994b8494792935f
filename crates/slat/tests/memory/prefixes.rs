//! Every prefix of the table writes of every operation.
//!
//! The hardware may walk the tables between any two writes. Whatever the operation, and wherever
//! it stands, a walk for a page finds what was there before the operation, what will be there
//! after it, or nothing. The walks are made by a walker that knows the writes alone.

use slat::notifier::Notifier;
use slat::region::{Mapping as When, SlotId};
use slat::table::attributes::Access;
use slat::table::format::Format;
use slat::table::format::arm64::{Arm64, Arm64Features};
use slat::table::geometry::Level;
use slat::table::simulated::Event;

use crate::rows::Row;
use crate::scripted_host::hva_range;
use crate::vm::{Vm, fault, gpa_range, region};
use crate::watched::{Places, Watched};

/// Slot 1, mapped on fault.
fn on_fault<F: Format>(row: &Row<F>, bytes: u64, hva: u64) -> slat::Region {
    region(1, row.gpa, bytes, hva).mapping(When::OnFault)
}

fn faults_on_pages_and_blocks<F: Format>(row: Row<F>) {
    let at = Places::of(&row);
    let mut watched = Watched::new(row, 2 * row.span);
    let insert = |vm: &Vm<F>| {
        vm.memory
            .insert(on_fault(&row, row.span, at.copied))
            .unwrap();
        let blocks = region(2, row.gpa + row.span, row.span, at.blocks).mapping(When::OnFault);
        vm.memory.insert(blocks).unwrap();
    };
    watched.run("creation", insert);
    watched.read(row.gpa);
    watched.read(row.gpa + row.span - row.page);
    watched.write(row.gpa);
    watched.write(row.gpa + 7 * row.page);
    watched.read(row.gpa + row.span + 9 * row.page);
    assert_eq!(
        watched.vm.leaf_bytes(row.gpa + row.span + 9 * row.page),
        row.leaf_in(row.span)
    );
    watched.read(row.gpa + row.span);
    watched.end();
}

fn a_fault_that_turns_pages_into_a_block_and_one_that_turns_it_back<F: Format>(row: Row<F>) {
    let at = Places::of(&row);
    let mut watched = Watched::new(row, row.span);
    watched.run("creation", |vm| {
        vm.memory
            .insert(on_fault(&row, row.span, at.blocks))
            .unwrap();
        vm.host.put_ram(at.blocks, row.page, row.chosen);
    });
    watched.read(row.gpa);
    watched.read(row.gpa + row.page);
    watched.vm.host.put_ram(at.blocks, row.span, row.chosen);
    // The first breaks the table that is in the way, the second makes the block.
    watched.read(row.gpa + 2 * row.page);
    watched.read(row.gpa + 2 * row.page);
    assert_eq!(watched.vm.leaf_bytes(row.gpa), row.leaf_in(row.span));
    watched.host_changes("a migration", hva_range(at.blocks + row.page, row.page));
    watched.read(row.gpa + row.page);
    watched.end();
}

fn creation_prefault_and_removal<F: Format>(row: Row<F>) {
    let at = Places::of(&row);
    let mut watched = Watched::new(row, 2 * row.span + 16 * row.page);
    let bytes = 2 * row.span + 16 * row.page;
    watched
        .vm
        .host
        .put_ram(at.hva + 5 * row.page, row.page, row.chosen);
    watched.run("creation", |vm| {
        vm.memory.insert(region(1, row.gpa, bytes, at.hva)).unwrap()
    });
    watched.run("a prefault", |vm| {
        let range = gpa_range(row.gpa + 3 * row.page, row.span);
        vm.memory.vcpu().prefault(&range).unwrap()
    });
    // Shares its first table with what is left of the other.
    let neighbour = region(2, row.gpa + bytes, row.span, at.registers);
    watched.run("creation", |vm| vm.memory.insert(neighbour).unwrap());
    watched.run("a removal that prunes", |vm| {
        vm.memory.remove(SlotId(1)).unwrap();
    });
    watched.run("the last removal", |vm| {
        vm.memory.remove(SlotId(2)).unwrap();
    });
    watched.end();
}

fn transactions_that_replace_slots<F: Format>(row: Row<F>) {
    let at = Places::of(&row);
    let mut watched = Watched::new(row, 2 * row.span);
    watched.vm.host.put_ram(at.hva, row.page, row.chosen);
    watched
        .vm
        .host
        .put_ram(at.blocks, row.span, row.chosen + row.span);
    watched.run("creation", |vm| {
        let (one, other) = (
            region(1, row.gpa, row.span, at.hva),
            region(2, row.gpa + row.span, row.span, at.blocks),
        );
        let both = vm.memory.transaction().create(one).create(other);
        both.commit().unwrap()
    });
    watched.run("two slots that change places", |vm| {
        let (one, other) = (
            region(1, row.gpa + row.span, row.span, at.hva),
            region(2, row.gpa, row.span, at.blocks),
        );
        let change = vm.memory.transaction().delete(SlotId(1)).delete(SlotId(2));
        change.create(one).create(other).commit().unwrap()
    });
    assert_eq!(watched.vm.leaf_bytes(row.gpa), row.leaf_in(row.span));
    watched.run("a slot that becomes two, one read-only", |vm| {
        let half = row.span / 2;
        let low = region(2, row.gpa, half, at.blocks);
        let high = region(3, row.gpa + half, half, at.blocks + half).read_only();
        let change = vm.memory.transaction().delete(SlotId(2));
        change.create(low).create(high).commit().unwrap()
    });
    assert_eq!(
        watched.vm.sees(row.gpa + row.span / 2),
        Some((row.chosen + row.span + row.span / 2, false))
    );
    watched.end();
}

fn invalidations_of_pages_parts_of_blocks_and_everything<F: Format>(row: Row<F>) {
    let at = Places::of(&row);
    let mut watched = Watched::new(row, 3 * row.span);
    watched
        .vm
        .host
        .put_ram(at.blocks, row.span, row.chosen + row.span);
    watched
        .vm
        .host
        .put_ram(at.blocks + row.span, row.span, row.chosen + 2 * row.span);
    watched.run("creation", |vm| {
        vm.memory
            .insert(region(1, row.gpa, 2 * row.span, at.blocks))
            .unwrap();
        vm.memory
            .insert(region(2, row.gpa + 2 * row.span, row.span, at.hva))
            .unwrap()
    });
    watched.read(row.gpa + 2 * row.span + row.page);
    watched.host_changes("a page", hva_range(at.hva + row.page, row.page));
    watched.host_changes(
        "a page of a block",
        hva_range(at.blocks + 3 * row.page, row.page),
    );
    watched.host_changes("the edge of a block and of its neighbour", {
        hva_range(at.blocks + row.span - row.page, 2 * row.page)
    });
    watched.vm.machine.fail_allocations_from(0);
    watched.host_changes(
        "a part of a block without memory",
        hva_range(at.blocks + row.span + 8 * row.page, row.page),
    );
    watched.vm.machine.allow_allocations();
    watched.run("release", |vm| vm.memory.release());
    assert_eq!(watched.vm.mapped_bytes(), 0);
    watched.end();
}

fn a_large_block_that_is_cut_in_steps<F: Format>(row: Row<F>) {
    let at = Places::of(&row);
    let mut watched = Watched::new(row, row.span);
    // Of the rest, a page of every block.
    let others = (1..at.large / row.span).map(|block| row.gpa + block * row.span + 11 * row.page);
    watched.pages.extend(others);
    let bytes = at.large;
    watched.run("creation", |vm| {
        vm.memory
            .insert(region(1, row.gpa, bytes, at.registers))
            .unwrap()
    });
    assert_eq!(watched.vm.leaf_bytes(row.gpa), row.leaf_in(at.large));
    watched.host_changes(
        "a page of a large block",
        hva_range(at.registers + 5 * row.page, row.page),
    );
    assert_eq!(watched.vm.leaf_bytes(row.gpa), row.page);
    assert_eq!(
        watched.vm.leaf_bytes(row.gpa + row.span),
        row.leaf_in(row.span)
    );
    watched.end();
}

fn splits_and_aging<F: Format>(row: Row<F>) {
    let at = Places::of(&row);
    let mut watched = Watched::new(row, 2 * row.span);
    watched.run("creation", |vm| {
        vm.memory
            .insert(region(1, row.gpa, 2 * row.span, at.registers))
            .unwrap()
    });
    watched.run("a split", |vm| {
        vm.memory
            .split(&gpa_range(row.gpa + row.page, row.page), Level::PAGE);
    });
    assert_eq!(watched.vm.leaf_bytes(row.gpa), row.page);
    assert_eq!(
        watched.vm.leaf_bytes(row.gpa + row.span),
        row.leaf_in(row.span)
    );
    let young = hva_range(at.registers + 7 * row.page, row.span);
    assert!(watched.run("aging", |vm| vm.memory.age(young)));
    let still_young = watched.run("a look", |vm| vm.memory.test_young(young));
    assert_eq!(still_young, !row.ages());
    // Breaks the pages that are in the way, then makes the block.
    watched.read(row.gpa + 9 * row.page);
    watched.read(row.gpa + 9 * row.page);
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

    fn page<F: Format>(&mut self, row: &Row<F>) -> u64 {
        // Small numbers come more often: there the operations meet.
        let all = 2 * row.span / row.page;
        let end = [4, 64, all][usize::try_from(self.below(3)).unwrap()];
        self.below(end) * row.page
    }
}

fn anything_in_any_order<F: Format>(row: Row<F>) {
    let at = Places::of(&row);
    let mut random = Random(5);
    let mut watched = Watched::new(row, 2 * row.span);
    // What slot 1 may show: everything that the host has, one mapping at a time.
    let all = [at.hva, at.blocks, at.copied, at.registers];
    let mut shown = all[0];
    watched.run("creation", |vm| {
        vm.memory
            .insert(on_fault(&row, 2 * row.span, shown))
            .unwrap()
    });
    for _ in 0..40 {
        let (at, bytes) = (
            random.page(&row),
            row.page + random.page(&row).min(64 * row.page),
        );
        let range = hva_range(shown + at, bytes);
        let guest = gpa_range(row.gpa + at, bytes);
        match random.below(8) {
            0..3 => {
                let access = [Access::Read, Access::Write][usize::from(at % (2 * row.page) == 0)];
                watched.run("a fault", |vm| {
                    fault(&mut vm.memory.vcpu(), row.gpa + at, access)
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
                shown = all[usize::try_from(random.below(4)).unwrap()];
                watched.run("another slot", |vm| {
                    let change = vm.memory.transaction().delete(SlotId(1));
                    change
                        .create(region(1, row.gpa, 2 * row.span, shown))
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
    let row = Row::<Arm64>::new(Arm64Features::ALL, 48);
    let at = Places::of(&row);
    let mut watched = Watched::new(row, 2 * row.page);
    watched.run("creation", |vm| {
        vm.memory
            .insert(on_fault(&row, 2 * row.page, at.hva))
            .unwrap()
    });
    watched.read(row.gpa);
    let shown = watched.walker.walk(row.gpa, |_| {}).unwrap();
    watched
        .vm
        .host_changes(hva_range(at.hva, row.page), |host| {
            host.migrate(hva_range(at.hva, row.page));
        });
    watched.vm.read(row.gpa);
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
    assert_eq!((stranger.gpa, stranger.before), (row.gpa, Some(shown)));
}

crate::rows::for_every_format! {
    faults_on_pages_and_blocks,
    a_fault_that_turns_pages_into_a_block_and_one_that_turns_it_back,
    creation_prefault_and_removal,
    transactions_that_replace_slots,
    invalidations_of_pages_parts_of_blocks_and_everything,
    a_large_block_that_is_cut_in_steps,
    splits_and_aging,
    anything_in_any_order,
}
