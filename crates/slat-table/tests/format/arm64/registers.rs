//! `VTCR_EL2` and `VTTBR_EL2`, field by field (DDI 0487, D24.2).

use slat_table::address::Hpa;
use slat_table::format::Format;
use slat_table::format::arm64::{
    Arm64, Arm64Features, Arm64Granule16K, Arm64Granule16KLpa2, Arm64Granule64K, Arm64Lpa2,
    Arm64Root,
};

use super::plain;

fn root<F>(features: Arm64Features, bits: u8, table: u64) -> Arm64Root
where
    F: Format<Features = Arm64Features, Root = Arm64Root>,
{
    let geometry = F::geometry(&features, bits).unwrap();
    F::root(&features, &geometry, Hpa::new(table), 0x1234)
}

#[test]
fn hardware_dirty_state_needs_hardware_access_flags() {
    let dirty_only = Arm64Features {
        hardware_dirty: true,
        ..plain()
    };
    assert!(!Arm64::rules(&dirty_only).hardware_dirty);
    let both = Arm64Features {
        hardware_accessed: true,
        ..dirty_only
    };
    assert!(Arm64::rules(&both).hardware_dirty && Arm64::rules(&both).hardware_accessed);
    let vtcr = |features| {
        let geometry = Arm64::geometry(&features, 40).unwrap();
        Arm64::root(&features, &geometry, Hpa::new(0x8000_0000), 0).vtcr
    };
    assert_eq!(vtcr(dirty_only) & 0b11 << 21, 0);
    assert_eq!(vtcr(both) & 0b11 << 21, 0b11 << 21);
}

#[test]
fn physical_sizes() {
    for (physical_bits, field) in [
        (32, 0),
        (36, 1),
        (40, 2),
        (42, 3),
        (44, 4),
        (48, 5),
        (52, 5),
    ] {
        let features = Arm64Features {
            physical_bits,
            ..plain()
        };
        let size = |root: Arm64Root| root.vtcr >> 16 & 0b111;
        assert_eq!(
            size(root::<Arm64>(features, 32, 0x8000_0000)),
            field,
            "{physical_bits} bits"
        );
        // 52 bits only where descriptors can hold them.
        let wide = if physical_bits == 52 { 6 } else { field };
        assert_eq!(size(root::<Arm64Lpa2>(features, 32, 0x8000_0000)), wide);
        assert_eq!(
            size(root::<Arm64Granule64K>(features, 32, 0x8000_0000)),
            wide
        );
    }
}

#[test]
fn root_registers() {
    let a57 = Arm64Features {
        physical_bits: 44,
        ..plain()
    };
    let old = root::<Arm64>(a57, 40, 0x4002_0000);
    // RES1, PS 44 bits, inner shareable, write-back write-allocate walks, SL0 1, T0SZ 24.
    assert_eq!(old.vtcr, 0x8004_3558);
    assert_eq!(old.vttbr, 0x0034_0000_4002_0000, "8-bit VMID");
    let newer = Arm64Features {
        physical_bits: 48,
        vmid16: true,
        hardware_accessed: true,
        ..a57
    };
    let new = root::<Arm64>(newer, 48, 0x4002_0000);
    // RES1, HA, VS, PS 48 bits, ..., SL0 2, T0SZ 16.
    assert_eq!(new.vtcr, 0x802d_3590);
    assert_eq!(new.vttbr, 0x1234_0000_4002_0000, "16-bit VMID");
}

#[test]
fn granules_and_wide_descriptors_are_named() {
    let wide = Arm64Features {
        physical_bits: 52,
        ..plain()
    };
    // RES1, PS, TG0, shareability and cacheability, SL0, T0SZ 24; DS.
    assert_eq!(root::<Arm64Granule16K>(wide, 40, 0).vtcr, 0x8005_b558);
    assert_eq!(root::<Arm64Granule64K>(wide, 40, 0).vtcr, 0x8006_7558);
    assert_eq!(root::<Arm64Lpa2>(wide, 40, 0).vtcr, 0x1_8006_3558);
    assert_eq!(root::<Arm64Granule16KLpa2>(wide, 40, 0).vtcr, 0x1_8006_b558);
    // T0SZ 12, SL0 2 and 3.
    assert_eq!(root::<Arm64Lpa2>(wide, 52, 0).vtcr, 0x1_8006_358c);
    assert_eq!(root::<Arm64Granule16KLpa2>(wide, 52, 0).vtcr, 0x1_8006_b5cc);
}

#[test]
fn the_upper_bits_of_a_root_are_where_the_alignment_leaves_room() {
    let wide = Arm64Features {
        physical_bits: 52,
        ..plain()
    };
    let table = 0xf_edcb_a987_0000;
    let expected = 0x0034_edcb_a987_003c;
    assert_eq!(root::<Arm64Lpa2>(wide, 40, table).vttbr, expected);
    assert_eq!(root::<Arm64Granule16KLpa2>(wide, 40, table).vttbr, expected);
    assert_eq!(root::<Arm64Granule64K>(wide, 40, table).vttbr, expected);
    let bit_50 = root::<Arm64Granule64K>(wide, 40, 1 << 50).vttbr;
    assert_eq!(bit_50, 0x0034_0000_0000_0010);
}
