//! A small hypervisor on the machine, watched by the judge: if it follows the rules, no seed makes
//! the judge object; if it leaves out one step, every seed does, though most seeds' TLBs would not
//! have shown it.

use core::error::Error;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use slat_machine::address::{Gpa, Hpa, Hva};
use slat_machine::arm64;
use slat_machine::event::{AccessKind, Cpu, Event, Instruction, Record, Registers};
use slat_machine::judge::Judge;
use slat_machine::machine::{Config, Ending, Machine, Witness};

use crate::scenario::{
    GPA, HARDWARE_ACCESSED, HARDWARE_DIRTY, HVA, I, KIB4, LOCK, MIB2, MODIFIER, PAGE, TABLE, VM,
    WRITE, operand, slot, vtcr,
};

const PAGES: usize = 4;
const CPUS: u8 = 3;

/// A step of a flush that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Omit {
    Nothing,
    FirstBarrier,
    SecondStage,
    MiddleBarrier,
    Combined,
    LastBarrier,
}

/// Where a page is in a slot.
fn offset(page: usize) -> u64 {
    page as u64 * KIB4
}

struct Hypervisor {
    machine: Machine,
    root: Hpa,
    last: Hpa,
    notices: u64,
    omit: Omit,
    /// The frame behind each page of the host.
    frames: [Hpa; PAGES],
    random: u64,
}

impl Hypervisor {
    fn new(seed: u64, omit: Omit, witness: Box<dyn Witness>) -> Self {
        let config = Config {
            seed,
            cpus: CPUS,
            ram: (Hpa(0x8000_0000), 16 * MIB2),
            devices: vec![],
        };
        let machine = Machine::new(&config, witness);
        let [root, middle, last] = [(); 3].map(|()| machine.allocate_table(0, KIB4).unwrap());
        let frames = [(); PAGES].map(|()| machine.allocate_frame(0, KIB4).unwrap());
        for cpu in 0..CPUS {
            let registers = Registers::Arm64(arm64::Registers {
                vttbr: u64::from(VM) << 48 | root.0,
                vtcr: vtcr(39) | HARDWARE_ACCESSED | HARDWARE_DIRTY,
                force_write_back: false,
            });
            machine.enter(cpu, VM, registers).unwrap();
        }
        machine
            .compare_exchange(0, Hpa(root.0 + 8), 0, middle.0 | TABLE)
            .unwrap();
        machine
            .compare_exchange(0, middle, 0, last.0 | TABLE)
            .unwrap();
        let (remove, add) = (vec![], vec![slot(1, GPA, MIB2, HVA)]);
        machine.note(
            0,
            Event::SlotsChanging {
                change: 1,
                vm: VM,
                remove,
                add,
            },
        );
        machine.note(
            0,
            Event::SlotsChanged {
                change: 1,
                done: true,
            },
        );
        Self {
            machine,
            root,
            last,
            notices: 0,
            omit,
            frames,
            random: seed | 1,
        }
    }

