//! Walks, and the guest's accesses.
//!
//! A walk reads one entry at a time, each time either what is in memory or, if no barrier forbids it,
//! what was there before. It may begin at a table that a pointer cached long ago leads to, stop half
//! way to go on much later, and everything it finds may be cached. An access of the guest takes
//! whichever of these ways the choices of the run give it: a translation cached before, a walk in
//! flight, a cached pointer, or a walk from the root.

use crate::address::{Gpa, Hpa};
use crate::architecture::{Architecture, Descriptor, whole_run};
use crate::entry;
use crate::event::{AccessKind, Cpu, Event, Vm, WriteKind};
use crate::hardware::{CpuState, Hardware};
use crate::machine::Ending;
use crate::tlb::{Absence, Block, Pointer, Temperament, Translation};

/// How often an access looks for a translation anew before it faults. Each time after the first it
/// walks; only stale values can make it fail more than once, and a fault is then allowed.
const ATTEMPTS: usize = 3;

/// What a CPU walks for.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) cpu: Cpu,
    pub(crate) vm: Vm,
    pub(crate) gpa: Gpa,
    pub(crate) architecture: &'a dyn Architecture,
}

/// How a step of a walk ended.
pub(crate) enum Step {
    /// At a pointer to the next table.
    Down(Pointer),
    /// At a page or block.
    Leaf(Translation),
    /// At an entry that translates nothing.
    Fault,
}

/// A translation that an access found.
struct Found {
    translation: Translation,
    /// Whether it was cached before.
    cached: bool,
}

impl Hardware {
    /// The guest accesses memory.
    pub(crate) fn access(
        &mut self,
        cpu: Cpu,
        vm: Vm,
        gpa: Gpa,
        kind: AccessKind,
        value: u64,
    ) -> Ending {
        self.tick();
        let architecture = self.second_stage(cpu, vm);
        let request = Request {
            cpu,
            vm,
            gpa,
            architecture: &*architecture,
        };
        let Some(Found {
            translation,
            cached,
        }) = self.find(request, kind)
        else {
            self.tell(cpu, Event::Faulted { vm, gpa, kind });
            return Ending::Fault;
        };
        let hpa = translation.translate(gpa);
        let found = self.memory.word(hpa);
        if kind == AccessKind::Write {
            self.memory.set_word(hpa, value);
        }
        let accessed = Event::Accessed {
            vm,
            gpa,
            kind,
            hpa,
            cached,
        };
        self.tell(cpu, accessed);
        Ending::Reached {
            hpa,
            value: found,
            device: translation.leaf.device,
        }
    }

    /// A translation that allows the access, dirty if it is a store; `None` is a fault.
    fn find(&mut self, request: Request<'_>, kind: AccessKind) -> Option<Found> {
        if request.gpa.0 >> request.architecture.address_bits() != 0 {
            return None;
        }
        self.remember(request.vm, request.gpa);
        for attempt in 0..ATTEMPTS {
            let mut found = self.translate(request, attempt == 0)?;
            if !found.translation.leaf.allows(kind) {
                // What is cached may be older than what is in memory: the CPU may look, or not. One
                // that never does faults again and again until it is told to forget.
                let looks = self.cpu(request.cpu).temperament != Temperament::Sticky;
                if found.cached && looks && self.random.half() {
                    continue;
                }
                return None;
            }
            if kind != AccessKind::Write || found.translation.leaf.write {
                return Some(found);
            }
            match self.make_dirty(request, &found.translation) {
                Some(dirty) => {
                    found.translation = dirty;
                    return Some(found);
                }
                None => {
                    self.caches(request.cpu)
                        .drop_translation(&found.translation);
                }
            }
        }
        None
    }

    /// A translation by any of the ways there are; by a walk from the root unless `anyhow`.
    fn translate(&mut self, request: Request<'_>, anyhow: bool) -> Option<Found> {
        let mut start = None;
        if anyhow {
            if let Some(translation) = self.hit(request) {
                return Some(Found {
                    translation,
                    cached: true,
                });
            }
            if self.is_absent(request) {
                return None;
            }
            start = self.start(request);
        }
        let translation = self.walk(request, start)?;
        let temperament = self.cpu(request.cpu).temperament;
        if temperament.caches(&mut self.random) {
            self.fill(request.cpu, translation);
        }
        Some(Found {
            translation,
            cached: false,
        })
    }

