//! Many threads map and unmap at random. The machine panics when freed memory is touched; the
//! test looks for translations that nobody made and for tables that are lost.

use core::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use slat_table::cache::TableCache;
use slat_table::format::Format;
use slat_table::restriction::PartialBlock;

use crate::setup::{Bench, PAGE, RAM, gpa, hpa, range};

/// Operations of each thread. There are many rows.
const ROUNDS: u64 = 100;

/// A small generator of numbers that look random (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A page somewhere in two clusters of four spans.
fn somewhere<F: Format>(bench: &Bench<F>, numbers: &mut Numbers) -> u64 {
    let cluster = numbers.below(2) * bench.upper;
    cluster + numbers.below(4) * bench.span + numbers.below(8) * bench.page
}

fn fault<F: Format>(bench: &Bench<F>, numbers: &mut Numbers, mapped: &AtomicU64) {
    let table = &*bench.table;
    let at = somewhere(bench, numbers);
    let block = bench.blocks().first().copied();
    let (wanted, level) = match block {
        Some((level, bytes)) if numbers.below(8) == 0 => (range(at & !(bytes - 1), bytes), level),
        _ => (bench.page(at), PAGE),
    };
    let mut cache = TableCache::new(table);
    cache.fill().unwrap();
    let to = hpa(bench.host + wanted.start().raw());
    let leaves = table.leaves(wanted, to, level, RAM).unwrap();
    let snapshot = table.snapshot(&wanted);
    let mut hold = table.hold(&wanted);
    if !hold.is_current(&snapshot) {
        return;
    }
    let installed = hold.install(&leaves, &mut cache).unwrap();
    drop(hold);
    table.settle(&installed, wanted);
    mapped.fetch_add(installed.new, Ordering::Relaxed);
    if let Some(conflict) = installed.conflict {
        bench.unmap(&conflict);
    }
}

fn remove<F: Format>(bench: &Bench<F>, numbers: &mut Numbers) {
    let table = &*bench.table;
    let mut cache = TableCache::new(table);
    let at = somewhere(bench, numbers);
    let sizes = [bench.page, bench.span, 2 * bench.span, bench.upper];
    let bytes = sizes[usize::try_from(numbers.below(4)).unwrap()];
    let gone = range(at, bytes);
    let mut restriction = table.restrict(&gone);
    match numbers.below(4) {
        0 => drop(restriction.unmap(&gone, PartialBlock::Split(&mut cache))),
        1 => drop(restriction.split(&bench.page(at), PAGE, &mut cache)),
        _ => drop(restriction.unmap(&gone, PartialBlock::Drop)),
    }
    if numbers.below(2) == 0 {
        drop(restriction.prune(&gone));
    }
}

fn look<F: Format>(bench: &Bench<F>, numbers: &mut Numbers) {
    let at = somewhere(bench, numbers);
    if let Some(found) = bench.table.translate(gpa(at)) {
        assert_eq!(found.hpa, hpa(bench.host + at));
    }
    bench.table.age(&range(at, bench.span));
    let leaves = |_, level| assert!(level <= PAGE.up());
    bench
        .table
        .for_each_leaf(&range(at, 2 * bench.span), leaves);
}

fn nothing_is_lost_between_threads<F: Format>(features: F::Features, bits: u8) {
    for stripes in [1, 2, 64] {
        let bench = Bench::<F>::with_stripes(features, bits, stripes);
        let mapped = AtomicU64::new(0);
        thread::scope(|scope| {
            for seed in 1..=4u64 {
                let (bench, mapped) = (&bench, &mapped);
                scope.spawn(move || {
                    let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                    for _ in 0..ROUNDS {
                        match numbers.below(6) {
                            0 => remove(bench, &mut numbers),
                            1 => look(bench, &mut numbers),
                            _ => fault(bench, &mut numbers, mapped),
                        }
                    }
                });
            }
        });
        assert!(mapped.load(Ordering::Relaxed) > ROUNDS / 100);
        let all = range(0, bench.end);
        let snapshot = bench.table.snapshot(&all);
        assert!(
            bench.table.hold(&all).is_current(&snapshot),
            "every count is down again"
        );
        bench.unmap(&all);
        assert_eq!(bench.machine.live_tables(), 1);
        drop(bench.table);
        assert_eq!(bench.machine.live_tables(), 0);
    }
}

crate::setup::for_every_format! {
    nothing_is_lost_between_threads,
}
