//! Every operation of guest memory, on a scene in which each has something to do.
//!
//! `failing` lets allocations fail in the middle of them, `refusals` lets the host refuse, and
//! `interrupted` carries out one in the middle of another.

use slat::notifier::Notifier;
use slat::region::{Mapping as When, SlotId};
use slat::table::address::Gpa;
use slat::table::attributes::Access;
use slat::table::geometry::Level;
use slat::{Fault, Outcome};

use crate::scripted_host::{Mapping, hva_range};
use crate::vm::{BLOCK, DEVICE, GIB, GPA, HVA, Leaf, PAGE, Vm, fault, gpa_range, region};

/// Memory that faults bring in blocks.
const BLOCKS: u64 = HVA + GIB;
const REGISTERS: u64 = HVA + 2 * GIB;
/// Where the guest sees the device: in another upper table.
const DEVICE_GPA: u64 = GPA + GIB;
/// Where slots are created: in a third upper table.
const NEW_GPA: u64 = GPA + 2 * GIB;

/// Slot 1 over pages, of which one is mapped; slot 2 over blocks, of which one is mapped; slot 3
/// over a device, mapped whole.
pub(crate) fn scene() -> Vm {
    let vm = Vm::new(&[
        Mapping::ram(HVA, 4 * BLOCK),
        Mapping::ram(BLOCKS, 4 * BLOCK).blocks(BLOCK),
        Mapping::device(REGISTERS, GIB, DEVICE),
    ]);
    let slots = vm.memory.transaction();
    let slots = slots.create(region(1, GPA, 2 * BLOCK, HVA).mapping(When::OnFault));
    let slots = slots.create(region(2, GPA + 2 * BLOCK, 2 * BLOCK, BLOCKS).mapping(When::OnFault));
    let slots = slots.create(region(3, DEVICE_GPA, GIB, REGISTERS));
    slots.commit().unwrap();
    vm.write(GPA);
    vm.write(GPA + 2 * BLOCK);
    assert_eq!(vm.leaf_bytes(GPA + 2 * BLOCK), BLOCK);
    assert_eq!(vm.leaf_bytes(DEVICE_GPA), GIB);
    vm.host.questions();
    vm
}

/// An operation that left everything as it was, and why.
#[derive(Debug)]
#[expect(dead_code, reason = "shown when a test fails")]
pub(crate) struct Refused(String);

/// One operation on the scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    FaultOnPage,
    FaultInOtherTable,
    FaultOnBlock,
    FaultForWriteOnMappedPage,
    Prefault,
    Insert,
    Remove,
    Replace,
    MigratePage,
    MigratePartOfBlock,
    RevokePartOfGigabyte,
    Split,
    Age,
    Release,
}

use Operation as Op;

impl Operation {
    pub(crate) const ALL: [Self; 14] = [
        Op::FaultOnPage,
        Op::FaultInOtherTable,
        Op::FaultOnBlock,
        Op::FaultForWriteOnMappedPage,
        Op::Prefault,
        Op::Insert,
        Op::Remove,
        Op::Replace,
        Op::MigratePage,
        Op::MigratePartOfBlock,
        Op::RevokePartOfGigabyte,
        Op::Split,
        Op::Age,
        Op::Release,
    ];

    /// Whether it changes the slots.
    pub(crate) fn is_transaction(self) -> bool {
        matches!(self, Op::Insert | Op::Remove | Op::Replace)
    }

    /// Carries it out, and checks what it promises whatever else fails.
    pub(crate) fn run(self, vm: &Vm) -> Result<(), Refused> {
        match self {
            Op::FaultOnPage => access(vm, GPA + 9 * PAGE, Access::Read),
            Op::FaultInOtherTable => access(vm, GPA + BLOCK + 3 * PAGE, Access::Execute),
            Op::FaultOnBlock => access(vm, GPA + 3 * BLOCK + 5 * PAGE, Access::Write),
            Op::FaultForWriteOnMappedPage => access(vm, GPA, Access::Write),
            Op::Prefault => prefault(vm),
            Op::Insert => {
                let created = vm.memory.insert(region(4, NEW_GPA, 2 * BLOCK, BLOCKS));
                refused(created)
            }
            Op::Remove => refused(vm.memory.remove(SlotId(2))),
            Op::Replace => {
                let change = vm.memory.transaction().delete(SlotId(1));
                let change = change.create(region(1, GPA, 2 * BLOCK, BLOCKS));
                refused(change.commit())
            }
            Op::MigratePage => {
                migrate(vm, HVA);
                Ok(())
            }
            Op::MigratePartOfBlock => {
                migrate(vm, BLOCKS + 3 * PAGE);
                Ok(())
            }
            Op::RevokePartOfGigabyte => {
                let range = hva_range(REGISTERS + 5 * PAGE, PAGE);
                vm.host_changes(range, |_| assert_out_of_reach(vm, DEVICE + 5 * PAGE));
                Ok(())
            }
            Op::Split => {
                vm.memory
                    .split(&gpa_range(GPA + 2 * BLOCK, PAGE), Level::PAGE);
                Ok(())
            }
            Op::Age => {
                vm.memory.age(hva_range(HVA, 3 * GIB));
                Ok(())
            }
            Op::Release => {
                vm.memory.release();
                assert_eq!(vm.mapped_bytes(), 0);
                Ok(())
            }
        }
    }
}

