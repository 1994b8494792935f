//! Who knows what: happens-before between CPUs.
//!
//! A CPU knows its own past, and what another CPU knew when it let go of a lock that this CPU took
//! afterwards, or when it wrote an entry that this CPU then exchanged. Each CPU has a vector clock
//! of what it has *seen*, and a second one of what it knows to be *visible* to every walker: at a
//! barrier that reaches all CPUs, everything seen becomes visible. A third one is of what is
//! visible to its own walker, which a barrier for that CPU alone is enough for. The clock of a CPU
//! is the number of the record being judged.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::event::Cpu;

/// A moment: what a CPU did in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) cpu: Cpu,
    /// Number of the record, counted by the judge from 1.
    pub(super) at: u64,
}

/// What came before a moment, other CPUs' part.
#[derive(Clone, Debug, Default)]
struct Past {
    seen: Vec<u64>,
    visible: Vec<u64>,
    /// To the CPU's own walker; of no use to those who get to know of it.
    visible_here: Vec<u64>,
}

fn get(clock: &[u64], cpu: Cpu) -> u64 {
    clock.get(usize::from(cpu)).copied().unwrap_or(0)
}

fn raise(clock: &mut Vec<u64>, cpu: Cpu, at: u64) {
    let index = usize::from(cpu);
    if clock.len() <= index {
        clock.resize(index + 1, 0);
    }
    clock[index] = clock[index].max(at);
}

/// Whether joining `from` would change `into`.
fn adds(into: &[u64], from: &[u64]) -> bool {
    from.iter()
        .enumerate()
        .any(|(index, at)| into.get(index).is_none_or(|known| known < at) && *at != 0)
}

fn join(into: &mut Vec<u64>, from: &[u64]) {
    if into.len() < from.len() {
        into.resize(from.len(), 0);
    }
    for (known, at) in into.iter_mut().zip(from) {
        *known = (*known).max(*at);
    }
}

/// Everything that a CPU knew at a moment.
#[derive(Clone, Debug)]
pub(super) struct Stamp {
    moment: Moment,
    past: Arc<Past>,
}

impl Stamp {
    /// Whether `moment` happened before.
    pub(super) fn has_seen(&self, moment: Moment) -> bool {
        if moment.cpu == self.moment.cpu {
            moment.at <= self.moment.at
        } else {
            moment.at <= get(&self.past.seen, moment.cpu)
        }
    }

    /// Whether it was known that what was written in `moment` is visible to every walker.
    pub(super) fn knows_visible(&self, moment: Moment) -> bool {
        moment.at <= get(&self.past.visible, moment.cpu)
    }
}

impl Stamp {
    /// The CPU whose knowledge this is.
    pub(super) const fn cpu(&self) -> Cpu {
        self.moment.cpu
    }

    /// Whether it was known that what was written in `moment` is visible to the CPU's own walker.
    pub(super) fn knows_visible_here(&self, moment: Moment) -> bool {
        self.knows_visible(moment) || moment.at <= get(&self.past.visible_here, moment.cpu)
    }
}

/// What every CPU knows.
#[derive(Debug, Default)]
pub(super) struct Order {
    cpus: BTreeMap<Cpu, Arc<Past>>,
    locks: BTreeMap<u64, Stamp>,
}

impl Order {
    /// What `moment.cpu` knows at `moment`, which is now.
    pub(super) fn stamp(&self, moment: Moment) -> Stamp {
        Stamp {
            moment,
            past: self.cpus.get(&moment.cpu).cloned().unwrap_or_default(),
        }
    }

    /// `cpu` gets to know what `stamp` knew.
    pub(super) fn acquire(&mut self, cpu: Cpu, stamp: &Stamp) {
        if stamp.moment.cpu == cpu {
            return;
        }
        let past = self.cpus.entry(cpu).or_default();
        let Stamp {
            moment,
            past: other,
        } = stamp;
        let news = get(&past.seen, moment.cpu) < moment.at
            || adds(&past.seen, &other.seen)
            || adds(&past.visible, &other.visible);
        if news {
            let past = Arc::make_mut(past);
            join(&mut past.seen, &other.seen);
            join(&mut past.visible, &other.visible);
            raise(&mut past.seen, moment.cpu, moment.at);
        }
    }

    /// A lock was taken.
    pub(super) fn locked(&mut self, cpu: Cpu, lock: u64) {
        if let Some(stamp) = self.locks.get(&lock).cloned() {
            self.acquire(cpu, &stamp);
        }
    }

    /// A lock was let go.
    pub(super) fn unlocked(&mut self, moment: Moment, lock: u64) {
        let stamp = self.stamp(moment);
        self.locks.insert(lock, stamp);
    }

    /// All that `moment.cpu` has seen is visible to every walker from now on.
    pub(super) fn barrier(&mut self, moment: Moment) {
        let past = Arc::make_mut(self.cpus.entry(moment.cpu).or_default());
        let Past { seen, visible, .. } = past;
        join(visible, seen);
        raise(visible, moment.cpu, moment.at);
    }

    /// All that `moment.cpu` has seen is visible to its own walker from now on.
    pub(super) fn barrier_here(&mut self, moment: Moment) {
        let past = Arc::make_mut(self.cpus.entry(moment.cpu).or_default());
        let Past {
            seen, visible_here, ..
        } = past;
        join(visible_here, seen);
        raise(visible_here, moment.cpu, moment.at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(cpu: Cpu, at: u64) -> Moment {
        Moment { cpu, at }
    }

    #[test]
    fn a_lock_hands_on_what_its_last_holder_knew() {
        let mut order = Order::default();
        order.unlocked(at(0, 2), 7);
        assert!(!order.stamp(at(1, 3)).has_seen(at(0, 1)));
        order.locked(1, 7);
        assert!(order.stamp(at(1, 4)).has_seen(at(0, 2)));
        assert!(!order.stamp(at(1, 4)).has_seen(at(0, 3)));
    }

    #[test]
    fn a_barrier_makes_visible_what_its_cpu_has_seen_and_nothing_else() {
        let mut order = Order::default();
        order.barrier(at(1, 2));
        assert!(!order.stamp(at(1, 2)).knows_visible(at(0, 1)));
        order.unlocked(at(0, 3), 7);
        order.locked(1, 7);
        assert!(!order.stamp(at(1, 4)).knows_visible(at(0, 1)));
        order.barrier(at(1, 5));
        assert!(order.stamp(at(1, 5)).knows_visible(at(0, 1)));
    }

    #[test]
    fn a_barrier_for_one_cpu_makes_what_it_has_seen_visible_to_its_own_walker() {
        let mut order = Order::default();
        order.unlocked(at(0, 2), 7);
        order.locked(1, 7);
        order.barrier_here(at(1, 3));
        assert!(order.stamp(at(1, 3)).knows_visible_here(at(0, 1)));
        assert!(!order.stamp(at(1, 3)).knows_visible(at(0, 1)));
        order.unlocked(at(1, 4), 7);
        order.locked(2, 7);
        assert!(!order.stamp(at(2, 5)).knows_visible_here(at(0, 1)));
    }

    #[test]
    fn what_is_known_is_handed_on_by_a_third() {
        let mut order = Order::default();
        order.barrier(at(0, 1));
        order.unlocked(at(0, 2), 7);
        order.locked(1, 7);
        order.unlocked(at(1, 3), 8);
        order.locked(2, 8);
        assert!(order.stamp(at(2, 4)).knows_visible(at(0, 1)));
    }
}
