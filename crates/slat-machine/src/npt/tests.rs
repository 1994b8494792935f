//! What each bit of an entry and of `N_CR3` means.

use super::*;

/// Write-back, write combining, UC-, UC, write-back, write-protect, UC-, write-through.
const PAT: u64 = 0x0407_0506_0007_0106;

fn registers() -> Registers {
    Registers {
        vm: 3,
        n_cr3: 0x4000_0000,
        five_levels: false,
        pat: PAT,
        physical_bits: 48,
        blocks_1g: true,
        encryption: None,
    }
}

fn paging(change: impl FnOnce(&mut Registers)) -> NestedPaging {
    let mut registers = registers();
    change(&mut registers);
    NestedPaging::new(&registers).unwrap()
}

fn plain() -> NestedPaging {
    paging(|_| {})
}

/// Bit 47, at the cost of 5 address bits: 43 are left.
const ENCRYPTION: u32 = 5 << 6 | 0x2f;

fn encrypting() -> NestedPaging {
    paging(|it| it.encryption = Some(ENCRYPTION))
}

const PAGE: u64 = 0x8000_0000 | ACCESSED | USER | PRESENT;
const BLOCK: u64 = PAGE | MAPS_A_PAGE;
const TABLE: u64 = 0x8000_0000 | USER | WRITE | PRESENT;

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
    for (level, raw, expected) in [
        (0, 0, Descriptor::Invalid),
        (0, !PRESENT, Descriptor::Invalid),
        (3, !PRESENT, Descriptor::Invalid),
        (0, PAGE, leaf(|_| {})),
        (1, BLOCK, leaf(|_| {})),
        (2, BLOCK, leaf(|_| {})),
        (1, TABLE, table),
        (2, TABLE, table),
        (3, TABLE, table),
        // What a pointer to a table ignores, or what does not concern where it leads.
        (1, TABLE | 0x7ff << 52 | 0xf78 & !MAPS_A_PAGE, table),
        (3, TABLE | 0x7ff << 52 | 0xe78, table),
    ] {
        assert_eq!(plain().decode(level, raw), expected, "{level} {raw:#x}");
    }
    assert!(is_reserved(plain().decode(3, BLOCK)));
    let without = paging(|it| it.blocks_1g = false);
    assert!(is_reserved(without.decode(2, BLOCK)));
    assert_eq!(without.decode(1, BLOCK), leaf(|_| {}));
}

#[test]
fn permissions_and_flags_are_read_from_their_bits() {
    for (raw, expected) in [
        (PAGE | WRITE, leaf(|leaf| leaf.becomes_dirty = true)),
        (
            PAGE | WRITE | DIRTY,
            leaf(|leaf| (leaf.write, leaf.dirty) = (true, true)),
        ),
        (PAGE | DIRTY, leaf(|leaf| leaf.dirty = true)),
        (PAGE & !ACCESSED, leaf(|leaf| leaf.accessed = false)),
        (PAGE | NO_EXECUTE, leaf(|leaf| leaf.execute = false)),
        // A supervisor's page is nothing to a guest.
        (
            PAGE & !USER | WRITE,
            leaf(|leaf| (leaf.read, leaf.execute) = (false, false)),
        ),
        // Global, available, and protection-key bits.
        (PAGE | 0b1111 << 8 | 0x7ff << 52, leaf(|_| {})),
    ] {
        assert_eq!(plain().decode(0, raw), expected, "{raw:#x}");
    }
}

#[test]
fn the_walker_keeps_accessed_and_dirty_bits() {
    let paging = plain();
    assert_eq!(paging.with_accessed(0, PAGE & !ACCESSED), Some(PAGE));
    assert_eq!(paging.with_accessed(2, TABLE), Some(TABLE | ACCESSED));
    let writable = BLOCK | WRITE;
    assert_eq!(paging.with_dirty(1, writable), Some(writable | DIRTY));
    assert_eq!(paging.with_dirty(0, PAGE), None, "it cannot be written");
}

#[test]
fn memory_types_come_from_the_pat() {
    let types = [6, 1, 7, 0, 6, 5, 7, 4];
    for (index, memory) in (0_u64..).zip(types) {
        let device = memory == 0 || memory == 7;
        let expected = leaf(|leaf| (leaf.memory, leaf.device) = (memory, device));
        let low = (index & 0b11) << 3;
        let page = PAGE | low | (index >> 2) << 7;
        assert_eq!(plain().decode(0, page), expected, "{index}");
        let block = BLOCK | low | (index >> 2) << 12;
        assert_eq!(plain().decode(1, block), expected, "{index}");
        assert_eq!(plain().decode(2, block), expected, "{index}");
    }
}

#[test]
fn reserved_bits_are_seen() {
    for (what, level, raw) in [
        ("an address of 49 bits", 0, PAGE | 1 << 48),
        ("an address of 52 bits", 2, BLOCK | 1 << 51),
        ("a table beyond 48 bits", 1, TABLE | 1 << 48),
        ("a low address bit in 2 MiB", 1, BLOCK | 1 << 13),
        ("a low address bit in 2 MiB", 1, BLOCK | 1 << 20),
        ("a low address bit in 1 GiB", 2, BLOCK | 1 << 29),
        ("bit 8 high up", 3, TABLE | 1 << 8),
    ] {
        let got = plain().decode(level, raw);
        assert!(is_reserved(got), "{what}: {got:?}");
    }
    let highest = leaf(|leaf| leaf.hpa = Hpa(1 << 47));
    assert_eq!(plain().decode(0, PAGE & !0x8000_0000 | 1 << 47), highest);
}

