//! Records made by hand: a small tree, the host around it, and the usual sequences.
//!
//! The tree has 39-bit guest addresses, so three levels: `ROOT` (1 GiB entries), `MIDDLE` (2 MiB)
//! and `LAST` (pages). Guest address `GPA` is the first entry of each below the root.

use slat_machine::address::{Gpa, Hpa, Hva};
use slat_machine::arm64;
use slat_machine::event::{
    AccessKind, Cpu, Event, Instruction, Record, Registers, Slot, Vm, WriteKind,
};
use slat_machine::judge::{Judge, Rule, Violation};

pub(crate) const ROOT: u64 = 0x4100_0000;
pub(crate) const MIDDLE: u64 = 0x4100_1000;
pub(crate) const LAST: u64 = 0x4100_2000;
pub(crate) const OTHER: u64 = 0x4100_3000;
pub(crate) const GPA: u64 = 0x4000_0000;
pub(crate) const HVA: u64 = 0x7f00_0000_0000;
pub(crate) const FRAME: u64 = 0x8000_0000;
pub(crate) const OTHER_FRAME: u64 = 0x9000_0000;
pub(crate) const KIB4: u64 = 0x1000;
pub(crate) const MIB2: u64 = 0x20_0000;
pub(crate) const VM: Vm = 1;
/// The lock that the writer of the tree takes.
pub(crate) const LOCK: u64 = 0x10;

pub(crate) const NORMAL: u64 = 0xf << 2;
pub(crate) const NON_CACHEABLE: u64 = 0x5 << 2;
pub(crate) const READ: u64 = 1 << 6;
pub(crate) const WRITE: u64 = 1 << 7;
pub(crate) const ACCESSED: u64 = 1 << 10;
/// `DBM`: the hardware makes the page writable and so dirty.
pub(crate) const MODIFIER: u64 = 1 << 51;
pub(crate) const TABLE: u64 = 3;
pub(crate) const PAGE: u64 = 3 | NORMAL | READ | WRITE | ACCESSED;
pub(crate) const BLOCK: u64 = 1 | NORMAL | READ | WRITE | ACCESSED;

pub(crate) const HARDWARE_ACCESSED: u64 = 1 << 21;
pub(crate) const HARDWARE_DIRTY: u64 = 1 << 22;
/// `VTCR_EL2` for so many bits of guest address, with a walk that begins at the manual's level 1,
/// and 48 bits of output.
pub(crate) const fn vtcr(bits: u64) -> u64 {
    const RES1: u64 = 1 << 31;
    RES1 | (64 - bits) | 1 << 6 | 0b101 << 16
}

const VTCR: u64 = vtcr(39);

pub(crate) use arm64::Instruction as I;

/// The operand of an invalidation by address.
pub(crate) fn operand(gpa: u64) -> u64 {
    gpa >> 12
}

/// Records in the making.
#[derive(Default)]
pub(crate) struct Scenario {
    pub(crate) records: Vec<Record>,
    cpu: Cpu,
    numbers: u64,
}

impl Scenario {
    /// A root that CPU 0 points to.
    pub(crate) fn boot() -> Self {
        Self::boot_with(0)
    }

    /// The same with further bits in `VTCR_EL2`.
    pub(crate) fn boot_with(vtcr: u64) -> Self {
        let mut s = Self::default();
        s.allocate(ROOT).enter_with(vtcr);
        s
    }

    /// The same with `FRAME` mapped at `GPA`, under the lock.
    pub(crate) fn mapped() -> Self {
        let mut s = Self::boot();
        s.locked()
            .tables()
            .write(LAST, FRAME | PAGE)
            .op(I::DsbIshst)
            .unlocked();
        s
    }

    /// The same, with a slot, a frame and an answer behind it.
    pub(crate) fn hosted() -> Self {
        let mut s = Self::boot();
        s.slot(1, GPA, MIB2, HVA)
            .frame(FRAME, MIB2)
            .answered(HVA, KIB4, FRAME);
        s.locked()
            .tables()
            .write(LAST, FRAME | PAGE)
            .op(I::DsbIshst)
            .unlocked();
        s
    }

    /// What follows is done by `cpu`.
    pub(crate) fn on(&mut self, cpu: Cpu) -> &mut Self {
        self.cpu = cpu;
        self
    }

    pub(crate) fn event(&mut self, event: Event) -> &mut Self {
        let (step, cpu) = (self.records.len() as u64, self.cpu);
        self.records.push(Record { step, cpu, event });
        self
    }

    pub(crate) fn enter_with(&mut self, vtcr: u64) -> &mut Self {
        self.enter_root(ROOT, vtcr)
    }

    pub(crate) fn enter_root(&mut self, root: u64, vtcr: u64) -> &mut Self {
        let registers = Registers::Arm64(arm64::Registers {
            vttbr: u64::from(VM) << 48 | root,
            vtcr: VTCR | vtcr,
            force_write_back: false,
        });
        self.event(Event::Registers { vm: VM, registers })
    }

    pub(crate) fn ended(&mut self) -> &mut Self {
        self.event(Event::VmEnded { vm: VM })
    }

    pub(crate) fn allocate(&mut self, table: u64) -> &mut Self {
        let (table, bytes) = (Hpa(table), KIB4);
        self.event(Event::TableAllocated { table, bytes })
    }

    pub(crate) fn free(&mut self, table: u64) -> &mut Self {
        let (table, bytes) = (Hpa(table), KIB4);
        self.event(Event::TableFreed { table, bytes })
    }

