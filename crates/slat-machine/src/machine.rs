//! The machine: physical memory, CPUs, and translation caches that do whatever they may.
//!
//! It is built from what the manuals *allow*. A store reaches memory late, walkers see it later
//! still, CPUs walk for addresses that nobody asked for and keep what they find, an invalidation
//! takes effect when a barrier says that it must have. A hypervisor that leaves out one barrier or
//! invalidation is right on most real machines most of the time; here, some seed sends its guest
//! through a stale translation into memory that belongs to somebody else. The machine does not judge
//! that: it tells a [`Witness`] what happens.
//!
//! All choices come from the seed: the same calls give the same run, bit for bit.
//!
//! It is narrower than real hardware in these points: loads are carried out in program order; the
//! guest's first stage is the identity; instruction and data caches are coherent, so cache
//! maintenance does nothing; bits that hardware sets in an entry are visible to every walker at
//! once; a table fresh from the allocator is zero for everybody.

use core::error::Error;
use core::fmt;
use core::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::address::{Gpa, Hpa};
use crate::architecture;
use crate::event::{AccessKind, Cpu, Event, Instruction, Record, Registers, Vm};
use crate::hardware::Hardware;
use crate::store::Store;

/// Somebody who is told everything that happens, in order.
pub trait Witness: Send {
    /// Takes note of a record.
    ///
    /// # Errors
    ///
    /// What rule was broken. The machine keeps the first such error and tells no more.
    fn observe(&mut self, record: &Record) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where every choice comes from.
    pub seed: u64,
    /// Number of CPUs.
    pub cpus: u8,
    /// RAM: its first byte and its size, both multiples of 2 MiB.
    pub ram: (Hpa, u64),
    /// Device memory: first byte and size of each.
    pub devices: Vec<(Hpa, u64)>,
}

/// How a guest's access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It reached memory; a read found this value.
    Reached {
        /// Where it got.
        hpa: Hpa,
        /// The 8 bytes there (before a write).
        value: u64,
        /// Whether the translation gave it a device's memory type.
        device: bool,
    },
    /// It was not translated: the hypervisor's turn.
    Fault,
}

/// The machine. Shared by everything that runs on it; one lock inside keeps each step whole.
///
/// What a guest or hypervisor could not do to real hardware either panics: to touch table memory
/// that was not allocated, to free what was not allocated, to run on a CPU that is not there, or to
/// enter a guest whose registers were never set.
pub struct Machine {
    hardware: Mutex<Hardware>,
}

impl Machine {
    /// A machine as `config` says, which tells `witness` everything.
    ///
    /// # Panics
    ///
    /// If there are no CPUs or more than 16, RAM is not made of whole 2 MiB, or memory wraps around.
    pub fn new(config: &Config, witness: Box<dyn Witness>) -> Self {
        Self {
            hardware: Mutex::new(Hardware::new(config, witness)),
        }
    }

    /// Number of CPUs.
    pub fn cpus(&self) -> u8 {
        self.hardware().visibility.cpus()
    }

    /// Steps so far: every transition of the machine counts, those of caches and store buffers
    /// included.
    pub fn steps(&self) -> u64 {
        self.hardware().steps
    }

    /// What the witness objected to, once. After it objected, nothing more is told to it.
    pub fn objection(&self) -> Option<Box<dyn Error + Send + Sync>> {
        self.hardware().objection.take()
    }

    /// Whether the witness has objected.
    pub fn has_objection(&self) -> bool {
        self.hardware().objected
    }

    /// Tells the witness of something that the machine itself does not do: locks, the host's
    /// answers and notices, slots.
    ///
    /// Who takes a lock has seen what those who let it go before had written or seen. Letting go
    /// does what [`release`](Self::release) does. When a VM ends, no CPU points to its tables any
    /// more, and none walks them again but where a walk is in flight.
    pub fn note(&self, cpu: Cpu, event: Event) {
        let mut hardware = self.hardware();
        hardware.tick();
        match event {
            Event::Locked { lock } => hardware.visibility.locked(cpu, lock),
            Event::Unlocked { lock } => {
                hardware.drain(cpu);
                hardware.visibility.unlocked(cpu, lock);
            }
            Event::VmEnded { vm } => hardware.leave(vm),
            _ => {}
        }
        hardware.tell(cpu, event);
    }

    /// Points `cpu` to a VM's tables. A CPU may know several VMs; which of them an instruction or an
    /// access concerns, each says.
    ///
    /// # Errors
    ///
    /// What is wrong with the registers, which may also be that they name another VM.
    ///
    /// # Panics
    ///
    /// If there is no such CPU.
    pub fn enter(&self, cpu: Cpu, vm: Vm, registers: Registers) -> Result<(), String> {
        let named = architecture::vm(&registers);
        if named != vm {
            return Err(format!("the registers name VM {named}, not VM {vm}"));
        }
        let second_stage = Arc::from(architecture::from_registers(&registers)?);
        let mut hardware = self.hardware();
        hardware.tick();
        hardware.enter(cpu, vm, second_stage);
        hardware.tell(cpu, Event::Registers { vm, registers });
        Ok(())
    }

