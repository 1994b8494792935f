//! Limits and policies of one VM's memory.

use slat_table::stripe::MAX_STRIPES;
use slat_table::table::TableOptions;

/// What to do with a writable region over a mapping that the host may not write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteCheck {
    /// Refuse the region, as KVM did on Arm until 2021 and does on RISC-V: it is almost always
    /// the VMM's mistake.
    #[default]
    Strict,
    /// Create it and say so in the report. The guest's writes are denied when they come.
    Lenient,
}

/// Limits and policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    pub(crate) table: TableOptions,
    pub(crate) slot_ids: u32,
    pub(crate) slot_pages: u64,
    pub(crate) host_end: u64,
    pub(crate) write_check: WriteCheck,
}

impl Config {
    /// 40 guest address bits, 64 stripes, KVM's limits on slots, strict checks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Width of a guest physical address in bits.
    #[must_use]
    pub fn address_bits(mut self, bits: u8) -> Self {
        self.table.address_bits = bits;
        self
    }

    /// Number of stripes: a power of two, at most 64. Fewer save memory, more let more vCPUs
    /// fault side by side.
    #[must_use]
    pub fn stripes(mut self, stripes: usize) -> Self {
        self.table.stripes = stripes;
        self
    }

    /// Number of slot ids: valid ids are below it. KVM has 32,767.
    #[must_use]
    pub fn slot_ids(mut self, ids: u32) -> Self {
        self.slot_ids = ids;
        self
    }

    /// Most pages of one slot. KVM allows 2^31 - 1, the width of a dirty bitmap's index.
    #[must_use]
    pub fn slot_pages(mut self, pages: u64) -> Self {
        self.slot_pages = pages;
        self
    }

    /// End of the host virtual addresses that a region may name (KVM: `access_ok`).
    #[must_use]
    pub fn host_end(mut self, end: u64) -> Self {
        self.host_end = end;
        self
    }

    /// What to do with a writable region over a mapping that the host may not write.
    #[must_use]
    pub fn write_check(mut self, check: WriteCheck) -> Self {
        self.write_check = check;
        self
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            table: TableOptions {
                address_bits: 40,
                stripes: MAX_STRIPES,
            },
            slot_ids: 32_767,
            slot_pages: (1 << 31) - 1,
            host_end: u64::MAX,
            write_check: WriteCheck::Strict,
        }
    }
}
