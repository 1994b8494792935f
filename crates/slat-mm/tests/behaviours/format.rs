//! U1 to U3: what a descriptor says and what an access then does, for every combination.
//!
//! The oracle is written from the manual's tables (Arm DDI 0487: D8.3.1 for descriptors, D8.4 for
//! `S2AP` and `XN`, D8.5.2 for `DBM`, D8.6.5 and D8.6.6 for `MemAttr`) and shares nothing with
//! the library.

use slat::Outcome;
use slat_table::address::{Gpa, Hpa};
use slat_table::attributes::{Access, Attributes, Execute, MemoryType, Permissions};
use slat_table::format::arm64::{Arm64, Arm64Features};
use slat_table::format::{Entry, Format};
use slat_table::geometry::Level;
use slat_table::platform::TableMemory;
use slat_table::simulated::Event;

use crate::machine::{BLOCK, FEATURES, GPA, HVA, PAGE, Vm, hva_range, region};

const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::Execute];

/// The three levels that have leaves, pages first, and the bits below their output address.
const LEVELS: [(Level, u32); 3] = [(Level::PAGE, 12), (Level::new(1), 21), (Level::new(2), 30)];

/// Every combination of the features that change what a descriptor says.
fn all_features() -> impl Iterator<Item = Arm64Features> {
    (0..8u8).map(|bits| Arm64Features {
        force_write_back: bits & 1 != 0,
        execute_never_extended: bits & 2 != 0,
        hardware_accessed: bits & 4 != 0,
        hardware_dirty: bits & 4 != 0,
        ..FEATURES
    })
}

/// What the hardware makes of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Invalid,
    Table,
    /// A leaf that allows reading, writing, executing (at EL1 or EL0).
    Leaf([bool; 3]),
    /// Reserved, or of a kind that the library never makes.
    Foreign,
}

/// The manual on `raw`, without software bits, at `level`.
fn oracle(features: Arm64Features, level: Level, raw: u64) -> Meaning {
    let bit = |number: u32| raw >> number & 1 != 0;
    let bits = |low: u32, width: u32| raw >> low & ((1 << width) - 1);
    match (bits(0, 2), level == Level::PAGE) {
        (0b00 | 0b10, _) => return Meaning::Invalid,
        (0b11, false) => return Meaning::Table,
        // A block at the last level is reserved.
        (0b01, true) => return Meaning::Foreign,
        _ => {}
    }
    let (device, known_memory) = match (bits(2, 4), features.force_write_back) {
        (0b0000 | 0b0001, _) => (true, true),
        (0b0101, _) | (0b1010 | 0b1111, false) | (0b0110, true) => (false, true),
        _ => (false, false),
    };
    let executes = match (bits(53, 2), features.execute_never_extended) {
        // Both, or EL0 only, or EL1 only.
        (0b00, _) | (0b01 | 0b11, true) => Some(true),
        (0b10, _) => Some(false),
        _ => None,
    };
    let tracks = features.hardware_dirty;
    let (writes, modifier) = (bit(7), bit(51));
    // Where dirty state is tracked, writable is what has the modifier; elsewhere it has no
    // meaning, and what is written without it would leave no trace.
    let writable = if tracks { modifier } else { writes };
    let odd = if tracks {
        writes && !modifier
    } else {
        modifier
    };
    let shared = bits(8, 2) == 0b11;
    let ours = known_memory && shared && !bit(11) && !odd;
    match executes {
        Some(executes) if ours && !(device && executes) => {
            Meaning::Leaf([bit(6), writable, executes])
        }
        _ => Meaning::Foreign,
    }
}

/// What the library makes of the same descriptor.
fn decoded(features: Arm64Features, level: Level, raw: u64) -> Meaning {
    match Arm64::decode(&features, level, raw) {
        Entry::Empty => Meaning::Invalid,
        Entry::Table(_) => Meaning::Table,
        Entry::Foreign(_) => Meaning::Foreign,
        Entry::Leaf { attributes, .. } => {
            Meaning::Leaf(ACCESSES.map(|access| attributes.permissions.allow(access)))
        }
    }
}

#[test]
fn u1_every_combination_of_bits_allows_what_the_manual_says() {
    // Bits 0 to 11 and 51 to 54: all that stage 2 gives a meaning to, but for the address.
    const LOW: u32 = 12;
    const HIGH: u32 = 4;
    let mut leaves = 0u64;
    for features in all_features() {
        for (level, shift) in LEVELS {
            let address = 5 << shift;
            for counter in 0..1u64 << (LOW + HIGH) {
                let raw = address | counter & ((1 << LOW) - 1) | counter >> LOW << 51;
                let meaning = oracle(features, level, raw);
                assert_eq!(
                    decoded(features, level, raw),
                    meaning,
                    "{raw:#x} at {level:?}"
                );
                leaves += u64::from(matches!(meaning, Meaning::Leaf(_)));
            }
        }
    }
    assert!(leaves > 1000, "{leaves} of the combinations are leaves");
}

/// A page of RAM that allows everything.
fn leaf(level: Level, shift: u32) -> u64 {
    let everything = Attributes::new(Permissions::ALL, MemoryType::WriteBack);
    Arm64::leaf(&FEATURES, level, Hpa::new(5 << shift), everything).unwrap()
}