    /// Memory for a table, zeroed for every CPU and walker, aligned to its size; `None` if there is
    /// none.
    ///
    /// # Panics
    ///
    /// If `bytes` is no power of two.
    pub fn allocate_table(&self, cpu: Cpu, bytes: u64) -> Option<Hpa> {
        self.hardware().allocate_table(cpu, bytes)
    }

    /// Takes a table's memory back. What a walker finds there from now on is bad for it.
    ///
    /// # Panics
    ///
    /// If it is no allocated table of that size.
    pub fn free_table(&self, cpu: Cpu, table: Hpa, bytes: u64) {
        self.hardware().free_table(cpu, table, bytes);
    }

    /// What `cpu` loads from `entry`. Loads are carried out in program order, so all orders are the
    /// same here.
    ///
    /// # Panics
    ///
    /// If `entry` is no entry of an allocated table.
    pub fn load(&self, cpu: Cpu, entry: Hpa, order: Ordering) -> u64 {
        let _ = order;
        self.hardware().load(cpu, entry)
    }

    /// Has `cpu` store to `entry`. Later stores to other addresses may overtake it; it overtakes
    /// earlier ones only if `order` is `Relaxed`. An [`Event::Write`] is told when it reaches memory.
    ///
    /// # Panics
    ///
    /// If `entry` is no entry of an allocated table.
    pub fn store(&self, cpu: Cpu, entry: Hpa, value: u64, order: Ordering) {
        let release = order != Ordering::Relaxed;
        let store = Store {
            entry,
            value,
            release,
        };
        self.hardware().store(cpu, store);
    }

    /// Has `cpu` replace `old` by `new` at `entry`, with acquire and release ordering.
    ///
    /// # Errors
    ///
    /// The value found, if it is not `old`.
    ///
    /// # Panics
    ///
    /// If `entry` is no entry of an allocated table.
    pub fn compare_exchange(&self, cpu: Cpu, entry: Hpa, old: u64, new: u64) -> Result<(), u64> {
        let found = self.hardware().exchange(cpu, entry, Some(old), new);
        if found == old { Ok(()) } else { Err(found) }
    }

    /// Has `cpu` replace what is at `entry`, with acquire and release ordering.
    ///
    /// # Panics
    ///
    /// If `entry` is no entry of an allocated table.
    pub fn swap(&self, cpu: Cpu, entry: Hpa, new: u64) -> u64 {
        self.hardware().exchange(cpu, entry, None, new)
    }

    /// Has `cpu` execute a barrier or invalidation, with its registers pointing to `vm`.
    ///
    /// # Panics
    ///
    /// If no CPU ever entered `vm`, or the instruction belongs to another architecture.
    pub fn execute(&self, cpu: Cpu, vm: Vm, instruction: Instruction) {
        self.hardware().execute(cpu, vm, instruction);
    }

    /// What `cpu` wrote becomes visible to the other CPUs (not to walkers): what the release of a
    /// lock does.
    pub fn release(&self, cpu: Cpu) {
        let mut hardware = self.hardware();
        hardware.tick();
        hardware.drain(cpu);
    }

    /// The guest of `vm` on `cpu` accesses the 8 bytes around `gpa`; a write leaves `value`.
    ///
    /// # Panics
    ///
    /// If `cpu` never entered `vm`.
    pub fn access(&self, cpu: Cpu, vm: Vm, gpa: Gpa, kind: AccessKind, value: u64) -> Ending {
        self.hardware().access(cpu, vm, gpa, kind, value)
    }

    /// Memory for a guest's page or block: a frame, full of what was there before; `None` if there
    /// is none.
    ///
    /// # Panics
    ///
    /// If `bytes` is no power of two.
    pub fn allocate_frame(&self, cpu: Cpu, bytes: u64) -> Option<Hpa> {
        self.hardware().allocate_frame(cpu, bytes)
    }

    /// Takes a frame back.
    ///
    /// # Panics
    ///
    /// If it is no allocated frame of that size.
    pub fn free_frame(&self, cpu: Cpu, frame: Hpa, bytes: u64) {
        self.hardware().free_frame(cpu, frame, bytes);
    }

    /// Bytes of RAM that are neither a frame nor a table.
    pub fn free_bytes(&self) -> u64 {
        self.hardware().allocator.free_bytes()
    }

    /// Reads host memory.
    pub fn read(&self, from: Hpa, bytes: &mut [u8]) {
        self.hardware().memory.read(from, bytes);
    }

    /// Writes host memory.
    pub fn write(&self, to: Hpa, bytes: &[u8]) {
        self.hardware().memory.write(to, bytes);
    }

    /// Fills host memory with zeros.
    ///
    /// # Panics
    ///
    /// If `start` or `bytes` is no multiple of 8.
    pub fn zero(&self, start: Hpa, bytes: u64) {
        self.hardware().memory.fill(start, bytes, 0);
    }

    /// Copies host memory.
    ///
    /// # Panics
    ///
    /// If an address or `bytes` is no multiple of 8.
    pub fn copy(&self, from: Hpa, to: Hpa, bytes: u64) {
        self.hardware().memory.copy(from, to, bytes);
    }

    /// A panic elsewhere has already failed the run; unwinding may still use the machine.
    fn hardware(&self) -> MutexGuard<'_, Hardware> {
        self.hardware.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}
