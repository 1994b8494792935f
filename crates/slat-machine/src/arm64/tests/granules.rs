//! Granules other than 4 KiB, 52-bit addresses, and contiguous runs.

use super::*;

const TG_64K: u64 = 0b01 << 14;
const TG_16K: u64 = 0b10 << 14;
const DS: u64 = 1 << 32;
/// `VTCR_EL2.PS` for 52 bits.
const PS_52: u64 = 6;
const CONTIGUOUS: u64 = 1 << 52;
/// A readable page's bits beside its address; with `DS` without shareability.
const READABLE: u64 = 0x77f;
const READABLE_DS: u64 = 0x47f;

fn hpa(descriptor: Descriptor) -> u64 {
    match descriptor {
        Descriptor::Leaf(leaf) => leaf.hpa.0,
        Descriptor::Table(table) => table.0,
        other => panic!("{other:?}"),
    }
}

fn run_bits(stage: &StageTwo, level: usize, raw: u64) -> Option<u8> {
    match stage.decode(level, raw) {
        Descriptor::Leaf(leaf) => Some(leaf.run_bits),
        Descriptor::Reserved(_) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_shape_follows_the_granule() {
    // Granule, guest address bits, SL0 with SL2 above; shift and index bits of the root, levels.
    for (granule, bits, start, root, count) in [
        (TG_16K, 32, 1, (25, 7), 2),
        (TG_16K, 40, 1, (25, 15), 2),
        (TG_16K, 41, 2, (36, 5), 3),
        (TG_16K, 48, 2, (36, 12), 3),
        (TG_16K, 25, 0, (14, 11), 1),
        (TG_16K | DS, 51, 2, (36, 15), 3),
        (TG_16K | DS, 52, 3, (47, 5), 4),
        (TG_64K, 32, 1, (29, 3), 2),
        (TG_64K, 46, 1, (29, 17), 2),
        (TG_64K, 47, 2, (42, 5), 3),
        (TG_64K, 52, 2, (42, 10), 3),
        (TG_64K, 33, 0, (16, 17), 1),
        (DS, 48, 2, (39, 9), 4),
        (DS, 52, 2, (39, 13), 4),
        (DS | 1 << 33, 52, 0, (48, 4), 5),
    ] {
        let stage = stage_two(vtcr(bits, start, PS_52) | granule, false);
        let (shift, index_bits) = root;
        let root = LevelShape { shift, index_bits };
        assert_eq!(stage.levels().last(), Some(&root), "{bits} {start}");
        assert_eq!(stage.levels().len(), count, "{bits} {start}");
        assert_eq!(u64::from(stage.address_bits()), bits);
        let widths = stage.levels().windows(2);
        let mut joined = widths.map(|pair| (pair[0].shift + pair[0].index_bits, pair[1].shift));
        assert!(joined.all(|(end, start)| end == start));
    }
}

#[test]
fn start_levels_and_widths_that_do_not_go_together_are_refused() {
    for (bits, start, granule) in [
        (52, 2, 0),
        (49, 2, TG_16K),
        (52, 3, TG_16K),
        (51, 3, TG_64K),
        (47, 3, TG_16K | DS),
        (41, 1, TG_16K),
        (36, 2, TG_16K),
        (47, 1, TG_64K),
        (42, 2, TG_64K),
        (34, 0, TG_64K),
        (53, 2, DS),
        (53, 2, TG_64K),
        (48, 0, DS | 1 << 33),
        (52, 1, DS | 1 << 33),
    ] {
        let refused = registers(0, vtcr(bits, start, PS_52) | granule);
        assert!(
            StageTwo::new(&refused).is_err(),
            "{bits} {start} {granule:#x}"
        );
    }
}

#[test]
fn upper_address_bits_stand_where_the_granule_has_them() {
    let plain = stage_two(vtcr(39, 1, PS_52), false);
    let lpa2 = stage_two(vtcr(39, 1, PS_52) | DS, false);
    let middle = stage_two(vtcr(41, 2, PS_52) | TG_16K | DS, false);
    let large = stage_two(vtcr(42, 1, PS_52) | TG_64K, false);
    let upper = 0x000c_0000_0000_0000;
    for stage in [&lpa2, &middle] {
        let page = 0x8000_0000 | READABLE_DS;
        assert_eq!(
            hpa(stage.decode(0, page | 0b11 << 48)),
            0x0003_0000_8000_0000
        );
        assert_eq!(hpa(stage.decode(0, page | 0b11 << 8)), upper | 0x8000_0000);
        assert_eq!(
            hpa(stage.decode(1, 0x8000_0003 | 0b11 << 8)),
            upper | 0x8000_0000
        );
        assert!(is_reserved(stage.decode(0, page | 1 << 50)));
        // Shareability 0b01 would be reserved, but bit 8 is of the address.
        assert_eq!(hpa(stage.decode(0, page | 1 << 8)), 1 << 50 | 0x8000_0000);
    }
    for bit in 0..4 {
        let page = 0x8000_0000 | READABLE | 1 << (12 + bit);
        let pointer = 0x8000_0003 | 1 << (12 + bit);
        assert_eq!(hpa(large.decode(0, page)), 1 << (48 + bit) | 0x8000_0000);
        assert_eq!(hpa(large.decode(1, pointer)), 1 << (48 + bit) | 0x8000_0000);
    }
    for stage in [&plain, &large] {
        assert!(is_reserved(
            stage.decode(0, 0x8000_0000 | READABLE | 1 << 48)
        ));
    }
    let narrow = stage_two(vtcr(42, 1, 5) | TG_64K, false);
    assert!(is_reserved(
        narrow.decode(0, 0x8000_0000 | READABLE | 1 << 12)
    ));
    let small = stage_two(vtcr(39, 1, 5) | DS, false);
    assert!(is_reserved(
        small.decode(0, 0x8000_0000 | READABLE_DS | 1 << 48)
    ));
    let sixteen = stage_two(vtcr(41, 2, 5) | TG_16K, false);
    for bit in [12, 13] {
        assert!(is_reserved(
            sixteen.decode(0, 0x8000_0000 | READABLE | 1 << bit)
        ));
        assert!(is_reserved(
            middle.decode(0, 0x8000_0000 | READABLE_DS | 1 << bit)
        ));
    }
}

#[test]
fn blocks_stand_where_the_granule_has_them() {
    let block = |stage: &StageTwo, level: usize, address: u64| {
        let shareable = if stage.shape.lpa2 { 0 } else { 0b11 << 8 };
        stage.decode(level, address | READABLE_DS & !TABLE_OR_PAGE | shareable)
    };
    // Registers, the level of the largest block, its size.
    for (vtcr, largest, bits) in [
        (vtcr(48, 2, PS_52), 2, 30),
        (vtcr(52, 2, PS_52) | DS, 3, 39),
        (vtcr(47, 2, 5) | TG_16K, 1, 25),
        (vtcr(52, 3, PS_52) | TG_16K | DS, 2, 36),
        (vtcr(47, 2, 5) | TG_64K, 1, 29),
        (vtcr(47, 2, PS_52) | TG_64K, 2, 42),
    ] {
        let stage = stage_two(vtcr, false);
        assert_eq!(hpa(block(&stage, largest, 1 << bits)), 1 << bits);
        assert!(is_reserved(block(&stage, largest, 1 << (bits - 1))));
        assert_eq!(block(&stage, largest + 1, 0), Descriptor::Invalid);
        assert_eq!(block(&stage, 0, 0), Descriptor::Invalid);
    }
}

#[test]
fn runs_have_the_lengths_of_the_granule() {
    // Registers; log2 of the leaves of a run by level.
    for (vtcr, lengths) in [
        (vtcr(48, 2, 5), [Some(4), Some(4), Some(4)].as_slice()),
        (vtcr(52, 2, PS_52) | DS, &[Some(4), Some(4), Some(4), None]),
        (vtcr(47, 2, 5) | TG_16K, &[Some(7), Some(5)]),
        (vtcr(52, 3, PS_52) | TG_16K | DS, &[Some(7), Some(5), None]),
        (vtcr(47, 2, 5) | TG_64K, &[Some(5), Some(5)]),
        (vtcr(47, 2, PS_52) | TG_64K, &[Some(5), Some(5), None]),
        // A run of 16 GiB has no room in 33 bits.
        (vtcr(33, 1, 5) | TG_64K, &[Some(5), None]),
        (vtcr(34, 1, 5) | TG_64K, &[Some(5), Some(5)]),
    ] {
        let stage = stage_two(vtcr, false);
        let shareable = if stage.shape.lpa2 { 0 } else { 0b11 << 8 };
        for (level, length) in lengths.iter().enumerate() {
            let kind = if level == 0 { TABLE_OR_PAGE } else { 0 };
            let leaf = READABLE_DS & !TABLE_OR_PAGE | kind | shareable;
            assert_eq!(run_bits(&stage, level, leaf), Some(0));
            assert_eq!(
                run_bits(&stage, level, leaf | CONTIGUOUS),
                *length,
                "{vtcr:#x}"
            );
        }
    }
    // In a run every entry has its own address; in a table pointer the bit is ignored.
    let stage = stage_two(vtcr(48, 2, 5), false);
    assert_eq!(
        hpa(stage.decode(0, 0x8000_3000 | READABLE | CONTIGUOUS)),
        0x8000_3000
    );
    assert_eq!(hpa(stage.decode(1, 0x8000_3003 | CONTIGUOUS)), 0x8000_3000);
}

#[test]
fn a_root_beyond_48_bits_is_found() {
    let root = |vttbr, vtcr| StageTwo::new(&registers(vttbr, vtcr)).map(|stage| stage.root());
    for vtcr in [
        vtcr(39, 1, PS_52) | DS,
        vtcr(41, 2, PS_52) | TG_16K | DS,
        vtcr(42, 1, PS_52) | TG_64K,
    ] {
        assert_eq!(
            root(0x4321_0000 | 0xf << 2, vtcr),
            Ok(Hpa(0xf_0000_4321_0000))
        );
        assert_eq!(
            root(0x4321_0001 | 0x4 << 2, vtcr),
            Ok(Hpa(0x4_0000_4321_0000))
        );
        assert!(root(0x4321_0002, vtcr).is_err());
    }
    // Eight entries; without 52-bit addresses the bits are of the address, and it is unaligned.
    let small = vtcr(32, 1, PS_52) | TG_64K;
    assert_eq!(
        root(0x4321_0040 | 1 << 2, small),
        Ok(Hpa(0x1_0000_4321_0040))
    );
    assert!(root(0x4321_0004, vtcr(39, 1, 5) | DS).is_err());
    assert!(root(0x4321_0004, vtcr(39, 1, PS_52)).is_err());
}

#[test]
fn an_invalidation_names_a_page_of_the_granule() {
    let forgotten = |vtcr, operand| {
        let instruction = event::Instruction::Arm64(Instruction::Ipas2e1is { operand });
        match only(&stage_two(vtcr, false).effects(&instruction)) {
            Some(Effect::Forget {
                what: Forgotten::Address { gpa, level, .. },
                ..
            }) => (gpa.0, level),
            other => panic!("{other:?}"),
        }
    };
    let (small, middle, large) = (
        vtcr(52, 2, PS_52) | DS,
        vtcr(52, 3, PS_52) | DS | TG_16K,
        vtcr(52, 2, PS_52) | TG_64K,
    );
    let operand = 0x81_2345_678f;
    assert_eq!(forgotten(small, operand).0, 0x8_1234_5678_f000);
    assert_eq!(forgotten(middle, operand).0, 0x8_1234_5678_c000);
    assert_eq!(forgotten(large, operand).0, 0x8_1234_5678_0000);
    let hints = |vtcr| (0..16).map(move |hint| forgotten(vtcr, hint << 44).1);
    let (none, other) = (None, Some(usize::MAX));
    let (l3, l2, l1, l0) = (Some(3), Some(2), Some(1), Some(0));
    let of_small = [
        [none; 4],
        [l3, l2, l1, l0],
        [none, other, other, other],
        [none, other, other, other],
    ];
    let of_middle = [
        [none; 4],
        [other; 4],
        [none, l2, l1, l0],
        [none, other, other, other],
    ];
    // Without FEAT_LPA2 there are no blocks of 512 GiB and 64 GiB, and their hints say nothing.
    let of_large = [
        [none; 4],
        [none, other, other, other],
        [none, none, other, other],
        [none, l2, l1, l0],
    ];
    assert!(hints(small).eq(of_small.concat()));
    assert!(hints(middle).eq(of_middle.concat()));
    assert!(hints(large).eq(of_large.concat()));
}

#[test]
fn an_entry_that_leads_astray_does_so_with_every_granule() {
    for vtcr in [
        vtcr(52, 2, PS_52) | DS,
        vtcr(52, 3, PS_52) | DS | TG_16K,
        vtcr(52, 2, PS_52) | TG_64K,
        vtcr(47, 2, 5) | TG_16K,
    ] {
        let stage = stage_two(vtcr, false);
        let top = u64::from(stage.shape.physical_bits) - 1;
        let target = Hpa(1 << top | 0x8000_0000);
        let raw = stage.astray(target);
        assert_eq!(stage.decode(1, raw), Descriptor::Table(target));
        match stage.decode(0, raw) {
            Descriptor::Leaf(leaf) => {
                assert_eq!(leaf.hpa, target);
                assert!(leaf.read && leaf.write && leaf.execute && leaf.accessed);
            }
            other => panic!("{other:?}"),
        }
    }
}
