//! K16, K19, K20, U4: the host protects, ages, moves and takes back memory under the guest.

use core::sync::atomic::{AtomicU64, Ordering};

use slat::vcpu::Denial;
use slat_mm::{Backing, FrameSize, Protection};
use slat_table::address::{Hpa, Hva};
use slat_table::attributes::MemoryType;

use crate::contest::{When, contest};
use crate::machine::{BLOCK, GPA, HVA, PAGE, Stopped, Vm, hva_range, region};

/// The number at `hva`, as the host sees it.
fn host_reads(vm: &Vm, hva: u64) -> u64 {
    let mut bytes = [0; 8];
    vm.space.read(Hva::new(hva), &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

#[test]
fn k16_while_the_host_makes_memory_read_only_every_write_is_refused() {
    const GUESTS: u64 = 3;
    let vm = Vm::with_ram(BLOCK);
    let all = hva_range(HVA, BLOCK);
    let written: Vec<AtomicU64> = (0..GUESTS).map(|_| AtomicU64::new(0)).collect();
    let refused = Err(Stopped::Denied(Denial::NotPermitted));
    contest(
        60,
        usize::try_from(GUESTS).unwrap(),
        |protect| {
            let protection = if protect {
                Protection::ReadOnly
            } else {
                Protection::ReadWrite
            };
            vm.space.protect(all, protection).unwrap();
        },
        |number| {
            let (written, mut cpu) = (&written[number], vm.cpu());
            let gpa = GPA + number as u64 * 64 * PAGE;
            move || {
                let result = cpu.increment(gpa);
                if let Ok(count) = result {
                    // Nothing that was said to be written is lost, and nothing else is there.
                    assert_eq!(written.fetch_add(1, Ordering::SeqCst) + 1, count);
                }
                // Reading is always allowed.
                assert_eq!(cpu.load(gpa), Ok(written.load(Ordering::SeqCst)));
                result
            }
        },
        |when, result| match when {
            When::First => assert!(result.is_ok(), "{result:?}"),
            When::Second => assert_eq!(result, refused),
            When::Between => assert!(result.is_ok() || result == refused, "{result:?}"),
        },
    );
    for (number, written) in (0..).zip(&written) {
        assert_eq!(
            host_reads(&vm, HVA + number * 64 * PAGE),
            written.load(Ordering::SeqCst)
        );
    }
    vm.end();
}

#[test]
fn k19_aging_forgets_what_was_used_and_an_access_brings_it_back() {
    const USED: u64 = 8;
    let vm = Vm::new(4);
    vm.arena.refuse_huge(true);
    vm.map_ram(HVA, 2 * BLOCK);
    vm.memory.insert(region(1, GPA, 2 * BLOCK, HVA)).unwrap();
    let page = |number: u64| hva_range(HVA + number * PAGE, PAGE);
    let mut cpu = vm.cpu();
    for number in 0..USED {
        cpu.store(GPA + number * PAGE, number).unwrap();
    }
    let (leaves, flushes) = (vm.leaves(), vm.platform.flushes());
    assert_eq!(leaves[0], USED);
    assert!((0..USED).all(|number| vm.space.test_young(page(number))));
    assert!(!vm.space.test_young(page(USED)), "nobody has used it");
    for round in 0..3 {
        assert!(vm.space.age(hva_range(HVA, 2 * BLOCK)), "round {round}");
        assert!(!vm.space.test_young(hva_range(HVA, 2 * BLOCK)));
        let before = cpu.faults;
        assert_eq!(cpu.load(GPA + 3 * PAGE), Ok(3));
        assert_eq!(cpu.faults, before + 1, "software keeps the access flag");
        for number in 0..USED {
            assert_eq!(vm.space.test_young(page(number)), number == 3);
        }
    }
    assert_eq!(cpu.vcpu.stats().extended, 3);
    drop(cpu);
    assert_eq!(
        (vm.leaves(), vm.platform.flushes()),
        (leaves, flushes),
        "nothing came or went"
    );
    vm.end();
}

#[test]
fn k20_leaves_are_counted_by_level_after_every_stage() {
    let vm = Vm::with_ram(4 * BLOCK);
    let mut cpu = vm.cpu();
    let stage = |what: &str, expected: [u64; 3]| {
        assert_eq!(vm.leaves()[..3], expected, "after {what}");
    };
    stage("creation", [0, 0, 0]);
    cpu.store(GPA, 1).unwrap();
    stage("a write where the host has blocks", [0, 1, 0]);
    vm.arena.refuse_huge(true);
    cpu.load(GPA + BLOCK).unwrap();
    stage("a read where it has none", [1, 1, 0]);
    vm.arena.refuse_huge(false);
    vm.space
        .migrate(Hva::new(HVA + 5 * PAGE), FrameSize::Base)
        .unwrap();
    stage("the migration of one page of the block", [1, 0, 0]);
    cpu.load(GPA + 5 * PAGE).unwrap();
    cpu.load(GPA).unwrap();
    stage("reads of that page and another", [3, 0, 0]);
    vm.space.migrate(Hva::new(HVA), FrameSize::Huge).unwrap();
    stage("the collapse of the block", [1, 0, 0]);
    cpu.load(GPA).unwrap();
    stage("a read of it", [1, 1, 0]);
    vm.space.split(Hva::new(HVA)).unwrap();
    stage("the host's split of it", [1, 0, 0]);
    cpu.load(GPA).unwrap();
    stage("a read of one of its pages", [2, 0, 0]);
    vm.space.discard(hva_range(HVA, 4 * BLOCK)).unwrap();
    stage("the discard of everything", [0, 0, 0]);
    let hpa = Hpa::new(0x10_0000_0000);
    let device = Backing::Linear {
        hpa,
        memory: MemoryType::Device,
    };
    let registers = HVA + (1 << 30);
    vm.space
        .map(hva_range(registers, 1 << 30), Protection::ReadWrite, device)
        .unwrap();
    vm.memory
        .insert(region(2, GPA + (1 << 30), 1 << 30, registers))
        .unwrap();
    stage("the creation of a slot over a device", [0, 0, 1]);
    drop(cpu);
    vm.end();
}

#[test]
fn u4_a_page_that_is_taken_and_moved_while_it_is_hammered_loses_no_write() {
    let vm = Vm::with_ram(BLOCK);
    let written = AtomicU64::new(0);
    let page = hva_range(HVA, PAGE);
    let before = vm.space.statistics().done.migrated.base;
    contest(
        100,
        1,
        |down| {
            vm.space.migrate(Hva::new(HVA), FrameSize::Base).unwrap();
            if down {
                vm.space.protect(page, Protection::ReadOnly).unwrap();
                vm.space.protect(page, Protection::ReadWrite).unwrap();
            }
        },
        |_| {
            let (mut cpu, written) = (vm.cpu(), &written);
            move || loop {
                match cpu.increment(GPA) {
                    Ok(count) => {
                        assert_eq!(written.fetch_add(1, Ordering::SeqCst) + 1, count);
                        return;
                    }
                    Err(Stopped::Denied(Denial::NotPermitted)) => {}
                    other => panic!("{other:?}"),
                }
            }
        },
        |_, ()| {},
    );
    assert_eq!(vm.space.statistics().done.migrated.base - before, 200);
    assert_eq!(host_reads(&vm, HVA), written.into_inner());
    vm.end();
}

#[test]
fn u4_after_a_discard_has_returned_no_read_finds_what_was_there() {
    let vm = Vm::with_ram(BLOCK);
    let round = AtomicU64::new(0);
    contest(
        60,
        2,
        |discard| {
            if discard {
                vm.space.discard(hva_range(HVA, PAGE)).unwrap();
            } else {
                let number = round.fetch_add(1, Ordering::SeqCst) + 1;
                vm.space
                    .write(Hva::new(HVA), &number.to_le_bytes())
                    .unwrap();
            }
        },
        |_| {
            let (mut cpu, round) = (vm.cpu(), &round);
            move || (round.load(Ordering::SeqCst), cpu.load(GPA))
        },
        |when, (round, found)| match when {
            When::First => assert_eq!(found, Ok(round)),
            When::Second => assert_eq!(found, Ok(0)),
            When::Between => {}
        },
    );
    vm.end();
}
