//! K5, K10, K12, K13, K15: faults, what the host is asked for them, and how far prefaulting gets.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::time::Duration;
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use slat::vcpu::Prefaulted;
use slat::{Config, Outcome, SlotId};
use slat_table::address::{Gpa, Hva};
use slat_table::attributes::Access;

use crate::asking::AskingHost;
use crate::machine::{BLOCK, GPA, HVA, PAGE, Stopped, Vm, gpa_range, hva_range, on_fault, region};

/// Four vCPUs access each of `pages` pages from `GPA` on, each of them beginning in another place,
/// two by reads and two by writes. Returns how many leaves they say they have mapped.
fn fault_everywhere(vm: &Vm, pages: u64) -> u64 {
    const GUESTS: u64 = 4;
    let start = Barrier::new(4);
    let run = |number: u64| {
        let mut cpu = vm.cpu();
        start.wait();
        for page in 0..pages {
            let gpa = GPA + (page + number * pages / GUESTS) % pages * PAGE;
            if number < 2 {
                assert_eq!(cpu.load(gpa), Ok(0));
            } else {
                // Every writer writes what is there already.
                assert_eq!(cpu.store(gpa, 0), Ok(()));
            }
        }
        cpu.vcpu.stats().leaves.iter().sum::<u64>()
    };
    let run = &run;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..GUESTS)
            .map(|number| scope.spawn(move || run(number)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    })
}

#[test]
fn k05_vcpus_that_fault_on_one_region_make_every_leaf_once_and_of_the_right_size() {
    let bytes = 4 * BLOCK;
    // Whether the host has 2 MiB frames, and where the guest sees the region.
    for (huge, gpa, expected) in [
        (true, GPA, [0, 4, 0, 0, 0, 0]),
        (false, GPA, [2048, 0, 0, 0, 0, 0]),
        (true, GPA - PAGE, [2048, 0, 0, 0, 0, 0]),
    ] {
        let vm = Vm::new(16);
        vm.arena.refuse_huge(!huge);
        vm.map_ram(HVA, bytes);
        vm.memory.insert(region(1, gpa, bytes, HVA)).unwrap();
        let pages = (gpa + bytes - GPA) / PAGE;
        let made = fault_everywhere(&vm, pages);
        // The page below `GPA`, where there is one.
        assert_eq!(vm.cpu().load(gpa), Ok(0));
        let leaves = vm.leaves();
        assert_eq!(leaves[..], expected[..leaves.len()]);
        let before = u64::from(gpa != GPA);
        assert_eq!(
            made + before,
            leaves.iter().sum::<u64>(),
            "each was made once"
        );
        assert_eq!(
            vm.arena.allocated_pages(),
            bytes / PAGE,
            "one frame for each page"
        );
        vm.end();
    }
}

/// What a guest instruction does to memory.
struct Instruction {
    name: &'static str,
    /// How it accesses its operand; `None` if it only translates the address.
    data: Option<Access>,
}

const INSTRUCTIONS: [Instruction; 8] = [
    Instruction {
        name: "ldr",
        data: Some(Access::Read),
    },
    Instruction {
        name: "str",
        data: Some(Access::Write),
    },
    Instruction {
        name: "cas",
        data: Some(Access::Write),
    },
    Instruction {
        name: "dc zva",
        data: Some(Access::Write),
    },
    Instruction {
        name: "ldr, pre-indexed",
        data: Some(Access::Read),
    },
    Instruction {
        name: "str, pre-indexed",
        data: Some(Access::Write),
    },
    Instruction {
        name: "at s1e1r",
        data: None,
    },
    Instruction {
        name: "instruction fetch",
        data: Some(Access::Execute),
    },
];

/// The page of the guest's own table, and the page of the operand.
const TABLE: u64 = 0;
const OPERAND: u64 = PAGE;

#[test]
fn k10_the_host_is_asked_for_the_access_that_the_guest_makes() {
    for Instruction { name, data } in INSTRUCTIONS {
        // A walk of the guest's tables writes where the hardware sets access flags in them.
        for walk in [Access::Read, Access::Write] {
            for (table_is_there, operand_is_there) in [(true, false), (false, true), (false, false)]
            {
                let vm = Vm::with(4, Config::new(), |space| AskingHost::new(space, |_| true));
                vm.map_ram(HVA, 2 * PAGE);
                vm.memory.insert(region(1, GPA, 2 * PAGE, HVA)).unwrap();
                for (there, page) in [(table_is_there, TABLE), (operand_is_there, OPERAND)] {
                    if there {
                        vm.space
                            .populate(hva_range(HVA + page, PAGE), Access::Write)
                            .unwrap();
                    }
                }
                let mut expected = Vec::new();
                for (there, page, access) in [
                    (table_is_there, TABLE, Some(walk)),
                    (operand_is_there, OPERAND, data),
                ] {
                    let Some(access) = access else { continue };
                    let outcome = vm.fault(GPA + page, access);
                    assert!(
                        matches!(outcome, Outcome::Mapped { .. }),
                        "{name}: {outcome:?}"
                    );
                    if !there {
                        expected.push((HVA + page, access));
                    }
                }
                assert_eq!(
                    vm.memory.host().upcalls(),
                    expected,
                    "{name}, walk: {walk:?}"
                );
                vm.end();
            }
        }
    }
}

