//! A small hypervisor that leaves nothing out: whatever the machine does, its guest is never hurt.
//!
//! This is the other side of `stale.rs`: the machine may be as hostile as the architecture, and not
//! a bit more, or it would object to code that is right.

use slat_machine::address::{Gpa, Hpa};
use slat_machine::arm64::Instruction::{self, *};
use slat_machine::event::{AccessKind, Cpu, Event};
use slat_machine::machine::Ending;

use crate::rig::*;

/// Pages of the guest, from [`BLOCK`] on, that come and go.
const PAGES: usize = 6;
const BLOCK_BYTES: u64 = 2 << 20;
/// The lock around all of the hypervisor's work.
const LOCK: u64 = 1;

/// What the guest has at the moment.
#[derive(Clone, Copy, PartialEq)]
enum Mapped {
    /// Some of its pages, through a table.
    Pages([Option<Hpa>; PAGES]),
    /// One block.
    Block(Hpa),
}

struct Hypervisor {
    rig: Rig,
    table: Option<Hpa>,
    mapped: Mapped,
    /// For its own choices, which are not the machine's.
    choices: u64,
}

impl Hypervisor {
    fn new(seed: u64) -> Self {
        let rig = Rig::new(seed, VTCR | HARDWARE_ACCESSED | HARDWARE_DIRTY);
        Self {
            table: Some(rig.tables[2]),
            rig,
            mapped: Mapped::Pages([None; PAGES]),
            choices: seed,
        }
    }

    /// A linear congruential generator is random enough for a choice of a few.
    fn below(&mut self, bound: usize) -> usize {
        self.choices = self
            .choices
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.choices >> 33).unwrap() % bound
    }

    fn entry(&self, page: usize) -> Hpa {
        Hpa(self.table.expect("pages have a table").0 + page as u64 * 8)
    }

    /// Retires what was removed under `gpa`, by one of the sequences that do.
    fn flush(&mut self, cpu: Cpu, gpa: Gpa, leaf: bool) {
        let operand = operand(gpa);
        let address = if leaf && self.below(2) == 0 {
            Ipas2le1is { operand }
        } else {
            Ipas2e1is { operand }
        };
        let sequence: &[Instruction] = match self.below(2) {
            0 => &[DsbIshst, address, DsbIsh, Vmalle1is, DsbIsh],
            _ => &[DsbIshst, Vmalls12e1is, DsbIsh],
        };
        for instruction in sequence {
            self.rig.execute(cpu, *instruction);
        }
    }

    fn gpa(page: usize) -> Gpa {
        Gpa(BLOCK.0 + page as u64 * PAGE)
    }

    /// A page comes or goes.
    fn toggle(&mut self, cpu: Cpu, page: usize) {
        let Mapped::Pages(mut pages) = self.mapped else {
            return;
        };
        let entry = self.entry(page);
        let slot = &mut pages[page];
        if let Some(frame) = slot.take() {
            self.rig.machine.swap(cpu, entry, 0);
            self.mapped = Mapped::Pages(pages);
            self.flush(cpu, Self::gpa(page), true);
            self.rig.machine.free_frame(cpu, frame, PAGE);
        } else {
            let frame = self.rig.frame(PAGE);
            *slot = Some(frame);
            self.mapped = Mapped::Pages(pages);
            let clean = PAGE_BITS & !WRITABLE & !ACCESSED | DIRTY_MODIFIER;
            self.rig.store(cpu, entry, frame.0 | clean);
            self.rig.publish(cpu);
        }
    }

    /// All pages go and a block comes in their place, or the other way round.
    fn rebuild(&mut self, cpu: Cpu) {
        let upper = self.rig.entry(1);
        self.rig.machine.swap(cpu, upper, 0);
        let page = self.below(PAGES);
        self.flush(cpu, Self::gpa(page), false);
        match self.mapped {
            Mapped::Pages(pages) => {
                if pages.iter().flatten().count() > 1 {
                    // Each of the pages was a translation of its own.
                    for instruction in [Vmalls12e1is, DsbIsh] {
                        self.rig.execute(cpu, instruction);
                    }
                }
                for page in (0..PAGES).filter(|page| pages[*page].is_some()) {
                    self.rig.machine.swap(cpu, self.entry(page), 0);
                    self.flush(cpu, Self::gpa(page), true);
                }
                let table = self.table.take().expect("pages have a table");
                self.rig.machine.free_table(cpu, table, PAGE);
                for frame in pages.into_iter().flatten() {
                    self.rig.machine.free_frame(cpu, frame, PAGE);
                }
                let frame = self.rig.frame(BLOCK_BYTES);
                let block = frame.0 | PAGE_BITS & !0b10;
                self.rig.store(cpu, upper, block);
                self.mapped = Mapped::Block(frame);
            }
            Mapped::Block(frame) => {
                self.rig.machine.free_frame(cpu, frame, BLOCK_BYTES);
                let table = self.rig.machine.allocate_table(cpu, PAGE).unwrap();
                self.table = Some(table);
                self.rig.store(cpu, upper, table.0 | TABLE_BITS);
                self.mapped = Mapped::Pages([None; PAGES]);
            }
        }
        self.rig.publish(cpu);
    }

    /// The guest gets exactly where it should.
    fn access(&mut self, cpu: Cpu) {
        let page = self.below(PAGES);
        let kind = [AccessKind::Read, AccessKind::Write][self.below(2)];
        let ending = self.rig.machine.access(cpu, VM, Self::gpa(page), kind, 3);
        let expected = match self.mapped {
            Mapped::Pages(pages) => pages[page],
            Mapped::Block(frame) => Some(Hpa(frame.0 + page as u64 * PAGE)),
        };
        let got = match ending {
            Ending::Reached { hpa, .. } => Some(hpa),
            Ending::Fault => None,
        };
        assert_eq!(got, expected, "{kind:?} of page {page}");
    }

    fn act(&mut self) {
        let cpu = Cpu::try_from(self.below(CPUS.into())).unwrap();
        match self.below(20) {
            0 => self.locked(cpu, Self::rebuild),
            1..4 => {
                let page = self.below(PAGES);
                self.locked(cpu, |hypervisor, cpu| hypervisor.toggle(cpu, page));
            }
            _ => self.access(cpu),
        }
    }

    fn locked(&mut self, cpu: Cpu, work: impl FnOnce(&mut Self, Cpu)) {
        self.rig.machine.note(cpu, Event::Locked { lock: LOCK });
        work(self, cpu);
        self.rig.machine.release(cpu);
        self.rig.machine.note(cpu, Event::Unlocked { lock: LOCK });
    }
}

#[test]
fn a_hypervisor_that_leaves_nothing_out_is_never_hurt() {
    for seed in 0..60 {
        let mut hypervisor = Hypervisor::new(seed);
        for _ in 0..400 {
            hypervisor.act();
        }
        assert!(hypervisor.rig.machine.steps() > 400);
    }
}
