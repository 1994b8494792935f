//! The invariants, after every step of long random sequences of everything.
//!
//! The model is small: what the host has behind an address it says itself ([`ScriptedHost::look`]);
//! a map from guest pages to the permission that a fault brought says what must still be mapped;
//! and a TLB that keeps whatever it is allowed to keep says what a guest may still reach.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;
use proptest::sample::select;
use slat::Outcome;
use slat::config::{Config, WriteCheck};
use slat::notifier::{Notifier, Ticket};
use slat::region::{Mapping as When, Region, Slot, SlotId};
use slat::table::address::{Gpa, Hpa, Hva, HvaRange};
use slat::table::attributes::Access;
use slat::table::format::Format;
use slat::table::format::arm64::Arm64;
use slat::table::geometry::Level;
use slat::table::platform::TlbWork;
use slat::table::simulated::Event;

use crate::scripted_host::{Mapping, ScriptedHost, hva_range};
use crate::vm::{
    BLOCK, DEVICE, GIB, GPA, HVA, Leaf, MIB, MODERN, PAGE, TestVcpu, Vm, fault, gpa_range, region,
};

/// Where the host has its mappings, and of what kind.
fn mappings() -> [Mapping; 6] {
    let blocks = Mapping::ram(HVA + 8 * MIB, 8 * MIB).blocks(BLOCK);
    [
        Mapping::ram(HVA, 8 * MIB),
        blocks.copy_on_write(),
        // A hole of 16 MiB, then a device whose physical address is off by a page.
        Mapping::device(HVA + 32 * MIB, MIB, DEVICE + PAGE),
        Mapping::device(HVA + 40 * MIB + PAGE, 6 * MIB, DEVICE + GIB + PAGE),
        Mapping::ram(HVA + 48 * MIB, 4 * MIB).read_only(),
        Mapping::ram(HVA + GIB, 2 * GIB).blocks(GIB),
    ]
}

/// What a device that spans more than a block of the second kind looks like, for the same places.
fn big_device() -> Mapping {
    Mapping::device(HVA + GIB, 2 * GIB, DEVICE + 4 * GIB)
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    id: u32,
    gpa: u64,
    bytes: u64,
    hva: u64,
    read_only: bool,
    on_fault: bool,
}

#[derive(Clone, Debug)]
enum Step {
    /// Deletes the slot of this id if there is one, and creates this.
    Replace(Asked),
    Commit {
        delete: Vec<u32>,
        create: Vec<Asked>,
    },
    Fault {
        vcpu: usize,
        spot: Spot,
        access: Access,
    },
    Prefault {
        vcpu: usize,
        spot: Spot,
        bytes: u64,
    },
    Change {
        hva: u64,
        bytes: u64,
        change: Change,
        without_memory: bool,
    },
    /// Begins an invalidation that stays.
    Open {
        hva: u64,
        bytes: u64,
    },
    /// Ends the oldest of those.
    Close,
    Age {
        hva: u64,
        bytes: u64,
    },
    Release,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Nothing,
    Discard,
    Migrate,
    WriteProtect,
    /// Gives the permission back, which needs no notice.
    Grant,
    /// Exchanges the large RAM mapping for a device, or back.
    Exchange,
}

/// Each slot has a window of guest addresses of its own, so that most creations succeed.
const WINDOW: u64 = 4 * GIB;
const SLOTS: u32 = 3;

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => Just(0),
        2 => select(vec![BLOCK, GIB]),
        1 => select(vec![PAGE, 2 * PAGE, BLOCK - PAGE, BLOCK + PAGE, GIB - BLOCK]),
    ]
}

fn host_address() -> impl Strategy<Value = u64> {
    let starts = mappings().map(|mapping| mapping.vma.range.start().raw());
    (select(starts.to_vec()), offset()).prop_map(|(start, offset)| start + offset)
}

/// A page of a slot, chosen among those there are when the step is made.
#[derive(Clone, Copy, Debug)]
struct Spot {
    slot: usize,
    offset: u64,
}

fn spot() -> impl Strategy<Value = Spot> {
    let place = (0..SLOTS as usize, offset(), 0..6u64);
    place.prop_map(|(slot, offset, page)| Spot {
        slot,
        offset: offset + page * PAGE,
    })
}

