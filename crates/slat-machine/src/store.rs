//! Stores on their way: each CPU's store buffer, and what walkers may still see.
//!
//! A store goes two ways before everybody sees it. First it waits in its CPU's [`Buffer`], where
//! only that CPU finds it; later stores to other addresses may overtake it unless they have release
//! ordering. Then it reaches memory, where every CPU's *loads* find it. But table *walkers* are
//! observers of their own: until a barrier has made the write visible to them, each may read the
//! value that was there before. [`Visibility`] keeps those values.
//!
//! A barrier completes the writes that its CPU made or *has seen*. A CPU has seen what it read, and
//! through a lock or a release store everything that the writer had made or seen before. Vector
//! clocks say which that is: every CPU counts its writes, and knows how far it has seen each other
//! one.
//!
//! The order is the one the Arm Architecture Reference Manual describes for accesses to normal
//! memory that is shareable (DDI 0487, B2.3), with walks as observers of their own (D8); it is
//! narrower in one point: loads are carried out in program order.

use std::collections::BTreeMap;

use crate::address::Hpa;
use crate::event::Cpu;
use crate::random::Random;

/// CPUs that a machine can have.
pub(crate) const MAX_CPUS: usize = 16;
/// Stores that a buffer holds; one more, and some leave.
const BUFFER_STORES: usize = 12;
/// Overwritten values that are kept; the oldest become visible to everybody when there are more.
const MAX_OVERWRITTEN: usize = 64;

/// A set of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CpuSet(u32);

impl CpuSet {
    pub(crate) const EMPTY: Self = Self(0);

    pub(crate) const fn one(cpu: Cpu) -> Self {
        Self(1 << cpu)
    }

    pub(crate) const fn first(count: u8) -> Self {
        Self((1 << count) - 1)
    }

    pub(crate) const fn contains(self, cpu: Cpu) -> bool {
        self.0 & 1 << cpu != 0
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) const fn count(self) -> u32 {
        self.0.count_ones()
    }

    pub(crate) const fn covers(self, other: Self) -> bool {
        other.without(self).is_empty()
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Cpu> {
        (0..32).filter(move |cpu| self.contains(*cpu))
    }
}

/// A store that has not reached memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Store {
    pub(crate) entry: Hpa,
    pub(crate) value: u64,
    /// It leaves the buffer after everything before it.
    pub(crate) release: bool,
}

/// One CPU's store buffer, in program order.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<Store>);

impl Buffer {
    pub(crate) fn push(&mut self, store: Store) {
        self.0.push(store);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.len() > BUFFER_STORES
    }

    /// What the CPU itself loads from `entry`, if it has a store to it under way.
    pub(crate) fn forward(&self, entry: Hpa) -> Option<u64> {
        let newest = self.0.iter().rev().find(|store| store.entry == entry)?;
        Some(newest.value)
    }

    /// Takes out one of the stores that may reach memory next.
    pub(crate) fn take_any(&mut self, random: &mut Random) -> Option<Store> {
        let ready = (0..self.0.len()).filter(|at| self.may_leave(*at)).count();
        if ready == 0 {
            return None;
        }
        let chosen = random.below(ready);
        let at = (0..self.0.len())
            .filter(|at| self.may_leave(*at))
            .nth(chosen)?;
        Some(self.0.remove(at))
    }

    fn may_leave(&self, at: usize) -> bool {
        let store = self.0[at];
        if store.release {
            return at == 0;
        }
        self.0[..at]
            .iter()
            .all(|before| before.entry != store.entry)
    }
}

/// How far each CPU's writes have been seen.
type Clocks = [u64; MAX_CPUS];

fn join(into: &mut Clocks, from: &Clocks) {
    for (into, from) in into.iter_mut().zip(from) {
        *into = (*into).max(*from);
    }
}

/// A value that was overwritten in memory and that some walker may still read.
#[derive(Clone, Debug)]
struct Overwritten {
    entry: Hpa,
    /// What was there before the write.
    value: u64,
    writer: Cpu,
    /// The write's number among its writer's.
    time: u64,
    /// What a reader of the new value has seen with it, if it was written with release ordering.
    released: Option<Clocks>,
    /// Who has read the new value.
    seen: CpuSet,
    /// Whose walkers surely read the new value.
    visible: CpuSet,
}

/// What each CPU has seen and what each walker may still see.
#[derive(Debug)]
pub(crate) struct Visibility {
    cpus: u8,
    clocks: Vec<Clocks>,
    locks: BTreeMap<u64, Clocks>,
    /// In the order of the writes.
    overwritten: Vec<Overwritten>,
}