    /// A cached translation, if there is one and the CPU likes to use it.
    fn hit(&mut self, request: Request<'_>) -> Option<Translation> {
        let Request { cpu, vm, gpa, .. } = request;
        let CpuState {
            caches,
            temperament,
            ..
        } = &mut self.cpus[usize::from(cpu)];
        let temperament = *temperament;
        let hit = caches.hit(vm, gpa, &mut self.random)?;
        if !temperament.caches(&mut self.random) {
            return None;
        }
        self.steps += 1;
        if temperament == Temperament::Forgetful {
            caches.drop_translation(&hit);
        }
        if self.random.one_in(4) {
            self.combine(cpu, hit);
        }
        Some(hit)
    }

    /// The guest's own walk ends at a translation that the second stage has cached, and is cached
    /// together with it.
    pub(crate) fn combine(&mut self, cpu: Cpu, hit: Translation) {
        let combined = true;
        self.keep(cpu, Translation { combined, ..hit });
    }

    /// Whether the CPU has cached that there is no translation, and likes to use that.
    fn is_absent(&mut self, request: Request<'_>) -> bool {
        let cpu = &self.cpus[usize::from(request.cpu)];
        cpu.caches.is_absent(request.vm, request.gpa) && cpu.temperament.caches(&mut self.random)
    }

    /// Where a walk may begin other than at the root.
    pub(crate) fn start(&mut self, request: Request<'_>) -> Option<Pointer> {
        let Request { cpu, vm, gpa, .. } = request;
        let caches = &mut self.cpus[usize::from(cpu)].caches;
        if let Some(walk) = caches.take_walk(vm, gpa) {
            return Some(walk.pointer);
        }
        let pointer = caches.pointer(vm, gpa, &mut self.random)?;
        (!self.random.one_in(4)).then_some(pointer)
    }

    /// Walks to the end.
    fn walk(&mut self, request: Request<'_>, start: Option<Pointer>) -> Option<Translation> {
        let mut at = start;
        loop {
            match self.step(request, at) {
                Step::Down(pointer) => at = Some(pointer),
                Step::Leaf(translation) => return Some(translation),
                Step::Fault => return None,
            }
        }
    }

    /// Reads one entry, of the table that `at` points to or of the root.
    pub(crate) fn step(&mut self, request: Request<'_>, at: Option<Pointer>) -> Step {
        self.steps += 1;
        let Request {
            cpu,
            vm,
            gpa,
            architecture,
        } = request;
        let levels = architecture.levels();
        let (table, level) = at.map_or_else(
            || (architecture.root(), levels.len() - 1),
            |pointer| (pointer.table, pointer.level),
        );
        let shape = levels[level];
        let index = gpa.0 >> shape.shift & ((1 << shape.index_bits) - 1);
        let entry = Hpa(table.0 + index * architecture.entry_bytes());
        let raw = self.walker_reads(request, entry);
        let block = Block::around(gpa, shape.shift);
        match architecture.decode_at(level, entry, raw) {
            Descriptor::Table(table) if level > 0 => {
                let raw = self.mark_table(request, level, entry, raw);
                let pointer = Pointer {
                    vm,
                    block,
                    table,
                    level: level - 1,
                    entry,
                    raw,
                };
                self.learn_walked(&pointer);
                self.keep_pointer(cpu, pointer);
                Step::Down(pointer)
            }
            Descriptor::Leaf(leaf) => {
                let found = Translation {
                    vm,
                    block,
                    leaf,
                    entry,
                    raw,
                    level,
                    combined: false,
                };
                match self.make_accessed(request, found) {
                    Some(accessed) => Step::Leaf(self.perhaps_all_of_the_run(request, accessed)),
                    None => Step::Fault,
                }
            }
            Descriptor::Invalid if architecture.caches_invalid() => {
                let absence = Absence {
                    vm,
                    block,
                    entry,
                    raw,
                    level,
                };
                self.keep_absence(cpu, absence);
                Step::Fault
            }
            // What an architecture reserves is taken to translate nothing.
            Descriptor::Table(_) | Descriptor::Invalid | Descriptor::Reserved(_) => Step::Fault,
        }
    }

    /// The translation, accessed: set in memory by one atomic step where the hardware does so; `None`
    /// is a fault.
    fn make_accessed(&mut self, request: Request<'_>, found: Translation) -> Option<Translation> {
        if found.leaf.accessed {
            return Some(found);
        }
        // Who read an old value finds out now, and looks again.
        let current = self.entry(request, found.entry);
        let found = reread(request, &found, current)?;
        if found.leaf.accessed {
            return Some(found);
        }
        let raw = request.architecture.with_accessed(found.level, current)?;
        let accessed = reread(request, &found, raw)?;
        self.write_by_hardware(request, found.entry, raw);
        Some(accessed)
    }