#[test]
fn a_pointer_that_takes_permissions_away_is_not_taken_for_one_that_does_not() {
    for raw in [TABLE & !WRITE, TABLE & !USER, TABLE | NO_EXECUTE] {
        assert!(is_reserved(plain().decode(1, raw)), "{raw:#x}");
    }
}

#[test]
fn the_encryption_bit_is_no_part_of_an_address() {
    let paging = encrypting();
    let encrypted = 1 << 47;
    let ram = leaf(|leaf| leaf.memory = 1 << 3 | 6);
    assert_eq!(paging.decode(0, PAGE | encrypted), ram);
    assert_eq!(paging.decode(0, PAGE), leaf(|_| {}), "in the clear");
    let table = paging.decode(1, TABLE | encrypted);
    assert_eq!(table, Descriptor::Table(Hpa(0x8000_0000)));
    for bit in [43, 46, 48, 51] {
        let beyond = paging.decode(0, PAGE | encrypted | 1 << bit);
        assert!(is_reserved(beyond), "{bit}");
    }
    let rooted = self::paging(|it| {
        it.encryption = Some(ENCRYPTION);
        it.n_cr3 |= encrypted;
    });
    assert_eq!(rooted.root(), Hpa(0x4000_0000));
}

#[test]
fn the_host_says_how_long_the_walk_is() {
    for (five_levels, levels, bits) in [(false, 4, 48), (true, 5, 57)] {
        let paging = paging(|it| it.five_levels = five_levels);
        assert_eq!(paging.levels().len(), levels);
        assert_eq!(paging.address_bits(), bits);
        for (shape, shift) in paging.levels().iter().zip([12, 21, 30, 39, 48]) {
            assert_eq!((shape.shift, shape.index_bits), (shift, 9));
        }
    }
    assert_eq!(registers().vm(), 3);
}

#[test]
fn registers_that_make_no_sense_are_refused() {
    let refused = |change: &dyn Fn(&mut Registers)| {
        let mut registers = registers();
        change(&mut registers);
        second_stage(&registers).unwrap_err()
    };
    for (error, words) in [
        (refused(&|it| it.n_cr3 |= 1 << 48), "reserved bits"),
        (refused(&|it| it.n_cr3 |= 1), "reserved bits"),
        (refused(&|it| it.n_cr3 |= 1 << 5), "reserved bits"),
        (refused(&|it| it.n_cr3 |= 1 << 63), "reserved bits"),
        (
            refused(&|it| {
                it.encryption = Some(ENCRYPTION);
                it.n_cr3 |= 1 << 43;
            }),
            "reserved bits",
        ),
        (refused(&|it| it.encryption = Some(52)), "bit 52"),
        (refused(&|it| it.encryption = Some(11)), "bit 11"),
        (refused(&|it| it.pat = 2), "type 0x2"),
        (refused(&|it| it.pat |= 8), "type 0xe"),
        (refused(&|it| it.physical_bits = 53), "53 physical"),
        (refused(&|it| it.physical_bits = 31), "31 physical"),
    ] {
        assert!(error.contains(words), "{error}");
    }
    // How the walk itself is cached.
    let walk_type = paging(|it| it.n_cr3 |= 0b11 << 3);
    assert_eq!(walk_type.root(), Hpa(0x4000_0000));
}

#[test]
fn instructions_do_what_the_manual_says() {
    let effects = |instruction| {
        let effects = plain().effects(&event::Instruction::Npt(instruction));
        effects.to_vec()
    };
    let stores = Effect::Complete {
        reach: Reach::All,
        invalidations: false,
    };
    assert_eq!(effects(Instruction::Mfence), [stores]);
    let flush = [
        Effect::Forget {
            reach: Reach::Local,
            what: Forgotten::All,
        },
        Effect::Complete {
            reach: Reach::Local,
            invalidations: true,
        },
    ];
    assert_eq!(effects(Instruction::FlushAsid), flush);
    assert_eq!(effects(Instruction::FlushAll), flush);
    let foreign = event::Instruction::Ept(crate::ept::Instruction::Mfence);
    assert!(plain().effects(&foreign).is_empty());
}

#[test]
fn an_entry_that_leads_astray_does_so_at_every_level() {
    let target = Hpa(0x8000_1000);
    for paging in [plain(), encrypting()] {
        let raw = paging.astray(target);
        for level in 1..4 {
            assert_eq!(paging.decode(level, raw), Descriptor::Table(target));
        }
        match paging.decode(0, raw) {
            Descriptor::Leaf(leaf) => {
                assert_eq!(leaf.hpa, target);
                assert!(leaf.read && leaf.write && leaf.execute && leaf.accessed);
            }
            other => panic!("{other:?}"),
        }
    }
}
