//! Where every hostile choice comes from.
//!
//! The machine does what an architecture *allows*, so at every turn it has a choice: does a store
//! reach memory now or later, does a CPU cache what it walked, does an invalidation take effect at
//! once. One generator, started from the seed of the run, answers all of them in the order in which
//! they come up. So the same calls on a machine with the same seed give the same run.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

use crate::event::Cpu;
use crate::store::CpuSet;

/// A seeded source of choices.
#[derive(Clone, Debug)]
pub(crate) struct Random(Xoshiro256PlusPlus);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// 64 fair bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `bound`, which is not 0.
    ///
    /// Multiplying and keeping the upper half favours some numbers, by less than one in 2^32 for
    /// the small bounds used here.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        debug_assert!(bound != 0, "no number is below 0");
        let wide = u128::from(self.bits()) * bound as u128;
        usize::try_from(wide >> 64).expect("less than `bound`, which is a `usize`")
    }

    /// One of these CPUs, of which there is at least one.
    pub(crate) fn cpu(&mut self, cpus: CpuSet) -> Cpu {
        let chosen = self.below(cpus.count() as usize);
        cpus.iter().nth(chosen).expect("as many as were counted")
    }

    /// True in one of `n` cases.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// True in half of all cases.
    pub(crate) fn half(&mut self) -> bool {
        self.bits() >> 63 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn a_seed_always_gives_the_same_choices() {
        let choices = |seed| {
            let mut random = Random::new(seed);
            (0..50).map(|_| random.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(choices(7), choices(7));
        assert_ne!(choices(7), choices(8));
    }

    #[test]
    fn every_choice_comes_up_and_none_beyond_the_bound() {
        let mut random = Random::new(1);
        let mut seen = [0; 5];
        for _ in 0..1000 {
            seen[random.below(5)] += 1;
        }
        assert!(seen.iter().all(|count| *count > 150), "{seen:?}");
        let halves = (0..1000).filter(|_| random.half()).count();
        assert!((400..600).contains(&halves), "{halves}");
    }
}