impl Visibility {
    pub(crate) fn new(cpus: u8) -> Self {
        Self {
            cpus,
            clocks: vec![[0; MAX_CPUS]; usize::from(cpus)],
            locks: BTreeMap::new(),
            overwritten: Vec::new(),
        }
    }

    /// Number of CPUs.
    pub(crate) const fn cpus(&self) -> u8 {
        self.cpus
    }

    /// A write of `cpu` reached memory; `value` was there before.
    pub(crate) fn wrote(&mut self, cpu: Cpu, entry: Hpa, value: u64, release: bool) {
        let clocks = &mut self.clocks[usize::from(cpu)];
        clocks[usize::from(cpu)] += 1;
        let write = Overwritten {
            entry,
            value,
            writer: cpu,
            time: clocks[usize::from(cpu)],
            released: release.then_some(*clocks),
            seen: CpuSet::one(cpu),
            visible: CpuSet::EMPTY,
        };
        if self.overwritten.len() == MAX_OVERWRITTEN {
            self.overwritten.remove(0);
        }
        self.overwritten.push(write);
    }

    /// `cpu` read what is in memory at `entry`.
    pub(crate) fn read(&mut self, cpu: Cpu, entry: Hpa) {
        let newest = self.overwritten.iter_mut().rev();
        let Some(write) = newest.into_iter().find(|write| write.entry == entry) else {
            // Every walker sees what was written there, and whatever came with it.
            return;
        };
        write.seen = write.seen.with(CpuSet::one(cpu));
        if let Some(released) = &write.released {
            join(&mut self.clocks[usize::from(cpu)], released);
        }
    }

    /// `cpu` took a lock: it has seen what the last holder had seen.
    pub(crate) fn locked(&mut self, cpu: Cpu, lock: u64) {
        if let Some(released) = self.locks.get(&lock) {
            join(&mut self.clocks[usize::from(cpu)], released);
        }
    }

    /// `cpu` let a lock go.
    pub(crate) fn unlocked(&mut self, cpu: Cpu, lock: u64) {
        let clocks = &self.clocks[usize::from(cpu)];
        join(self.locks.entry(lock).or_insert([0; MAX_CPUS]), clocks);
    }

    /// A barrier of `cpu`: what it wrote or has seen is visible to the walkers of `reached`.
    pub(crate) fn complete(&mut self, cpu: Cpu, reached: CpuSet) {
        let clocks = self.clocks[usize::from(cpu)];
        self.make_visible(reached, |write| {
            write.time <= clocks[usize::from(write.writer)] || write.seen.contains(cpu)
        });
    }

    fn make_visible(&mut self, to: CpuSet, is_meant: impl Fn(&Overwritten) -> bool) {
        for at in 0..self.overwritten.len() {
            let write = &self.overwritten[at];
            if !is_meant(write) {
                continue;
            }
            let entry = write.entry;
            // Whoever sees this write sees nothing older at its address.
            for write in &mut self.overwritten[..=at] {
                if write.entry == entry {
                    write.visible = write.visible.with(to);
                }
            }
        }
        let all = CpuSet::first(self.cpus);
        self.overwritten.retain(|write| !write.visible.covers(all));
    }

    /// What the walker of `cpu` reads at `entry`, where `current` is in memory. A walker that finds
    /// what was written with release ordering finds what was written before that too: it goes from
    /// a pointer to the table.
    pub(crate) fn walker_reads(
        &mut self,
        cpu: Cpu,
        entry: Hpa,
        current: u64,
        random: &mut Random,
    ) -> u64 {
        let here = |write: &Overwritten| write.entry == entry;
        let possible = || {
            let writes = self.overwritten.iter().enumerate();
            writes.filter(|(_, write)| here(write) && !write.visible.contains(cpu))
        };
        let older = possible().count();
        let chosen = if older == 0 || random.half() {
            None
        } else {
            possible().nth(random.below(older))
        };
        let (before, value) = chosen.map_or((self.overwritten.len(), current), |(at, write)| {
            (at, write.value)
        });
        let wrote_it = self.overwritten[..before].iter().rfind(|write| here(write));
        if let Some(released) = wrote_it.and_then(|write| write.released) {
            self.make_visible(CpuSet::one(cpu), |write| {
                write.time <= released[usize::from(write.writer)] && write.entry != entry
            });
        }
        value
    }

