//! The shape of the tree: start levels, concatenation, blocks and runs (DDI 0487, D8.2 and D8.7).

use slat_table::address::Hpa;
use slat_table::format::Format;
use slat_table::format::arm64::{
    Arm64, Arm64Features, Arm64Granule16K, Arm64Granule16KLpa2, Arm64Granule64K, Arm64Lpa2,
    Arm64Root,
};
use slat_table::geometry::{Geometry, Level};

/// So many guest address bits; levels, the manual's start level, `SL0`, tables side by side at the
/// root.
type Row = (core::ops::RangeInclusive<u8>, usize, u64, u64, u32);

const ROWS_4K: [Row; 14] = [
    (32..=32, 2, 2, 0, 4),
    (33..=33, 2, 2, 0, 8),
    (34..=34, 2, 2, 0, 16),
    (35..=39, 3, 1, 1, 1),
    (40..=40, 3, 1, 1, 2),
    (41..=41, 3, 1, 1, 4),
    (42..=42, 3, 1, 1, 8),
    (43..=43, 3, 1, 1, 16),
    (44..=48, 4, 0, 2, 1),
    (49..=49, 4, 0, 2, 2),
    (50..=50, 4, 0, 2, 4),
    (51..=51, 4, 0, 2, 8),
    (52..=52, 4, 0, 2, 16),
    (53..=u8::MAX, 0, 0, 0, 0),
];

const ROWS_16K: [Row; 12] = [
    (32..=36, 2, 2, 1, 1),
    (37..=37, 2, 2, 1, 2),
    (38..=38, 2, 2, 1, 4),
    (39..=39, 2, 2, 1, 8),
    (40..=40, 2, 2, 1, 16),
    (41..=47, 3, 1, 2, 1),
    (48..=48, 3, 1, 2, 2),
    (49..=49, 3, 1, 2, 4),
    (50..=50, 3, 1, 2, 8),
    (51..=51, 3, 1, 2, 16),
    (52..=52, 4, 0, 3, 1),
    (53..=u8::MAX, 0, 0, 0, 0),
];

const ROWS_64K: [Row; 7] = [
    (32..=42, 2, 2, 1, 1),
    (43..=43, 2, 2, 1, 2),
    (44..=44, 2, 2, 1, 4),
    (45..=45, 2, 2, 1, 8),
    (46..=46, 2, 2, 1, 16),
    (47..=52, 3, 1, 2, 1),
    (53..=u8::MAX, 0, 0, 0, 0),
];

/// Checks the trees for every number of guest address bits, `highest` being the most.
fn shapes<F>(features: Arm64Features, page: u8, highest: u8, rows: &[Row])
where
    F: Format<Features = Arm64Features, Root = Arm64Root>,
{
    for bits in 0..=u8::MAX {
        let row = rows.iter().find(|(widths, ..)| widths.contains(&bits));
        let found = F::geometry(&features, bits);
        match row {
            Some(row) if bits <= highest => {
                has_shape::<F>(features, page, &found.unwrap(), row);
            }
            _ => {
                let error = found.unwrap_err();
                let expected = (bits, 32, highest);
                assert_eq!((error.bits, error.lowest, error.highest), expected);
                assert_eq!(error.format, F::NAME);
            }
        }
    }
}

fn has_shape<F>(features: Arm64Features, page: u8, geometry: &Geometry, row: &Row)
where
    F: Format<Features = Arm64Features, Root = Arm64Root>,
{
    let &(_, levels, start, sl0, tables) = row;
    let bits = geometry.address_bits();
    let root = geometry.root();
    let numbers = (root.index() + 1, 3 - root.index() as u64);
    assert_eq!(numbers, (levels, start), "{bits} bits");
    assert_eq!(
        geometry.shape(root).table_bytes,
        tables << page,
        "{bits} bits"
    );
    assert_eq!(geometry.table_maps(root), 1 << bits);
    let vtcr = F::root(&features, geometry, Hpa::new(0x8000_0000), 0).vtcr;
    assert_eq!(vtcr >> 6 & 0b11, sl0, "{bits} bits");
    assert_eq!(vtcr & 0x3f, 64 - u64::from(bits), "T0SZ");
    for level in geometry.levels_below_root() {
        let shape = geometry.shape(level);
        assert_eq!((shape.index_bits, shape.table_bytes), (page - 3, 1 << page));
    }
}