#[test]
fn k12_a_write_to_a_read_only_slot_is_said_with_slot_and_address_and_asks_nothing() {
    let vm = Vm::with(4, Config::new(), |space| AskingHost::new(space, |_| true));
    vm.map_ram(HVA, 2 * PAGE);
    vm.memory
        .insert(on_fault(1, GPA, 2 * PAGE, HVA).read_only())
        .unwrap();
    let gpa = Gpa::new(GPA + 8);
    let slot = SlotId(1);
    // Before anything is mapped, and with the page mapped.
    for upcalls in [1, 0] {
        assert_eq!(
            vm.fault(GPA + 8, Access::Write),
            Outcome::WriteToReadOnly { slot, gpa }
        );
        assert_eq!(vm.memory.host().upcalls(), []);
        assert_eq!(vm.cpu().load(GPA), Ok(0));
        assert_eq!(vm.cpu().execute(GPA), Ok(()));
        assert_eq!(vm.memory.host().upcalls().len(), upcalls);
        assert_eq!(
            vm.writable(GPA),
            Some(false),
            "though the host may write there"
        );
    }
    assert_eq!(vm.cpu().store(GPA, 1), Err(Stopped::ReadOnlySlot));
    vm.end();
}

/// How long an upcall may take before it counts as missing.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn k13_a_fault_that_waits_for_the_host_asks_it_once_for_each_page() {
    let (upcalls, pending) = mpsc::channel();
    let (served, answers) = mpsc::channel();
    let waiting = std::sync::Mutex::new((upcalls, answers));
    let vm = Vm::with(16, Config::new(), |space| {
        AskingHost::new(space, move |upcall| {
            let waiting = waiting.lock().unwrap();
            waiting.0.send(upcall).unwrap();
            // As `userfaultfd` does: nothing goes on before somebody else has brought the page.
            waiting.1.recv().unwrap()
        })
    });
    vm.map_ram(HVA, 4 * BLOCK);
    vm.memory.insert(on_fault(1, GPA, 4 * BLOCK, HVA)).unwrap();
    let elsewhere = 3 * BLOCK;
    vm.space
        .populate(hva_range(HVA + elsewhere, PAGE), Access::Write)
        .unwrap();
    thread::scope(|scope| {
        let vm = &vm;
        let handler = scope.spawn(move || {
            let mut seen = Vec::new();
            for _ in 0..3 {
                let (hva, access) = pending.recv_timeout(PATIENCE).expect("an upcall");
                seen.push((hva, access));
                // The one who waits holds nothing that others need.
                assert_eq!(vm.cpu().store(GPA + elsewhere, hva), Ok(()));
                vm.space
                    .write(Hva::new(hva), &(hva + 1).to_le_bytes())
                    .unwrap();
                served.send(true).unwrap();
            }
            seen
        });
        let mut cpu = vm.cpu();
        // The guest's own table, which the walk sets an access flag in, and then the data.
        let (table, data) = (HVA + TABLE, HVA + BLOCK + 5 * PAGE);
        assert_eq!(cpu.increment(GPA + TABLE), Ok(table + 2));
        assert_eq!(cpu.load(GPA + data - HVA), Ok(data + 1));
        // Another access through the same table, which is there now.
        let more = HVA + 2 * BLOCK;
        assert_eq!(cpu.increment(GPA + TABLE), Ok(table + 3));
        assert_eq!(cpu.increment(GPA + more - HVA), Ok(more + 2));
        let expected = [
            (table, Access::Write),
            (data, Access::Read),
            (more, Access::Write),
        ];
        assert_eq!(handler.join().unwrap(), expected);
    });
    assert_eq!(vm.memory.host().upcalls().len(), 3);
    vm.end();
}

