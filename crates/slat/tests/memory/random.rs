//! The invariants, after every step of long random sequences of everything.
//!
//! The model is small: what the host has behind an address it says itself ([`ScriptedHost::look`]);
//! a map from guest pages to the permission that a fault brought says what must still be mapped;
//! and a TLB that keeps whatever it is allowed to keep says what a guest may still reach.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;
use slat::Outcome;
use slat::config::WriteCheck;
use slat::notifier::{Notifier, Ticket};
use slat::region::{Slot, SlotId};
use slat::table::address::{Gpa, Hpa, Hva, HvaRange};
use slat::table::attributes::Access;
use slat::table::format::{ByteOrder, Format};
use slat::table::geometry::Level;
use slat::table::platform::TlbWork;
use slat::table::simulated::Event;

use crate::random_steps::{Asked, Change, Scale, Spot, Step, asked, step};
use crate::rows::Row;
use crate::scripted_host::{ScriptedHost, hva_range};
use crate::vm::{Leaf, TestVcpu, Vm, fault, gpa_range, steps};

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

struct Run<'m, F: Format> {
    row: Row<F>,
    scale: Scale,
    vm: &'m Vm<F>,
    vcpus: [TestVcpu<'m, F>; 2],
    open: Vec<(Ticket, HvaRange)>,
    /// Guest pages that must be mapped, and whether a write must be allowed.
    expected: BTreeMap<u64, bool>,
    tlb: GreedyTlb,
    leaves: Vec<Leaf>,
}

impl<'m, F: Format> Run<'m, F> {
    fn new(row: Row<F>, vm: &'m Vm<F>) -> Self {
        vm.machine.record();
        Self {
            row,
            scale: Scale::of(&row),
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
        chosen.map_or(self.row.gpa, |slot| slot.range().start().raw()) + spot.offset
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

    /// Whatever was in the way around `gpa` has been broken; a large leaf is the most that can be.
    fn forget_around(&mut self, gpa: u64) {
        let large = self.scale.large;
        self.expected
            .retain(|other, _| other / large != gpa / large);
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
                assert!(
                    !self.row.ages() || !self.vm.memory.test_young(range),
                    "just aged"
                );
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
            Outcome::Retry => self.forget_around(gpa),
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
            self.forget_around(gpa + done.bytes);
        }
        for at in steps(done.bytes, self.row.page) {
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
            Change::Exchange => self.scale.big_device().vma.range,
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
                let device = self.scale.big_device();
                let is_device = was.is_some_and(|(hpa, _)| Some(hpa) == device.device);
                host.map(if is_device {
                    self.scale.mappings()[5]
                } else {
                    device
                });
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
        check_tables_are_flushed_before_they_are_freed(&self.row, &events);
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
fn check_tables_are_flushed_before_they_are_freed<F: Format>(row: &Row<F>, events: &[Event]) {
    let mut waiting: HashMap<Hpa, bool> = HashMap::new();
    for event in events {
        match event {
            Event::Written { old, new, .. } if old != new => {
                for raw in entries_in::<F>(*old) {
                    waiting.extend(tables_in(row, raw).map(|table| (table, false)));
                }
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

/// The tables that `raw` may point to, whichever level it stands at. Tables lie where no frame of
/// the host does, so nothing else is taken for one.
fn tables_in<F: Format>(row: &Row<F>, raw: u64) -> impl Iterator<Item = Hpa> {
    let levels = row.geometry.levels_down();
    levels
        .filter(move |level| F::is_table(*level, raw))
        .map(move |level| F::address(&row.features, level, raw))
}

/// The entries in eight bytes of memory: one, or two of four bytes.
fn entries_in<F: Format>(memory: u64) -> Vec<u64> {
    let bytes = memory.to_ne_bytes();
    let size = usize::try_from(F::ENTRY_BYTES).expect("a few bytes");
    let number = |entry: &[u8]| {
        let fold = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        match F::BYTE_ORDER {
            ByteOrder::Big => entry.iter().fold(0, fold),
            ByteOrder::Little => entry.iter().rev().fold(0, fold),
        }
    };
    bytes.chunks(size).map(number).collect()
}

/// Few cases, as each is long and there are many formats; more on demand.
fn runner() -> TestRunner {
    let asked = ProptestConfig::default();
    let cases = match std::env::var_os("PROPTEST_CASES") {
        Some(_) => asked.cases,
        None => 2,
    };
    TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..asked
    })
}

fn the_invariants_hold_after_every_step<F: Format>(row: Row<F>) {
    let scale = Scale::of(&row);
    let first = prop::collection::vec(asked(scale), 2..4);
    let steps = prop::collection::vec(step(scale), 1..60);
    let stripes = select(vec![1, 4, 64]);
    let result = runner().run(&(first, steps, stripes), |(first, steps, stripes)| {
        check_steps(&row, &first, &steps, stripes);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

fn check_steps<F: Format>(row: &Row<F>, first: &[Asked], steps: &[Step], stripes: usize) {
    let config = row.config().write_check(WriteCheck::Lenient);
    let vm = row.vm_with(config.stripes(stripes), &Scale::of(row).mappings());
    let mut run = Run::new(*row, &vm);
    for asked in first {
        run.step(&Step::Replace(*asked));
        run.check();
    }
    for step in steps {
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
    assert_eq!(vm.memory.stats().tables, 1, "only the root is left");
    vm.end();
}

crate::rows::for_every_format! {
    the_invariants_hold_after_every_step,
}
