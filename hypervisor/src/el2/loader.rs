//! Puts into the guest's memory what the boot protocol says it starts with: kernel, initial RAM
//! disk, device tree.

use alloc::vec::Vec;

use dtoolkit::fdt::Fdt;
use slat::table::address::{Gpa, GpaRange};
use slat_hypervisor::guest_tree::{self, GuestTreeError};
use slat_hypervisor::image::{Image, ImageError};
use slat_hypervisor::layout::{Layout, LayoutError};
use slat_hypervisor::machine::{Machine, Module};
use slat_hypervisor::span::{BLOCK_SIZE, PAGE_SIZE, Span};
use thiserror::Error;

use super::cpu;
use super::memory::{Guest, GuestError};

/// What was loaded.
pub(super) struct Loaded {
    /// The guest-physical address of the kernel's first instruction.
    pub(super) entry: u64,
    /// The guest-physical address of the device tree.
    pub(super) tree: u64,
    /// Guest-physical ranges that have contents now.
    pub(super) spans: Vec<Span>,
    /// Frames that this brought, of either size.
    pub(super) frames: u64,
}

/// A guest that cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum LoadError {
    /// The kernel.
    #[error("the guest's kernel: {0}")]
    Image(#[from] ImageError),
    /// The guest's memory is too small.
    #[error("memory=: {0}")]
    Layout(#[from] LayoutError),
    /// The device tree.
    #[error("the guest's device tree: {0}")]
    Tree(#[from] GuestTreeError),
    /// The memory behind the guest's.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

impl Loaded {
    /// Guest-physical pages that have contents now.
    pub(super) fn ranges(&self) -> impl Iterator<Item = GpaRange> {
        self.spans.iter().filter_map(|span| {
            let span = span.whole_pages();
            GpaRange::new(Gpa::new(span.start()), span.size()).ok()
        })
    }
}

/// Backs the guest's RAM at `ram` and loads it.
///
/// # Errors
///
/// A [`LoadError`] says what does not fit or is not what it should be.
pub(super) fn load(
    guest: &Guest,
    machine: &Machine,
    tree: &Fdt<'_>,
    ram: Span,
) -> Result<Loaded, LoadError> {
    let kernel = contents(&machine.kernel);
    let ramdisk = machine.ramdisk.as_ref();
    let layout = Layout::new(
        ram,
        Image::parse(kernel)?,
        machine.kernel.span.size(),
        ramdisk.map(|module| module.span.size()),
    )?;
    let described = guest_tree::Guest {
        ram,
        arguments: &machine.kernel.arguments,
        ramdisk: layout.ramdisk,
        cpu: cpu::affinity(),
    };
    let tree = guest_tree::build(tree, described)?;

    guest.back_ram(ram)?;
    guest.load(layout.kernel.start(), kernel)?;
    guest.load(layout.tree.start(), &tree)?;
    let mut spans = alloc::vec![layout.kernel, layout.tree];
    if let (Some(span), Some(module)) = (layout.ramdisk, ramdisk) {
        guest.load(span.start(), contents(module))?;
        spans.push(span);
    }
    let brought = guest.space.statistics().done.populated;
    Ok(Loaded {
        entry: layout.kernel.start(),
        tree: layout.tree.start(),
        spans,
        frames: brought.base + brought.huge,
    })
}

/// The most memory in bytes that a guest can have when the host has `free_pages` free frames: its
/// tables must fit too, and one block must be left to move others to.
pub(super) fn most_memory(free_pages: u64) -> u64 {
    /// Bytes that one last-level table of 512 entries maps, of as many pages.
    const TABLE_SHARE: u64 = 512;
    /// Tables that do not depend on the size of RAM: those of devices, and upper levels.
    const OTHER_TABLES: u64 = 4 << 20;
    let free = free_pages * PAGE_SIZE;
    let rest = free / TABLE_SHARE + OTHER_TABLES + BLOCK_SIZE;
    free.saturating_sub(rest) & !((1 << 20) - 1)
}

fn contents(module: &Module) -> &'static [u8] {
    let start = core::ptr::with_exposed_provenance(module.span.start() as usize);
    // SAFETY: the machine's loader left the module there; EL2 maps all RAM, and the division of
    // memory gives this part to nobody.
    unsafe { core::slice::from_raw_parts(start, module.span.size() as usize) }
}
