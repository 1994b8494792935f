//! Regions of any numbers: accepted exactly if they keep the rules, which are written down here a
//! second time, in numbers wide enough not to wrap.

use arbitrary::Arbitrary;
use slat::Config;
use slat::region::{Region, SlotId};
use slat_table::address::{Gpa, Hva};
use slat_table::format::Format;
use slat_table::format::arm64::{Arm64, Arm64Features};

/// A region, and the limits that it is to keep.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Input {
    id: u32,
    gpa: Number,
    bytes: Number,
    hva: Number,
    address_bits: u8,
    host_end: Number,
    slot_ids: u32,
    slot_pages: u64,
}

/// A number that is often near a boundary.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Any(u64),
    Pages(u32),
    Below(u8),
    PowerOfTwo(u8),
    NearPowerOfTwo(u8, i8),
}

impl Number {
    fn value(self) -> u64 {
        match self {
            Self::Any(value) => value,
            Self::Pages(pages) => u64::from(pages) << 12,
            Self::Below(pages) => (u64::from(pages) << 12).wrapping_neg(),
            Self::PowerOfTwo(bits) => 1 << (bits % 64),
            Self::NearPowerOfTwo(bits, pages) => {
                (1u64 << (bits % 64)).wrapping_add_signed(i64::from(pages) << 12)
            }
        }
    }
}

/// Validates the region.
///
/// # Panics
///
/// If the verdict is not the rules', or the slot is not what the region asked for.
pub fn run(input: &Input) {
    let features = Arm64Features {
        physical_bits: 48,
        force_write_back: true,
        execute_never_extended: false,
        hardware_accessed: false,
        hardware_dirty: false,
        vmid16: false,
        coherent_instruction_cache: false,
    };
    let bits = 32 + input.address_bits % 17;
    let Ok(geometry) = Arm64::geometry(&features, bits) else {
        unreachable!("32 to 48 bits are what the format does");
    };
    let config = Config::new()
        .slot_ids(input.slot_ids)
        .slot_pages(input.slot_pages)
        .host_end(input.host_end.value());
    let (gpa, bytes, hva) = (input.gpa.value(), input.bytes.value(), input.hva.value());
    let region = Region::new(SlotId(input.id), Gpa::new(gpa), bytes, Hva::new(hva));
    let answer = region.validate(&config, &geometry);
    assert_eq!(answer.is_ok(), is_sound(input, bits), "{answer:?}");
    match answer {
        Ok(slot) => {
            assert_eq!(slot.id(), SlotId(input.id));
            assert_eq!(slot.range().start(), Gpa::new(gpa));
            assert_eq!(slot.range().bytes(), bytes);
            assert_eq!(slot.hva(), Hva::new(hva));
            let behind = slot.hva_range();
            assert_eq!((behind.start().raw(), behind.bytes()), (hva, bytes));
        }
        Err(error) => assert!(!error.to_string().is_empty() && error.errno().number() != 0),
    }
}

/// The rules: whole pages, some but not too many, inside the guest's and the host's addresses.
fn is_sound(input: &Input, bits: u8) -> bool {
    let wide = |number: Number| u128::from(number.value());
    let (gpa, bytes, hva) = (wide(input.gpa), wide(input.bytes), wide(input.hva));
    let end = |start: u128| start + bytes;
    let whole = [gpa, bytes, hva].iter().all(|number| number % 4096 == 0);
    input.id < input.slot_ids
        && whole
        && bytes != 0
        && bytes / 4096 <= u128::from(input.slot_pages)
        && end(gpa) <= 1 << bits
        && end(hva) <= wide(input.host_end)
}
