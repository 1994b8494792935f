//! What each bit of an entry and of the EPT pointer means.

use super::*;

/// Everything that the MSR can offer to an entry, and walks of both lengths.
const CAPABILITIES: u64 = capability::EXECUTE_ONLY
    | capability::FOUR_LEVELS
    | capability::FIVE_LEVELS
    | capability::WALK_WRITE_BACK
    | capability::BLOCK_2M
    | capability::BLOCK_1G
    | capability::ACCESSED_AND_DIRTY;
/// 4 levels in write-back memory.
const EPTP: u64 = 0x4000_0000 | 3 << 3 | 6;
const KEEPS_FLAGS: u64 = 1 << 6;

fn registers(eptp: u64) -> Registers {
    Registers {
        vm: 3,
        eptp,
        capabilities: CAPABILITIES,
        physical_bits: 46,
        mode_based_execute: false,
    }
}

fn tables(change: impl FnOnce(&mut Registers)) -> ExtendedPageTables {
    let mut registers = registers(EPTP);
    change(&mut registers);
    ExtendedPageTables::new(&registers).unwrap()
}

fn plain() -> ExtendedPageTables {
    tables(|_| {})
}

fn keeping_flags() -> ExtendedPageTables {
    tables(|it| it.eptp |= KEEPS_FLAGS)
}

/// A write-back page that can be read and executed.
const PAGE: u64 = 0x8000_0000 | 6 << 3 | EXECUTE | READ;
const BLOCK: u64 = PAGE | MAPS_A_PAGE;
const TABLE: u64 = 0x8000_0000 | EXECUTE | WRITE | READ;

const READ_ONLY: Leaf = Leaf {
    hpa: Hpa(0x8000_0000),
    read: true,
    write: false,
    becomes_dirty: false,
    dirty: false,
    execute: true,
    accessed: true,
    memory: 6,
    device: false,
    run_bits: 0,
};

fn leaf(change: impl FnOnce(&mut Leaf)) -> Descriptor {
    let mut leaf = READ_ONLY;
    change(&mut leaf);
    Descriptor::Leaf(leaf)
}

fn is_reserved(descriptor: Descriptor) -> bool {
    matches!(descriptor, Descriptor::Reserved(_))
}

#[test]
fn kinds_of_entries_are_told_apart_by_bit_7_and_the_level() {
    let table = Descriptor::Table(Hpa(0x8000_0000));
    let tables = plain();
    for (level, raw, expected) in [
        (0, PAGE, leaf(|_| {})),
        (0, PAGE | MAPS_A_PAGE, leaf(|_| {})),
        (1, BLOCK, leaf(|_| {})),
        (2, BLOCK, leaf(|_| {})),
        (1, TABLE, table),
        (2, TABLE, table),
        (3, TABLE, table),
        // What a pointer to a table ignores.
        (3, TABLE | 0xfff << 52 | 0b1110 << 8, table),
    ] {
        assert_eq!(tables.decode(level, raw), expected, "{level} {raw:#x}");
    }
    assert!(is_reserved(tables.decode(3, BLOCK)));
    for (level, capability) in [(1, capability::BLOCK_2M), (2, capability::BLOCK_1G)] {
        let without = self::tables(|it| it.capabilities &= !capability);
        assert!(is_reserved(without.decode(level, BLOCK)), "{level}");
    }
}

#[test]
fn an_entry_that_allows_nothing_is_not_present() {
    let together = plain();
    let apart = tables(|it| it.mode_based_execute = true);
    for level in 0..4 {
        let nothing = !(READ | WRITE | EXECUTE);
        assert_eq!(together.decode(level, nothing), Descriptor::Invalid);
        assert_eq!(together.decode(level, 1 << 63), Descriptor::Invalid);
        let nothing = nothing & !EXECUTE_USER;
        assert_eq!(apart.decode(level, nothing), Descriptor::Invalid);
    }
    let user = PAGE & !(EXECUTE | READ) | EXECUTE_USER;
    assert_eq!(together.decode(0, user), Descriptor::Invalid);
    assert_eq!(apart.decode(0, user), leaf(|leaf| leaf.read = false));
}

#[test]
fn permissions_are_read_from_their_bits() {
    let (together, apart) = (plain(), tables(|it| it.mode_based_execute = true));
    for (raw, read, write, execute) in [
        (PAGE, true, false, true),
        (PAGE | WRITE, true, true, true),
        (PAGE & !EXECUTE, true, false, false),
        (PAGE & !READ, false, false, true),
        (PAGE & !EXECUTE | WRITE, true, true, false),
    ] {
        let expected = leaf(|leaf| (leaf.read, leaf.write, leaf.execute) = (read, write, execute));
        assert_eq!(together.decode(0, raw), expected, "{raw:#x}");
        assert_eq!(apart.decode(0, raw), expected, "{raw:#x}");
    }
    let user = PAGE & !EXECUTE | EXECUTE_USER;
    assert_eq!(together.decode(0, user), leaf(|leaf| leaf.execute = false));
    assert_eq!(apart.decode(0, user), leaf(|_| {}));
}

