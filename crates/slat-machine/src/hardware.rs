//! The whole machine under its lock: CPUs and memory, and what moves by itself.
//!
//! Nothing that a hypervisor asks for happens when it asks. A store waits in a buffer, an
//! invalidation takes effect on each CPU when it likes, walkers run ahead. [`Hardware::tick`] lets some
//! of that happen, by chance, before everything that anybody does; barriers make the rest of it
//! happen where the architecture says that it must have (`barrier.rs`). Walks and accesses are in
//! `walk.rs`, walks that nobody asked for in `speculation.rs`.

use core::error::Error;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::address::{Gpa, Hpa};
use crate::allocator::{Allocator, Purpose};
use crate::architecture::Architecture;
use crate::barrier::Invalidation;
use crate::entry;
use crate::event::{Cpu, Event, Record, Vm, WriteKind};
use crate::machine::{Config, Witness};
use crate::memory::{Memory, PAGE_BYTES};
use crate::random::Random;
use crate::speculation::{Place, RECENT};
use crate::store::{Buffer, CpuSet, MAX_CPUS, Store, Visibility};
use crate::tlb::{Caches, Temperament};

/// A VM's registers on one CPU.
type Entered = (Vm, Arc<dyn Architecture>);

/// One CPU.
#[derive(Debug)]
pub(crate) struct CpuState {
    pub(crate) buffer: Buffer,
    pub(crate) caches: Caches,
    pub(crate) temperament: Temperament,
    entered: Vec<Entered>,
    /// What it has asked everybody to forget and not yet completed.
    pub(crate) invalidations: Vec<Invalidation>,
}

/// Everything behind the machine's lock.
pub(crate) struct Hardware {
    pub(crate) random: Random,
    pub(crate) memory: Memory,
    pub(crate) visibility: Visibility,
    pub(crate) cpus: Vec<CpuState>,
    pub(crate) steps: u64,
    pub(crate) allocator: Allocator,
    /// Every VM's second stage, as last entered anywhere.
    pub(crate) vms: BTreeMap<Vm, Arc<dyn Architecture>>,
    pub(crate) places: BTreeMap<Hpa, Place>,
    pub(crate) recent: Vec<(Vm, Gpa)>,
    witness: Box<dyn Witness>,
    records: u64,
    pub(crate) objected: bool,
    pub(crate) objection: Option<Box<dyn Error + Send + Sync>>,
}

impl Hardware {
    pub(crate) fn new(config: &Config, witness: Box<dyn Witness>) -> Self {
        assert!(
            (1..=MAX_CPUS).contains(&usize::from(config.cpus)),
            "a machine with {} CPUs: 1 to {MAX_CPUS} are possible",
            config.cpus
        );
        let mut random = Random::new(config.seed);
        let allocator = Allocator::new(config.ram, &mut random);
        let cpu = |_| CpuState {
            buffer: Buffer::default(),
            caches: Caches::default(),
            temperament: Temperament::draw(&mut random),
            entered: Vec::new(),
            invalidations: Vec::new(),
        };
        Self {
            cpus: (0..config.cpus).map(cpu).collect(),
            memory: Memory::new(config.ram, &config.devices),
            visibility: Visibility::new(config.cpus),
            random,
            allocator,
            steps: 0,
            vms: BTreeMap::new(),
            places: BTreeMap::new(),
            recent: Vec::with_capacity(RECENT),
            witness,
            records: 0,
            objected: false,
            objection: None,
        }
    }

    /// # Panics
    ///
    /// If there is no such CPU.
    pub(crate) fn cpu(&mut self, cpu: Cpu) -> &mut CpuState {
        let count = self.cpus.len();
        self.cpus
            .get_mut(usize::from(cpu))
            .unwrap_or_else(|| panic!("CPU {cpu} of a machine that has {count}"))
    }

    /// Tells the witness.
    pub(crate) fn tell(&mut self, cpu: Cpu, event: Event) {
        if self.objected {
            return;
        }
        let record = Record {
            step: self.records,
            cpu,
            event,
        };
        self.records += 1;
        if let Err(objection) = self.witness.observe(&record) {
            self.objected = true;
            self.objection = Some(objection);
        }
    }

    /// All CPUs of the machine.
    pub(crate) fn all_cpus(&self) -> CpuSet {
        CpuSet::first(self.visibility.cpus())
    }

