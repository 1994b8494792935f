//! What each bit of an entry, a register and an operand means.

use super::*;
use crate::architecture::Leaf;

const SV39X4: Registers = Registers {
    width: Width::Rv64,
    hgatp: 8 << 60 | 5 << 44 | 0x8_0000,
    memory_types: true,
    hardware_updates: false,
    svnapot: true,
    svvptc: false,
};
const SV32X4: Registers = Registers {
    width: Width::Rv32,
    hgatp: 1 << 31 | 5 << 22 | 0x8_0000,
    memory_types: false,
    svnapot: false,
    ..SV39X4
};

const VALID: u64 = 1 << 0;
const READ: u64 = 1 << 1;
const WRITE: u64 = 1 << 2;
const EXECUTE: u64 = 1 << 3;
const USER: u64 = 1 << 4;
const GLOBAL: u64 = 1 << 5;
const ACCESSED: u64 = 1 << 6;
const DIRTY: u64 = 1 << 7;
const NAPOT: u64 = 1 << 63;

/// A read-only, executable page at `0x8000_0000`.
const PAGE: u64 = 0x2000_0000 | ACCESSED | USER | EXECUTE | READ | VALID;
const TABLE: u64 = 0x2000_0000 | VALID;
const READ_ONLY: Leaf = Leaf {
    hpa: Hpa(0x8000_0000),
    read: true,
    write: false,
    becomes_dirty: false,
    dirty: false,
    execute: true,
    accessed: true,
    memory: 0,
    device: false,
    run_bits: 0,
};

fn stage(registers: Registers) -> GStage {
    GStage::new(&registers).unwrap()
}

fn leaf(change: impl FnOnce(&mut Leaf)) -> Descriptor {
    let mut leaf = READ_ONLY;
    change(&mut leaf);
    Descriptor::Leaf(leaf)
}

fn is_reserved(descriptor: Descriptor) -> bool {
    matches!(descriptor, Descriptor::Reserved(_))
}

#[test]
fn kinds_of_entries_are_told_apart_by_v_and_by_r_w_x() {
    let stage = stage(SV39X4);
    let table = Descriptor::Table(Hpa(0x8000_0000));
    for level in 0..3 {
        assert_eq!(stage.decode(level, 0), Descriptor::Invalid);
        assert_eq!(stage.decode(level, u64::MAX - VALID), Descriptor::Invalid);
        assert_eq!(stage.decode(level, PAGE), leaf(|_| {}), "{level}");
        let above = if level == 0 { None } else { Some(table) };
        let pointer = stage.decode(level, TABLE);
        match above {
            Some(table) => assert_eq!(pointer, table),
            None => assert!(is_reserved(pointer), "{pointer:?}"),
        }
    }
    // Software's bits, and G, which means nothing in a G-stage.
    assert_eq!(stage.decode(1, TABLE | 0b11 << 8 | GLOBAL), table);
}

#[test]
fn permissions_are_read_from_their_bits() {
    let stage = stage(SV39X4);
    let none = |leaf: &mut Leaf| (leaf.read, leaf.execute) = (false, false);
    for (raw, expected) in [
        (PAGE & !EXECUTE, leaf(|leaf| leaf.execute = false)),
        (PAGE & !READ, leaf(|leaf| leaf.read = false)),
        (PAGE | WRITE | DIRTY, leaf(|leaf| leaf.write = true)),
        (PAGE & !ACCESSED, leaf(|leaf| leaf.accessed = false)),
        (PAGE & !USER, leaf(none)),
        (PAGE & !USER | WRITE | DIRTY, leaf(none)),
        (PAGE | GLOBAL | 0b11 << 8, leaf(|_| {})),
    ] {
        assert_eq!(stage.decode(0, raw), expected, "{raw:#x}");
    }
    for reserved in [PAGE & !READ | WRITE, TABLE | WRITE] {
        assert!(is_reserved(stage.decode(0, reserved)), "{reserved:#x}");
    }
}

#[test]
fn without_svadu_a_page_is_writable_only_if_it_is_dirty_and_used_only_if_it_is_accessed() {
    let stage = stage(SV39X4);
    assert_eq!(stage.decode(0, PAGE | WRITE), leaf(|_| {}));
    // D says nothing that the hypervisor did not write itself.
    assert_eq!(stage.decode(0, PAGE | DIRTY), leaf(|_| {}));
    assert_eq!(stage.with_accessed(0, PAGE & !ACCESSED), None);
    assert_eq!(stage.with_dirty(0, PAGE | WRITE), None);
}

