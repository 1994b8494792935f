//! K6 to K9, K11, K14: dirty logging. There is none yet: that is said, and nothing changes. What
//! these behaviours rest on is there: blocks that become pages and pages that become blocks, and
//! tables for every kind of fault.

use slat::errno::Errno;
use slat::prepare::PrepareError;
use slat::transaction::TransactionError;
use slat::vcpu::FaultError;
use slat::{Outcome, SlotId};
use slat_mm::{Backing, FrameSize, Protection};
use slat_table::address::{Gpa, GpaRange, Hpa, Hva};
use slat_table::attributes::{Access, MemoryType};
use slat_table::geometry::Level;
use slat_table::simulated::Event;

use crate::machine::{BLOCK, GPA, HVA, PAGE, Stopped, Vm, gpa_range, hva_range, on_fault, region};

/// Logging cannot be turned on, and trying leaves slots and translations as they are.
fn assert_refused(vm: &Vm, logged: slat::Region) {
    let (slots, leaves) = (vm.memory.slots(), vm.leaves());
    let id = logged.id();
    let mut change = vm.memory.transaction();
    if slots.by_id(id).is_some() {
        change = change.delete(id);
    }
    let error = change.create(logged.log_dirty()).commit().unwrap_err();
    let expected = PrepareError::LoggingUnsupported { id };
    assert_eq!(error, TransactionError::Prepare(expected));
    assert_eq!(error.errno(), Errno::EOPNOTSUPP);
    assert_eq!(vm.memory.slots().slots(), slots.slots());
    assert_eq!(vm.memory.slots().generation(), slots.generation());
    assert_eq!(vm.leaves(), leaves);
}

/// A slot over four blocks, each mapped and holding its number.
fn four_blocks() -> Vm {
    let vm = Vm::with_ram(4 * BLOCK);
    for block in 0..4 {
        assert_eq!(vm.cpu().store(GPA + block * BLOCK, block), Ok(()));
    }
    assert_eq!(vm.leaves()[..2], [0, 4]);
    vm
}

#[test]
fn k06_only_the_block_that_is_split_becomes_pages() {
    let vm = four_blocks();
    assert_refused(&vm, region(1, GPA, 4 * BLOCK, HVA));
    vm.memory
        .split(&gpa_range(GPA + BLOCK + 7 * PAGE, PAGE), Level::PAGE);
    assert_eq!(vm.leaves()[..2], [512, 3]);
    let mut cpu = vm.cpu();
    for block in 0..4 {
        assert_eq!(cpu.load(GPA + block * BLOCK), Ok(block));
        assert_eq!(cpu.store(GPA + block * BLOCK + 7 * PAGE, block), Ok(()));
    }
    assert_eq!(cpu.faults, 0, "nothing was lost by it");
    drop(cpu);
    vm.end();
}

#[test]
fn k07_pages_become_a_block_again_and_are_never_cached_beside_it() {
    let vm = four_blocks();
    assert_refused(&vm, region(1, GPA, 4 * BLOCK, HVA));
    vm.memory.split(&gpa_range(GPA, PAGE), Level::PAGE);
    assert_eq!(vm.leaves()[..2], [512, 3]);
    vm.platform.record();
    // A page that needs more than its leaf allows; the block around it is there again.
    let before = vm.memory.translate(Gpa::new(GPA)).unwrap();
    vm.space.age(hva_range(HVA, BLOCK));
    assert_eq!(vm.cpu().load(GPA), Ok(0));
    assert_eq!(vm.leaves()[..2], [0, 4]);
    assert_eq!(vm.memory.translate(Gpa::new(GPA)).unwrap().hpa, before.hpa);
    assert_flushed_before_block(
        &vm.platform.take_events(),
        gpa_range(GPA, BLOCK),
        before.hpa,
    );
    vm.end();
}

/// Between the removal of the pages and the making of the block at `hpa`, all of `range` was
/// flushed, tables included: hardware with both at once may raise a TLB conflict (Arm DDI 0487,
/// D8.16).
fn assert_flushed_before_block(events: &[Event], range: GpaRange, hpa: Hpa) {
    let is_block = |event: &Event| {
        // A block descriptor has 0b01 at its lower end (D8.3.1).
        let Event::Written { new, .. } = event else {
            return false;
        };
        new & 0b11 == 0b01 && new & 0x0000_ffff_ffe0_0000 == hpa.raw()
    };
    let made = events.iter().position(is_block).expect("a block was made");
    let flushed = events[..made].iter().rposition(|event| match event {
        Event::Flushed(work) => {
            !work.only_leaves() && work.ranges().iter().any(|flushed| flushed.covers(&range))
        }
        _ => false,
    });
    let broken = events[..made].iter().rposition(|event| match event {
        Event::Written { old, new, .. } => old & 0b11 == 0b11 && new & 1 == 0,
        _ => false,
    });
    assert!(
        broken.is_some() && broken < flushed,
        "{broken:?}, {flushed:?} and {made}"
    );
}

