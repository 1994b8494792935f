//! Guests that run while the host changes their memory.
//!
//! A guest's access is a translation and a use of it. Hardware finishes accesses that began with
//! an old translation before a flush is complete; here a gate does: guests pass it for reading
//! for each access, and every flush waits until it has been empty.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, RwLock};
use std::thread;

use slat::host::Host;
use slat::vcpu::Denial;
use slat::{Fault, Outcome};
use slat_mm::arena::Arena;
use slat_mm::{Backing, DriverDevice, FrameSize, Frames, Protection};
use slat_table::address::{Hpa, HpaRange, PAGE_SIZE};
use slat_table::attributes::{Access, MemoryType};

use crate::guest::{BLOCK, Guest, Space, arena, hva, pages};

const DEVICE: u64 = BLOCK + 2048;

/// A small generator of numbers that look random (`splitmix64`).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// A vCPU that counts in pages of its own and looks at a device.
struct Runner<'a> {
    guest: &'a Guest,
    arena: &'a Arena,
    gate: &'a RwLock<()>,
}

impl Runner<'_> {
    /// Adds one to the number at the start of `page`, and returns what it was; `None` where the
    /// guest is not allowed to.
    fn increment(&self, page: u64) -> Option<u64> {
        let gpa = self.guest.gpa(hva(page));
        let mut vcpu = self.guest.memory.vcpu();
        loop {
            let inside = self.gate.read().unwrap();
            let found = self.guest.memory.translate(gpa);
            if let Some(found) = found.filter(|found| found.attributes.permissions.write) {
                let mut bytes = [0; 8];
                self.arena.read(found.hpa, &mut bytes);
                let count = u64::from_le_bytes(bytes);
                self.arena.write(found.hpa, &(count + 1).to_le_bytes());
                return Some(count);
            }
            drop(inside);
            match vcpu
                .fault(Fault {
                    gpa,
                    access: Access::Write,
                })
                .unwrap()
            {
                Outcome::Denied {
                    reason: Denial::NotPermitted,
                    ..
                } => return None,
                Outcome::Denied { reason, .. } => panic!("denied: {reason:?}"),
                _ => {}
            }
        }
    }

    /// Whether the device was there, and if so, where it should be.
    fn look_at_device(&self, revoked: &AtomicBool) -> bool {
        let gpa = self.guest.gpa(hva(DEVICE + 3));
        let inside = self.gate.read().unwrap();
        if self.guest.memory.translate(gpa).is_some() {
            // Set only after a revocation has returned, which waits for the gate.
            assert!(
                !revoked.load(Ordering::SeqCst),
                "a guest reaches a revoked device"
            );
            return true;
        }
        drop(inside);
        let mut vcpu = self.guest.memory.vcpu();
        vcpu.fault(Fault {
            gpa,
            access: Access::Read,
        })
        .unwrap();
        false
    }
}

/// Changes the memory at random: moves, splits, write-protects, grants.
fn churn(space: &Space, random: &mut Random) {
    let page = BLOCK + random.below(2048);
    let at = hva(page);
    let few = pages(page, (1 + random.below(600)).min(BLOCK + 2048 - page));
    match random.below(6) {
        0 | 1 => drop(space.migrate(at, FrameSize::Base)),
        2 => drop(space.migrate(at, FrameSize::Huge)),
        3 => drop(space.split(at)),
        4 => space.protect(few, Protection::ReadOnly).unwrap(),
        _ => space
            .protect(pages(BLOCK, 2048), Protection::ReadWrite)
            .unwrap(),
    }
}

#[test]
fn guests_never_notice_that_their_memory_moves() {
    let arena = arena(24);
    let space = Space::new(Arc::clone(&arena));
    let ram = pages(BLOCK, 2048);
    space
        .map(ram, Protection::ReadWrite, Backing::Anonymous)
        .unwrap();
    let range = HpaRange::new(Hpa::new(0x10_0000_0000), 16 * PAGE_SIZE).unwrap();
    let device = DriverDevice::new(range, MemoryType::Device);
    let backing = Backing::Driver {
        device: device.clone(),
        offset: 0,
    };
    space
        .map(pages(DEVICE, 16), Protection::ReadWrite, backing)
        .unwrap();
    let guest = Guest::new(&space, ram.hull(&pages(DEVICE, 16)));
    let gate = Arc::new(RwLock::new(()));
    let waits = Arc::clone(&gate);
    guest
        .platform
        .on_flush(move |_| drop(waits.write().unwrap()));

    let (stop, revoked) = (AtomicBool::new(false), AtomicBool::new(false));
    let runner = Runner {
        guest: &guest,
        arena: &arena,
        gate: &gate,
    };
    let (stop, revoked, runner) = (&stop, &revoked, &runner);
    thread::scope(|scope| {
        let runners = [0u64, 1].map(|parity| {
            scope.spawn(move || {
                let mut random = Random(parity);
                let mut counts = [0u64; 32];
                let mut done = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let index = random.below(32);
                    let page = BLOCK + index * 64 + parity;
                    let expected = &mut counts[usize::try_from(index).unwrap()];
                    if let Some(found) = runner.increment(page) {
                        assert_eq!(found, *expected, "page {page:#x}");
                        *expected += 1;
                        done += 1;
                    }
                    runner.look_at_device(revoked);
                }
                done
            })
        });
        let mut random = Random(7);
        for step in 0..3000 {
            churn(&space, &mut random);
            if step % 16 == 0 {
                device.revoke();
                revoked.store(true, Ordering::SeqCst);
                thread::yield_now();
                revoked.store(false, Ordering::SeqCst);
                device.restore();
            }
        }
        stop.store(true, Ordering::Relaxed);
        for runner in runners {
            assert!(
                runner.join().unwrap() > 0,
                "a guest that never ran proves nothing"
            );
        }
    });
    guest.platform.clear_flush_hook();
    let done = space.statistics().done;
    assert!(
        done.migrated.huge > 100 && done.migrated.base > 100,
        "{done:?}"
    );
    guest.check();
    space.release();
    assert_eq!(arena.allocated_pages(), 0);
}

#[test]
fn threads_that_bring_one_page_get_one_frame() {
    for round in 0..60 {
        let arena = arena(8);
        let space = Space::new(Arc::clone(&arena));
        let block = pages(BLOCK, 512);
        space
            .map(block, Protection::ReadWrite, Backing::Anonymous)
            .unwrap();
        arena.refuse_huge(round % 2 == 0);
        let barrier = Barrier::new(4);
        let bring = |populate: bool| {
            barrier.wait();
            if populate {
                space.populate(pages(BLOCK, 16), Access::Write).unwrap();
            }
            let page = space.fault(hva(BLOCK + 9), Access::Write).unwrap();
            page.hpa.raw() - page.block.start().raw()
        };
        let bring = &bring;
        let all = thread::scope(|scope| {
            let threads = [true, false, true, false].map(|how| scope.spawn(move || bring(how)));
            threads.map(|thread| thread.join().unwrap())
        });
        assert!(all.iter().all(|frame| *frame == all[0]), "{all:x?}");
        assert_eq!(
            space.statistics().resident.bytes() / PAGE_SIZE,
            arena.allocated_pages()
        );
    }
}
