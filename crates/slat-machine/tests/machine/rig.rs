//! A machine with one VM on it, and the hypervisor's sequences spelled out.

use core::error::Error;
use core::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use slat_machine::address::{Gpa, Hpa};
use slat_machine::arm64::{self, Instruction};
use slat_machine::event::{self, AccessKind, Cpu, Event, Record, Registers, Vm};
use slat_machine::machine::{Config, Ending, Machine, Witness};

pub(crate) const VM: Vm = 1;
pub(crate) const CPUS: Cpu = 4;
pub(crate) const RAM: (Hpa, u64) = (Hpa(0x4000_0000), 16 << 20);
pub(crate) const DEVICE: Hpa = Hpa(0x900_0000);
pub(crate) const PAGE: u64 = 4096;
/// A guest page, and the 2 MiB around it.
pub(crate) const GPA: Gpa = Gpa(0x8020_3000);
pub(crate) const BLOCK: Gpa = Gpa(0x8020_0000);

/// A valid, accessed, writable, non-executable page of normal memory, without the address.
pub(crate) const PAGE_BITS: u64 = 0x0040_0000_0000_07ff;
pub(crate) const ACCESSED: u64 = 1 << 10;
pub(crate) const WRITABLE: u64 = 1 << 7;
pub(crate) const DIRTY_MODIFIER: u64 = 1 << 51;
pub(crate) const TABLE_BITS: u64 = 3;

/// `VTCR_EL2` for 39 guest and 40 physical address bits with a root of 512 entries at the
/// manual's level 1, and 16-bit VMIDs.
pub(crate) const VTCR: u64 = 1 << 31 | 1 << 19 | 2 << 16 | 1 << 6 | T0SZ;
const T0SZ: u64 = 64 - 39;
/// The hardware sets the access flag, and makes pages dirty.
pub(crate) const HARDWARE_ACCESSED: u64 = 1 << 21;
pub(crate) const HARDWARE_DIRTY: u64 = 1 << 22;

/// Keeps everything it is told, until it has had enough.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) records: Arc<Mutex<Vec<Record>>>,
    pub(crate) object_after: Option<usize>,
}

impl Witness for Recorder {
    fn observe(&mut self, record: &Record) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut records = self.records.lock().unwrap();
        records.push(record.clone());
        if self.object_after == Some(records.len()) {
            return Err("enough".into());
        }
        Ok(())
    }
}

pub(crate) struct Rig {
    pub(crate) machine: Machine,
    pub(crate) records: Arc<Mutex<Vec<Record>>>,
    /// The tables on the way to [`GPA`], root first.
    pub(crate) tables: [Hpa; 3],
}

impl Rig {
    /// Tables down to the pages around [`GPA`], which is not mapped.
    pub(crate) fn new(seed: u64, vtcr: u64) -> Self {
        let recorder = Recorder::default();
        let records = Arc::clone(&recorder.records);
        let machine = machine(seed, recorder);
        let tables = [(); 3].map(|()| machine.allocate_table(0, PAGE).unwrap());
        let rig = Self {
            machine,
            records,
            tables,
        };
        for cpu in 0..CPUS {
            let registers = registers(tables[0], VM, vtcr);
            rig.machine.enter(cpu, VM, registers).unwrap();
        }
        rig.link(0, 0);
        rig.link(0, 1);
        rig.publish(0);
        rig
    }

    /// The entry for [`GPA`] in the table so many steps below the root.
    pub(crate) fn entry(&self, depth: usize) -> Hpa {
        let shift = [30, 21, 12][depth];
        Hpa(self.tables[depth].0 + (GPA.0 >> shift & 511) * 8)
    }

    /// Writes a pointer to the next table.
    pub(crate) fn link(&self, cpu: Cpu, depth: usize) {
        let pointer = self.tables[depth + 1].0 | TABLE_BITS;
        self.store(cpu, self.entry(depth), pointer);
    }

    pub(crate) fn store(&self, cpu: Cpu, entry: Hpa, value: u64) {
        self.machine.store(cpu, entry, value, Ordering::Release);
    }

    /// Maps [`GPA`] and makes that visible.
    pub(crate) fn map(&self, cpu: Cpu, hpa: Hpa, bits: u64) {
        self.store(cpu, self.entry(2), hpa.0 | bits);
        self.publish(cpu);
    }

    pub(crate) fn publish(&self, cpu: Cpu) {
        self.execute(cpu, Instruction::DsbIshst);
    }

    pub(crate) fn execute(&self, cpu: Cpu, instruction: Instruction) {
        let instruction = event::Instruction::Arm64(instruction);
        self.machine.execute(cpu, VM, instruction);
    }

    pub(crate) fn read(&self, cpu: Cpu, gpa: Gpa) -> Ending {
        self.machine.access(cpu, VM, gpa, AccessKind::Read, 0)
    }

    pub(crate) fn write(&self, cpu: Cpu, gpa: Gpa, value: u64) -> Ending {
        self.machine.access(cpu, VM, gpa, AccessKind::Write, value)
    }

    pub(crate) fn frame(&self, bytes: u64) -> Hpa {
        self.machine.allocate_frame(0, bytes).unwrap()
    }

    /// Every CPU reads [`GPA`] now and then.
    pub(crate) fn everybody_reads(&self) {
        for _ in 0..2 {
            for cpu in 0..CPUS {
                self.read(cpu, GPA);
            }
        }
    }

    /// Whether any CPU still gets into `[hpa, hpa + bytes)` from [`GPA`].
    pub(crate) fn anybody_reaches(&self, hpa: Hpa, bytes: u64) -> bool {
        (0..3 * CPUS).any(|turn| match self.read(turn % CPUS, GPA) {
            Ending::Reached { hpa: got, .. } => (hpa.0..hpa.0 + bytes).contains(&got.0),
            Ending::Fault => false,
        })
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        let records = self.records.lock().unwrap();
        records.iter().map(|record| record.event.clone()).collect()
    }
}

pub(crate) fn machine(seed: u64, recorder: Recorder) -> Machine {
    let config = Config {
        seed,
        cpus: CPUS,
        ram: RAM,
        devices: vec![(DEVICE, 1 << 30)],
    };
    Machine::new(&config, Box::new(recorder))
}

pub(crate) fn registers(root: Hpa, vmid: u16, vtcr: u64) -> Registers {
    Registers::Arm64(arm64::Registers {
        vttbr: root.0 | u64::from(vmid) << 48,
        vtcr,
        force_write_back: false,
    })
}

/// The operand of an invalidation by guest physical address.
pub(crate) const fn operand(gpa: Gpa) -> u64 {
    gpa.0 >> 12
}
