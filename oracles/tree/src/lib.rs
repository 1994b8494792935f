//! A tree that a payload keeps by itself.
//!
//! Here `slat-table` does not prepare tables for somebody else: it runs on the emulated machine,
//! on the physical memory that the table walker reads, and its TLB maintenance is executed. What
//! a guest reaches after a removal shows whether enough was forgotten.

#![no_std]

extern crate alloc;

pub mod heap;
pub mod memory;

use slat_oracle_protocol::payload::Refused;
use slat_oracle_protocol::tree::{Mapping, Removal, TreeOptions};
use slat_table::address::{Gpa, GpaRange, Hpa};
use slat_table::attributes::{Attributes, MemoryType, Permissions};
use slat_table::cache::TableCache;
use slat_table::format::Format;
use slat_table::geometry::Level;
use slat_table::lock::SpinLocks;
use slat_table::platform::{Platform, Tlb};
use slat_table::restriction::PartialBlock;
use slat_table::table::{PageTable, TableOptions};

use crate::memory::PhysicalMemory;

/// The number of the VM.
pub const VMID: u16 = 7;

/// The machine below a tree: physical memory, and a way to forget translations.
#[derive(Debug)]
pub struct Machine<T> {
    memory: PhysicalMemory,
    tlb: T,
}

/// A tree of format `F` on a machine that forgets translations by way of `T`.
#[derive(Debug)]
pub struct Tree<F: Format, T: Tlb + 'static> {
    table: PageTable<F, Machine<T>>,
}

impl<F: Format, T: Tlb + 'static> Tree<F, T> {
    /// A tree in `memory` that maps nothing but the guest's code.
    ///
    /// # Errors
    ///
    /// [`Refused`] if there is no such tree.
    pub fn new(
        features: F::Features,
        options: &TreeOptions,
        memory: PhysicalMemory,
        tlb: T,
    ) -> Result<Self, Refused> {
        let address_bits = u8::try_from(options.address_bits);
        let shape = TableOptions {
            address_bits: address_bits.map_err(|_| Refused("too many address bits"))?,
            ..TableOptions::default()
        };
        let table = PageTable::new(Machine { memory, tlb }, features, shape)
            .map_err(|_| Refused("the tree cannot be made"))?;
        let tree = Self { table };
        let page = tree.table.geometry().entry_bytes(Level::PAGE);
        tree.map(&Mapping {
            gpa: options.code_gpa,
            bytes: page,
            hpa: options.code_hpa,
            level: 0,
            writable: true,
        })?;
        Ok(tree)
    }

    /// What points the hardware to the tree.
    ///
    /// # Errors
    ///
    /// [`Refused`] if the hardware has no such VM.
    pub fn root(&self) -> Result<F::Root, Refused> {
        let root = self.table.root(VMID);
        root.map_err(|_| Refused("no VM has this number"))
    }

    /// Maps a range.
    ///
    /// # Errors
    ///
    /// [`Refused`] if it cannot be mapped.
    pub fn map(&self, mapping: &Mapping) -> Result<(), Refused> {
        let range = range(mapping.gpa, mapping.bytes)?;
        let level = u8::try_from(mapping.level).map_err(|_| Refused("no such level"))?;
        let permissions = Permissions {
            write: mapping.writable,
            ..Permissions::ALL
        };
        let attributes = Attributes::new(permissions, MemoryType::WriteBack);
        let leaves = self
            .table
            .leaves(range, Hpa::new(mapping.hpa), Level::new(level), attributes)
            .map_err(|_| Refused("these leaves cannot be encoded"))?;
        let mut tables = TableCache::new(&self.table);
        tables.fill().map_err(|_| Refused("no memory for tables"))?;
        let mut hold = self.table.hold(&range);
        let installed = hold
            .install(&leaves, &mut tables)
            .map_err(|_| Refused("these leaves cannot be installed"))?;
        drop(hold);
        self.table.settle(&installed, range);
        match installed.conflict {
            None => Ok(()),
            Some(_) => Err(Refused("something else is mapped there")),
        }
    }

    /// Takes a range out, and has everyone forget it before returning.
    ///
    /// # Errors
    ///
    /// [`Refused`] if it is no range.
    pub fn remove(&self, removal: &Removal) -> Result<(), Refused> {
        let range = range(removal.gpa, removal.bytes)?;
        let mut tables = TableCache::new(&self.table);
        let partial = if removal.split {
            PartialBlock::Split(&mut tables)
        } else {
            PartialBlock::Drop
        };
        let mut restriction = self.table.restrict(&range);
        drop(restriction.unmap(&range, partial));
        Ok(())
    }
}

fn range(gpa: u64, bytes: u64) -> Result<GpaRange, Refused> {
    GpaRange::new(Gpa::new(gpa), bytes).map_err(|_| Refused("no such range"))
}

impl<T: Tlb + 'static> Platform for Machine<T> {
    type Locks = SpinLocks;
}