fn refused<T>(result: Result<T, slat::transaction::TransactionError>) -> Result<(), Refused> {
    result.map(drop).map_err(|error| Refused(error.to_string()))
}

fn access(vm: &Vm, gpa: u64, access: Access) -> Result<(), Refused> {
    let gpa = Gpa::new(gpa);
    match vm.memory.vcpu().fault(Fault { gpa, access }) {
        Ok(Outcome::Mapped { .. } | Outcome::Extended { .. } | Outcome::Spurious { .. }) => Ok(()),
        other => Err(Refused(format!("{other:?}"))),
    }
}

/// Twenty pages across two tables. What was mapped before it stopped stays, and is said.
fn prefault(vm: &Vm) -> Result<(), Refused> {
    let start = GPA + BLOCK - 10 * PAGE;
    let done = vm.memory.vcpu().prefault(&gpa_range(start, 20 * PAGE));
    match done {
        Ok(done) if done.bytes != 0 => Ok(()),
        other => Err(Refused(format!("{other:?}"))),
    }
}

/// Moves the page at `hva`, of which there is one, to another frame.
fn migrate(vm: &Vm, hva: u64) {
    let page = hva_range(hva, PAGE);
    let (frame, _) = vm.host.look(hva).expect("a page");
    vm.host_changes(page, |host| {
        assert_out_of_reach(vm, frame);
        // Cut first: what is moved is the page alone.
        host.discard(page);
        host.put_ram(hva, PAGE, 0x70_0000_0000);
        host.migrate(page);
    });
}

/// What must go goes, with memory or without.
fn assert_out_of_reach(vm: &Vm, frame: u64) {
    let reaches = |leaf: &Leaf| frame.wrapping_sub(leaf.hpa) < leaf.bytes;
    assert!(!vm.leaves().iter().any(reaches), "{frame:#x} is in reach");
}

/// Invariants 1 and 2: everything the guest reaches lies in a live slot, is what the host has
/// there now, and allows no more than either.
pub(crate) fn check_reach(vm: &Vm) {
    let slots = vm.memory.slots();
    for leaf in vm.leaves() {
        let range = gpa_range(leaf.gpa, leaf.bytes);
        let slot = slots
            .slots()
            .iter()
            .find(|slot| slot.range().covers(&range));
        let slot = slot.unwrap_or_else(|| panic!("{leaf:x?} lies in no slot"));
        assert!(!(leaf.write && slot.is_read_only()), "{leaf:x?}");
        let hva = slot.hva_of(&range).unwrap();
        let shown = vm.host.shows(hva, leaf.hpa, leaf.write);
        assert!(shown, "{leaf:x?} is not what the host has at {hva}");
    }
    assert_eq!(vm.memory.stats().tables, vm.machine.live_tables());
}

/// Nothing stalls and nothing is lost: reads bring back the first page of each of `leaves` that
/// a slot still backs, and find what the host has there.
pub(crate) fn check_reads_arrive(vm: &Vm, leaves: &[Leaf]) {
    let mut vcpu = vm.memory.vcpu();
    for gpa in leaves.iter().map(|leaf| leaf.gpa) {
        // One may break what is in its way, and the next maps.
        let [_, outcome] = [(); 2].map(|()| fault(&mut vcpu, gpa, Access::Read));
        let expected = match outcome {
            Outcome::Mmio { .. } => false,
            Outcome::Mapped { .. } | Outcome::Spurious { .. } | Outcome::Extended { .. } => true,
            other => panic!("{gpa:#x}: {other:?}"),
        };
        assert_eq!(vm.sees(gpa).is_some(), expected, "{gpa:#x}");
    }
    drop(vcpu);
    check_reach(vm);
}
