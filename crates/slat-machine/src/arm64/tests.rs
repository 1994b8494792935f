//! What each bit of an entry, a register and an operand means.

use super::descriptor::READ;
use super::*;
use crate::address::Gpa;
use crate::architecture::{Effect, Forgotten, Leaf, Reach};

mod granules;

/// 39 guest and 40 physical address bits, the root at the manual's level 1.
const VTCR: u64 = vtcr(39, 1, 2);
const HARDWARE_DIRTY: u64 = 0b11 << 21;

/// `VTCR_EL2` for so many guest address bits, `SL0` and `PS`.
const fn vtcr(bits: u64, start: u64, size: u64) -> u64 {
    let t0sz = 64 - bits;
    size << 16 | start << 6 | t0sz
}

fn registers(vttbr: u64, vtcr: u64) -> Registers {
    Registers {
        vttbr,
        vtcr,
        force_write_back: false,
    }
}

fn stage_two(vtcr: u64, force_write_back: bool) -> StageTwo {
    let registers = Registers {
        force_write_back,
        ..registers(0x4000_0000, vtcr)
    };
    StageTwo::new(&registers).unwrap()
}

const READ_ONLY: Leaf = Leaf {
    hpa: Hpa(0x8000_0000),
    read: true,
    write: false,
    becomes_dirty: false,
    dirty: false,
    execute: true,
    accessed: true,
    memory: 0b1111,
    device: false,
    run_bits: 0,
};
const VALID: u64 = 0b01;
const TABLE_OR_PAGE: u64 = 0b10;
/// The page above.
const PAGE: u64 = 0x8000_0000 + 0x77f;
/// The same as a block.
const BLOCK: u64 = PAGE & !TABLE_OR_PAGE;
const NEVER: u64 = 0b10 << 53;

fn leaf(change: impl FnOnce(&mut Leaf)) -> Descriptor {
    let mut leaf = READ_ONLY;
    change(&mut leaf);
    Descriptor::Leaf(leaf)
}

fn memory(memory: u8, device: bool) -> Descriptor {
    leaf(|leaf| (leaf.memory, leaf.device) = (memory, device))
}

fn is_reserved(descriptor: Descriptor) -> bool {
    matches!(descriptor, Descriptor::Reserved(_))
}

#[test]
fn kinds_of_entries_are_told_apart_by_two_bits_and_the_level() {
    let stage = stage_two(VTCR, false);
    let table = Descriptor::Table(Hpa(0x8000_0000));
    for (level, raw, expected) in [
        (0, 0, Descriptor::Invalid),
        (0, PAGE - VALID, Descriptor::Invalid),
        (1, BLOCK - VALID, Descriptor::Invalid),
        (2, u64::MAX - VALID, Descriptor::Invalid),
        (0, BLOCK, Descriptor::Invalid),
        (0, PAGE, leaf(|_| {})),
        (1, BLOCK, leaf(|_| {})),
        (2, BLOCK, leaf(|_| {})),
        (1, PAGE, table),
        (2, PAGE, table),
        (1, 0x8000_0003, table),
        (2, 0x8000_0003, table),
        // Attributes of tables belong to stage 1 and are ignored.
        (1, 0xf800_0000_8000_0ffc | 3, table),
    ] {
        assert_eq!(stage.decode(level, raw), expected, "{level} {raw:#x}");
    }
    let deep = stage_two(vtcr(48, 2, 5), false);
    assert_eq!(deep.decode(3, BLOCK), Descriptor::Invalid);
    assert_eq!(deep.decode(3, PAGE), table);
}

#[test]
fn permissions_and_flags_are_read_from_their_bits() {
    let stage = stage_two(VTCR, false);
    for (raw, expected) in [
        (PAGE & !READ, leaf(|leaf| leaf.read = false)),
        (PAGE | WRITE, leaf(|leaf| leaf.write = true)),
        (
            PAGE & !READ | WRITE,
            leaf(|leaf| (leaf.read, leaf.write) = (false, true)),
        ),
        (PAGE & !ACCESS_FLAG, leaf(|leaf| leaf.accessed = false)),
        (PAGE | 0b01 << 53, leaf(|_| {})),
        (PAGE | NEVER, leaf(|leaf| leaf.execute = false)),
        (PAGE | 0b11 << 53, leaf(|_| {})),
        // Software's bits, and the contiguous hint.
        (PAGE | 0b1111 << 55, leaf(|_| {})),
        (PAGE | 1 << 52, leaf(|leaf| leaf.run_bits = 4)),
        // Shareability: none, outer, inner.
        (PAGE & !(0b11 << 8), leaf(|_| {})),
        (PAGE & !(0b01 << 8), leaf(|_| {})),
        // Without HD the modifier is ignored.
        (PAGE | DIRTY_BIT_MODIFIER, leaf(|_| {})),
        (
            PAGE | DIRTY_BIT_MODIFIER | WRITE,
            leaf(|leaf| leaf.write = true),
        ),
    ] {
        assert_eq!(stage.decode(0, raw), expected, "{raw:#x}");
    }
}

