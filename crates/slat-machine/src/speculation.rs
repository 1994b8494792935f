//! Speculation: walks that nobody asked for.
//!
//! Walkers may run ahead to any address at any time. Two moments matter: just before a valid entry
//! changes, because what is cached then is stale from then on, and between an invalidation and what
//! should have come before it. So the machine remembers which addresses were used or changed
//! lately, and which table translates what, and sends walkers there.

use crate::address::{Gpa, Hpa};
use crate::architecture::{Architecture, Descriptor};
use crate::entry;
use crate::event::{Cpu, Vm};
use crate::hardware::Hardware;
use crate::memory::PAGE_BYTES;
use crate::tlb::{Block, Pointer, Walk};
use crate::walk::{Request, Step};

/// Guest addresses that speculation goes back to.
pub(crate) const RECENT: usize = 16;

/// What a table translates: learnt when a pointer to it is written or walked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    vm: Vm,
    level: usize,
    block: Block,
}

impl Hardware {
    /// A pointer to a table was written: what the table translates is known from now on.
    pub(crate) fn learn_written(&mut self, entry: Hpa, value: u64) {
        let Some((place, block)) = self.place(entry) else {
            return;
        };
        let Some(architecture) = self.vms.get(&place.vm) else {
            return;
        };
        if place.level == 0 {
            return;
        }
        if let Descriptor::Table(table) = architecture.decode(place.level, value) {
            self.learn(place.vm, table, place.level - 1, block);
        }
    }

    /// A walk found a table.
    pub(crate) fn learn_walked(&mut self, pointer: &Pointer) {
        if !self.places.contains_key(&pointer.table) {
            self.learn(pointer.vm, pointer.table, pointer.level, pointer.block);
        }
    }

    /// A root translates all of a VM.
    pub(crate) fn learn_root(&mut self, vm: Vm, architecture: &dyn Architecture) {
        let level = architecture.levels().len() - 1;
        let block = Block::around(Gpa(0), architecture.address_bits());
        self.learn(vm, architecture.root(), level, block);
    }

    /// Tables are no more.
    pub(crate) fn unlearn(&mut self, start: Hpa, bytes: u64) {
        let range = start..Hpa(start.0 + bytes);
        while let Some((&table, _)) = self.places.range(range.clone()).next() {
            self.places.remove(&table);
        }
    }

    fn learn(&mut self, vm: Vm, table: Hpa, level: usize, block: Block) {
        if self.allocator.is_table(table) {
            self.places.insert(table, Place { vm, level, block });
        }
    }

    /// Whose table an entry lies in, and the block that the entry translates.
    fn place(&self, entry: Hpa) -> Option<(Place, Block)> {
        let (table, place) = self.places.range(..=entry).next_back()?;
        let shape = *self.vms.get(&place.vm)?.levels().get(place.level)?;
        let index = (entry.0 - table.0) / self.entry_bytes();
        if index >> shape.index_bits != 0 {
            return None;
        }
        let gpa = Gpa(place.block.gpa.0 + (index << shape.shift));
        let shift = shape.shift;
        Some((*place, Block { gpa, shift }))
    }

    /// A guest address was used, or its translation is changing.
    pub(crate) fn remember(&mut self, vm: Vm, gpa: Gpa) {
        let page = Gpa(gpa.0 >> 12 << 12);
        if self.recent.contains(&(vm, page)) {
            return;
        }
        if self.recent.len() == RECENT {
            let at = self.random.below(RECENT);
            self.recent.swap_remove(at);
        }
        self.recent.push((vm, page));
    }

    /// A valid entry is about to change: walkers use it once more, those of about half the CPUs.
    pub(crate) fn run_ahead(&mut self, word: Hpa, new: u64) {
        let old = self.memory.word(word);
        if old == 0 || old == new {
            return;
        }
        let Some((entry, _)) = entry::changed(word, self.entry_bytes(), old, new).pop() else {
            return;
        };
        let chosen = match self.place(entry) {
            Some((place, block)) => Some((place.vm, self.address_in(place.vm, block))),
            None => self.any_recent(),
        };
        let Some((vm, gpa)) = chosen else { return };
        self.remember(vm, gpa);
        for cpu in self.all_cpus().iter() {
            if self.random.half() {
                self.speculate(cpu, vm, gpa);
            }
        }
    }

    /// An address in a block, one that was used recently if there is one.
    fn address_in(&mut self, vm: Vm, block: Block) -> Gpa {
        let used = |(of, gpa): &&(Vm, Gpa)| *of == vm && block.contains(*gpa);
        let count = self.recent.iter().filter(used).count();
        if count != 0 && !self.random.one_in(4) {
            let chosen = self.random.below(count);
            if let Some((_, gpa)) = self.recent.iter().filter(used).nth(chosen) {
                return *gpa;
            }
        }
        let pages = block.bytes() / PAGE_BYTES;
        let page = self.random.bits() % pages;
        Gpa(block.gpa.0 + page * PAGE_BYTES)
    }

    fn any_recent(&mut self) -> Option<(Vm, Gpa)> {
        let count = self.recent.len();
        (count != 0).then(|| self.recent[self.random.below(count)])
    }

    /// The walker of a CPU runs ahead: it goes on with a walk in flight, or walks for an address used
    /// recently.
    pub(crate) fn speculate_somewhere(&mut self, cpu: Cpu) {
        if self.random.half() && self.go_on_with_a_walk(cpu) {
            return;
        }
        if let Some((vm, gpa)) = self.any_recent() {
            self.speculate(cpu, vm, gpa);
        }
    }

    /// A CPU that has the VM's registers walks for an address that nobody asked for. It may stop at
    /// a translation that the second stage has cached, or at any table on the way and leave the walk
    /// in flight.
    fn speculate(&mut self, cpu: Cpu, vm: Vm, gpa: Gpa) {
        let Some(architecture) = self.entered(cpu, vm) else {
            return;
        };
        let request = Request {
            cpu,
            vm,
            gpa,
            architecture: &*architecture,
        };
        let caches = &self.cpus[usize::from(cpu)].caches;
        if let Some(hit) = caches.hit(vm, gpa, &mut self.random)
            && self.random.half()
        {
            return self.combine(cpu, hit);
        }
        let mut at = self.start(request);
        loop {
            match self.step(request, at) {
                Step::Down(pointer) if self.random.one_in(8) => {
                    return self.leave_in_flight(cpu, Walk { gpa, pointer });
                }
                Step::Down(pointer) => at = Some(pointer),
                Step::Leaf(translation) => return self.fill(cpu, translation),
                Step::Fault => return,
            }
        }
    }

    /// A walk in flight on this CPU reads its next entry; false if there is none.
    fn go_on_with_a_walk(&mut self, cpu: Cpu) -> bool {
        let caches = &mut self.cpus[usize::from(cpu)].caches;
        let Some(Walk { gpa, pointer }) = caches.take_any_walk(&mut self.random) else {
            return false;
        };
        // The CPU may have left the VM since.
        let architecture = self.any_second_stage(pointer.vm);
        let request = Request {
            cpu,
            vm: pointer.vm,
            gpa,
            architecture: &*architecture,
        };
        match self.step(request, Some(pointer)) {
            Step::Down(pointer) => self.leave_in_flight(cpu, Walk { gpa, pointer }),
            Step::Leaf(translation) => self.fill(cpu, translation),
            Step::Fault => {}
        }
        true
    }

    fn leave_in_flight(&mut self, cpu: Cpu, walk: Walk) {
        let caches = &mut self.cpus[usize::from(cpu)].caches;
        caches.add_walk(walk, &mut self.random);
    }
}
