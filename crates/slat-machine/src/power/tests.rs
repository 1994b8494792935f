//! What each bit of an entry, of the partition table and of an operand means.

use super::*;

/// A root at 1 GiB, 52 bits, 13 index bits.
const PARTITION: u64 = 0xc000_0000_4000_00ad;

fn registers(partition: u64, page_shift: u8) -> Registers {
    Registers {
        lpid: 5,
        partition,
        page_shift,
    }
}

fn radix(page_shift: u8) -> Radix {
    Radix::new(&registers(PARTITION, page_shift)).unwrap()
}

fn decode(level: usize, entry: u64) -> Descriptor {
    radix(12).decode(level, entry.swap_bytes())
}

/// Valid, a leaf, referenced and changed, readable and no more.
const LEAF_AT_2G: u64 = 0xc000_0000_8000_0184;

fn leaf(change: impl FnOnce(&mut Leaf)) -> Descriptor {
    let mut leaf = Leaf {
        hpa: Hpa(0x8000_0000),
        read: true,
        write: false,
        becomes_dirty: false,
        dirty: true,
        execute: false,
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
fn kinds_of_entries_are_told_apart_by_two_bits() {
    for level in 0..3 {
        assert_eq!(decode(level, LEAF_AT_2G), leaf(|_| {}));
        assert_eq!(decode(level, LEAF_AT_2G & !VALID), Descriptor::Invalid);
    }
    for level in 1..4 {
        let table = decode(level, 0x8000_0000_4000_3009);
        assert_eq!(table, Descriptor::Table(Hpa(0x4000_3000)));
    }
    let small = radix(16).decode(1, 0x8000_0000_4000_3105_u64.swap_bytes());
    assert_eq!(small, Descriptor::Table(Hpa(0x4000_3100)));
}

#[test]
fn permissions_and_flags_are_read_from_their_bits() {
    for (entry, expected) in [
        (LEAF_AT_2G & !READ, leaf(|leaf| leaf.read = false)),
        (LEAF_AT_2G | READ_WRITE, leaf(|leaf| leaf.write = true)),
        // Write alone allows loads too.
        (
            LEAF_AT_2G & !READ | READ_WRITE,
            leaf(|leaf| leaf.write = true),
        ),
        (LEAF_AT_2G | EXECUTE, leaf(|leaf| leaf.execute = true)),
        (LEAF_AT_2G & !REFERENCE, leaf(|leaf| leaf.accessed = false)),
        (LEAF_AT_2G & !CHANGE, leaf(|leaf| leaf.dirty = false)),
        (
            LEAF_AT_2G & !CHANGE | READ_WRITE,
            leaf(|leaf| (leaf.dirty, leaf.becomes_dirty) = (false, true)),
        ),
        // Privileged, and software's bits.
        (LEAF_AT_2G | 0x8, leaf(|_| {})),
        (LEAF_AT_2G | 0x2000_0000_0000_0e00, leaf(|_| {})),
    ] {
        assert_eq!(decode(0, entry), expected, "{entry:#x}");
    }
}

#[test]
fn the_memory_type_is_read_and_non_idempotent_memory_is_not_executed() {
    for (memory, device) in [(0, false), (1, false), (2, true), (3, false)] {
        let entry = LEAF_AT_2G | u64::from(memory) << 4 | EXECUTE;
        let expected =
            leaf(|leaf| (leaf.memory, leaf.device, leaf.execute) = (memory, device, !device));
        assert_eq!(decode(0, entry), expected);
    }
}

#[test]
fn hardware_sets_reference_and_change() {
    let radix = radix(12);
    let clean = LEAF_AT_2G & !(REFERENCE | CHANGE) | READ_WRITE;
    let raw = clean.swap_bytes();
    let accessed = Some((clean | REFERENCE).swap_bytes());
    assert_eq!(radix.with_accessed(0, raw), accessed);
    let dirty = Some((clean | REFERENCE | CHANGE).swap_bytes());
    assert_eq!(radix.with_dirty(0, raw), dirty);
    let read_only = (clean & !READ_WRITE).swap_bytes();
    assert_eq!(radix.with_dirty(0, read_only), None);
}

#[test]
fn reserved_bits_are_seen() {
    for (level, entry) in [
        (0, LEAF_AT_2G | 1 << 57),
        (0, LEAF_AT_2G | 1 << 60),
        (1, LEAF_AT_2G | 1 << 20),
        (2, LEAF_AT_2G | 1 << 29),
        (3, LEAF_AT_2G),
        (0, 0x8000_0000_4000_3009),
        (1, 0x8000_0000_4000_3005),
        (1, 0x8000_0000_4000_3109),
        (1, 0x8000_0000_4000_3029),
        (1, 0x9000_0000_4000_3009),
        (1, 0xa000_0000_4000_3009),
    ] {
        let got = decode(level, entry);
        assert!(is_reserved(got), "{level} {entry:#x}: {got:?}");
    }
    let unaligned = (LEAF_AT_2G | 1 << 12).swap_bytes();
    assert!(is_reserved(radix(16).decode(0, unaligned)));
}

#[test]
fn registers_that_make_no_sense_are_refused() {
    for (partition, page_shift, words) in [
        (PARTITION & !(1 << 63), 12, "HR"),
        (PARTITION & !(1 << 5), 12, "RTS"),
        (PARTITION & !(1 << 62), 12, "RTS"),
        (PARTITION - 1, 12, "RPDS"),
        (PARTITION | 0x8000, 12, "RPDB"),
        (PARTITION, 14, "pages"),
    ] {
        let error = second_stage(&registers(partition, page_shift)).unwrap_err();
        assert!(error.contains(words), "{partition:#x}: {error}");
    }
    let radix = radix(16);
    assert_eq!(radix.root(), Hpa(0x4000_0000));
    let index_bits: Vec<u8> = radix.levels().iter().map(|l| l.index_bits).collect();
    assert_eq!((index_bits, radix.address_bits()), (vec![5, 9, 9, 13], 52));
}

fn effects(page_shift: u8, instruction: Instruction) -> Vec<Effect> {
    let instruction = event::Instruction::Power(instruction);
    radix(page_shift).effects(&instruction).to_vec()
}

#[test]
fn barriers_do_what_the_manual_says() {
    let complete = |reach, invalidations| Effect::Complete {
        reach,
        invalidations,
    };
    assert_eq!(
        effects(12, Instruction::Ptesync),
        [complete(Reach::All, false), complete(Reach::Local, true)]
    );
    assert_eq!(
        effects(12, Instruction::Tlbsync),
        [complete(Reach::All, true)]
    );
    assert_eq!(effects(12, Instruction::Eieio), [Effect::Synchronise]);
}

#[test]
fn an_invalidation_by_address_finds_leaves_of_the_size_it_names() {
    for (page_shift, size, level) in [
        (12, 0b000, 0),
        (12, 0b001, 1),
        (12, 0b010, 2),
        (16, 0b101, 0),
        (16, 0b000, usize::MAX),
        (12, 0b101, usize::MAX),
        (12, 0b111, usize::MAX),
    ] {
        let rb = 0x8020_3000 | size << 5;
        let found = effects(page_shift, Instruction::Tlbie { ric: 0, rb });
        let what = Forgotten::Address {
            gpa: Gpa(0x8020_3000),
            leaf_only: true,
            level: Some(level),
        };
        let reach = Reach::All;
        assert_eq!(found[0], Effect::Forget { reach, what });
        let what = Forgotten::Combined;
        assert_eq!(found[2], Effect::Forget { reach, what });
    }
}

#[test]
fn an_invalidation_of_a_partition_forgets_everything() {
    let forget = |reach| {
        let what = Forgotten::All;
        [Effect::Forget { reach, what }]
    };
    let (ric, rb) = (2, 2 << 10);
    let found = effects(12, Instruction::Tlbie { ric, rb });
    assert_eq!(found, forget(Reach::All));
    let found = effects(12, Instruction::Tlbiel { ric, rb });
    assert_eq!(found, forget(Reach::Local));
    // Nothing that is not known to be carried out as meant.
    assert_eq!(effects(12, Instruction::Tlbie { ric: 1, rb }), []);
}

#[test]
fn an_entry_that_leads_astray_does_so_among_pages() {
    for page_shift in [12, 16] {
        let raw = radix(page_shift).astray(Hpa(0x8001_0000));
        match radix(page_shift).decode(0, raw) {
            Descriptor::Leaf(leaf) => {
                assert_eq!(leaf.hpa, Hpa(0x8001_0000));
                assert!(leaf.read && leaf.write && leaf.execute && leaf.accessed);
            }
            other => panic!("{other:?}"),
        }
        assert!(is_reserved(radix(page_shift).decode(3, raw)));
    }
}
