//! Store buffers, in the classic shapes.

use core::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};

use slat_machine::address::Hpa;
use slat_machine::event::{Event, WriteKind};

use crate::rig::{Rig, VTCR};

const SEEDS: u64 = 500;

/// Two entries of the last table, far from anything walked.
fn entries(rig: &Rig) -> (Hpa, Hpa) {
    let table = rig.tables[2].0;
    (Hpa(table + 0x800), Hpa(table + 0x808))
}

/// CPU 0 stores data, then a flag; CPU 1 waits for the flag and loads the data. Gives whether it
/// found the flag without the data.
fn message_is_lost(seed: u64, flag_order: Ordering) -> bool {
    let rig = Rig::new(seed, VTCR);
    let (data, flag) = entries(&rig);
    rig.machine.store(0, data, 8, Relaxed);
    rig.machine.store(0, flag, 8, flag_order);
    for _ in 0..100 {
        if rig.machine.load(1, flag, Acquire) == 8 {
            return rig.machine.load(1, data, Acquire) != 8;
        }
    }
    rig.machine.release(0);
    false
}

#[test]
fn a_message_is_never_lost_with_release() {
    assert!(!(0..SEEDS).any(|seed| message_is_lost(seed, Release)));
}

#[test]
fn a_message_may_be_lost_without_release() {
    assert!((0..SEEDS).any(|seed| message_is_lost(seed, Relaxed)));
}

/// Two CPUs store to one entry each, then load the other's.
fn store_buffering(seed: u64) -> (u64, u64) {
    let rig = Rig::new(seed, VTCR);
    let (x, y) = entries(&rig);
    rig.machine.store(0, x, 8, Release);
    rig.machine.store(1, y, 8, Release);
    let loads = (
        rig.machine.load(0, y, Acquire),
        rig.machine.load(1, x, Acquire),
    );
    assert_eq!(rig.machine.load(0, x, Acquire), 8, "one's own store");
    loads
}

#[test]
fn both_cpus_may_miss_the_others_store() {
    assert!((0..SEEDS).any(|seed| store_buffering(seed) == (0, 0)));
    assert!((0..SEEDS).any(|seed| store_buffering(seed) == (8, 8)));
}

#[test]
fn a_store_is_in_memory_after_release_and_told_once() {
    for seed in 0..50 {
        let rig = Rig::new(seed, VTCR);
        let (x, _) = entries(&rig);
        rig.machine.store(0, x, 8, Relaxed);
        rig.machine.release(0);
        assert_eq!(rig.machine.load(1, x, Acquire), 8);
        let write = Event::Write {
            entry: x,
            value: 8,
            kind: WriteKind::Plain,
        };
        let told = rig.events().iter().filter(|event| **event == write).count();
        assert_eq!(told, 1);
    }
}

#[test]
fn a_store_may_wait_for_long() {
    let waits = |seed| {
        let rig = Rig::new(seed, VTCR);
        let (x, y) = entries(&rig);
        rig.machine.store(0, x, 8, Relaxed);
        (0..10).all(|_| rig.machine.load(1, y, Acquire) == 0)
            && rig.machine.load(1, x, Acquire) == 0
    };
    assert!((0..SEEDS).any(waits));
}

#[test]
fn an_exchange_finds_what_is_in_memory_and_drains_what_came_before() {
    for seed in 0..50 {
        let rig = Rig::new(seed, VTCR);
        let (x, y) = entries(&rig);
        rig.machine.store(0, x, 8, Relaxed);
        assert_eq!(rig.machine.compare_exchange(0, y, 0, 16), Ok(()));
        assert_eq!(rig.machine.load(1, x, Acquire), 8);
        assert_eq!(rig.machine.compare_exchange(1, y, 0, 24), Err(16));
        assert_eq!(rig.machine.swap(1, y, 32), 16);
        assert_eq!(rig.machine.load(0, y, Acquire), 32);
    }
}

#[test]
fn a_barrier_leaves_nothing_in_the_store_buffer() {
    for seed in 0..50 {
        let rig = Rig::new(seed, VTCR);
        let (x, y) = entries(&rig);
        rig.machine.store(0, x, 8, Relaxed);
        rig.machine.store(0, y, 8, Relaxed);
        rig.publish(0);
        let found = [x, y].map(|entry| rig.machine.load(1, entry, Acquire));
        assert_eq!(found, [8, 8]);
    }
}
