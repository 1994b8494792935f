//! A VM whose table writes are watched: after each of them, a walk for every page.

use slat::table::address::HvaRange;
use slat::table::simulated::Event;

use crate::scripted_host::Mapping;
use crate::vm::{BLOCK, DEVICE, GIB, GPA, HVA, PAGE, Vm};
use crate::walker::{Found, Walker};

/// Memory that faults bring in blocks.
pub(crate) const BLOCKS: u64 = HVA + GIB;
/// Memory that the host shows read-only until it is written.
pub(crate) const COPIED: u64 = HVA + 2 * GIB;
pub(crate) const REGISTERS: u64 = HVA + 3 * GIB;

/// A VM, and all pages that a walk is made for after every write.
pub(crate) struct Watched {
    pub(crate) vm: Vm,
    pub(crate) walker: Walker,
    pub(crate) pages: Vec<u64>,
    /// Walks that found nothing where something was before or came after.
    gaps: u64,
    writes: u64,
}

/// A walk in the middle of an operation found what was neither there before nor after.
#[derive(Debug)]
#[expect(dead_code, reason = "shown when a test fails")]
pub(crate) struct Stranger {
    pub(crate) gpa: u64,
    pub(crate) before: Option<Found>,
    after: Option<Found>,
    between: Found,
}

impl Watched {
    /// A VM whose host has pages, blocks, pages that are copied, and a device. Watched are
    /// `pages` from `GPA` on.
    pub(crate) fn new(pages: u64) -> Self {
        let vm = Vm::new(&[
            Mapping::ram(HVA, 4 * BLOCK),
            Mapping::ram(BLOCKS, 4 * BLOCK).blocks(BLOCK),
            Mapping::ram(COPIED, 4 * BLOCK).copy_on_write(),
            Mapping::device(REGISTERS, GIB, DEVICE),
        ]);
        vm.machine.record();
        let walker = Walker::new(vm.memory.table().root(1));
        Self {
            vm,
            walker,
            pages: (0..pages).map(|page| GPA + page * PAGE).collect(),
            gaps: 0,
            writes: 0,
        }
    }

    fn look(&self, walker: &Walker) -> Vec<Option<Found>> {
        self.pages.iter().map(|gpa| walker.walk(*gpa)).collect()
    }

    /// Carries out an operation and judges every prefix of its writes.
    pub(crate) fn run<T>(&mut self, what: &str, operation: impl FnOnce(&Vm) -> T) -> T {
        let result = operation(&self.vm);
        let events = self.vm.machine.take_events();
        if let Err(stranger) = self.judge(&events) {
            panic!("{what}: {stranger:x?}");
        }
        for (gpa, found) in self.pages.iter().zip(self.look(&self.walker)) {
            let seen = found.map(|found| (found.hpa, found.writes()));
            assert_eq!(seen, self.vm.sees(*gpa), "after {what}, at {gpa:#x}");
        }
        result
    }

    pub(crate) fn judge(&mut self, events: &[Event]) -> Result<(), Box<Stranger>> {
        let before = self.look(&self.walker);
        let mut last = self.walker.clone();
        for event in events {
            last.see(event);
        }
        let after = self.look(&last);
        for event in events {
            if !self.walker.see(event) {
                continue;
            }
            self.writes += 1;
            for (at, gpa) in self.pages.iter().enumerate() {
                let (before, after) = (before[at], after[at]);
                match self.walker.walk(*gpa) {
                    None => self.gaps += u64::from(before.is_some() || after.is_some()),
                    found if found == before || found == after => {}
                    Some(between) => {
                        return Err(Box::new(Stranger {
                            gpa: *gpa,
                            before,
                            after,
                            between,
                        }));
                    }
                }
            }
        }
        Ok(())
    }

    pub(crate) fn read(&mut self, gpa: u64) {
        self.run("a read", |vm| vm.read(gpa));
    }

    pub(crate) fn write(&mut self, gpa: u64) {
        self.run("a write", |vm| vm.write(gpa));
    }

    /// A change by the host: the invalidation, the change and the end of it are one operation.
    pub(crate) fn host_changes(&mut self, what: &str, range: HvaRange) {
        self.run(what, |vm| {
            vm.host_changes(range, |host| host.migrate(range));
        });
    }

    pub(crate) fn end(self) {
        assert!(self.writes > 0 && self.gaps > 0, "nothing was watched");
        self.vm.end();
    }
}