#[test]
fn k08_a_write_that_makes_a_block_of_pages_needs_memory_and_says_so() {
    let vm = four_blocks();
    assert_refused(&vm, region(1, GPA, 4 * BLOCK, HVA));
    vm.space.split(Hva::new(HVA)).unwrap();
    let mut cpu = vm.cpu();
    assert_eq!(cpu.store(GPA, 8), Ok(()));
    assert_eq!(vm.leaves()[..2], [1, 3]);
    // The host makes one frame of them again; the guest's pages go.
    vm.space.migrate(Hva::new(HVA), FrameSize::Huge).unwrap();
    assert_eq!(vm.leaves()[..2], [0, 3]);
    drop(cpu);
    vm.platform.fail_allocations_from(0);
    assert_eq!(vm.cpu().store(GPA + PAGE, 9), Err(Stopped::NoMemory));
    assert_eq!(vm.leaves()[..2], [0, 3]);
    vm.platform.allow_allocations();
    assert_eq!(vm.cpu().store(GPA + PAGE, 9), Ok(()));
    assert_eq!(vm.leaves()[..2], [0, 4]);
    assert_eq!(vm.cpu().load(GPA), Ok(8));
    vm.end();
}

#[test]
fn k09_every_kind_of_fault_has_memory_for_the_tables_it_needs() {
    const BLOCKS: u64 = 16;
    for access in [Access::Read, Access::Write, Access::Execute] {
        let vm = Vm::new(4);
        vm.arena.refuse_huge(true);
        vm.map_ram(HVA, BLOCKS * BLOCK);
        vm.memory
            .insert(region(1, GPA, BLOCKS * BLOCK, HVA))
            .unwrap();
        assert_refused(&vm, region(1, GPA, BLOCKS * BLOCK, HVA));
        let mut vcpu = vm.memory.vcpu();
        for block in 0..BLOCKS {
            // Each needs a table of its own, so what the last fault left does not do.
            let gpa = Gpa::new(GPA + block * BLOCK);
            let fault = slat::Fault { gpa, access };
            vm.platform.fail_allocations_from(0);
            let starved = vcpu.fault(fault);
            vm.platform.allow_allocations();
            assert!(
                matches!(starved, Err(FaultError::OutOfTables(_))),
                "{starved:?}"
            );
            let outcome = vcpu.fault(fault).unwrap();
            assert!(
                matches!(outcome, Outcome::Mapped { .. } | Outcome::Spurious { .. }),
                "{outcome:?}"
            );
        }
        drop(vcpu);
        assert_eq!(vm.leaves()[..2], [BLOCKS, 0]);
        vm.end();
    }
}

#[test]
fn k11_reading_and_executing_make_no_page_writable_and_a_read_only_slot_has_none() {
    let vm = Vm::new(4);
    // The host itself tells pages that were written from those that were not.
    let image = Backing::Image(vec![1; 4 * 4096].into());
    vm.space
        .map(hva_range(HVA, 4 * PAGE), Protection::ReadWrite, image)
        .unwrap();
    vm.memory.insert(region(1, GPA, 4 * PAGE, HVA)).unwrap();
    let mut cpu = vm.cpu();
    cpu.load(GPA).unwrap();
    cpu.execute(GPA).unwrap();
    assert_eq!(vm.writable(GPA), Some(false));
    cpu.store(GPA + PAGE, 2).unwrap();
    assert_eq!(vm.writable(GPA + PAGE), Some(true));
    assert_eq!(vm.writable(GPA), Some(false));
    cpu.store(GPA, 2).unwrap();
    assert_eq!(vm.writable(GPA), Some(true));
    drop(cpu);
    // A read-only slot has nothing to log, so logging it is no error.
    let logged = on_fault(2, GPA + BLOCK, 4 * PAGE, HVA)
        .read_only()
        .log_dirty();
    vm.memory.insert(logged).unwrap();
    for page in 0..4 {
        let gpa = GPA + BLOCK + page * PAGE;
        let mut cpu = vm.cpu();
        cpu.load(gpa).unwrap();
        cpu.execute(gpa).unwrap();
        assert_eq!(cpu.store(gpa, 1), Err(Stopped::ReadOnlySlot));
        assert_eq!(vm.writable(gpa), Some(false));
    }
    assert_refused(&vm, region(1, GPA, 4 * PAGE, HVA));
    vm.end();
}

#[test]
fn k14_a_log_is_refused_for_memory_and_for_devices_and_nothing_changes() {
    let vm = four_blocks();
    assert_refused(&vm, region(1, GPA, 4 * BLOCK, HVA));
    assert_refused(&vm, region(2, GPA + 8 * BLOCK, BLOCK, HVA));
    let device = Backing::Linear {
        hpa: Hpa::new(0x10_0000_0000),
        memory: MemoryType::Device,
    };
    let registers = hva_range(HVA + 8 * BLOCK, BLOCK);
    vm.space
        .map(registers, Protection::ReadWrite, device)
        .unwrap();
    let logged = region(3, GPA + 8 * BLOCK, BLOCK, HVA + 8 * BLOCK).log_dirty();
    let error = vm.memory.insert(logged).unwrap_err();
    let (id, vma) = (SlotId(3), registers);
    assert_eq!(
        error,
        TransactionError::Prepare(PrepareError::DeviceLogged { id, vma })
    );
    assert_eq!(error.errno(), Errno::EINVAL);
    vm.end();
}
