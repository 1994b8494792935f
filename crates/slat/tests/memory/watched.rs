//! A VM whose table writes are watched: after each of them, a walk for every page.

use std::collections::{BTreeSet, HashMap};

use slat::table::address::HvaRange;
use slat::table::format::Format;
use slat::table::simulated::Event;

use crate::rows::Row;
use crate::scripted_host::ScriptedHost;
use crate::vm::{Machine, Vm, steps};
use crate::walker::{Found, Walker};

/// Where the host has what.
#[derive(Clone, Copy)]
pub(crate) struct Places {
    pub(crate) hva: u64,
    /// Memory that faults bring in blocks.
    pub(crate) blocks: u64,
    /// Memory that the host shows read-only until it is written.
    pub(crate) copied: u64,
    pub(crate) registers: u64,
    /// Bytes of the device.
    pub(crate) large: u64,
}

impl Places {
    pub(crate) fn of<F: Format>(row: &Row<F>) -> Self {
        let large = row.large().max(4 * row.span);
        Self {
            hva: row.hva,
            blocks: row.hva + large,
            copied: row.hva + 2 * large,
            registers: row.hva + 3 * large,
            large,
        }
    }
}

/// A VM, and all pages that a walk is made for after every write.
pub(crate) struct Watched<F: Format> {
    pub(crate) vm: Vm<F>,
    pub(crate) walker: Walker<F>,
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

impl<F: Format> Watched<F> {
    /// A VM whose host has pages, blocks, pages that are copied, and a device. Watched are the
    /// pages of `bytes` bytes from the first slot on; of a large table those at its ends.
    pub(crate) fn new(row: Row<F>, bytes: u64) -> Self {
        let at = Places::of(&row);
        let span = row.span;
        let host = ScriptedHost::with_frames(
            row.frames,
            &[
                row.ram(at.hva, 4 * span),
                row.ram(at.blocks, 4 * span).blocks(span),
                row.ram(at.copied, 4 * span).copy_on_write(),
                row.linear(at.registers, at.large, row.device),
            ],
        );
        let machine = Machine::new();
        machine.record();
        let vm = Vm::on(machine, host, row.features, row.config());
        let mut walker = Walker::new(row);
        for event in vm.machine.take_events() {
            walker.see(&event);
        }
        let end = 256 * row.page;
        let at_ends =
            |offset: &u64| offset % span < end || offset % span >= span.saturating_sub(end);
        let pages = steps(bytes, row.page).filter(at_ends);
        Self {
            vm,
            walker,
            pages: pages.map(|offset| row.gpa + offset).collect(),
            gaps: 0,
            writes: 0,
        }
    }

    fn look(&self, walker: &Walker<F>) -> Vec<Option<Found>> {
        let pages = self.pages.iter();
        pages.map(|gpa| walker.walk(*gpa, |_| {})).collect()
    }

    /// Carries out an operation and judges every prefix of its writes.
    pub(crate) fn run<T>(&mut self, what: &str, operation: impl FnOnce(&Vm<F>) -> T) -> T {
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
        // Only a walk that reads what is written can find something else.
        let mut read: HashMap<u64, BTreeSet<usize>> = HashMap::new();
        for at in 0..self.pages.len() {
            self.walk(at, &mut read);
        }
        for event in events {
            let Some(entry) = self.walker.see(event) else {
                continue;
            };
            self.writes += 1;
            for at in read.remove(&entry).unwrap_or_default() {
                let (before, after) = (before[at], after[at]);
                match self.walk(at, &mut read) {
                    None => self.gaps += u64::from(before.is_some() || after.is_some()),
                    found if found == before || found == after => {}
                    Some(between) => {
                        return Err(Box::new(Stranger {
                            gpa: self.pages[at],
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

    /// Walks for the page of this index, and notes what that reads.
    fn walk(&self, at: usize, read: &mut HashMap<u64, BTreeSet<usize>>) -> Option<Found> {
        self.walker.walk(self.pages[at], |entry| {
            read.entry(entry).or_default().insert(at);
        })
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