#[test]
fn with_svadu_the_walker_sets_accessed_and_dirty() {
    let stage = stage(Registers {
        hardware_updates: true,
        ..SV39X4
    });
    let clean = PAGE | WRITE;
    let dirty = clean | DIRTY;
    assert_eq!(
        stage.decode(0, clean),
        leaf(|leaf| leaf.becomes_dirty = true)
    );
    assert_eq!(
        stage.decode(0, dirty),
        leaf(|leaf| (leaf.write, leaf.dirty) = (true, true))
    );
    assert_eq!(
        stage.decode(0, PAGE | DIRTY),
        leaf(|leaf| leaf.dirty = true)
    );
    // No store without U, and so no D.
    let unused = stage.decode(0, clean & !USER);
    assert_eq!(
        unused,
        leaf(|leaf| (leaf.read, leaf.execute) = (false, false))
    );
    assert_eq!(stage.with_dirty(0, clean), Some(dirty));
    assert_eq!(stage.with_dirty(0, PAGE), None);
    assert_eq!(stage.with_accessed(0, PAGE & !ACCESSED), Some(PAGE));
    assert_eq!(stage.with_accessed(1, TABLE), None);
    assert_eq!(stage.with_dirty(1, TABLE), None);
}

#[test]
fn memory_types_need_svpbmt() {
    let with = stage(SV39X4);
    let without = stage(Registers {
        memory_types: false,
        ..SV39X4
    });
    for memory in 0..4_u8 {
        let raw = PAGE | u64::from(memory) << 61;
        let expected = leaf(|leaf| (leaf.memory, leaf.device) = (memory, memory == 2));
        match memory {
            0..3 => assert_eq!(with.decode(0, raw), expected),
            _ => assert!(is_reserved(with.decode(0, raw))),
        }
        assert_eq!(is_reserved(without.decode(0, raw)), memory != 0);
    }
}

#[test]
fn a_run_is_sixteen_pages_and_each_entry_maps_its_own() {
    let stage = stage(SV39X4);
    // The size in the low bits of the page number; the address in those above.
    let raw = PAGE | NAPOT | 0b1_1000 << 10;
    let run = |hpa| leaf(|leaf| (leaf.hpa, leaf.run_bits) = (Hpa(hpa), 4));
    assert_eq!(stage.decode(0, raw), run(0x8001_0000));
    let table = 0x4000_0000;
    for index in [0, 1, 15, 16, 17, 511_u64] {
        let page = index % 16;
        let entry = Hpa(table + index * 8);
        assert_eq!(
            stage.decode_at(0, entry, raw),
            run(0x8001_0000 + page * 0x1000)
        );
        assert_eq!(stage.decode_at(0, entry, PAGE), leaf(|_| {}));
    }
    let plain = Registers {
        svnapot: false,
        ..SV39X4
    };
    assert!(is_reserved(GStage::new(&plain).unwrap().decode(0, raw)));
    assert!(is_reserved(stage.decode(1, raw)));
    for size in [0, 1, 0b10, 0b100, 0b1001, 0b1100, 0b1_0000] {
        let other = stage.decode(0, PAGE | NAPOT | size << 10);
        assert!(is_reserved(other), "{size:#b}: {other:?}");
    }
}

#[test]
fn reserved_bits_are_seen() {
    let stage = stage(SV39X4);
    for bit in 54..61 {
        assert!(is_reserved(stage.decode(0, PAGE | 1 << bit)), "{bit}");
        assert!(is_reserved(stage.decode(1, TABLE | 1 << bit)), "{bit}");
    }
    for bit in [4, 6, 7, 61, 62, 63] {
        assert!(is_reserved(stage.decode(1, TABLE | 1 << bit)), "{bit}");
    }
    for bit in 10..19 {
        assert!(is_reserved(stage.decode(1, PAGE | 1 << bit)), "{bit}");
        assert!(is_reserved(stage.decode(2, PAGE | 1 << (bit + 9))), "{bit}");
    }
    let aligned = stage.decode(1, PAGE | 1 << 19);
    assert_eq!(aligned, leaf(|leaf| leaf.hpa = Hpa(0x8020_0000)));
    let last = stage.decode(0, PAGE | 0xfff_ffff_ffff << 10);
    assert_eq!(last, leaf(|leaf| leaf.hpa = Hpa(0xff_ffff_ffff_f000)));
}

#[test]
fn the_mode_gives_the_shape_of_the_tree() {
    // Registers, number of levels, index bits of a table, guest address bits.
    let wide = |mode: u64| Registers {
        hgatp: mode << 60 | 0x8_0000,
        ..SV39X4
    };
    for (registers, levels, index_bits, address_bits) in [
        (SV32X4, 2, 10, 34),
        (SV39X4, 3, 9, 41),
        (wide(9), 4, 9, 50),
        (wide(10), 5, 9, 59),
    ] {
        let stage = stage(registers);
        assert_eq!(stage.levels().len(), levels);
        assert_eq!(stage.address_bits(), address_bits, "{}", stage.name());
        assert_eq!(stage.root(), Hpa(0x8000_0000));
        for (level, shape) in stage.levels().iter().enumerate() {
            let wider = if level == levels - 1 { 2 } else { 0 };
            let shift = 12 + index_bits * u8::try_from(level).unwrap();
            let expected = LevelShape {
                shift,
                index_bits: index_bits + wider,
            };
            assert_eq!(*shape, expected);
        }
    }
    assert_eq!((SV32X4.vm(), SV39X4.vm()), (5, 5));
    assert_eq!(
        (stage(SV32X4).entry_bytes(), stage(SV39X4).entry_bytes()),
        (4, 8)
    );
}