    /// Makes a writable-clean translation dirty, in memory and where this CPU has it cached; `None`
    /// if its entry is no longer what it was read as.
    fn make_dirty(&mut self, request: Request<'_>, clean: &Translation) -> Option<Translation> {
        if self.entry(request, clean.entry) != clean.raw {
            return None;
        }
        let raw = request.architecture.with_dirty(clean.level, clean.raw)?;
        let dirty = reread(request, clean, raw)?;
        self.write_by_hardware(request, clean.entry, raw);
        if self.caches(request.cpu).drop_translation(clean) {
            self.keep(request.cpu, dirty);
        }
        Some(dirty)
    }

    /// The entry as it is in memory.
    fn entry(&self, request: Request<'_>, entry: Hpa) -> u64 {
        entry::read(
            self.memory.word(entry),
            entry,
            request.architecture.entry_bytes(),
        )
    }

    /// What the walker finds at `entry`: what is in memory, or what was there before.
    fn walker_reads(&mut self, request: Request<'_>, entry: Hpa) -> u64 {
        let word = entry::word_of(entry);
        let current = self.memory.word(word);
        let cpu = request.cpu;
        let found = self
            .visibility
            .walker_reads(cpu, word, current, &mut self.random);
        entry::read(found, entry, request.architecture.entry_bytes())
    }

    /// A pointer to a table was used: sets its accessed bit in memory where the hardware does so, and
    /// gives what it says then.
    fn mark_table(&mut self, request: Request<'_>, level: usize, entry: Hpa, raw: u64) -> u64 {
        match request.architecture.table_with_accessed(level, raw) {
            Some(marked) if marked != raw && self.entry(request, entry) == raw => {
                self.write_by_hardware(request, entry, marked);
                marked
            }
            _ => raw,
        }
    }

    fn write_by_hardware(&mut self, request: Request<'_>, entry: Hpa, value: u64) {
        self.steps += 1;
        let bytes = request.architecture.entry_bytes();
        let word = entry::written(self.memory.word(entry), entry, bytes, value);
        self.memory.set_word(entry, word);
        let kind = WriteKind::Hardware;
        self.tell(request.cpu, Event::Write { entry, value, kind });
    }

    /// A translation, of the whole run if its leaf is one of a run and the CPU takes that for one.
    fn perhaps_all_of_the_run(&mut self, request: Request<'_>, found: Translation) -> Translation {
        if found.leaf.run_bits == 0 || self.random.half() {
            return found;
        }
        let Translation { level, entry, .. } = found;
        let shift = found.block.shift + found.leaf.run_bits;
        Translation {
            block: Block::around(found.block.gpa, shift),
            leaf: whole_run(request.architecture, level, entry, &found.leaf),
            ..found
        }
    }

    // Caching.

    /// A translation that a walk found is cached: as the second stage's own, combined, or both.
    pub(crate) fn fill(&mut self, cpu: Cpu, translation: Translation) {
        let kinds = self.random.below(4);
        if kinds != 0 {
            self.keep(cpu, translation);
        }
        if kinds != 1 {
            let combined = true;
            self.keep(
                cpu,
                Translation {
                    combined,
                    ..translation
                },
            );
        }
    }

    fn keep(&mut self, cpu: Cpu, translation: Translation) {
        let caches = &mut self.cpus[usize::from(cpu)].caches;
        if caches.add_translation(translation, &mut self.random) {
            let Translation {
                vm,
                block,
                entry,
                raw,
                combined,
                ..
            } = translation;
            self.tell_cached(cpu, vm, block, (entry, raw), combined);
        }
    }

    fn keep_pointer(&mut self, cpu: Cpu, pointer: Pointer) {
        let CpuState {
            caches,
            temperament,
            ..
        } = &mut self.cpus[usize::from(cpu)];
        if temperament.caches(&mut self.random) && caches.add_pointer(pointer, &mut self.random) {
            let Pointer {
                vm,
                block,
                entry,
                raw,
                ..
            } = pointer;
            self.tell_cached(cpu, vm, block, (entry, raw), false);
        }
    }