#[test]
fn with_hardware_dirty_state_the_modifier_counts() {
    let stage = stage_two(VTCR | HARDWARE_DIRTY, false);
    let clean = PAGE | DIRTY_BIT_MODIFIER;
    let dirty = clean | WRITE;
    assert_eq!(
        stage.decode(0, clean),
        leaf(|leaf| leaf.becomes_dirty = true)
    );
    assert_eq!(
        stage.decode(0, dirty),
        leaf(|leaf| (leaf.write, leaf.dirty) = (true, true))
    );
    assert_eq!(
        stage.decode(0, PAGE | WRITE),
        leaf(|leaf| leaf.write = true)
    );
    assert_eq!(stage.with_dirty(0, clean), Some(dirty));
    assert_eq!(stage.with_dirty(0, PAGE), None);
    assert_eq!(stage.with_accessed(0, PAGE & !ACCESS_FLAG), Some(PAGE));
}

#[test]
fn hardware_sets_bits_only_if_told_to() {
    let without = stage_two(VTCR, false);
    assert_eq!(without.with_accessed(0, PAGE), None);
    assert_eq!(without.with_dirty(0, PAGE | DIRTY_BIT_MODIFIER), None);
    // HD without HA does nothing.
    let half = stage_two(VTCR | 1 << 22, false);
    assert_eq!(half.with_dirty(0, PAGE | DIRTY_BIT_MODIFIER), None);
    assert_eq!(half.decode(0, PAGE | DIRTY_BIT_MODIFIER), leaf(|_| {}));
    let accessed = stage_two(VTCR | 1 << 21, false);
    assert_eq!(accessed.with_accessed(0, PAGE & !ACCESS_FLAG), Some(PAGE));
    assert_eq!(accessed.with_accessed(1, 0x8000_0003), None);
    assert_eq!(accessed.with_dirty(0, PAGE | DIRTY_BIT_MODIFIER), None);
}

#[test]
fn memory_types_depend_on_forced_write_back() {
    for force_write_back in [false, true] {
        let stage = stage_two(VTCR, force_write_back);
        for attribute in 0..16_u8 {
            let raw = PAGE & !(0xf << 2) | u64::from(attribute) << 2;
            let expected = match (force_write_back, attribute) {
                (_, 0..=3) => Some(true),
                (true, 5..=7) | (false, 5..=7 | 9..=11 | 13..=15) => Some(false),
                _ => None,
            };
            let got = stage.decode(0, raw);
            match expected {
                Some(device) => assert_eq!(got, memory(attribute, device), "{attribute:#b}"),
                None => assert!(is_reserved(got), "{attribute:#b}: {got:?}"),
            }
        }
    }
}

#[test]
fn reserved_bits_are_seen() {
    let stage = stage_two(VTCR, false);
    for (level, raw) in [
        (1, BLOCK | 0x1000),
        (1, BLOCK | 0x10_0000),
        (2, BLOCK | 0x20_0000),
        (2, BLOCK | 0x2000_0000),
        (0, PAGE | 1 << 48),
        (0, PAGE | 1 << 50),
        (1, 0x8000_0003 | 1 << 49),
        // Shareability 0b01.
        (0, PAGE & !(0b10 << 8)),
        // Beyond 40 bits.
        (0, PAGE | 1 << 40),
        (1, BLOCK | 1 << 47),
        (2, 0x8000_0003 | 1 << 40),
    ] {
        let got = stage.decode(level, raw);
        assert!(is_reserved(got), "{level} {raw:#x}: {got:?}");
    }
    // nT is no address bit, and the last byte of 40 bits is within them.
    assert_eq!(stage.decode(1, BLOCK | 1 << 16), leaf(|_| {}));
    let last = stage.decode(0, PAGE | 0xff_ffff_f000);
    assert_eq!(last, leaf(|leaf| leaf.hpa = Hpa(0xff_ffff_f000)));
    // A device's shareability is ignored.
    let device = PAGE & !(0b10 << 8 | 0xf << 2);
    assert_eq!(stage.decode(0, device), memory(0, true));
}

#[test]
fn the_shape_of_the_tree_follows_the_start_level_and_the_width() {
    // Guest address bits, SL0; expected: index bits of the root, number of levels.
    for (bits, start, index_bits, count) in [
        (32, 0, 11, 2),
        (34, 0, 13, 2),
        (25, 0, 4, 2),
        (31, 1, 1, 3),
        (39, 1, 9, 3),
        (40, 1, 10, 3),
        (43, 1, 13, 3),
        (44, 2, 5, 4),
        (48, 2, 9, 4),
    ] {
        let stage = stage_two(vtcr(bits, start, 5), false);
        let shift = 12 + 9 * (count - 1);
        let root = LevelShape { shift, index_bits };
        assert_eq!(stage.levels().last(), Some(&root), "{bits} {start}");
        assert_eq!(stage.levels().len(), usize::from(count));
        assert_eq!(u64::from(stage.address_bits()), bits);
        assert_eq!(
            stage.levels()[0],
            LevelShape {
                shift: 12,
                index_bits: 9
            }
        );
    }
}