    /// Memory becomes something else: what was written there before concerns nobody.
    pub(crate) fn forget(&mut self, start: Hpa, bytes: u64) {
        let range = start.0..start.0 + bytes;
        self.overwritten
            .retain(|write| !range.contains(&write.entry.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Hpa = Hpa(0x1000);
    const B: Hpa = Hpa(0x1008);

    fn store(entry: Hpa, value: u64, release: bool) -> Store {
        Store {
            entry,
            value,
            release,
        }
    }

    /// The orders in which stores leave a buffer, over many seeds.
    fn orders(stores: &[Store]) -> Vec<Vec<u64>> {
        let mut orders: Vec<Vec<u64>> = (0..200)
            .map(|seed| {
                let mut random = Random::new(seed);
                let mut buffer = Buffer::default();
                for store in stores {
                    buffer.push(*store);
                }
                let leave = || buffer.take_any(&mut random).map(|store| store.value);
                core::iter::from_fn(leave).collect()
            })
            .collect();
        orders.sort_unstable();
        orders.dedup();
        orders
    }

    #[test]
    fn plain_stores_overtake_each_other_but_not_at_one_address() {
        let plain = |entry, value| store(entry, value, false);
        assert_eq!(
            orders(&[plain(A, 1), plain(B, 2), plain(A, 3)]),
            [vec![1, 2, 3], vec![1, 3, 2], vec![2, 1, 3]]
        );
    }

    #[test]
    fn a_release_store_leaves_after_everything_before_it() {
        assert_eq!(
            orders(&[store(A, 1, false), store(B, 2, true)]),
            [vec![1, 2]]
        );
        assert_eq!(
            orders(&[store(A, 1, true), store(B, 2, false)]),
            [vec![1, 2], vec![2, 1]]
        );
    }

    #[test]
    fn a_cpu_finds_its_newest_store() {
        let mut buffer = Buffer::default();
        buffer.push(store(A, 1, false));
        buffer.push(store(A, 2, false));
        assert_eq!(buffer.forward(A), Some(2));
        assert_eq!(buffer.forward(B), None);
    }

    /// What the walker of `cpu` may read at A, where 9 is in memory.
    fn readable(visibility: &mut Visibility, cpu: Cpu) -> Vec<u64> {
        let mut random = Random::new(1);
        let mut values: Vec<u64> = (0..100)
            .map(|_| visibility.walker_reads(cpu, A, 9, &mut random))
            .collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    #[test]
    fn walkers_read_old_values_until_the_writer_completes_them() {
        let mut visibility = Visibility::new(2);
        visibility.wrote(0, A, 7, false);
        visibility.wrote(0, A, 8, false);
        assert_eq!(readable(&mut visibility, 1), [7, 8, 9]);
        assert_eq!(readable(&mut visibility, 0), [7, 8, 9]);
        visibility.complete(0, CpuSet::one(0));
        assert_eq!(readable(&mut visibility, 0), [9]);
        assert_eq!(readable(&mut visibility, 1), [7, 8, 9]);
        visibility.complete(0, CpuSet::first(2));
        assert_eq!(readable(&mut visibility, 1), [9]);
        assert!(visibility.overwritten.is_empty());
    }

    #[test]
    fn a_barrier_of_a_cpu_that_has_not_seen_the_write_completes_nothing() {
        let mut visibility = Visibility::new(2);
        visibility.wrote(0, A, 8, false);
        visibility.complete(1, CpuSet::first(2));
        assert_eq!(readable(&mut visibility, 1), [8, 9]);
    }

    #[test]
    fn a_lock_passes_on_what_its_holder_has_seen() {
        let mut visibility = Visibility::new(3);
        visibility.wrote(0, A, 8, false);
        visibility.unlocked(0, 5);
        visibility.locked(1, 5);
        visibility.unlocked(1, 6);
        visibility.locked(2, 6);
        visibility.complete(2, CpuSet::first(3));
        assert_eq!(readable(&mut visibility, 0), [9]);
    }

    #[test]
    fn a_walker_that_finds_what_was_released_finds_what_came_before() {
        for (release, expected) in [(false, vec![8, 9]), (true, vec![9])] {
            let mut visibility = Visibility::new(2);
            visibility.wrote(0, A, 8, false);
            visibility.wrote(0, B, 0, release);
            let random = &mut Random::new(1);
            while visibility.walker_reads(1, B, 5, random) != 5 {}
            assert_eq!(readable(&mut visibility, 1), expected, "release: {release}");
            assert_eq!(readable(&mut visibility, 0), [8, 9]);
        }
    }

    #[test]
    fn reading_a_write_is_seeing_it_and_if_released_what_came_before() {
        for (release, expected) in [(false, vec![8, 9]), (true, vec![9])] {
            let mut visibility = Visibility::new(2);
            visibility.wrote(0, A, 8, false);
            visibility.wrote(0, B, 0, release);
            visibility.read(1, B);
            visibility.complete(1, CpuSet::first(2));
            assert_eq!(readable(&mut visibility, 1), expected, "release: {release}");
            assert_eq!(
                visibility
                    .overwritten
                    .iter()
                    .filter(|w| w.entry == B)
                    .count(),
                0
            );
        }
    }
}
