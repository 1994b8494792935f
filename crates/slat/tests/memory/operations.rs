//! Every operation of guest memory, on a scene in which each has something to do.
//!
//! `failing` lets allocations fail in the middle of them, `refusals` lets the host refuse, and
//! `interrupted` carries out one in the middle of another.

use slat::notifier::Notifier;
use slat::region::{Mapping as When, SlotId};
use slat::table::address::Gpa;
use slat::table::attributes::Access;
use slat::table::format::Format;
use slat::table::geometry::Level;
use slat::{Fault, Outcome};

use crate::rows::Row;
use crate::scripted_host::hva_range;
use crate::vm::{Leaf, Vm, fault, gpa_range, region};

/// Where everything of the scene is.
#[derive(Clone, Copy)]
struct Places {
    page: u64,
    span: u64,
    /// Bytes of the device: of a leaf over several spans, where there are such.
    large: u64,
    gpa: u64,
    hva: u64,
    /// Memory that faults bring in blocks.
    blocks: u64,
    registers: u64,
    /// Where the guest sees the device: in another upper table.
    device_gpa: u64,
    /// Where slots are created: in a third upper table.
    new_gpa: u64,
    device: u64,
    /// A frame for a page that moves.
    chosen: u64,
}

impl Places {
    fn of<F: Format>(row: &Row<F>) -> Self {
        let large = row.large();
        Self {
            page: row.page,
            span: row.span,
            large,
            gpa: row.gpa,
            hva: row.hva,
            blocks: row.hva + large,
            registers: row.hva + 2 * large,
            device_gpa: 2 * row.gpa,
            new_gpa: 3 * row.gpa,
            device: row.device,
            chosen: row.chosen,
        }
    }
}

/// Slot 1 over pages, of which one is mapped; slot 2 over blocks, of which one is mapped; slot 3
/// over a device, mapped whole.
pub(crate) fn scene<F: Format>(row: &Row<F>) -> Vm<F> {
    let at = Places::of(row);
    let (gpa, span) = (at.gpa, at.span);
    let vm = row.vm(&[
        row.ram(at.hva, 4 * span),
        row.ram(at.blocks, 4 * span).blocks(span),
        row.linear(at.registers, at.large, at.device),
    ]);
    let slots = vm.memory.transaction();
    let slots = slots.create(region(1, gpa, 2 * span, at.hva).mapping(When::OnFault));
    let blocks = region(2, gpa + 2 * span, 2 * span, at.blocks);
    let slots = slots.create(blocks.mapping(When::OnFault));
    let slots = slots.create(region(3, at.device_gpa, at.large, at.registers));
    slots.commit().unwrap();
    vm.write(gpa);
    vm.write(gpa + 2 * span);
    assert_eq!(vm.leaf_bytes(gpa + 2 * span), row.leaf_in(span));
    assert_eq!(vm.leaf_bytes(at.device_gpa), row.leaf_in(at.large));
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
    RevokePartOfDevice,
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
        Op::RevokePartOfDevice,
        Op::Split,
        Op::Age,
        Op::Release,
    ];

    /// Whether it changes the slots.
    pub(crate) fn is_transaction(self) -> bool {
        matches!(self, Op::Insert | Op::Remove | Op::Replace)
    }

    /// Carries it out, and checks what it promises whatever else fails.
    pub(crate) fn run<F: Format>(self, row: &Row<F>, vm: &Vm<F>) -> Result<(), Refused> {
        let at = Places::of(row);
        let Places {
            page,
            span,
            gpa,
            blocks,
            ..
        } = at;
        match self {
            Op::FaultOnPage => access(vm, gpa + 9 * page, Access::Read),
            Op::FaultInOtherTable => access(vm, gpa + span + 3 * page, Access::Execute),
            Op::FaultOnBlock => access(vm, gpa + 3 * span + 5 * page, Access::Write),
            Op::FaultForWriteOnMappedPage => access(vm, gpa, Access::Write),
            Op::Prefault => prefault(vm, &at),
            Op::Insert => refused(vm.memory.insert(region(4, at.new_gpa, 2 * span, blocks))),
            Op::Remove => refused(vm.memory.remove(SlotId(2))),
            Op::Replace => {
                let change = vm.memory.transaction().delete(SlotId(1));
                let change = change.create(region(1, gpa, 2 * span, blocks));
                refused(change.commit())
            }
            Op::MigratePage => {
                migrate(vm, &at, at.hva);
                Ok(())
            }
            Op::MigratePartOfBlock => {
                // Where blocks become pages, of a block's pages the first is mapped.
                let first = if row.has_blocks() { 3 * page } else { 0 };
                migrate(vm, &at, blocks + first);
                Ok(())
            }
            Op::RevokePartOfDevice => {
                let range = hva_range(at.registers + 5 * page, page);
                vm.host_changes(range, |_| assert_out_of_reach(vm, at.device + 5 * page));
                Ok(())
            }
            Op::Split => {
                let first = gpa_range(gpa + 2 * span, page);
                vm.memory.split(&first, Level::PAGE);
                Ok(())
            }
            Op::Age => {
                vm.memory.age(hva_range(at.hva, 3 * at.large));
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

fn access<F: Format>(vm: &Vm<F>, gpa: u64, access: Access) -> Result<(), Refused> {
    let gpa = Gpa::new(gpa);
    match vm.memory.vcpu().fault(Fault { gpa, access }) {
        Ok(Outcome::Mapped { .. } | Outcome::Extended { .. } | Outcome::Spurious { .. }) => Ok(()),
        other => Err(Refused(format!("{other:?}"))),
    }
}

/// Twenty pages across two tables. What was mapped before it stopped stays, and is said.
fn prefault<F: Format>(vm: &Vm<F>, at: &Places) -> Result<(), Refused> {
    let start = at.gpa + at.span - 10 * at.page;
    let done = vm.memory.vcpu().prefault(&gpa_range(start, 20 * at.page));
    match done {
        Ok(done) if done.bytes != 0 => Ok(()),
        other => Err(Refused(format!("{other:?}"))),
    }
}

/// Moves the page at `hva`, of which there is one, to another frame.
fn migrate<F: Format>(vm: &Vm<F>, at: &Places, hva: u64) {
    let page = hva_range(hva, at.page);
    let (frame, _) = vm.host.look(hva).expect("a page");
    vm.host_changes(page, |host| {
        assert_out_of_reach(vm, frame);
        // Cut first: what is moved is the page alone.
        host.discard(page);
        host.put_ram(hva, at.page, at.chosen);
        host.migrate(page);
    });
}

/// What must go goes, with memory or without.
fn assert_out_of_reach<F: Format>(vm: &Vm<F>, frame: u64) {
    let reaches = |leaf: &Leaf| frame.wrapping_sub(leaf.hpa) < leaf.bytes;
    assert!(!vm.leaves().iter().any(reaches), "{frame:#x} is in reach");
}

/// Invariants 1 and 2: everything the guest reaches lies in a live slot, is what the host has
/// there now, and allows no more than either.
pub(crate) fn check_reach<F: Format>(vm: &Vm<F>) {
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
/// a slot still backs, and find what the host has there. Of many leaves, some stand for all.
pub(crate) fn check_reads_arrive<F: Format>(vm: &Vm<F>, leaves: &[Leaf]) {
    let mut vcpu = vm.memory.vcpu();
    let apart = leaves.len().div_ceil(64).max(1);
    let some = leaves.iter().step_by(apart).chain(leaves.last());
    for gpa in some.map(|leaf| leaf.gpa) {
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