    fn keep_absence(&mut self, cpu: Cpu, absence: Absence) {
        let CpuState {
            caches,
            temperament,
            ..
        } = &mut self.cpus[usize::from(cpu)];
        if temperament.caches(&mut self.random) && caches.add_absence(absence, &mut self.random) {
            let Absence {
                vm,
                block,
                entry,
                raw,
                ..
            } = absence;
            self.tell_cached(cpu, vm, block, (entry, raw), false);
        }
    }

    fn tell_cached(&mut self, cpu: Cpu, vm: Vm, block: Block, read: (Hpa, u64), combined: bool) {
        self.steps += 1;
        let (entry, value) = read;
        let event = Event::Cached {
            vm,
            gpa: block.gpa,
            bytes: block.bytes(),
            entry,
            value,
            combined,
        };
        self.tell(cpu, event);
    }
}

/// The same translation, its entry read anew; `None` if it is no leaf any more.
fn reread(request: Request<'_>, old: &Translation, raw: u64) -> Option<Translation> {
    let Translation { level, entry, .. } = *old;
    let Descriptor::Leaf(leaf) = request.architecture.decode_at(level, entry, raw) else {
        return None;
    };
    let is_run = old.block.shift != request.architecture.levels()[level].shift;
    let leaf = if is_run {
        whole_run(request.architecture, level, entry, &leaf)
    } else {
        leaf
    };
    Some(Translation { leaf, raw, ..*old })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::architecture::{Effects, Forgotten, LevelShape};
    use crate::arm64::{self, StageTwo};
    use crate::event::{Instruction, Record};
    use crate::machine::{Config, Witness};

    /// Arm, but invalid entries may be cached.
    #[derive(Debug)]
    struct Remembering(StageTwo);

    impl Architecture for Remembering {
        fn name(&self) -> &'static str {
            "remembering"
        }
        fn root(&self) -> Hpa {
            self.0.root()
        }
        fn levels(&self) -> &[LevelShape] {
            self.0.levels()
        }
        fn address_bits(&self) -> u8 {
            self.0.address_bits()
        }
        fn decode(&self, level: usize, raw: u64) -> Descriptor {
            self.0.decode(level, raw)
        }
        fn with_accessed(&self, level: usize, raw: u64) -> Option<u64> {
            self.0.with_accessed(level, raw)
        }
        fn with_dirty(&self, level: usize, raw: u64) -> Option<u64> {
            self.0.with_dirty(level, raw)
        }
        fn break_before_make(&self) -> bool {
            true
        }
        fn caches_invalid(&self) -> bool {
            true
        }
        fn effects(&self, instruction: &Instruction) -> Effects {
            self.0.effects(instruction)
        }
    }

    struct Nobody;

    impl Witness for Nobody {
        fn observe(&mut self, _: &Record) -> Result<(), Box<dyn core::error::Error + Send + Sync>> {
            Ok(())
        }
    }

    /// A VM whose root translates blocks of 1 GiB, and nothing yet.
    fn hardware(seed: u64) -> (Hardware, Hpa) {
        let config = Config {
            seed,
            cpus: 1,
            ram: (Hpa(0x4000_0000), 2 << 20),
            devices: Vec::new(),
        };
        let mut hardware = Hardware::new(&config, Box::new(Nobody));
        let root = hardware.allocate_table(0, 4096).unwrap();
        let registers = arm64::Registers {
            vttbr: root.0,
            vtcr: 2 << 16 | 1 << 6 | 0x19,
            force_write_back: false,
        };
        let architecture = Remembering(StageTwo::new(&registers).unwrap());
        hardware.enter(0, 0, Arc::new(architecture));
        (hardware, root)
    }

    /// Whether an address that once faulted still does after its block became valid.
    fn still_faults(seed: u64, invalidated: bool) -> bool {
        let (mut hardware, root) = hardware(seed);
        let read = |hardware: &mut Hardware| hardware.access(0, 0, Gpa(8), AccessKind::Read, 0);
        assert_eq!(read(&mut hardware), Ending::Fault);
        hardware.exchange(0, root, None, 0x4000_0000 | 0x7fd);
        let barrier = arm64::Instruction::DsbIsh;
        hardware.execute(0, 0, Instruction::Arm64(barrier));
        if invalidated {
            hardware.caches(0).forget(0, Forgotten::All, |_| true);
        }
        read(&mut hardware) == Ending::Fault
    }

    #[test]
    fn where_invalid_entries_are_cached_a_new_translation_needs_an_invalidation() {
        assert!((0..50).any(|seed| still_faults(seed, false)));
        assert!(!(0..50).any(|seed| still_faults(seed, true)));
    }
}
