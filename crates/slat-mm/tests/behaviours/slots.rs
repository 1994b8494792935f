//! K1 to K4, K17, K18: slots that come, move and go while the guest runs.

use core::sync::atomic::{AtomicU64, Ordering};

use slat::errno::Errno;
use slat::region::RegionError;
use slat::transaction::TransactionError;
use slat::{Config, Fault, Outcome, SlotId};
use slat_table::address::{Gpa, Hva};
use slat_table::attributes::Access;
use slat_table::geometry::Level;

use crate::contest::{When, contest};
use crate::machine::{BLOCK, GPA, HVA, PAGE, Stopped, Vm, gpa_range, hva_range, on_fault, region};

const IDS: u32 = 512;

#[test]
fn k01_slots_up_to_the_most_succeed_and_one_more_changes_nothing() {
    let vm = Vm::with(4, Config::new().slot_ids(IDS), |space| space);
    vm.map_ram(HVA, u64::from(IDS + 1) * PAGE);
    let slot = |id: u32| {
        let offset = u64::from(id) * PAGE;
        region(id, GPA + offset, PAGE, HVA + offset)
    };
    for id in 0..IDS {
        vm.memory.insert(slot(id)).unwrap();
    }
    let before = vm.memory.slots();
    let error = vm.memory.insert(slot(IDS)).unwrap_err();
    let (id, limit) = (SlotId(IDS), IDS);
    let rule = RegionError::Id { id, limit };
    assert_eq!(error, TransactionError::Region { id, error: rule });
    assert_eq!(error.errno(), Errno::EINVAL);
    let after = vm.memory.slots();
    assert_eq!(before.slots(), after.slots());
    assert_eq!(before.generation(), after.generation());
    let last = GPA + u64::from(IDS - 1) * PAGE;
    assert_eq!(vm.cpu().store(last, 7), Ok(()));
    assert_eq!(vm.cpu().load(last + PAGE), Err(Stopped::Mmio));
    vm.end();
}

#[test]
fn k02_a_slot_that_moves_shows_the_old_page_mmio_or_the_new_one() {
    let vm = Vm::new(4);
    vm.map_ram(HVA, 2 * PAGE);
    for page in 0..2 {
        let number = (100u64 + page).to_le_bytes();
        vm.space
            .write(Hva::new(HVA + page * PAGE), &number)
            .unwrap();
    }
    // By one page up and down; the guest looks at the page that is in the slot either way.
    let place = |up: bool| region(1, GPA + u64::from(up) * PAGE, 2 * PAGE, HVA);
    vm.memory.insert(place(false)).unwrap();
    contest(
        60,
        2,
        |up| {
            let change = vm.memory.transaction().delete(SlotId(1));
            change.create(place(up)).commit().unwrap();
        },
        |_| {
            let mut cpu = vm.cpu();
            move || [0, 1, 2].map(|page| cpu.load(GPA + page * PAGE))
        },
        |when, found| {
            let down = [Ok(100), Ok(101), Err(Stopped::Mmio)];
            let up = [Err(Stopped::Mmio), Ok(100), Ok(101)];
            match when {
                When::First => assert_eq!(found, down),
                When::Second => assert_eq!(found, up),
                When::Between => {
                    let known = |page: usize| found[page] == down[page] || found[page] == up[page];
                    assert!((0..3).all(known), "{found:?}");
                }
            }
        },
    );
    vm.end();
}

#[test]
fn k03_after_a_delete_every_access_is_mmio_and_a_new_slot_sees_fresh_memory() {
    let vm = Vm::new(4);
    vm.map_ram(HVA, PAGE);
    let slot = region(1, GPA, PAGE, HVA);
    vm.memory.insert(slot).unwrap();
    let written = AtomicU64::new(0);
    contest(
        60,
        2,
        |delete| {
            if delete {
                vm.memory.remove(SlotId(1)).unwrap();
            } else {
                vm.space.discard(hva_range(HVA, PAGE)).unwrap();
                let number = written.fetch_add(1, Ordering::SeqCst) + 1;
                vm.space
                    .write(Hva::new(HVA + 8), &number.to_le_bytes())
                    .unwrap();
                vm.memory.insert(slot).unwrap();
            }
        },
        |_| {
            let (mut cpu, written) = (vm.cpu(), &written);
            move || {
                let expected = written.load(Ordering::SeqCst);
                let found = [cpu.load(GPA), cpu.load(GPA + 8)];
                (found, expected, cpu.execute(GPA))
            }
        },
        |when, (found, expected, executed)| match when {
            When::First => assert_eq!((found, executed), ([Ok(0), Ok(expected)], Ok(()))),
            // The guest's code is gone: that is said, and nothing hangs.
            When::Second => {
                assert_eq!(
                    (found, executed),
                    ([Err(Stopped::Mmio); 2], Err(Stopped::Mmio))
                );
            }
            When::Between => {}
        },
    );
    vm.end();
}

