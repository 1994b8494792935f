//! What each bit of an entry, an ASCE and an operand means.

use super::*;

fn registers(asce: u64) -> Registers {
    Registers {
        vm: 5,
        asce,
        enhanced_dat_1: true,
        enhanced_dat_2: true,
        instruction_execution_protection: true,
    }
}

/// A tree with a root of every type, region-first tables half there.
fn dat() -> Dat {
    Dat::new(&registers(0x4000_400d)).unwrap()
}

fn decode(level: usize, entry: u64) -> Descriptor {
    dat().decode(level, entry.swap_bytes())
}

fn leaf(hpa: u64, change: impl FnOnce(&mut Leaf)) -> Descriptor {
    let mut leaf = Leaf {
        hpa: Hpa(hpa),
        read: true,
        write: true,
        becomes_dirty: false,
        dirty: false,
        execute: true,
        accessed: true,
        memory: 0,
        device: false,
        run_bits: 0,
    };
    change(&mut leaf);
    Descriptor::Leaf(leaf)
}

fn is_reserved(descriptor: Descriptor) -> bool {
    matches!(descriptor, Descriptor::Reserved(_))
}

#[test]
fn kinds_of_entries_are_told_apart_by_level_type_and_format() {
    let table = |hpa| Descriptor::Table(Hpa(hpa));
    for (level, entry, expected) in [
        (0, 0, leaf(0, |_| {})),
        (0, 0x8000_5000, leaf(0x8000_5000, |_| {})),
        (0, 0x8000_5400, Descriptor::Invalid),
        // Software's bits.
        (0, 0x8000_50ff, leaf(0x8000_5000, |_| {})),
        (1, 0x20, Descriptor::Invalid),
        (1, 0x8000_5800, table(0x8000_5800)),
        (1, 0x8010_0400, leaf(0x8010_0000, |_| {})),
        (1, 0x8010_f4c3, leaf(0x8010_0000, |_| {})),
        (1, 0x8010_0420, Descriptor::Invalid),
        (2, 0x24, Descriptor::Invalid),
        (2, 0x8000_4007, table(0x8000_4000)),
        (2, 0x8000_0405, leaf(0x8000_0000, |_| {})),
        (3, 0x28, Descriptor::Invalid),
        (3, 0x8000_400b, table(0x8000_4000)),
        (4, 0x2c, Descriptor::Invalid),
        (4, 0x8000_400f, table(0x8000_4000)),
    ] {
        assert_eq!(decode(level, entry), expected, "{level} {entry:#x}");
    }
}

#[test]
fn permissions_are_read_from_their_bits() {
    for (level, entry, hpa) in [
        (0, 0x8000_5000, 0x8000_5000),
        (1, 0x8010_0400, 0x8010_0000),
        (2, 0x8000_0404, 0x8000_0000),
    ] {
        let protected = leaf(hpa, |leaf| leaf.write = false);
        assert_eq!(decode(level, entry | 0x200), protected);
        let never = leaf(hpa, |leaf| leaf.execute = false);
        assert_eq!(decode(level, entry | 0x100), never);
    }
}

#[test]
fn reserved_bits_are_seen() {
    for (level, entry) in [
        (0, 0x8000_5800),
        // Another table's type.
        (1, 0x8000_5004),
        (2, 0x8000_4003),
        (3, 0x8000_400f),
        // Common segment and region.
        (1, 0x8010_0410),
        (2, 0x8000_0414),
        // Access control, and address bits below the size.
        (1, 0x8011_0400),
        (1, 0x8018_0400),
        (2, 0xc000_0404),
        // Protected tables.
        (1, 0x8000_5a00),
        (4, 0x8000_420f),
        // Tables of which only part is there.
        (2, 0x8000_4006),
        (3, 0x8000_404b),
    ] {
        let got = decode(level, entry);
        assert!(is_reserved(got), "{level} {entry:#x}: {got:?}");
    }
}

#[test]
fn facilities_decide_what_there_is() {
    let plain = |enhanced_dat_1, enhanced_dat_2| {
        let registers = Registers {
            enhanced_dat_1,
            enhanced_dat_2,
            instruction_execution_protection: false,
            ..registers(0x4000_400d)
        };
        let dat = Dat::new(&registers).unwrap();
        assert!(is_reserved(dat.decode(0, 0x100_u64.swap_bytes())));
        [(1, 0x400_u64), (2, 0x404)]
            .map(|(level, entry)| !is_reserved(dat.decode(level, entry.swap_bytes())))
    };
    assert_eq!(plain(false, false), [false, false]);
    assert_eq!(plain(false, true), [false, false]);
    assert_eq!(plain(true, false), [true, false]);
    assert_eq!(plain(true, true), [true, true]);
}

#[test]
fn the_shape_of_the_tree_follows_the_asce() {
    for (low, levels, address_bits) in [
        (0b0011, 2, 31),
        (0b0000, 2, 29),
        (0b0111, 3, 42),
        (0b0101, 3, 41),
        (0b1011, 4, 53),
        (0b1101, 5, 63),
        (0b1100, 5, 62),
    ] {
        let dat = Dat::new(&registers(0x4000_4000 | low)).unwrap();
        assert_eq!(dat.root(), Hpa(0x4000_4000));
        assert_eq!(dat.levels().len(), levels);
        assert_eq!(dat.address_bits(), address_bits);
    }
}

#[test]
fn registers_that_make_no_sense_are_refused() {
    for (asce, words) in [
        (0x4000_4027, "real space"),
        (0x4000_4006, "three quarters"),
        (0x4000_400f, "64 bits"),
    ] {
        let error = second_stage(&registers(asce)).unwrap_err();
        assert!(error.contains(words), "{asce:#x}: {error}");
    }
}

#[test]
fn hardware_writes_to_no_entry() {
    assert_eq!(dat().with_accessed(0, 0), None);
    assert_eq!(dat().with_dirty(0, 0), None);
}

#[test]
fn invalidations_serialize_and_are_complete_when_they_end() {
    let effects = |instruction| {
        dat()
            .effects(&event::Instruction::S390(instruction))
            .to_vec()
    };
    let reach = Reach::All;
    let complete = |invalidations| Effect::Complete {
        reach,
        invalidations,
    };
    assert_eq!(effects(Instruction::Serialize), [complete(false)]);
    let what = Forgotten::All;
    let expected = [
        complete(true),
        Effect::Forget { reach, what },
        complete(true),
    ];
    let (origin, table, address) = (0x5000, 0xc004, 0x1000);
    assert_eq!(effects(Instruction::Ipte { origin, address }), expected);
    assert_eq!(effects(Instruction::Idte { table, address }), expected);
    assert_eq!(effects(Instruction::IdteByAsce), expected);
}

#[test]
fn an_entry_that_leads_astray_does_so_in_the_two_lowest_tables() {
    let raw = dat().astray(Hpa(0x8000_1000));
    assert_eq!(dat().decode(0, raw), leaf(0x8000_1000, |_| {}));
    assert_eq!(dat().decode(1, raw), Descriptor::Table(Hpa(0x8000_1000)));
}
