//! Barriers and invalidations: what they make happen, and when.
//!
//! An invalidation takes effect on each CPU that it reaches at a moment of its own: at once, or at
//! any time until a barrier of the CPU that issued it completes it. What was forgotten before the
//! write it is about was visible may be walked and cached again, which is what a missing barrier
//! before an invalidation leads to.

use crate::architecture::{Effect, Forgotten, Reach};
use crate::event::{Cpu, Event, Instruction, Vm};
use crate::hardware::Hardware;
use crate::store::CpuSet;

/// An invalidation under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Invalidation {
    vm: Vm,
    what: Forgotten,
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
        // What it orders comes before it, what it forgets after.
        let mut told = false;
        for effect in effects {
            if !matches!(effect, Effect::Complete { .. }) && !told {
                self.tell(cpu, Event::Instruction { vm, instruction });
                told = true;
            }
            match effect {
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
                Effect::Forget { reach, what } => self.invalidate(cpu, vm, what, reach),
                Effect::Synchronise => {}
            }
        }
        if !told {
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
    fn invalidate(&mut self, cpu: Cpu, vm: Vm, what: Forgotten, reach: Reach) {
        let reached = self.reached(cpu, reach);
        let at_once = self.random.half();
        let mut pending = CpuSet::EMPTY;
        for target in reached.iter() {
            if at_once || self.random.half() {
                self.forget(target, vm, what);
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

    fn forget(&mut self, target: Cpu, vm: Vm, what: Forgotten) {
        self.steps += 1;
        self.caches(target).forget(vm, what);
    }

    /// An invalidation that a CPU has issued takes effect on some CPU.
    pub(crate) fn let_one_invalidation_work(&mut self, issuer: Cpu) {
        let pending = self.cpu(issuer).invalidations.len();
        if pending == 0 {
            return;
        }
        let at = self.random.below(pending);
        let Invalidation { vm, what, pending } = self.cpu(issuer).invalidations[at];
        let target = self.random.cpu(pending);
        self.forget(target, vm, what);
        self.invalidation_worked(issuer, at, CpuSet::one(target));
    }

    /// Every invalidation that a CPU has issued has taken effect on those reached.
    fn complete_invalidations(&mut self, issuer: Cpu, reached: CpuSet) {
        for at in (0..self.cpu(issuer).invalidations.len()).rev() {
            let Invalidation { vm, what, pending } = self.cpu(issuer).invalidations[at];
            for target in pending.iter().filter(|target| reached.contains(*target)) {
                self.forget(target, vm, what);
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