#[test]
fn registers_that_make_no_sense_are_refused() {
    let refused = |vttbr, vtcr| StageTwo::new(&registers(vttbr, vtcr)).unwrap_err();
    for (vttbr, vtcr, words) in [
        (0, VTCR | 0b11 << 14, "TG0"),
        (0, VTCR | 1 << 32 | 1 << 14, "DS"),
        (0, VTCR | 0b01 << 12, "SH0"),
        (0, VTCR | 1 << 33, "SL2"),
        (0, vtcr(39, 1, 7), "PS"),
        (0, vtcr(54, 1, 5), "T0SZ"),
        (0, vtcr(24, 1, 5), "T0SZ"),
        (0, vtcr(39, 3, 5), "SL0"),
        (0, vtcr(39, 0, 5), "SL0"),
        (0, vtcr(44, 1, 5), "SL0"),
        (0, vtcr(39, 2, 5), "SL0"),
        (0x4000_0800, VTCR, "aligned"),
        (0x4000_1000, vtcr(40, 1, 2), "aligned"),
        (0x0100_0000_0000, VTCR, "beyond 40"),
        (0x0100 << 48 | 0x4000_0000, VTCR, "VMID"),
    ] {
        let error = refused(vttbr, vtcr);
        assert!(error.contains(words), "{vtcr:#x}: {error}");
    }
    let wide = registers(0x0100 << 48 | 0x4000_0001, VTCR | 1 << 19);
    assert_eq!(StageTwo::new(&wide).unwrap().root(), Hpa(0x4000_0000));
    assert_eq!(wide.vmid(), 0x100);
}

#[test]
fn instructions_do_what_the_manual_says() {
    let stage = stage_two(VTCR, false);
    let effect = |instruction| only(&stage.effects(&event::Instruction::Arm64(instruction)));
    let complete = |reach, invalidations| {
        Some(Effect::Complete {
            reach,
            invalidations,
        })
    };
    let forget = |reach, what| Some(Effect::Forget { reach, what });
    // Bits above the address and below the hint of a level are no part of either.
    let operand = 0b1011 << 40 | 0x8020_3000 >> 12;
    let one = |leaf_only| Forgotten::Address {
        gpa: Gpa(0x8020_3000),
        leaf_only,
        level: None,
    };
    for (instruction, expected) in [
        (Instruction::DsbIsh, complete(Reach::All, true)),
        (Instruction::DsbIshst, complete(Reach::All, false)),
        (Instruction::DsbNsh, complete(Reach::Local, true)),
        (Instruction::DsbNshst, complete(Reach::Local, false)),
        (Instruction::Isb, Some(Effect::Synchronise)),
        (
            Instruction::Ipas2e1is { operand },
            forget(Reach::All, one(false)),
        ),
        (
            Instruction::Ipas2le1is { operand },
            forget(Reach::All, one(true)),
        ),
        (
            Instruction::Ipas2e1 { operand },
            forget(Reach::Local, one(false)),
        ),
        (
            Instruction::Vmalle1is,
            forget(Reach::All, Forgotten::Combined),
        ),
        (
            Instruction::Vmalle1,
            forget(Reach::Local, Forgotten::Combined),
        ),
        (
            Instruction::Vmalls12e1is,
            forget(Reach::All, Forgotten::All),
        ),
        (
            Instruction::Vmalls12e1,
            forget(Reach::Local, Forgotten::All),
        ),
    ] {
        assert_eq!(effect(instruction), expected, "{instruction:?}");
    }
}

#[test]
fn an_entry_that_leads_astray_does_so_at_every_level() {
    let stage = stage_two(VTCR, false);
    let raw = stage.astray(Hpa(0x8000_1000));
    assert_eq!(stage.decode(2, raw), Descriptor::Table(Hpa(0x8000_1000)));
    for force_write_back in [false, true] {
        match stage_two(VTCR, force_write_back).decode(0, raw) {
            Descriptor::Leaf(leaf) => assert!(leaf.read && leaf.write && leaf.accessed),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_invalidation_by_address_may_name_the_level_of_the_leaf() {
    let stage = stage_two(VTCR, false);
    let level = |hint: u64| {
        let operand = hint << 44 | 0x8020_3000 >> 12;
        let instruction = event::Instruction::Arm64(Instruction::Ipas2e1is { operand });
        match only(&stage.effects(&instruction)) {
            Some(Effect::Forget {
                what: Forgotten::Address { level, .. },
                ..
            }) => level,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!([0b0000, 0b0011, 0b0100].map(level), [None; 3]);
    assert_eq!(
        [0b0101, 0b0110, 0b0111].map(level),
        [Some(2), Some(1), Some(0)]
    );
    // Of a tree with another granule: of no level that there is.
    assert_eq!([0b1011, 0b1101].map(level), [Some(usize::MAX); 2]);
}

fn only(effects: &Effects) -> Option<Effect> {
    assert_eq!(effects.len(), 1);
    effects.first().copied()
}