fn size() -> impl Strategy<Value = u64> {
    select(vec![
        3 * PAGE,
        BLOCK - PAGE,
        BLOCK,
        2 * BLOCK + 2 * PAGE,
        8 * MIB,
        GIB,
        GIB + BLOCK,
    ])
}

prop_compose! {
    fn asked()(
        id in 0..SLOTS,
        gpa in offset(),
        bytes in size(),
        hva in host_address(),
        read_only in prop::bool::weighted(0.2),
        on_fault in any::<bool>(),
    ) -> Asked {
        // A large slot in pages would be a quarter of a million leaves to look at.
        let unit = if bytes >= GIB { BLOCK } else { PAGE };
        let (gpa, hva) = (gpa & !(unit - 1), hva & !(unit - 1));
        let gpa = GPA + u64::from(id) * WINDOW + gpa;
        Asked { id, gpa, bytes, hva, read_only, on_fault }
    }
}

/// A slot where another one's window is: mostly refused.
fn misplaced() -> impl Strategy<Value = Asked> {
    (asked(), 0..SLOTS).prop_map(|(asked, id)| Asked { id, ..asked })
}

fn access() -> impl Strategy<Value = Access> {
    select(vec![Access::Read, Access::Write, Access::Execute])
}

fn change() -> impl Strategy<Value = Change> {
    use Change::{Discard, Exchange, Grant, Migrate, Nothing, WriteProtect};
    select(vec![
        Nothing,
        Discard,
        Migrate,
        Migrate,
        WriteProtect,
        Grant,
        Exchange,
    ])
}

fn step() -> impl Strategy<Value = Step> {
    let small = || select(vec![PAGE, 3 * PAGE, BLOCK, 2 * BLOCK + PAGE, GIB]);
    prop_oneof![
        4 => asked().prop_map(Step::Replace),
        2 => (prop::collection::vec(0..SLOTS, 0..2), prop::collection::vec(misplaced(), 0..3))
            .prop_map(|(delete, create)| Step::Commit { delete, create }),
        16 => (0..2usize, spot(), access())
            .prop_map(|(vcpu, spot, access)| Step::Fault { vcpu, spot, access }),
        2 => (0..2usize, spot(), select(vec![PAGE, 20 * PAGE, 70 * PAGE]))
            .prop_map(|(vcpu, spot, bytes)| Step::Prefault { vcpu, spot, bytes }),
        8 => (host_address(), small(), change(), any::<bool>()).prop_map(
            |(hva, bytes, change, without_memory)| Step::Change {
                hva,
                bytes,
                change,
                without_memory,
            },
        ),
        2 => (host_address(), small()).prop_map(|(hva, bytes)| Step::Open { hva, bytes }),
        3 => Just(Step::Close),
        2 => (host_address(), small()).prop_map(|(hva, bytes)| Step::Age { hva, bytes }),
        1 => Just(Step::Release),
    ]
}

/// A TLB that forgets only what a flush is sure to reach.
#[derive(Default)]
struct GreedyTlb {
    held: BTreeSet<Leaf>,
}

impl GreedyTlb {
    fn flush(&mut self, work: &TlbWork, entry_bytes: impl Fn(Level) -> u64) {
        // Invalidation goes through a range in strides of the smallest leaf it was told of, and
        // reaches an entry if it hits an address that this maps.
        let stride = entry_bytes(work.smallest_leaf());
        self.held.retain(|leaf| {
            !work.ranges().iter().any(|range| {
                let (start, end) = (range.start().raw(), range.end().raw());
                let first = start.max(leaf.gpa);
                let hit = start + (first - start).next_multiple_of(stride);
                hit < end.min(leaf.gpa + leaf.bytes)
            })
        });
    }
}

struct Run<'m> {
    vm: &'m Vm,
    vcpus: [TestVcpu<'m>; 2],
    open: Vec<(Ticket, HvaRange)>,
    /// Guest pages that must be mapped, and whether a write must be allowed.
    expected: BTreeMap<u64, bool>,
    tlb: GreedyTlb,
    leaves: Vec<Leaf>,
}