#[test]
fn k04_without_slots_every_access_ends_in_a_clear_outcome() {
    let vm = Vm::new(4);
    for access in [Access::Read, Access::Write, Access::Execute] {
        let gpa = Gpa::new(GPA);
        assert_eq!(vm.fault(GPA, access), Outcome::Mmio { gpa, access });
    }
    let done = vm.memory.vcpu().prefault(&gpa_range(GPA, BLOCK)).unwrap();
    assert_eq!(done.bytes, 0);
    assert!(matches!(done.stopped, Some(Outcome::Mmio { .. })));
    let error = vm.memory.remove(SlotId(0)).unwrap_err();
    assert_eq!(error, TransactionError::NoSuchSlot(SlotId(0)));
    vm.memory.split(&gpa_range(GPA, BLOCK), Level::PAGE);
    assert!(!vm.space.age(hva_range(HVA, BLOCK)));
    vm.end();
}

#[test]
fn k17_half_deleted_half_unmapped_and_not_torn_down_nothing_leaks() {
    const SLOTS: u32 = 16;
    let vm = Vm::new(16);
    let bytes = BLOCK / 2;
    for id in 0..SLOTS {
        let offset = u64::from(id) * bytes;
        // Two slots show the halves of one mapping.
        if id % 2 == 0 {
            vm.map_ram(HVA + offset, 2 * bytes);
        }
        vm.memory
            .insert(region(id, GPA + offset, bytes, HVA + offset))
            .unwrap();
    }
    let mut cpu = vm.cpu();
    for page in (0..u64::from(SLOTS) * bytes / PAGE).step_by(37) {
        // Memory may end before the last page; those who came first keep theirs.
        let stored = cpu.store(GPA + page * PAGE, page);
        assert!(
            matches!(stored, Ok(()) | Err(Stopped::NoMemory)),
            "{stored:?}"
        );
    }
    drop(cpu);
    assert!(vm.leaves()[0] > 20, "{:?}", vm.leaves());
    for id in (0..SLOTS).step_by(2) {
        vm.memory.remove(SlotId(id)).unwrap();
    }
    vm.space.unmap(hva_range(HVA, u64::from(SLOTS / 2) * bytes));
    // The host goes first and tells nobody but by `release`; the slots that are left are not
    // deleted.
    assert!(vm.leaves().iter().sum::<u64>() > 0);
    vm.space.release();
    assert_eq!(vm.leaves().iter().sum::<u64>(), 0);
    assert_eq!(vm.memory.slots().slots().len(), SLOTS as usize / 2);
    vm.end();
}

#[test]
fn k18_slots_that_come_and_go_cost_faults_elsewhere_a_bounded_number_of_retries() {
    const PAGES: u64 = 2048;
    const GUESTS: usize = 3;
    let vm = Vm::new(32);
    vm.arena.refuse_huge(true);
    vm.map_ram(HVA, PAGES * PAGE);
    for page in 0..PAGES {
        vm.space
            .write(Hva::new(HVA + page * PAGE), &page.to_le_bytes())
            .unwrap();
    }
    vm.memory
        .insert(on_fault(1, GPA, PAGES * PAGE, HVA))
        .unwrap();
    let retried = AtomicU64::new(0);
    let transactions = AtomicU64::new(0);
    // Far enough from the others to be of another stripe.
    let dummy = region(2, GPA + 32 * BLOCK, PAGE, HVA);
    contest(
        60,
        GUESTS,
        |create| {
            if create {
                vm.memory.insert(dummy).unwrap();
            } else {
                vm.memory.remove(SlotId(2)).unwrap();
            }
            transactions.fetch_add(1, Ordering::SeqCst);
        },
        |number| {
            let (retried, mut cpu) = (&retried, vm.cpu());
            let mut page = number as u64 * 700;
            move || {
                page = (page + 1) % PAGES;
                let before = cpu.vcpu.stats().retried;
                assert_eq!(cpu.load(GPA + page * PAGE), Ok(page));
                // Where the page was mapped already, this one goes all the way too.
                let gpa = Gpa::new(GPA + page * PAGE);
                let access = Access::Write;
                cpu.vcpu.fault(Fault { gpa, access }).unwrap();
                retried.fetch_add(cpu.vcpu.stats().retried - before, Ordering::SeqCst);
            }
        },
        |_, ()| {},
    );
    let (retried, transactions) = (retried.into_inner(), transactions.into_inner());
    // A fault is told to try again only if a set of slots was published under it.
    assert!(
        retried <= transactions * GUESTS as u64,
        "{retried} retries, {transactions} changes"
    );
    let mut cpu = vm.cpu();
    for page in 0..PAGES {
        assert_eq!(
            cpu.load(GPA + page * PAGE),
            Ok(page),
            "nothing was lost or mixed up"
        );
    }
    drop(cpu);
    assert_eq!(vm.leaves()[0], PAGES);
    vm.end();
}