    fn below(&mut self, end: u8) -> u8 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random.to_le_bytes()[1] % end
    }

    fn entry(&self, page: usize) -> Hpa {
        Hpa(self.last.0 + page as u64 * 8)
    }

    fn locked(&self, cpu: Cpu, act: impl FnOnce()) {
        self.machine.note(cpu, Event::Locked { lock: LOCK });
        act();
        self.machine.release(cpu);
        self.machine.note(cpu, Event::Unlocked { lock: LOCK });
    }

    fn execute(&self, cpu: Cpu, step: Omit, instruction: I) {
        if self.omit != step || step == Omit::Nothing {
            self.machine
                .execute(cpu, VM, Instruction::Arm64(instruction));
        }
    }

    /// A fault: the host is asked, and its page mapped.
    fn fault(&self, cpu: Cpu, page: usize) {
        let (hva, hpa) = (Hva(HVA + offset(page)), self.frames[page]);
        let (vm, bytes, writable, device) = (VM, KIB4, true, false);
        self.machine.note(
            cpu,
            Event::Answered {
                vm,
                hva,
                bytes,
                hpa,
                writable,
                device,
            },
        );
        let clean = hpa.0 | PAGE & !WRITE | MODIFIER;
        self.locked(cpu, || {
            if self.machine.load(cpu, self.entry(page), Ordering::Acquire) == 0 {
                self.machine
                    .store(cpu, self.entry(page), clean, Ordering::Release);
            }
        });
        self.execute(cpu, Omit::Nothing, I::DsbIshst);
    }

    /// The host replaces a page by another.
    fn migrate(&mut self, cpu: Cpu, page: usize) {
        self.notices += 1;
        let (notice, vm, hva) = (self.notices, VM, Hva(HVA + offset(page)));
        self.machine.note(
            cpu,
            Event::NoticeBeginning {
                notice,
                vm,
                hva,
                bytes: KIB4,
            },
        );
        self.locked(cpu, || _ = self.machine.swap(cpu, self.entry(page), 0));
        let operand = operand(GPA + offset(page));
        self.execute(cpu, Omit::FirstBarrier, I::DsbIshst);
        self.execute(cpu, Omit::SecondStage, I::Ipas2e1is { operand });
        self.execute(cpu, Omit::MiddleBarrier, I::DsbIsh);
        self.execute(cpu, Omit::Combined, I::Vmalle1is);
        self.execute(cpu, Omit::LastBarrier, I::DsbIsh);
        self.machine.note(cpu, Event::NoticeBegun { notice });
        let old = self.frames[page];
        self.frames[page] = self.machine.allocate_frame(cpu, KIB4).unwrap();
        self.machine.free_frame(cpu, old, KIB4);
        self.machine.note(cpu, Event::NoticeEnded { notice });
    }

    fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            let (cpu, page) = (self.below(CPUS), usize::from(self.below(4)));
            if self.below(8) == 0 {
                self.migrate(cpu, page);
                continue;
            }
            let kind = [AccessKind::Read, AccessKind::Write][usize::from(self.below(2))];
            let gpa = Gpa(GPA + offset(page));
            if self.machine.access(cpu, VM, gpa, kind, 1) == Ending::Fault {
                self.fault(cpu, page);
            }
        }
    }

    fn end(&self) {
        self.machine.note(0, Event::VmEnded { vm: VM });
        for instruction in [I::DsbIsh, I::Vmalls12e1is, I::DsbIsh] {
            self.execute(0, Omit::Nothing, instruction);
        }
        let middle = Hpa(self
            .machine
            .load(0, Hpa(self.root.0 + 8), Ordering::Acquire)
            & !0xfff);
        for table in [self.last, middle, self.root] {
            self.machine.free_table(0, table, KIB4);
        }
        for frame in self.frames {
            self.machine.free_frame(0, frame, KIB4);
        }
    }
}

/// What the judge says of 200 steps and the end.
fn judged(seed: u64, omit: Omit) -> Option<String> {
    let mut hypervisor = Hypervisor::new(seed, omit, Box::new(Judge::new()));
    hypervisor.run(200);
    hypervisor.end();
    let objection = hypervisor.machine.objection();
    objection.map(|objection| objection.to_string())
}

/// Counts what CPUs cache after a VM has ended and was flushed.
struct AfterTheEnd {
    /// Barriers since the VM ended; the second completes the flush.
    barriers: Option<u32>,
    cached: Arc<AtomicU64>,
}

impl Witness for AfterTheEnd {
    fn observe(&mut self, record: &Record) -> Result<(), Box<dyn Error + Send + Sync>> {
        let dsb = Instruction::Arm64(I::DsbIsh);
        match (&record.event, &mut self.barriers) {
            (Event::VmEnded { .. }, barriers) => *barriers = Some(0),
            (Event::Instruction { instruction, .. }, Some(barriers)) if *instruction == dsb => {
                *barriers += 1;
            }
            (Event::Cached { .. }, Some(2)) => {
                self.cached.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn nobody_walks_the_tables_of_a_vm_that_has_ended_and_was_flushed() {
    for seed in 0..20 {
        let cached = Arc::new(AtomicU64::new(0));
        let witness = AfterTheEnd {
            barriers: None,
            cached: Arc::clone(&cached),
        };
        let mut hypervisor = Hypervisor::new(seed, Omit::Nothing, Box::new(witness));
        hypervisor.run(200);
        hypervisor.end();
        // Every step is an opportunity.
        for cpu in 0..100 {
            let table = hypervisor.machine.allocate_table(cpu % CPUS, KIB4).unwrap();
            hypervisor
                .machine
                .store(cpu % CPUS, table, 0, Ordering::Release);
            hypervisor.machine.free_table(cpu % CPUS, table, KIB4);
        }
        assert_eq!(cached.load(Ordering::Relaxed), 0, "seed {seed}");
    }
}

#[test]
fn no_seed_makes_the_judge_object_to_who_follows_the_rules() {
    for seed in 0..60 {
        if let Some(objection) = judged(seed, Omit::Nothing) {
            panic!("seed {seed}: {objection}");
        }
    }
}

#[test]
fn every_seed_makes_the_judge_object_to_an_omitted_step() {
    let steps = [
        Omit::FirstBarrier,
        Omit::SecondStage,
        Omit::MiddleBarrier,
        Omit::Combined,
        Omit::LastBarrier,
    ];
    for omit in steps {
        for seed in 0..10 {
            let objection = judged(seed, omit);
            let objection =
                objection.unwrap_or_else(|| panic!("seed {seed}: nothing for {omit:?}"));
            assert!(
                objection.starts_with("mapped-after-notice: "),
                "{omit:?}: {objection}"
            );
        }
    }
}