impl<'m> Run<'m> {
    fn new(vm: &'m Vm) -> Self {
        vm.machine.record();
        Self {
            vm,
            vcpus: [vm.memory.vcpu(), vm.memory.vcpu()],
            open: Vec::new(),
            expected: BTreeMap::new(),
            tlb: GreedyTlb::default(),
            leaves: Vec::new(),
        }
    }

    fn slots(&self) -> Vec<Slot> {
        self.vm.memory.slots().slots().to_vec()
    }

    /// Where `spot` is now; an address in no slot, perhaps, where it reaches beyond its own.
    fn gpa(&self, spot: Spot) -> u64 {
        let slots = self.slots();
        let chosen = slots.get(spot.slot % slots.len().max(1));
        chosen.map_or(GPA, |slot| slot.range().start().raw()) + spot.offset
    }

    fn slot_at(&self, gpa: u64) -> Option<Slot> {
        let around = |slot: &Slot| slot.range().contains(Gpa::new(gpa));
        self.slots().into_iter().find(around)
    }

    /// Nothing behind `range` must be mapped any more.
    fn forget(&mut self, range: HvaRange) {
        if !self.open.is_empty() {
            // A block that is cut is not put back while another removal is under way.
            self.expected.clear();
        }
        for slot in self.slots() {
            if let Some(gone) = slot.gpa_of(&range) {
                self.expected
                    .retain(|gpa, _| !gone.contains(Gpa::new(*gpa)));
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Replace(asked) => {
                let old = self.vm.memory.slots().by_id(SlotId(asked.id)).copied();
                let old: Vec<u32> = old.map(|slot| slot.id().0).into_iter().collect();
                self.commit(&old, &[*asked]);
            }
            Step::Commit { delete, create } => self.commit(delete, create),
            Step::Fault { vcpu, spot, access } => self.fault(*vcpu, self.gpa(*spot), *access),
            Step::Prefault { vcpu, spot, bytes } => self.prefault(*vcpu, self.gpa(*spot), *bytes),
            Step::Change {
                hva,
                bytes,
                change,
                without_memory,
            } => self.change(hva_range(*hva, *bytes), *change, *without_memory),
            Step::Open { hva, bytes } => {
                let range = hva_range(*hva, *bytes);
                self.forget(range);
                self.open.push((self.vm.memory.begin(range), range));
            }
            Step::Close => self.close(),
            Step::Age { hva, bytes } => {
                let range = hva_range(*hva, *bytes);
                let young = self.vm.memory.test_young(range);
                assert_eq!(self.vm.memory.age(range), young);
                assert!(!self.vm.memory.test_young(range), "just aged");
            }
            Step::Release => {
                // All that it promises while the host goes on answering.
                self.vm.memory.release();
                self.expected.clear();
                assert_eq!(self.vm.mapped_bytes(), 0);
            }
        }
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            let (ticket, _) = self.open.remove(0);
            self.vm.memory.end(ticket);
        }
    }

    fn commit(&mut self, delete: &[u32], create: &[Asked]) {
        // It would wait for those under way.
        while !self.open.is_empty() {
            self.close();
        }
        let before = self.vm.state();
        let mut transaction = self.vm.memory.transaction();
        for id in delete {
            transaction = transaction.delete(SlotId(*id));
        }
        for asked in create {
            transaction = transaction.create(asked.region());
        }
        let Ok(reports) = transaction.commit() else {
            assert_eq!(self.vm.state(), before, "invariant 5");
            return;
        };
        let gone = before.slots.iter();
        for slot in gone.filter(|slot| delete.contains(&slot.id().0)) {
            let inside = |gpa: u64| slot.range().contains(Gpa::new(gpa));
            self.expected.retain(|gpa, _| !inside(*gpa));
        }
        let slots = before.slots.len() + create.len() - delete.len();
        assert_eq!(self.slots().len(), slots);
        for report in reports {
            let leaves = self.vm.leaves();
            let inside = leaves
                .iter()
                .filter(|leaf| report.range().contains(Gpa::new(leaf.gpa)));
            let mapped: u64 = inside.map(|leaf| leaf.bytes).sum();
            assert_eq!(report.mapped_bytes(), mapped, "{report}");
            let parts = report.parts().iter();
            let unmapped: u64 = parts
                .flat_map(slat::report::Part::reasons)
                .filter(|(reason, _)| reason.is_unmapped())
                .map(|(_, bytes)| bytes)
                .sum();
            assert_eq!(mapped + unmapped, report.range().bytes(), "{report}");
        }
    }

