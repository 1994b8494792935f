//! Barriers and invalidations: what they make happen, and when.
//!
//! An invalidation takes effect on each CPU that it reaches at a moment of its own: at once, or at
//! any time until a barrier of the CPU that issued it completes it. What was forgotten before the
//! write it is about was visible may be walked and cached again, which is what a missing barrier
//! before an invalidation leads to. What one instruction makes a CPU forget, it forgets at once.

use arrayvec::ArrayVec;

use crate::architecture::{Descriptor, Effect, Effects, Forgotten, MOST_EFFECTS, Reach};
use crate::entry;
use crate::event::{Cpu, Event, Instruction, Vm};
use crate::hardware::Hardware;
use crate::store::CpuSet;
use crate::tlb::Absence;

/// What one instruction makes a CPU forget.
type AtOnce = ArrayVec<Forgotten, MOST_EFFECTS>;

/// An invalidation under way.
#[derive(Clone, Debug)]
pub(crate) struct Invalidation {
    vm: Vm,
    what: AtOnce,
    /// Where it has not taken effect.
    pending: CpuSet,
}

impl Hardware {
    /// Has a CPU execute an instruction.
    ///
    /// # Panics
    ///
    /// If the VM was never entered, or the instruction belongs to another architecture.
    pub(crate) fn execute(&mut self, cpu: Cpu, vm: Vm, instruction: Instruction) {
        self.tick();
        let architecture = self.any_second_stage(vm);
        let effects = architecture.effects(&instruction);
        assert!(
            !effects.is_empty(),
            "{instruction:?} on {}",
            architecture.name()
        );
        let told = told_before(&effects);
        for (place, effect) in effects.iter().enumerate() {
            if place == told {
                self.tell(cpu, Event::Instruction { vm, instruction });
            }
            match *effect {
                Effect::Complete {
                    reach,
                    invalidations,
                } => {
                    self.drain(cpu);
                    let reached = self.reached(cpu, reach);
                    self.visibility.complete(cpu, reached);
                    if invalidations {
                        self.complete_invalidations(cpu, reached);
                    }
                }
                Effect::Forget { reach, .. } => {
                    let before = place.checked_sub(1).map(|before| &effects[before]);
                    if before.is_none_or(|before| forgets(before, reach).is_none()) {
                        let more = effects[place..].iter();
                        let what = more.map_while(|effect| forgets(effect, reach)).collect();
                        self.invalidate(cpu, vm, what, reach);
                    }
                }
                Effect::Synchronise => {}
            }
        }
        if told == effects.len() {
            self.tell(cpu, Event::Instruction { vm, instruction });
        }
    }

    fn reached(&self, cpu: Cpu, reach: Reach) -> CpuSet {
        match reach {
            Reach::Local => CpuSet::one(cpu),
            Reach::All => self.all_cpus(),
        }
    }

    /// An invalidation is issued: on each CPU it takes effect now or later.
    fn invalidate(&mut self, cpu: Cpu, vm: Vm, what: AtOnce, reach: Reach) {
        let reached = self.reached(cpu, reach);
        let at_once = self.random.half();
        let mut pending = CpuSet::EMPTY;
        for target in reached.iter() {
            if at_once || self.random.half() {
                self.forget(target, vm, &what);
            } else {
                pending = pending.with(CpuSet::one(target));
            }
        }
        if !pending.is_empty() {
            let invalidation = Invalidation { vm, what, pending };
            self.cpu(cpu).invalidations.push(invalidation);
        }
        // What was forgotten may be walked again at once.
        for target in reached.iter() {
            if self.random.half() {
                self.speculate_somewhere(target);
            }
        }
    }

    fn forget(&mut self, target: Cpu, vm: Vm, what: &AtOnce) {
        self.steps += 1;
        let architecture = self.any_second_stage(vm);
        let bytes = architecture.entry_bytes();
        let memory = &self.memory;
        let is_leaf = |absence: &Absence| {
            let raw = entry::read(memory.word(absence.entry), absence.entry, bytes);
            matches!(architecture.decode(absence.level, raw), Descriptor::Leaf(_))
        };
        let caches = &mut self.cpus[usize::from(target)].caches;
        for what in what {
            caches.forget(vm, *what, is_leaf);
        }
    }

    /// An invalidation that a CPU has issued takes effect on some CPU.
    pub(crate) fn let_one_invalidation_work(&mut self, issuer: Cpu) {
        let pending = self.cpu(issuer).invalidations.len();
        if pending == 0 {
            return;
        }
        let at = self.random.below(pending);
        let Invalidation { vm, what, pending } = self.cpu(issuer).invalidations[at].clone();
        let target = self.random.cpu(pending);
        self.forget(target, vm, &what);
        self.invalidation_worked(issuer, at, CpuSet::one(target));
    }

    /// Every invalidation that a CPU has issued has taken effect on those reached.
    fn complete_invalidations(&mut self, issuer: Cpu, reached: CpuSet) {
        for at in (0..self.cpu(issuer).invalidations.len()).rev() {
            let Invalidation { vm, what, pending } = self.cpu(issuer).invalidations[at].clone();
            for target in pending.iter().filter(|target| reached.contains(*target)) {
                self.forget(target, vm, &what);
            }
            self.invalidation_worked(issuer, at, reached);
        }
    }

    fn invalidation_worked(&mut self, issuer: Cpu, at: usize, on: CpuSet) {
        let invalidations = &mut self.cpu(issuer).invalidations;
        let pending = invalidations[at].pending.without(on);
        if pending.is_empty() {
            invalidations.remove(at);
        } else {
            invalidations[at].pending = pending;
        }
    }
}

/// What is forgotten by an effect, if it is to be forgotten by those in `reach`.
fn forgets(effect: &Effect, within: Reach) -> Option<Forgotten> {
    match *effect {
        Effect::Forget { reach, what } if reach == within => Some(what),
        _ => None,
    }
}

/// Before which effect an instruction is told of: what it orders comes before it, what it makes
/// others forget after it. One that completes what it makes them forget is told of when that is
/// done.
fn told_before(effects: &Effects) -> usize {
    let forgets = |effect: &Effect| !matches!(effect, Effect::Complete { .. });
    let completes = |effect: &Effect| matches!(effect, Effect::Complete { invalidations, .. } if *invalidations);
    let all = effects.len();
    let first = effects.iter().position(forgets).unwrap_or(all);
    if effects[first..].iter().any(completes) {
        all
    } else {
        first
    }
}