#[test]
fn misconfigurations_are_seen() {
    let without_execute_only = |mode_based_execute| {
        tables(|it| {
            it.capabilities &= !capability::EXECUTE_ONLY;
            it.mode_based_execute = mode_based_execute;
        })
    };
    let (all, together, apart) = (
        plain(),
        without_execute_only(false),
        without_execute_only(true),
    );
    for (what, tables, level, raw) in [
        ("write alone", &all, 0, PAGE & !0b101 | WRITE),
        ("write and execute", &all, 0, PAGE & !READ | WRITE),
        ("write alone in a table", &all, 1, TABLE & !(EXECUTE | READ)),
        ("execute alone", &together, 0, PAGE & !READ),
        ("execute alone in a table", &together, 1, EXECUTE),
        (
            "the user's execute alone",
            &apart,
            0,
            PAGE & !(READ | EXECUTE) | EXECUTE_USER,
        ),
        ("memory type 2", &all, 0, PAGE & !(7 << 3) | 2 << 3),
        ("memory type 3", &all, 0, PAGE & !(7 << 3) | 3 << 3),
        ("memory type 7", &all, 1, BLOCK | 7 << 3),
        ("an address of 47 bits", &all, 0, PAGE | 1 << 46),
        ("an address of 52 bits", &all, 2, BLOCK | 1 << 51),
        ("a table beyond 46 bits", &all, 3, TABLE | 1 << 46),
        ("a low address bit in 2 MiB", &all, 1, BLOCK | 1 << 12),
        ("a low address bit in 2 MiB", &all, 1, BLOCK | 1 << 20),
        ("a low address bit in 1 GiB", &all, 2, BLOCK | 1 << 29),
        ("a memory type in a table", &all, 1, TABLE | 1 << 3),
        ("bit 6 in a table", &all, 2, TABLE | 1 << 6),
    ] {
        let got = tables.decode(level, raw);
        assert!(is_reserved(got), "{what}: {got:?}");
    }
    let highest = leaf(|leaf| leaf.hpa = Hpa(1 << 45));
    assert_eq!(all.decode(0, PAGE & !0x8000_0000 | 1 << 45), highest);
}

#[test]
fn a_pointer_that_takes_permissions_away_is_not_taken_for_one_that_does_not() {
    let apart = tables(|it| it.mode_based_execute = true);
    for (tables, raw) in [
        (&plain(), TABLE & !WRITE),
        (&plain(), TABLE & !EXECUTE),
        (&apart, TABLE),
    ] {
        assert!(is_reserved(tables.decode(1, raw)), "{raw:#x}");
    }
    let whole = apart.decode(1, TABLE | EXECUTE_USER);
    assert_eq!(whole, Descriptor::Table(Hpa(0x8000_0000)));
}

#[test]
fn memory_types_are_told_apart() {
    for (bits, device) in [(0, true), (1, false), (4, false), (5, false), (6, false)] {
        for ignore_pat in [0, 1] {
            let raw = PAGE & !(7 << 3) | bits << 3 | ignore_pat << 6;
            let memory = u8::try_from(ignore_pat << 3 | bits).unwrap();
            let expected = leaf(|leaf| (leaf.memory, leaf.device) = (memory, device));
            assert_eq!(plain().decode(0, raw), expected, "{raw:#x}");
        }
    }
}

#[test]
fn ignored_bits_are_ignored() {
    let flags = ACCESSED | DIRTY;
    let ignored = 1 << 11 | 0xfff << 52 | flags;
    assert_eq!(plain().decode(0, PAGE | ignored), leaf(|_| {}));
    assert_eq!(plain().decode(0, PAGE | EXECUTE_USER), leaf(|_| {}));
    assert_eq!(plain().with_accessed(0, PAGE), None);
    assert_eq!(plain().with_dirty(0, PAGE | WRITE), None);
}

#[test]
fn with_flags_a_writable_page_is_clean_until_it_is_dirty() {
    let tables = keeping_flags();
    let young = PAGE | ACCESSED;
    for (raw, expected) in [
        (PAGE, leaf(|leaf| leaf.accessed = false)),
        (young, leaf(|_| {})),
        (young | WRITE, leaf(|leaf| leaf.becomes_dirty = true)),
        (
            young | WRITE | DIRTY,
            leaf(|leaf| (leaf.write, leaf.dirty) = (true, true)),
        ),
        (young | DIRTY, leaf(|leaf| leaf.dirty = true)),
    ] {
        assert_eq!(tables.decode(0, raw), expected, "{raw:#x}");
    }
    assert_eq!(tables.with_accessed(0, PAGE), Some(young));
    assert_eq!(tables.with_accessed(2, TABLE), Some(TABLE | ACCESSED));
    assert_eq!(
        tables.with_dirty(1, BLOCK | WRITE),
        Some(BLOCK | WRITE | DIRTY)
    );
    assert_eq!(tables.with_dirty(0, PAGE), None, "it cannot be written");
}