    fn fault(&mut self, vcpu: usize, gpa: u64, access: Access) {
        let slot = self.slot_at(gpa);
        let outcome = fault(&mut self.vcpus[vcpu], gpa, access);
        let behind = slot.map(|slot| gpa - slot.range().start().raw() + slot.hva().raw());
        match outcome {
            Outcome::Mmio { .. } => assert!(slot.is_none()),
            Outcome::WriteToReadOnly { .. } => {
                assert!(access == Access::Write && slot.unwrap().is_read_only());
            }
            Outcome::Mapped { .. } | Outcome::Extended { .. } | Outcome::Spurious { .. } => {
                let found = self.vm.memory.translate(Gpa::new(gpa)).unwrap();
                assert!(found.attributes.permissions.allow(access), "{outcome:?}");
                assert!(found.attributes.accessed);
                let write = access == Access::Write;
                *self.expected.entry(gpa).or_default() |= write;
                let hva = behind.unwrap();
                let over = |(_, range): &(Ticket, HvaRange)| range.contains(Hva::new(hva));
                assert!(!self.open.iter().any(over), "a page under invalidation");
            }
            // Whatever was in the way has been broken; a block is the most that can have been.
            Outcome::Retry => {
                let around = gpa / GIB;
                self.expected.retain(|gpa, _| gpa / GIB != around);
            }
            Outcome::Denied { .. } => {
                let page = self.vm.host.look(behind.unwrap());
                let refused = match access {
                    Access::Read => page.is_none(),
                    Access::Write => page.is_none_or(|(_, write)| !write),
                    Access::Execute => true,
                };
                assert!(refused, "{outcome:?}, and the host has {page:x?}");
            }
            other => panic!("{other:?} of a host in good health"),
        }
        if self.open.is_empty() && outcome == Outcome::Retry {
            let second = fault(&mut self.vcpus[vcpu], gpa, access);
            assert_ne!(second, Outcome::Retry, "nothing changes any more");
        }
    }

    fn prefault(&mut self, vcpu: usize, gpa: u64, bytes: u64) {
        let range = gpa_range(gpa, bytes);
        let done = self.vcpus[vcpu].prefault(&range).unwrap();
        assert!(done.bytes <= bytes && (done.bytes == bytes) == done.stopped.is_none());
        if done.stopped == Some(Outcome::Retry) {
            let around = (gpa + done.bytes) / GIB;
            self.expected.retain(|gpa, _| gpa / GIB != around);
        }
        for at in (0..done.bytes).step_by(4096) {
            assert!(self.vm.sees(gpa + at).is_some());
            self.expected.entry(gpa + at).or_default();
        }
    }

    fn change(&mut self, range: HvaRange, change: Change, without_memory: bool) {
        let host = &self.vm.host;
        if matches!(change, Change::Grant) {
            host.set_writable(range, true);
            return;
        }
        let range = match change {
            Change::Exchange => big_device().vma.range,
            // A block that the host changes as a whole is announced as a whole.
            Change::Migrate | Change::WriteProtect => range.hull(&around_blocks(host, range)),
            _ => range,
        };
        self.forget(range);
        if without_memory {
            // Blocks cannot be cut, and go as a whole.
            self.vm.machine.fail_allocations_from(0);
            self.expected.clear();
        }
        let invalidation = self.vm.memory.invalidate(range);
        self.vm.machine.allow_allocations();
        match change {
            Change::Nothing | Change::Grant => {}
            Change::Discard => host.discard(range),
            Change::Migrate => host.migrate(range),
            Change::WriteProtect => host.set_writable(range, false),
            Change::Exchange => {
                let was = host.look(range.start().raw());
                host.unmap(range);
                let device = big_device();
                let is_device = was.is_some_and(|(hpa, _)| Some(hpa) == device.device);
                host.map(if is_device { mappings()[5] } else { device });
            }
        }
        drop(invalidation);
    }

