//! Many threads map and unmap at random. The machine panics when freed memory is touched; the
//! test looks for translations that nobody made and for tables that are lost.

use core::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use slat_table::cache::TableCache;
use slat_table::restriction::PartialBlock;

use crate::setup::{
    GIB, HOST, MIB, MIB2, Machine, PAGE, RAM, Table, gpa, hpa, new_table, page, range,
};

const ROUNDS: u64 = 3_000;

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

/// A page somewhere in two clusters of four spans, 1 GiB apart.
fn somewhere(numbers: &mut Numbers) -> u64 {
    numbers.below(2) * GIB + numbers.below(4) * 2 * MIB + numbers.below(8) * 4096
}

fn fault(table: &Table, numbers: &mut Numbers, mapped: &AtomicU64) {
    let at = somewhere(numbers);
    let (wanted, level) = if numbers.below(8) == 0 {
        (range(at & !(2 * MIB - 1), 2 * MIB), MIB2)
    } else {
        (page(at), PAGE)
    };
    let mut cache = TableCache::new(table);
    cache.fill().unwrap();
    let to = hpa(HOST + wanted.start().raw());
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
        drop(
            table
                .restrict(&conflict)
                .unmap(&conflict, PartialBlock::Drop),
        );
    }
}

fn remove(table: &Table, numbers: &mut Numbers) {
    let mut cache = TableCache::new(table);
    let at = somewhere(numbers);
    let bytes = [4096, 2 * MIB, 4 * MIB, GIB][usize::try_from(numbers.below(4)).unwrap()];
    let gone = range(at, bytes);
    let mut restriction = table.restrict(&gone);
    match numbers.below(4) {
        0 => drop(restriction.unmap(&gone, PartialBlock::Split(&mut cache))),
        1 => drop(restriction.split(&range(at, 4096), PAGE, &mut cache)),
        _ => drop(restriction.unmap(&gone, PartialBlock::Drop)),
    }
    if numbers.below(2) == 0 {
        drop(restriction.prune(&gone));
    }
}

fn look(table: &Table, numbers: &mut Numbers) {
    let at = somewhere(numbers);
    if let Some(found) = table.translate(gpa(at)) {
        assert_eq!(found.hpa, hpa(HOST + at));
    }
    table.age(&range(at, 2 * MIB));
    table.for_each_leaf(&range(at, 4 * MIB), |_, level| assert!(level <= MIB2));
}

#[test]
fn nothing_is_lost_between_threads() {
    for stripes in [1, 2, 64] {
        let machine = Machine::new();
        let table = new_table(&machine, 40, stripes);
        let mapped = AtomicU64::new(0);
        thread::scope(|scope| {
            for seed in 1..=4u64 {
                let (table, mapped) = (&table, &mapped);
                scope.spawn(move || {
                    let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                    for _ in 0..ROUNDS {
                        match numbers.below(6) {
                            0 => remove(table, &mut numbers),
                            1 => look(table, &mut numbers),
                            _ => fault(table, &mut numbers, mapped),
                        }
                    }
                });
            }
        });
        assert!(mapped.load(Ordering::Relaxed) > ROUNDS / 100);
        let all = range(0, 1 << 40);
        let snapshot = table.snapshot(&all);
        assert!(
            table.hold(&all).is_current(&snapshot),
            "every count is down again"
        );
        drop(table.restrict(&all).unmap(&all, PartialBlock::Drop));
        assert_eq!(machine.live_tables(), 1);
        drop(table);
        assert_eq!(machine.live_tables(), 0);
    }
}