#[test]
fn u2_a_reserved_bit_at_any_level_makes_the_entry_no_leaf() {
    for (level, shift) in LEVELS {
        let raw = leaf(level, shift);
        assert!(matches!(decoded(FEATURES, level, raw), Meaning::Leaf(_)));
        // FnXS without FEAT_XS, the address bits below a block's size, the address bits above 48
        // without FEAT_LPA2, and what is above the software bits.
        let reserved = (11..shift).chain(48..51).chain(59..64);
        for bit in reserved {
            let entry = raw | 1 << bit;
            assert_eq!(
                decoded(FEATURES, level, entry),
                Meaning::Foreign,
                "bit {bit} at {level:?}"
            );
        }
        for bit in 55..59 {
            let entry = raw | 1 << bit;
            let meaning = decoded(FEATURES, level, raw);
            assert_eq!(
                decoded(FEATURES, level, entry),
                meaning,
                "software's bit {bit}"
            );
        }
    }
    for level in [3, 4].map(Level::new) {
        let entry = leaf(Level::new(2), 30);
        assert_eq!(
            decoded(FEATURES, level, entry),
            Meaning::Foreign,
            "no blocks there"
        );
    }
}

#[test]
fn u2_a_damaged_entry_is_no_translation_and_the_next_fault_replaces_it() {
    let vm = Vm::with_ram(2 * BLOCK);
    vm.platform.record();
    assert_eq!(vm.cpu().store(GPA, 7), Ok(()));
    vm.arena.refuse_huge(true);
    assert_eq!(vm.cpu().store(GPA + BLOCK, 8), Ok(()));
    for (gpa, number, leaf) in [(GPA, 7, 0b01), (GPA + BLOCK, 8, 0b11)] {
        let hpa = vm.memory.translate(Gpa::new(gpa)).unwrap().hpa.raw();
        let events = vm.platform.take_events();
        let is_leaf = |event: &Event| match event {
            Event::Written { entry, new, .. } => {
                let same = new & 0x0000_ffff_ffff_f000 == hpa && new & 0b11 == leaf;
                same.then_some((*entry, *new))
            }
            _ => None,
        };
        let (entry, value) = events.iter().find_map(is_leaf).unwrap();
        vm.platform.swap(entry, value | 1 << 50);
        assert_eq!(vm.memory.translate(Gpa::new(gpa)), None);
        assert_eq!(
            vm.fault(gpa, Access::Read),
            Outcome::Retry,
            "it is broken and flushed first"
        );
        assert_eq!(vm.cpu().load(gpa), Ok(number));
        // What the next round looks for is in the journal of what went before.
        vm.platform.take_events();
        if gpa == GPA {
            drop(vm.memory.invalidate(hva_range(HVA + BLOCK, PAGE)));
            assert_eq!(vm.cpu().load(GPA + BLOCK), Ok(8));
        }
    }
    vm.end();
}

#[test]
fn u3_every_combination_of_permissions_at_every_level_is_what_was_asked_for() {
    let executes = [
        Execute::Never,
        Execute::Always,
        Execute::Privileged,
        Execute::Unprivileged,
    ];
    for (level, shift) in LEVELS {
        for (bits, execute) in (0..4u8).flat_map(|bits| executes.map(|execute| (bits, execute))) {
            let permissions = Permissions {
                read: bits & 1 != 0,
                write: bits & 2 != 0,
                execute,
            };
            let may_execute = execute != Execute::Never;
            // Write-only and execute-only are not reserved in stage 2, as they may be elsewhere.
            let expected = Meaning::Leaf([permissions.read, permissions.write, may_execute]);
            for features in all_features() {
                let one_level = matches!(execute, Execute::Privileged | Execute::Unprivileged);
                for memory in [MemoryType::WriteBack, MemoryType::Device] {
                    let possible = (features.execute_never_extended || !one_level)
                        && !(memory == MemoryType::Device && may_execute);
                    let attributes = Attributes::new(permissions, memory);
                    let encoded = Arm64::leaf(&features, level, Hpa::new(5 << shift), attributes);
                    assert_eq!(encoded.is_ok(), possible, "{attributes:?} at {level:?}");
                    if let Ok(raw) = encoded {
                        assert_eq!(oracle(features, level, raw), expected, "{raw:#x}");
                    }
                }
            }
        }
    }
}

#[test]
fn u3_slots_and_mappings_allow_together_what_both_allow_at_every_level() {
    use slat_mm::Protection::{ReadOnly, ReadWrite};
    for (bytes, level) in [(PAGE, 0), (BLOCK, 1)] {
        for protection in [ReadOnly, ReadWrite] {
            for read_only_slot in [false, true] {
                let vm = Vm::new(8);
                vm.map_ram(HVA, bytes);
                vm.space
                    .populate(hva_range(HVA, bytes), Access::Write)
                    .unwrap();
                vm.space.protect(hva_range(HVA, bytes), protection).unwrap();
                let slot = region(1, GPA, bytes, HVA);
                let slot = if read_only_slot {
                    slot.read_only()
                } else {
                    slot
                };
                vm.memory.insert(slot).unwrap();
                let found = vm.memory.translate(Gpa::new(GPA)).unwrap();
                assert_eq!(found.level.index(), level);
                let expected = [true, protection == ReadWrite && !read_only_slot, true];
                let allowed = ACCESSES.map(|access| found.attributes.permissions.allow(access));
                assert_eq!(allowed, expected);
                let mut cpu = vm.cpu();
                assert_eq!(cpu.load(GPA).is_ok(), expected[0]);
                assert_eq!(cpu.store(GPA, 1).is_ok(), expected[1]);
                assert_eq!(cpu.execute(GPA).is_ok(), expected[2]);
                drop(cpu);
                vm.end();
            }
        }
    }
}