    pub(crate) fn write_as(&mut self, kind: WriteKind, entry: u64, value: u64) -> &mut Self {
        let entry = Hpa(entry);
        self.event(Event::Write { entry, value, kind })
    }

    /// An exchange, which is what changes entries.
    pub(crate) fn write(&mut self, entry: u64, value: u64) -> &mut Self {
        self.write_as(WriteKind::Exchange, entry, value)
    }

    /// The two tables on the way to `GPA`, linked.
    pub(crate) fn tables(&mut self) -> &mut Self {
        self.allocate(MIDDLE).allocate(LAST);
        self.write(ROOT + 8, MIDDLE | TABLE)
            .write(MIDDLE, LAST | TABLE)
    }

    pub(crate) fn op(&mut self, instruction: I) -> &mut Self {
        let instruction = Instruction::Arm64(instruction);
        self.event(Event::Instruction {
            vm: VM,
            instruction,
        })
    }

    pub(crate) fn ops(&mut self, instructions: &[I]) -> &mut Self {
        for instruction in instructions {
            self.op(*instruction);
        }
        self
    }

    pub(crate) fn locked(&mut self) -> &mut Self {
        self.event(Event::Locked { lock: LOCK })
    }

    pub(crate) fn unlocked(&mut self) -> &mut Self {
        self.event(Event::Unlocked { lock: LOCK })
    }

    /// The whole flush of one guest address.
    pub(crate) fn flush(&mut self, gpa: u64) -> &mut Self {
        let operand = operand(gpa);
        self.ops(&[
            I::DsbIsh,
            I::Ipas2e1is { operand },
            I::DsbIsh,
            I::Vmalle1is,
            I::DsbIsh,
        ])
    }

    /// The whole flush of everything.
    pub(crate) fn flush_all(&mut self) -> &mut Self {
        self.ops(&[I::DsbIsh, I::Vmalls12e1is, I::DsbIsh])
    }

    pub(crate) fn frame(&mut self, frame: u64, bytes: u64) -> &mut Self {
        let frame = Hpa(frame);
        self.event(Event::FrameAllocated { frame, bytes })
    }

    pub(crate) fn frame_freed(&mut self, frame: u64, bytes: u64) -> &mut Self {
        let frame = Hpa(frame);
        self.event(Event::FrameFreed { frame, bytes })
    }

    pub(crate) fn answered_as(
        &mut self,
        hva: u64,
        bytes: u64,
        hpa: u64,
        writable: bool,
    ) -> &mut Self {
        self.event(Event::Answered {
            vm: VM,
            hva: Hva(hva),
            bytes,
            hpa: Hpa(hpa),
            writable,
            device: false,
        })
    }

    pub(crate) fn answered(&mut self, hva: u64, bytes: u64, hpa: u64) -> &mut Self {
        self.answered_as(hva, bytes, hpa, true)
    }

    /// A notice begins; `begun` and `ended` are about the last one.
    pub(crate) fn beginning(&mut self, hva: u64, bytes: u64) -> &mut Self {
        self.numbers += 1;
        let (notice, vm, hva) = (self.numbers, VM, Hva(hva));
        self.event(Event::NoticeBeginning {
            notice,
            vm,
            hva,
            bytes,
        })
    }

    pub(crate) fn begun(&mut self) -> &mut Self {
        let notice = self.numbers;
        self.event(Event::NoticeBegun { notice })
    }

    pub(crate) fn notice_ended(&mut self) -> &mut Self {
        let notice = self.numbers;
        self.event(Event::NoticeEnded { notice })
    }

    pub(crate) fn changing(&mut self, remove: &[u32], add: &[Slot]) -> &mut Self {
        self.numbers += 1;
        let (change, vm) = (self.numbers, VM);
        let (remove, add) = (remove.to_vec(), add.to_vec());
        self.event(Event::SlotsChanging {
            change,
            vm,
            remove,
            add,
        })
    }

    pub(crate) fn changed(&mut self, done: bool) -> &mut Self {
        let change = self.numbers;
        self.event(Event::SlotsChanged { change, done })
    }

    pub(crate) fn slot(&mut self, id: u32, gpa: u64, bytes: u64, hva: u64) -> &mut Self {
        self.changing(&[], &[slot(id, gpa, bytes, hva)])
            .changed(true)
    }

    pub(crate) fn access(&mut self, kind: AccessKind, gpa: u64, hpa: u64) -> &mut Self {
        let (vm, gpa, hpa) = (VM, Gpa(gpa), Hpa(hpa));
        self.event(Event::Accessed {
            vm,
            gpa,
            kind,
            hpa,
            cached: true,
        })
    }

    pub(crate) fn verdict(&self) -> Result<(), Violation> {
        let mut judge = Judge::new();
        let mut records = self.records.iter();
        records.try_for_each(|record| judge.judge(record))
    }

    #[track_caller]
    pub(crate) fn is_fine(&self) {
        if let Err(violation) = self.verdict() {
            panic!("{violation}");
        }
    }

    /// The last record, and none before, breaks `rule`.
    #[track_caller]
    pub(crate) fn ends_with(&self, rule: Rule) -> Violation {
        let violation = self.verdict().expect_err("the judge objects to nothing");
        assert_eq!(violation.rule, rule, "{violation}");
        let last = self.records.len() as u64 - 1;
        assert_eq!(violation.step, last, "{violation}");
        violation
    }
}

/// A slot that may be written.
pub(crate) fn slot(id: u32, gpa: u64, bytes: u64, hva: u64) -> Slot {
    let (gpa, hva) = (Gpa(gpa), Hva(hva));
    Slot {
        id,
        gpa,
        bytes,
        hva,
        read_only: false,
    }
}