#[test]
fn start_levels_and_concatenation() {
    let features = Arm64Features::WIDE;
    shapes::<Arm64>(features, 12, 48, &ROWS_4K);
    shapes::<Arm64Lpa2>(features, 12, 52, &ROWS_4K);
    shapes::<Arm64Granule16K>(features, 14, 48, &ROWS_16K);
    shapes::<Arm64Granule16KLpa2>(features, 14, 52, &ROWS_16K);
    shapes::<Arm64Granule64K>(features, 16, 52, &ROWS_64K);
}

#[test]
fn guest_addresses_do_not_outgrow_the_cpu() {
    for physical_bits in [32, 36, 40, 42, 44, 48] {
        let features = Arm64Features {
            physical_bits,
            ..Arm64Features::NONE
        };
        shapes::<Arm64>(features, 12, physical_bits, &ROWS_4K);
        shapes::<Arm64Lpa2>(features, 12, physical_bits, &ROWS_4K);
        shapes::<Arm64Granule16K>(features, 14, physical_bits, &ROWS_16K);
        shapes::<Arm64Granule16KLpa2>(features, 14, physical_bits, &ROWS_16K);
        shapes::<Arm64Granule64K>(features, 16, physical_bits, &ROWS_64K);
    }
}

/// The sizes of the leaves of each level, pages first, and of runs of them.
fn leaf_sizes<F>(features: Arm64Features, bits: u8) -> Vec<(u64, Option<u64>)>
where
    F: Format<Features = Arm64Features>,
{
    let geometry = F::geometry(&features, bits).unwrap();
    let leaf = |level: Level| {
        let sizes = (geometry.entry_bytes(level), geometry.run_bytes(level));
        assert_eq!(sizes.0, F::leaf_step(level));
        geometry.shape(level).leaf.then_some(sizes)
    };
    let levels: Vec<_> = geometry.levels_down().collect();
    levels.into_iter().rev().map_while(leaf).collect()
}

#[test]
fn blocks_and_runs() {
    const K: u64 = 1 << 10;
    const M: u64 = 1 << 20;
    const G: u64 = 1 << 30;
    const T: u64 = 1 << 40;
    let (narrow, wide) = (Arm64Features::ALL, Arm64Features::WIDE);
    let small = [
        (4 * K, Some(64 * K)),
        (2 * M, Some(32 * M)),
        (G, Some(16 * G)),
        (512 * G, None),
    ];
    assert_eq!(leaf_sizes::<Arm64>(wide, 48), small[..3]);
    assert_eq!(leaf_sizes::<Arm64>(wide, 34), small[..2]);
    assert_eq!(leaf_sizes::<Arm64Lpa2>(wide, 52), small);
    assert_eq!(leaf_sizes::<Arm64Lpa2>(narrow, 48), small);
    let middle = [(16 * K, Some(2 * M)), (32 * M, Some(G)), (64 * G, None)];
    assert_eq!(leaf_sizes::<Arm64Granule16K>(wide, 48), middle[..2]);
    assert_eq!(leaf_sizes::<Arm64Granule16KLpa2>(wide, 52), middle);
    let large = [
        (64 * K, Some(2 * M)),
        (512 * M, Some(16 * G)),
        (4 * T, None),
    ];
    assert_eq!(leaf_sizes::<Arm64Granule64K>(narrow, 48), large[..2]);
    assert_eq!(leaf_sizes::<Arm64Granule64K>(wide, 52), large);
}

#[test]
fn a_run_does_not_reach_beyond_the_guests_addresses() {
    for (bits, run) in [(32, None), (33, None), (34, Some(1 << 34))] {
        let sizes = leaf_sizes::<Arm64Granule64K>(Arm64Features::ALL, bits);
        assert_eq!(sizes[1], (512 << 20, run), "{bits} bits");
    }
}