#[test]
fn the_pointer_says_how_long_the_walk_is() {
    for (length, levels, bits) in [(3, 4, 48), (4, 5, 57)] {
        let tables = tables(|it| it.eptp = EPTP & !(7 << 3) | length << 3);
        assert_eq!(tables.levels().len(), levels);
        assert_eq!(tables.address_bits(), bits);
        assert_eq!(tables.root(), Hpa(0x4000_0000));
        for (shape, shift) in tables.levels().iter().zip([12, 21, 30, 39, 48]) {
            assert_eq!((shape.shift, shape.index_bits), (shift, 9));
        }
    }
    assert_eq!(registers(EPTP).vm(), 3);
}

#[test]
fn registers_that_no_vm_entry_accepts_are_refused() {
    let refused = |change: &dyn Fn(&mut Registers)| {
        let mut registers = registers(EPTP);
        change(&mut registers);
        second_stage(&registers).unwrap_err()
    };
    let without = |bits: u64| refused(&|it| it.capabilities &= !bits);
    let pointer = |eptp: u64| refused(&|it| it.eptp = eptp);
    for (error, words) in [
        (without(capability::FOUR_LEVELS), "length 3 + 1"),
        (without(capability::WALK_WRITE_BACK), "memory type 6"),
        (pointer(EPTP & !7), "memory type 0"),
        (pointer(EPTP & !7 | 1), "memory type 1"),
        (pointer(EPTP & !(7 << 3) | 2 << 3), "length 2 + 1"),
        (pointer(EPTP & !(7 << 3) | 5 << 3), "length 5 + 1"),
        (pointer(EPTP | 1 << 7), "reserved"),
        (pointer(EPTP | 1 << 11), "reserved"),
        (pointer(EPTP | 1 << 46), "reserved"),
        (
            refused(&|it| {
                it.capabilities &= !capability::ACCESSED_AND_DIRTY;
                it.eptp |= KEEPS_FLAGS;
            }),
            "no accessed and dirty",
        ),
        (
            refused(&|it| {
                it.capabilities &= !capability::FIVE_LEVELS;
                it.eptp = EPTP & !(7 << 3) | 4 << 3;
            }),
            "length 4 + 1",
        ),
        (refused(&|it| it.physical_bits = 53), "MAXPHYADDR is 53"),
        (refused(&|it| it.physical_bits = 31), "MAXPHYADDR is 31"),
    ] {
        assert!(error.contains(words), "{error}");
    }
    let uncached = tables(|it| {
        it.capabilities |= capability::WALK_UNCACHED;
        it.eptp &= !7;
    });
    assert_eq!(uncached.root(), Hpa(0x4000_0000));
}

#[test]
fn instructions_do_what_the_manual_says() {
    let effects = |instruction| {
        let effects = plain().effects(&event::Instruction::Ept(instruction));
        effects.to_vec()
    };
    let stores = Effect::Complete {
        reach: Reach::All,
        invalidations: false,
    };
    assert_eq!(effects(Instruction::Mfence), [stores]);
    let invalidation = [
        stores,
        Effect::Forget {
            reach: Reach::Local,
            what: Forgotten::All,
        },
        Effect::Complete {
            reach: Reach::Local,
            invalidations: true,
        },
    ];
    assert_eq!(effects(Instruction::InveptSingleContext), invalidation);
    assert_eq!(effects(Instruction::InveptAllContext), invalidation);
    let foreign = event::Instruction::Npt(crate::npt::Instruction::Mfence);
    assert!(plain().effects(&foreign).is_empty());
}

#[test]
fn an_entry_that_leads_astray_does_so_at_every_level() {
    let target = Hpa(0x8000_1000);
    for mode_based_execute in [false, true] {
        let tables = tables(|it| {
            it.eptp |= KEEPS_FLAGS;
            it.mode_based_execute = mode_based_execute;
        });
        let raw = tables.astray(target);
        for level in 1..4 {
            assert_eq!(tables.decode(level, raw), Descriptor::Table(target));
        }
        match tables.decode(0, raw) {
            Descriptor::Leaf(leaf) => {
                assert_eq!(leaf.hpa, target);
                assert!(leaf.read && leaf.write && leaf.execute && leaf.accessed);
            }
            other => panic!("{other:?}"),
        }
    }
}