    /// Checks all invariants.
    fn check(&mut self) {
        let events = self.vm.machine.take_events();
        let geometry = self.vm.memory.table().geometry();
        for event in &events {
            if let Event::Flushed(work) = event {
                self.tlb.flush(work, |level| geometry.entry_bytes(level));
            }
        }
        check_tables_are_flushed_before_they_are_freed(&events);
        self.leaves = self.vm.leaves();
        self.tlb.held.extend(&self.leaves);
        self.check_reach();
        for (gpa, write) in &self.expected {
            let found = self.vm.sees(*gpa);
            let allowed = found.is_some_and(|(_, allowed)| allowed || !write);
            assert!(allowed, "{gpa:#x} was mapped and is {found:x?}");
        }
    }

    /// Invariants 1, 2, 3 and 7: what a guest may reach, through the tables or a TLB, lies in a
    /// live slot, is what the host has there now, and allows no more than either. So no address
    /// can lead to two frames.
    fn check_reach(&self) {
        let slots = self.slots();
        for leaf in &self.tlb.held {
            let range = gpa_range(leaf.gpa, leaf.bytes);
            let slot = slots.iter().find(|slot| slot.range().covers(&range));
            let slot = slot.unwrap_or_else(|| panic!("{leaf:x?} lies in no slot"));
            assert!(!(leaf.write && slot.is_read_only()), "{leaf:x?}");
            let hva = slot.hva_of(&range).unwrap();
            for (_, closed) in &self.open {
                assert!(!closed.overlaps(&hva), "{leaf:x?} is being invalidated");
            }
            let shown = self.vm.host.shows(hva, leaf.hpa, leaf.write);
            assert!(shown, "{leaf:x?} is not what the host has at {hva}");
        }
    }
}

/// The whole of the host's blocks that `range` touches, hull over all.
fn around_blocks(host: &ScriptedHost, range: HvaRange) -> HvaRange {
    let blocks = host.blocks_touching(range);
    blocks.iter().fold(range, |all, block| all.hull(block))
}

/// Invariant 4: a table that was cut off is freed only after a flush of everything.
fn check_tables_are_flushed_before_they_are_freed(events: &[Event]) {
    let mut waiting: HashMap<Hpa, bool> = HashMap::new();
    for event in events {
        match event {
            // Tables lie where no frame of the host does, so the address says what it is.
            Event::Written { old, new, .. }
                if old != new && !Arm64::is_empty(Level::PAGE, *old) =>
            {
                waiting.insert(Arm64::address(&MODERN, Level::PAGE, *old), false);
            }
            Event::Flushed(work) if !work.only_leaves() => {
                for flushed in waiting.values_mut() {
                    *flushed = true;
                }
            }
            Event::Freed { table, .. } => {
                assert_ne!(
                    waiting.remove(table),
                    Some(false),
                    "{table} freed too early"
                );
            }
            _ => {}
        }
    }
}

impl Asked {
    fn region(&self) -> Region {
        let mut asked = region(self.id, self.gpa, self.bytes, self.hva);
        if self.read_only {
            asked = asked.read_only();
        }
        if self.on_fault {
            asked = asked.mapping(When::OnFault);
        }
        asked
    }
}

/// Fewer cases than usual, as each is long; more on demand.
fn cases() -> ProptestConfig {
    let mut config = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 96;
    }
    config
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn the_invariants_hold_after_every_step(
        first in prop::collection::vec(asked(), 2..4),
        steps in prop::collection::vec(step(), 1..60),
        stripes in select(vec![1, 4, 64]),
        address_bits in select(vec![40, 48]),
    ) {
        let config = Config::new().write_check(WriteCheck::Lenient);
        let config = config.stripes(stripes).address_bits(address_bits);
        let vm = Vm::with(config, MODERN, &mappings());
        let mut run = Run::new(&vm);
        for asked in first {
            run.step(&Step::Replace(asked));
            run.check();
        }
        for step in &steps {
            run.step(step);
            run.check();
        }
        while !run.open.is_empty() {
            run.close();
        }
        for slot in run.slots() {
            vm.memory.remove(slot.id()).unwrap();
        }
        drop(run);
        prop_assert_eq!(vm.memory.stats().tables, 1, "only the root is left");
        vm.end();
    }
}