    pub(crate) fn caches(&mut self, cpu: Cpu) -> &mut Caches {
        &mut self.cpu(cpu).caches
    }

    /// Something happens, and before it whatever may happen by itself.
    pub(crate) fn tick(&mut self) {
        self.steps += 1;
        let cpu = self.random.cpu(self.all_cpus());
        // One number answers four questions: each takes some of its bits.
        let chance = self.random.bits();
        if chance.is_multiple_of(4) {
            self.drain_one(cpu);
        }
        if (chance >> 8).is_multiple_of(4) {
            self.let_one_invalidation_work(cpu);
        }
        if (chance >> 16).is_multiple_of(8) {
            self.evict(cpu);
        }
        if (chance >> 24).is_multiple_of(8) {
            self.speculate_somewhere(cpu);
        }
    }

    fn evict(&mut self, cpu: Cpu) {
        let CpuState {
            caches,
            temperament,
            ..
        } = &mut self.cpus[usize::from(cpu)];
        if temperament.evicts(&mut self.random) {
            caches.evict(&mut self.random);
            self.steps += 1;
        }
    }

    // Stores.

    /// Has a CPU store to a table.
    pub(crate) fn store(&mut self, cpu: Cpu, store: Store) {
        self.assert_table("store to", store.entry);
        self.tick();
        let buffer = &mut self.cpu(cpu).buffer;
        buffer.push(store);
        if buffer.is_full() || self.random.one_in(4) {
            self.drain_one(cpu);
        }
    }

    /// What a CPU loads from a table.
    pub(crate) fn load(&mut self, cpu: Cpu, entry: Hpa) -> u64 {
        self.assert_table("load from", entry);
        self.tick();
        if let Some(value) = self.cpu(cpu).buffer.forward(entry) {
            return value;
        }
        self.visibility.read(cpu, entry);
        self.memory.word(entry)
    }

    /// Has a CPU replace a value, if it is `expected` or nothing is expected; gives what was found.
    pub(crate) fn exchange(
        &mut self,
        cpu: Cpu,
        entry: Hpa,
        expected: Option<u64>,
        new: u64,
    ) -> u64 {
        self.assert_table("exchange at", entry);
        self.tick();
        self.drain(cpu);
        let found = self.memory.word(entry);
        if expected.is_none_or(|expected| expected == found) {
            self.run_ahead(entry, new);
        }
        // A walker may have set a bit meanwhile.
        let found = self.memory.word(entry);
        self.visibility.read(cpu, entry);
        if expected.is_none_or(|expected| expected == found) {
            self.write(cpu, entry, new, WriteKind::Exchange);
        }
        found
    }

    /// Everything in a CPU's store buffer reaches memory.
    pub(crate) fn drain(&mut self, cpu: Cpu) {
        while self.drain_one(cpu) {}
    }

    /// Some store of a CPU's buffer reaches memory, if there is one.
    fn drain_one(&mut self, cpu: Cpu) -> bool {
        let buffer = &mut self.cpus[usize::from(cpu)].buffer;
        let Some(store) = buffer.take_any(&mut self.random) else {
            return false;
        };
        self.steps += 1;
        self.run_ahead(store.entry, store.value);
        let kind = if store.release {
            WriteKind::Release
        } else {
            WriteKind::Plain
        };
        self.write(cpu, store.entry, store.value, kind);
        true
    }

    /// A software write reaches memory: of a word, in which each entry that changes counts.
    fn write(&mut self, cpu: Cpu, entry: Hpa, value: u64, kind: WriteKind) {
        let old = self.memory.word(entry);
        self.memory.set_word(entry, value);
        self.visibility
            .wrote(cpu, entry, old, kind != WriteKind::Plain);
        for (entry, value) in entry::changed(entry, self.entry_bytes(), old, value) {
            self.tell(cpu, Event::Write { entry, value, kind });
            self.learn_written(entry, value);
        }
    }

    /// Bytes of an entry: all VMs of a machine have the same.
    pub(crate) fn entry_bytes(&self) -> u64 {
        let mut vms = self.vms.values();
        vms.next()
            .map_or(8, |architecture| architecture.entry_bytes())
    }