#[test]
fn k13_a_busy_host_is_asked_again_at_every_try_and_no_more() {
    const BUSY: usize = 5;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let vm = Vm::with(4, Config::new(), |space| {
        AskingHost::new(space, move |_| count.fetch_add(1, Ordering::SeqCst) >= BUSY)
    });
    vm.map_ram(HVA, PAGE);
    vm.memory.insert(on_fault(1, GPA, PAGE, HVA)).unwrap();
    for _ in 0..BUSY {
        assert_eq!(vm.fault(GPA, Access::Write), Outcome::Retry);
        assert_eq!(vm.writable(GPA), None);
    }
    let mut cpu = vm.cpu();
    assert_eq!(cpu.store(GPA, 3), Ok(()));
    assert_eq!(cpu.faults, 1);
    drop(cpu);
    assert_eq!(
        vm.memory.host().upcalls(),
        vec![(HVA, Access::Write); BUSY + 1]
    );
    vm.end();
}

#[test]
fn k15_a_prefault_says_how_far_it_got_and_what_is_in_its_way() {
    let vm = Vm::with_ram(2 * BLOCK);
    let prefault = |start: u64, bytes: u64| vm.memory.vcpu().prefault(&gpa_range(start, bytes));
    let whole = Prefaulted {
        bytes: 2 * BLOCK,
        stopped: None,
    };
    assert_eq!(prefault(GPA, 2 * BLOCK), Ok(whole));
    assert_eq!(vm.leaves()[..3], [0, 2, 0]);
    // Past the slot: what lies in it is done, and the rest has nothing to map.
    let done = prefault(GPA + BLOCK, 2 * BLOCK).unwrap();
    let (gpa, access) = (Gpa::new(GPA + 2 * BLOCK), Access::Read);
    assert_eq!(done.bytes, BLOCK);
    assert_eq!(done.stopped, Some(Outcome::Mmio { gpa, access }));
    let done = prefault(GPA + 2 * BLOCK, PAGE).unwrap();
    assert_eq!(
        (done.bytes, done.stopped),
        (0, Some(Outcome::Mmio { gpa, access }))
    );
    vm.end();
}

#[test]
fn k15_a_prefault_without_memory_gives_its_progress_or_an_error_never_both() {
    const PAGES: u64 = 8;
    for frames in 0..=PAGES {
        let vm = Vm::new(4);
        vm.arena.refuse_huge(true);
        vm.map_ram(HVA, PAGES * PAGE);
        vm.memory.insert(region(1, GPA, PAGES * PAGE, HVA)).unwrap();
        let range = gpa_range(GPA, PAGES * PAGE);
        vm.arena.limit(Some(frames));
        match vm.memory.vcpu().prefault(&range) {
            Err(_) => assert_eq!((frames, vm.leaves()[0]), (0, 0)),
            Ok(done) => {
                assert_eq!(done.bytes, frames * PAGE);
                let expected = (frames < PAGES).then_some(Outcome::Retry);
                assert_eq!(done.stopped, expected);
                assert_eq!(vm.leaves()[0], frames);
            }
        }
        vm.arena.limit(None);
        let whole = Prefaulted {
            bytes: PAGES * PAGE,
            stopped: None,
        };
        assert_eq!(vm.memory.vcpu().prefault(&range), Ok(whole));
        vm.end();
    }
}

#[test]
fn k15_a_prefault_against_a_slot_that_goes_and_comes_can_be_repeated_until_it_is_whole() {
    const PAGES: u64 = 64;
    let vm = Vm::new(4);
    vm.arena.refuse_huge(true);
    vm.map_ram(HVA, PAGES * PAGE);
    let slot = on_fault(1, GPA, PAGES * PAGE, HVA);
    vm.memory.insert(slot).unwrap();
    let range = gpa_range(GPA, PAGES * PAGE);
    let over = AtomicBool::new(false);
    let (whole, cut_short) = thread::scope(|scope| {
        let (vm, over) = (&vm, &over);
        let prefaulter = scope.spawn(move || {
            let mut vcpu = vm.memory.vcpu();
            let (mut whole, mut cut_short) = (0u64, 0u64);
            loop {
                let last = over.load(Ordering::SeqCst);
                let done = vcpu.prefault(&range).unwrap();
                match done.stopped {
                    None => whole += 1,
                    Some(Outcome::Retry | Outcome::Mmio { .. }) => cut_short += 1,
                    other => panic!("{other:?}"),
                }
                assert_eq!(done.stopped.is_none(), done.bytes == range.bytes());
                if last {
                    assert_eq!(done.stopped, None, "nothing changes any more");
                    return (whole, cut_short);
                }
            }
        });
        for _ in 0..500 {
            vm.memory.remove(SlotId(1)).unwrap();
            assert_eq!(vm.leaves()[0], 0);
            vm.memory.insert(slot).unwrap();
        }
        over.store(true, Ordering::SeqCst);
        prefaulter.join().unwrap()
    });
    assert!(whole > 0, "{whole} were whole, {cut_short} were cut short");
    assert_eq!(vm.leaves()[0], PAGES);
    vm.end();
}
