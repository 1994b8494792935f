//! EL2's own translation: everything that the hypervisor touches is mapped at its own address.
//!
//! It comes in two steps. Before the device tree is read nobody knows where memory is, so
//! [`enable_early_mmu`] maps just the image, the device tree and the early console, in 2 MiB
//! blocks; atomics need cacheable memory, and that is what locks are made of (DDI 0487, section
//! B2.9). Then [`map_machine`] replaces that map by one of all RAM and the devices that the
//! hypervisor drives, in which the image's code cannot be written and nothing else executed.

use aarch64_cpu::registers::{MAIR_EL2, Writeable as _};
use aarch64_paging::descriptor::El23Attributes;
use aarch64_paging::idmap::IdMap;
use aarch64_paging::paging::{El2, MemoryRegion};
use slat_hypervisor::machine::Machine;
use slat_hypervisor::span::{BLOCK_SIZE, Span};

use super::cache;
use super::console;
use super::registers::read;
use super::semihosting;

/// `TCR_EL2`: RES1 bits 31 and 23, 4 KiB granule, inner shareable, write-back walks, 48-bit
/// addresses; the physical size comes from the CPU.
const TCR: u64 = 1 << 31 | 1 << 23 | 3 << 12 | 1 << 10 | 1 << 8 | 16;
/// `SCTLR_EL2` RES1 bits (DDI 0487, `SCTLR_EL2` with `E2H` clear).
const SCTLR_RES1: u64 = 0x30c5_0830;
/// `SCTLR_EL2`: MMU, data cache, stack alignment check, instruction cache.
const SCTLR_ON: u64 = SCTLR_RES1 | 1 | 1 << 2 | 1 << 3 | 1 << 12;
/// `SCTLR_EL2.WXN`: what can be written cannot be executed.
const SCTLR_WXN: u64 = 1 << 19;

/// Attribute index 0: what devices get.
const DEVICE_NGNRE: u64 = 0x04;
/// Attribute index 1: normal memory, write-back, allocating.
const NORMAL_WRITE_BACK: u64 = 0xff;

/// Of every leaf: valid, accessed, and the bit that is RES1 in a regime without EL0 (AP\[1\]).
const LEAF: El23Attributes = El23Attributes::VALID
    .union(El23Attributes::ACCESSED)
    .union(El23Attributes::USER_RES1);
const NORMAL: El23Attributes = LEAF
    .union(El23Attributes::ATTRIBUTE_INDEX_1)
    .union(El23Attributes::INNER_SHAREABLE);
const DEVICE: El23Attributes = LEAF
    .union(El23Attributes::ATTRIBUTE_INDEX_0)
    .union(El23Attributes::XN);

unsafe extern "C" {
    static image_start: u8;
    static constants_start: u8;
    static data_start: u8;
    static stack_guard: u8;
    static stack_start: u8;
    static image_end: u8;
}

/// The address of a symbol of the linker script.
macro_rules! address_of {
    ($symbol:ident) => {
        (&raw const $symbol).expose_provenance() as u64
    };
}

/// The host-physical addresses of the hypervisor itself.
pub(super) fn image() -> Span {
    between(address_of!(image_start), address_of!(image_end))
}

/// Switches the MMU on with the early map. `tree` is the device tree's address.
///
/// Runs with the MMU off: no atomics, no console.
#[unsafe(no_mangle)]
extern "C" fn enable_early_mmu(tree: u64) {
    MAIR_EL2.set(DEVICE_NGNRE | NORMAL_WRITE_BACK << 8);
    let image = image();
    let tables = &raw mut EARLY_TABLES;
    // SAFETY: the one CPU has just begun, so nothing else refers to the tables.
    let tables = unsafe { &mut *tables };
    tables.map(image, NORMAL);
    // The boot protocol lets the tree lie anywhere and be up to 2 MiB large, on 8 bytes.
    tables.map(
        between(tree, tree + BLOCK_SIZE),
        NORMAL | El23Attributes::XN,
    );
    tables.map(
        between(console::EARLY_ADDRESS, console::EARLY_ADDRESS + 0x1000),
        DEVICE,
    );
    // What was written so far went past the caches; drop lines that an earlier stage left.
    cache::invalidate(image);
    // SAFETY: the map covers the code that runs, its data and its stack, at their own addresses.
    unsafe { enable(tables.address(0), SCTLR_ON) };
}

