//! What each bit of an entry, a register and an operand means.

use super::*;

/// 40 guest address bits, the root at the manual's level 1.
const VTCR: u64 = 0b1_1000 | 1 << 6;

fn registers(vttbr: u64, vtcr: u64) -> Registers {
    Registers { vttbr, vtcr }
}

fn stage_two(vtcr: u64) -> StageTwo {
    StageTwo::new(&registers(0x4000_0000, vtcr)).unwrap()
}

const READ_ONLY: Leaf = Leaf {
    hpa: Hpa(0x80_8000_0000),
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
/// The page above.
const PAGE: u64 = 0x80_8000_077f;
/// The same as a block.
const BLOCK: u64 = PAGE & !TABLE_OR_PAGE;

fn leaf(change: impl FnOnce(&mut Leaf)) -> Descriptor {
    let mut leaf = READ_ONLY;
    change(&mut leaf);
    Descriptor::Leaf(leaf)
}

fn is_reserved(descriptor: Descriptor) -> bool {
    matches!(descriptor, Descriptor::Reserved(_))
}

#[test]
fn entries_are_read_from_their_bits() {
    let stage = stage_two(VTCR);
    let table = Descriptor::Table(Hpa(0x80_8000_0000));
    for (level, raw, expected) in [
        (0, 0, Descriptor::Invalid),
        (0, PAGE - VALID, Descriptor::Invalid),
        (2, u64::MAX - VALID, Descriptor::Invalid),
        (0, BLOCK, Descriptor::Invalid),
        (0, PAGE, leaf(|_| {})),
        (1, BLOCK, leaf(|_| {})),
        (2, BLOCK, leaf(|_| {})),
        (1, PAGE, table),
        (2, PAGE, table),
        // Attributes of tables belong to stage 1 and are ignored.
        (1, 0xf8 << 56 | PAGE, table),
        (0, PAGE & !READ, leaf(|leaf| leaf.read = false)),
        (0, PAGE | WRITE, leaf(|leaf| leaf.write = true)),
        (0, PAGE & !ACCESS_FLAG, leaf(|leaf| leaf.accessed = false)),
        (0, PAGE | EXECUTE_NEVER, leaf(|leaf| leaf.execute = false)),
        // Software's bits; shareability.
        (0, PAGE | 0b1111 << 55, leaf(|_| {})),
        (0, PAGE & !(0b11 << 8), leaf(|_| {})),
        (0, PAGE & !(0b01 << 8), leaf(|_| {})),
        (0, PAGE | CONTIGUOUS, leaf(|leaf| leaf.run_bits = 4)),
        (2, BLOCK | CONTIGUOUS, leaf(|leaf| leaf.run_bits = 4)),
    ] {
        assert_eq!(stage.decode(level, raw), expected, "{level} {raw:#x}");
    }
}

#[test]
fn memory_types_are_two_cacheabilities_or_a_device() {
    let stage = stage_two(VTCR);
    for attribute in 0..16_u8 {
        let raw = PAGE & !(0xf << 2) | u64::from(attribute) << 2;
        let got = stage.decode(0, raw);
        let expected = |device| leaf(|leaf| (leaf.memory, leaf.device) = (attribute, device));
        match attribute {
            0 | 1 => assert_eq!(got, expected(true)),
            5..=7 | 9..=11 | 13..=15 => assert_eq!(got, expected(false)),
            _ => assert!(is_reserved(got), "{attribute:#b}: {got:?}"),
        }
    }
}

#[test]
fn reserved_bits_are_seen() {
    let stage = stage_two(VTCR);
    for (level, raw) in [
        (0, PAGE | 1 << 40),
        (0, PAGE | 1 << 51),
        (1, PAGE | 1 << 40),
        (1, BLOCK | 0x1000),
        (1, BLOCK | 0x1_0000),
        (2, BLOCK | 0x2000_0000),
        (0, PAGE & !(0b10 << 8)),
    ] {
        let got = stage.decode(level, raw);
        assert!(is_reserved(got), "{level} {raw:#x}: {got:?}");
    }
    // A root of 31 bits has two entries: too few for a run.
    let small = stage_two(1 | 1 << 6);
    assert!(is_reserved(small.decode(2, BLOCK | CONTIGUOUS)));
}

#[test]
fn the_hardware_sets_no_bits() {
    let stage = stage_two(VTCR);
    assert_eq!(stage.with_accessed(0, PAGE & !ACCESS_FLAG), None);
    assert_eq!(stage.with_dirty(0, PAGE), None);
    assert!(stage.break_before_make() && !stage.caches_invalid());
}

#[test]
fn the_shape_of_the_tree_follows_the_start_level_and_the_width() {
    // T0SZ with its sign, SL0; guest address bits, index bits of the root, levels.
    for (t0sz, start, bits, index_bits, count) in [
        (0b1_1000, 1, 40, 10, 3),
        (0b1_1001, 1, 39, 9, 3),
        (0b1_1111, 1, 33, 3, 3),
        (0b0_0000, 1, 32, 2, 3),
        (0b0_0001, 1, 31, 1, 3),
        (0b1_1110, 0, 34, 13, 2),
        (0b0_0000, 0, 32, 11, 2),
        (0b0_0111, 0, 25, 4, 2),
    ] {
        let stage = stage_two(t0sz | start << 6);
        let shift = if count == 3 { 30 } else { 21 };
        let root = LevelShape { shift, index_bits };
        assert_eq!(stage.levels().last(), Some(&root), "{bits} {start}");
        assert_eq!(stage.levels().len(), count);
        assert_eq!(stage.address_bits(), bits);
    }
}

#[test]
fn registers_that_make_no_sense_are_refused() {
    for (vttbr, vtcr, words) in [
        (0, 0b0_1000 | 1 << 6, "VTCR.S "),
        (0, 0b1_0000 | 1 << 6, "VTCR.S "),
        (0, VTCR | 0b10 << 6, "SL0"),
        (0, VTCR & !(1 << 6), "does not fit"),
        (0, 0b1_1101, "does not fit"),
        (0, 0b0_0010 | 1 << 6, "does not fit"),
        (0, VTCR | 1 << 32, "32 bits"),
        (0x4000_1000, VTCR, "aligned"),
        (0x0100 << 48, VTCR, "reserved"),
        (1 << 40, VTCR, "reserved"),
    ] {
        let error = StageTwo::new(&registers(vttbr, vtcr)).unwrap_err();
        assert!(error.contains(words), "{vtcr:#x}: {error}");
    }
    let named = registers(0x0012_0000_4000_2000, VTCR | 1 << 31);
    assert_eq!(second_stage(&named).unwrap().root(), Hpa(0x4000_2000));
    assert_eq!(named.vm(), 0x12);
}

#[test]
fn instructions_do_what_the_manual_says() {
    let stage = stage_two(VTCR);
    let complete = |reach, invalidations| Effect::Complete {
        reach,
        invalidations,
    };
    let forget = |reach| Effect::Forget {
        reach,
        what: Forgotten::All,
    };
    for (instruction, expected) in [
        (Instruction::DsbIsh, complete(Reach::All, true)),
        (Instruction::DsbIshst, complete(Reach::All, false)),
        (Instruction::DsbNsh, complete(Reach::Local, true)),
        (Instruction::DsbNshst, complete(Reach::Local, false)),
        (Instruction::Isb, Effect::Synchronise),
        (Instruction::Tlbiallis, forget(Reach::All)),
        (Instruction::Tlbiall, forget(Reach::Local)),
    ] {
        let effects = stage.effects(&event::Instruction::Armv7(instruction));
        assert_eq!(effects.as_slice(), [expected], "{instruction:?}");
    }
}

#[test]
fn an_entry_that_leads_astray_does_so_at_every_level() {
    let stage = stage_two(VTCR);
    let raw = stage.astray(Hpa(0xff_8000_1000));
    assert_eq!(stage.decode(2, raw), Descriptor::Table(Hpa(0xff_8000_1000)));
    match stage.decode(0, raw) {
        Descriptor::Leaf(leaf) => assert!(leaf.read && leaf.write && leaf.accessed),
        other => panic!("{other:?}"),
    }
}