#[test]
fn entries_of_four_bytes_have_34_address_bits_and_megapages() {
    let stage = stage(SV32X4);
    let last = stage.decode(0, PAGE | 0x3f_ffff << 10);
    assert_eq!(last, leaf(|leaf| leaf.hpa = Hpa(0x3_ffff_f000)));
    let megapage = stage.decode(1, PAGE | 1 << 20);
    assert_eq!(megapage, leaf(|leaf| leaf.hpa = Hpa(0x8040_0000)));
    assert!(is_reserved(stage.decode(1, PAGE | 1 << 19)));
    let table = stage.decode(1, 0xffff_fc01);
    assert_eq!(table, Descriptor::Table(Hpa(0x3_ffff_f000)));
}

#[test]
fn registers_that_make_no_sense_are_refused() {
    let wide = |hgatp| Registers { hgatp, ..SV39X4 };
    let narrow = |hgatp| Registers { hgatp, ..SV32X4 };
    for (registers, words) in [
        (wide(0x8_0000), "Bare"),
        (narrow(0x8_0000), "Bare"),
        (wide(7 << 60), "MODE"),
        (wide(11 << 60), "MODE"),
        (narrow(8 << 60), "MODE"),
        (wide(8 << 60 | 1 << 58), "above the VMID"),
        (narrow(1 << 31 | 1 << 29), "above the VMID"),
        (wide(8 << 60 | 0x8_0001), "aligned"),
        (narrow(1 << 31 | 0x8_0002), "aligned"),
    ] {
        let error = GStage::new(&registers).unwrap_err();
        assert!(error.contains(words), "{registers:?}: {error}");
    }
    let runs = Registers {
        svnapot: true,
        ..SV32X4
    };
    let types = Registers {
        memory_types: true,
        ..SV32X4
    };
    for registers in [runs, types] {
        let error = GStage::new(&registers).unwrap_err();
        assert!(error.contains("Sv32x4 has no room"), "{error}");
    }
}

#[test]
fn fences_do_what_the_manual_says() {
    let stage = stage(SV39X4);
    let effects = |instruction| {
        stage
            .effects(&event::Instruction::RiscV(instruction))
            .to_vec()
    };
    let complete = |invalidations| Effect::Complete {
        reach: Reach::Local,
        invalidations,
    };
    let forget = |what| Effect::Forget {
        reach: Reach::Local,
        what,
    };
    let fence = |operand: Option<u64>, vmid| match operand {
        Some(operand) => effects(Instruction::HfenceGvmaAddress { operand, vmid }),
        None => effects(Instruction::HfenceGvma { vmid }),
    };
    assert_eq!(effects(Instruction::Fence), [complete(false)]);
    let everything = [complete(false), forget(Forgotten::All), complete(true)];
    assert_eq!(fence(None, None), everything);
    assert_eq!(fence(None, Some(5)), everything);
    let one = Forgotten::Address {
        gpa: Gpa(0x1ff_ffff_f000),
        leaf_only: true,
        level: None,
    };
    let leaf = [
        complete(false),
        forget(one),
        forget(Forgotten::Combined),
        complete(true),
    ];
    assert_eq!(fence(Some(0x1ff_ffff_f000 >> 2), Some(5)), leaf);
    assert_eq!(fence(Some(0x1ff_ffff_f000 >> 2), None), leaf);
    // Another VM's number.
    let nothing = [complete(false), complete(true)];
    assert_eq!(fence(None, Some(6)), nothing);
    assert_eq!(fence(Some(0x1000 >> 2), Some(6)), nothing);
}

#[test]
fn only_svvptc_keeps_invalid_entries_out_of_caches() {
    assert!(stage(SV39X4).caches_invalid());
    let svvptc = Registers {
        svvptc: true,
        ..SV39X4
    };
    assert!(!stage(svvptc).caches_invalid());
    assert!(!stage(SV39X4).break_before_make());
}

#[test]
fn an_entry_that_leads_astray_is_a_page_that_allows_everything() {
    let stage = stage(SV39X4);
    let everything = leaf(|leaf| (leaf.hpa, leaf.write) = (Hpa(0x8000_1000), true));
    assert_eq!(stage.decode(0, stage.astray(Hpa(0x8000_1000))), everything);
}

#[test]
fn registers_and_fences_survive_a_trace() {
    for registers in [SV32X4, SV39X4] {
        let text = serde_json::to_string(&registers).unwrap();
        assert_eq!(serde_json::from_str::<Registers>(&text).unwrap(), registers);
    }
    for (instruction, expected) in [
        (Instruction::Fence, r#"{"op":"fence"}"#),
        (
            Instruction::HfenceGvmaAddress {
                operand: 0x2000_0400,
                vmid: Some(5),
            },
            r#"{"op":"hfence-gvma-address","operand":"0x20000400","vmid":5}"#,
        ),
        (
            Instruction::HfenceGvma { vmid: None },
            r#"{"op":"hfence-gvma"}"#,
        ),
    ] {
        let text = serde_json::to_string(&instruction).unwrap();
        assert_eq!(text, expected);
        assert_eq!(
            serde_json::from_str::<Instruction>(&text).unwrap(),
            instruction
        );
    }
}