/// Replaces the early map by the final one.
///
/// # Panics
///
/// If a device or bank of memory lies beyond 48 bits.
pub(super) fn map_machine(machine: &Machine) {
    let mut map = IdMap::new(0, El2);
    let mut add = |span: Span, attributes| {
        let region = MemoryRegion::new(span.start() as usize, span.end() as usize);
        map.map_range(&region, attributes)
            .unwrap_or_else(|error| panic!("{span} cannot be mapped: {error}"));
    };
    let data = NORMAL | El23Attributes::XN;
    for bank in &machine.ram {
        for span in bank.without(&[image()]) {
            add(span, data);
        }
    }
    add(
        between(address_of!(image_start), address_of!(constants_start)),
        NORMAL | El23Attributes::READ_ONLY,
    );
    add(
        between(address_of!(constants_start), address_of!(data_start)),
        data | El23Attributes::READ_ONLY,
    );
    // The page below the stack stays unmapped: an overflow must not pass unseen.
    add(
        between(address_of!(data_start), address_of!(stack_guard)),
        data,
    );
    add(
        between(address_of!(stack_start), address_of!(image_end)),
        data,
    );
    for device in &machine.devices {
        if device.name == "uart" || device.name == "gicd" || device.name.starts_with("gicr") {
            add(device.span, DEVICE);
        }
    }
    let root = map.root_address().0 as u64;
    // The map is in use from here to the end: its tables are never given back.
    core::mem::forget(map);
    // SAFETY: the map covers all that the hypervisor uses, at its own address.
    unsafe { enable(root, SCTLR_ON | SCTLR_WXN) };
}

/// Makes `root` the map of EL2, with the MMU off in between: two maps of one address with
/// different block sizes must not be live at once (DDI 0487, section D8.16.1).
///
/// # Safety
///
/// The map must cover the hypervisor and all that it refers to, at its own address.
unsafe fn enable(root: u64, sctlr: u64) {
    // PS, in the encoding of ID_AA64MMFR0_EL1.PARange; 48 bits are the most without FEAT_LPA2.
    let physical_size = (read!("id_aa64mmfr0_el1") & 0xf).min(5);
    // SAFETY: the caller vouches for the map; between the writes nothing but registers is used.
    unsafe {
        core::arch::asm!(
            "dsb sy",
            "msr sctlr_el2, {off}",
            "isb",
            "msr tcr_el2, {tcr}",
            "msr ttbr0_el2, {root}",
            "isb",
            "tlbi alle2",
            "ic iallu",
            "dsb nsh",
            "isb",
            "msr sctlr_el2, {on}",
            "isb",
            off = in(reg) SCTLR_RES1,
            on = in(reg) sctlr,
            tcr = in(reg) TCR | physical_size << 16,
            root = in(reg) root,
            options(nostack)
        );
    }
}

/// The tables of the early map: the root, then whatever the three ranges need below it.
#[repr(C, align(4096))]
struct EarlyTables {
    tables: [[u64; 512]; 8],
    used: usize,
}

static mut EARLY_TABLES: EarlyTables = EarlyTables {
    tables: [[0; 512]; 8],
    used: 1,
};

impl EarlyTables {
    /// Maps `span` and the rest of the 2 MiB blocks that it touches.
    fn map(&mut self, span: Span, attributes: El23Attributes) {
        let mut block = span.start() & !(BLOCK_SIZE - 1);
        while block < span.end() {
            let mut table = 0;
            for shift in [39, 30] {
                table = self.below(table, (block >> shift & 0x1ff) as usize);
            }
            let entry = &mut self.tables[table][(block >> 21 & 0x1ff) as usize];
            *entry = block | attributes.bits() as u64;
            block += BLOCK_SIZE;
        }
    }

    /// The table that entry `index` of `table` points to; a new one if there is none yet.
    fn below(&mut self, table: usize, index: usize) -> usize {
        let entry = self.tables[table][index];
        if entry != 0 {
            return ((entry & !0xfff) - self.address(0)) as usize / 4096;
        }
        // Three ranges need at most seven tables below the root. There is no console yet on which
        // a panic could be seen.
        if self.used == self.tables.len() {
            semihosting::halt();
        }
        self.tables[table][index] = self.address(self.used) | 3;
        self.used += 1;
        self.used - 1
    }

    fn address(&self, table: usize) -> u64 {
        (&raw const self.tables[table]).expose_provenance() as u64
    }
}

fn between(start: u64, end: u64) -> Span {
    Span::new(start, end - start).unwrap_or_else(|| panic!("{start:#x}..{end:#x} wraps"))
}
