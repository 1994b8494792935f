//! Who has which memory: tables, frames and devices are never the same, and a VM has one root.

use slat_machine::address::{Hpa, Hva};
use slat_machine::event::{AccessKind, Event};
use slat_machine::judge::Rule;

use crate::scenario::*;

/// A kernel's addresses: the upper half of the address space.
const KERNEL_HVA: u64 = 0xffff_8000_0000_0000;

impl Scenario {
    fn device(&mut self, hva: u64, hpa: u64) -> &mut Self {
        self.event(Event::Answered {
            vm: VM,
            hva: Hva(hva),
            bytes: KIB4,
            hpa: Hpa(hpa),
            writable: true,
            device: true,
        })
    }
}

#[test]
fn memory_is_not_given_to_two() {
    let mut s = Scenario::hosted();
    s.frame(FRAME + KIB4, KIB4)
        .ends_with(Rule::FrameAllocatedTwice);
    let mut s = Scenario::hosted();
    s.frame(LAST, KIB4).ends_with(Rule::FrameAllocatedTwice);
    let mut s = Scenario::hosted();
    s.allocate(FRAME + KIB4).ends_with(Rule::NoSuchTable);
    let mut s = Scenario::hosted();
    s.frame_freed(FRAME + KIB4, KIB4)
        .allocate(FRAME + KIB4)
        .is_fine();
}

#[test]
fn a_guest_is_not_given_a_table_though_the_host_calls_it_a_device() {
    let mut s = Scenario::hosted();
    let hva = HVA + KIB4;
    s.device(hva, LAST).write(LAST + 8, LAST | PAGE);
    s.ends_with(Rule::LeafToUnallocatedMemory);
}

#[test]
fn memory_that_a_vm_was_granted_does_not_become_a_table() {
    let mut s = Scenario::hosted();
    s.device(HVA + KIB4, OTHER)
        .allocate(OTHER)
        .ends_with(Rule::NoSuchTable);
}

#[test]
fn a_grant_at_a_kernel_address_is_a_grant() {
    let hosted = || {
        let mut s = Scenario::boot();
        s.slot(1, GPA, MIB2, KERNEL_HVA).frame(FRAME, MIB2);
        s.tables();
        s
    };
    let mut s = hosted();
    s.answered(KERNEL_HVA, KIB4, FRAME)
        .frame_freed(FRAME, KIB4)
        .ends_with(Rule::FrameFreedWhileGranted);
    let mut s = hosted();
    s.device(KERNEL_HVA, OTHER_FRAME)
        .write(LAST, OTHER_FRAME | PAGE)
        .access(AccessKind::Write, GPA, OTHER_FRAME)
        .is_fine();
}

#[test]
fn a_vm_gets_another_root_only_when_no_other_cpu_uses_the_old_one() {
    let mut s = Scenario::mapped();
    s.allocate(OTHER).enter_root(OTHER, 0).flush_all();
    s.free(ROOT).is_fine();
    let mut s = Scenario::mapped();
    s.on(1).enter_with(0).allocate(OTHER);
    s.on(0).enter_root(OTHER, 0).ends_with(Rule::BadRegisters);
}

#[test]
fn a_page_that_was_written_where_no_slot_is_may_not_be_dirty_later() {
    let mut s = Scenario::boot_with(HARDWARE_ACCESSED | HARDWARE_DIRTY);
    s.event(Event::Faulted {
        vm: VM,
        gpa: slat_machine::address::Gpa(GPA),
        kind: AccessKind::Write,
    });
    // Nothing is known of slots yet: the write counts.
    s.tables().write(LAST, FRAME | PAGE | MODIFIER).is_fine();
    let mut s = Scenario::boot_with(HARDWARE_ACCESSED | HARDWARE_DIRTY);
    s.slot(1, GPA, KIB4, HVA)
        .frame(FRAME, MIB2)
        .event(Event::Faulted {
            vm: VM,
            gpa: slat_machine::address::Gpa(GPA + KIB4),
            kind: AccessKind::Write,
        });
    s.slot(2, GPA + KIB4, KIB4, HVA + KIB4)
        .answered(HVA, MIB2, FRAME)
        .tables()
        .write(LAST + 8, (FRAME + KIB4) | PAGE | MODIFIER);
    s.ends_with(Rule::InventedDirtyBit);
}