    /// # Panics
    ///
    /// If `entry` is no entry of a table.
    fn assert_table(&self, what: &str, entry: Hpa) {
        assert!(
            entry.0.is_multiple_of(8),
            "{what} the unaligned entry {entry}"
        );
        assert!(
            self.allocator.is_table(entry),
            "{what} {entry}, which lies in no allocated table"
        );
    }

    // VMs and their tables.

    /// Points a CPU to a VM's tables.
    pub(crate) fn enter(&mut self, cpu: Cpu, vm: Vm, architecture: Arc<dyn Architecture>) {
        self.learn_root(vm, &*architecture);
        let entered = &mut self.cpu(cpu).entered;
        entered.retain(|(known, _)| *known != vm);
        entered.push((vm, Arc::clone(&architecture)));
        self.vms.insert(vm, architecture);
    }

    /// No CPU points to a VM's tables any more. What they cached of it stays, and so do their walks
    /// in flight.
    pub(crate) fn leave(&mut self, vm: Vm) {
        for cpu in &mut self.cpus {
            cpu.entered.retain(|(known, _)| *known != vm);
        }
    }

    /// The second stage of a VM as a CPU's registers have it.
    ///
    /// # Panics
    ///
    /// If that CPU never entered the VM.
    pub(crate) fn second_stage(&self, cpu: Cpu, vm: Vm) -> Arc<dyn Architecture> {
        self.entered(cpu, vm)
            .unwrap_or_else(|| panic!("CPU {cpu} has never entered VM {vm}"))
    }

    pub(crate) fn entered(&self, cpu: Cpu, vm: Vm) -> Option<Arc<dyn Architecture>> {
        let mut entered = self.cpus.get(usize::from(cpu))?.entered.iter();
        let (_, architecture) = entered.find(|(known, _)| *known == vm)?;
        Some(Arc::clone(architecture))
    }

    pub(crate) fn any_second_stage(&self, vm: Vm) -> Arc<dyn Architecture> {
        let architecture = self.vms.get(&vm);
        Arc::clone(architecture.unwrap_or_else(|| panic!("no CPU has ever entered VM {vm}")))
    }

    /// Memory for a table, zeroed.
    pub(crate) fn allocate_table(&mut self, cpu: Cpu, bytes: u64) -> Option<Hpa> {
        self.tick();
        let table = self.allocator.allocate(bytes, Purpose::Table)?;
        let size = bytes.max(PAGE_BYTES);
        self.memory.fill(table, size, 0);
        self.visibility.forget(table, size);
        self.tell(cpu, Event::TableAllocated { table, bytes });
        Some(table)
    }

    /// Takes a table's memory back and fills it with what hurts most.
    pub(crate) fn free_table(&mut self, cpu: Cpu, table: Hpa, bytes: u64) {
        self.tick();
        // Whoever hands memory to somebody else synchronises with them.
        self.drain(cpu);
        self.allocator.give_back(table, bytes, Purpose::Table);
        let size = bytes.max(PAGE_BYTES);
        self.visibility.forget(table, size);
        self.unlearn(table, size);
        self.poison(table, size);
        self.tell(cpu, Event::TableFreed { table, bytes });
    }

    /// A stale pointer to a freed table still finds entries there: those that were there, or some
    /// that lead into the freed memory itself, or into other free memory.
    fn poison(&mut self, table: Hpa, bytes: u64) {
        let target = match self.random.below(3) {
            0 => return,
            1 => table,
            _ => self.allocator.free_page(&mut self.random).unwrap_or(table),
        };
        if let Some(architecture) = self.vms.values().next() {
            let entry = architecture.astray(target);
            let word = entry::everywhere(entry, architecture.entry_bytes());
            self.memory.fill(table, bytes, word);
        }
    }

    /// Memory for a guest, full of what was there before.
    pub(crate) fn allocate_frame(&mut self, cpu: Cpu, bytes: u64) -> Option<Hpa> {
        self.tick();
        let frame = self.allocator.allocate(bytes, Purpose::Frame)?;
        self.tell(cpu, Event::FrameAllocated { frame, bytes });
        Some(frame)
    }

    /// Takes a frame back.
    pub(crate) fn free_frame(&mut self, cpu: Cpu, frame: Hpa, bytes: u64) {
        self.tick();
        self.allocator.give_back(frame, bytes, Purpose::Frame);
        self.tell(cpu, Event::FrameFreed { frame, bytes });
    }
}
