//! A tree built for the machine that is to be started, and what it says of an address.

use core::ops::Range;
use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use slat_oracle_protocol::script::Script;
use slat_table::address::{Gpa, GpaRange, Hpa};
use slat_table::attributes::Attributes;
use slat_table::cache::TableCache;
use slat_table::format::{ByteOrder, Entry, Format};
use slat_table::geometry::Level;
use slat_table::platform::TableMemory as _;
use slat_table::restriction::PartialBlock;
use slat_table::sync::Ordering;
use slat_table::table::{LeavesError, PageTable, TableOptions};

use super::image::Image;

/// The machine's memory, as far as layouts go.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    /// Memory that the guest may be shown: nothing else uses it.
    pub(crate) memory: Range<u64>,
    /// Bits of the host physical addresses of leaves that no memory is behind; `None` if such
    /// leaves are of no use.
    pub(crate) far_bits: Option<u8>,
    /// Memory for tables.
    pub(crate) tables: Range<u64>,
    /// The page with the guest's code.
    pub(crate) code_hpa: u64,
}

/// Leaves of one level side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) range: GpaRange,
    pub(crate) hpa: u64,
    pub(crate) level: Level,
    pub(crate) attributes: Attributes,
}

/// What the tables say of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meets {
    /// It has more bits than the guest's addresses do.
    Beyond,
    /// The entry at this level maps nothing.
    Nothing(Level),
    /// A leaf.
    Leaf {
        /// The host physical address of the byte asked for.
        hpa: u64,
        /// Its level.
        level: Level,
        /// What else it says.
        attributes: Attributes,
        /// Where the entry is.
        entry: u64,
    },
}

/// A tree, and what was put into it.
#[derive(Debug)]
pub(crate) struct Sheet<F: Format> {
    table: PageTable<F, Image>,
    image: Image,
    pieces: Vec<Piece>,
}

impl<F: Format> Sheet<F> {
    /// A tree that maps nothing.
    pub(crate) fn new(
        features: F::Features,
        address_bits: u8,
        tables: &Range<u64>,
    ) -> Result<Self> {
        let image = Image::new(tables.start, tables.end);
        let options = TableOptions {
            address_bits,
            ..TableOptions::default()
        };
        let table = PageTable::new(image.clone(), features, options)
            .with_context(|| format!("{} with {address_bits} address bits", F::NAME))?;
        Ok(Self {
            table,
            image,
            pieces: Vec::new(),
        })
    }

    /// The tree.
    pub(crate) fn table(&self) -> &PageTable<F, Image> {
        &self.table
    }

    /// Everything mapped, in the order in which it was.
    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Maps a piece with the engine, as `slat` would. False if it overlaps another or the format
    /// cannot encode it.
    pub(crate) fn map(&mut self, piece: Piece) -> Result<bool> {
        let Piece {
            range,
            hpa,
            level,
            attributes,
        } = piece;
        let overlaps = |known: &Piece| known.range.overlaps(&range);
        if self.pieces.iter().any(overlaps) {
            return Ok(false);
        }
        let leaves = match self.table.leaves(range, Hpa::new(hpa), level, attributes) {
            Ok(leaves) => leaves,
            // The latter where the host addresses cross a seam of the format.
            Err(LeavesError::Encode(_) | LeavesError::NotARun { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let mut tables = TableCache::new(&self.table);
        tables.fill().context("the tables have no room")?;
        let mut hold = self.table.hold(&range);
        let installed = hold.install(&leaves, &mut tables)?;
        drop(hold);
        ensure!(
            installed.conflict.is_none(),
            "{range} meets something that was never mapped"
        );
        drop(tables);
        self.pieces.push(piece);
        Ok(true)
    }

    /// Takes a range out, with a block that it covers in part split or dropped.
    pub(crate) fn remove(&mut self, range: &GpaRange, split: bool) {
        let mut tables = TableCache::new(&self.table);
        let partial = if split {
            PartialBlock::Split(&mut tables)
        } else {
            PartialBlock::Drop
        };
        drop(self.table.restrict(range).unmap(range, partial));
        drop(tables);
        self.pieces.retain(|piece| !range.covers(&piece.range));
    }

    /// What the tables say of `gpa`: `slat`'s own walk, and, where that finds nothing, the level at
    /// which it ends.
    pub(crate) fn meets(&self, gpa: u64) -> Result<Meets> {
        let gpa = Gpa::new(gpa);
        if gpa.raw() >> self.table.geometry().address_bits() != 0 {
            return Ok(Meets::Beyond);
        }
        let (entry, level) = self.last_entry(gpa)?;
        let Some(found) = self.table.translate(gpa) else {
            return Ok(Meets::Nothing(level));
        };
        ensure!(found.level == level, "{gpa:?} ends on two levels at once");
        self.check_against_pieces(gpa, found.hpa)?;
        Ok(Meets::Leaf {
            hpa: found.hpa.raw(),
            level,
            attributes: found.attributes,
            entry: entry.raw(),
        })
    }

    /// The tables must say what was asked for when they were made, or the oracle judges nothing.
    fn check_against_pieces(&self, gpa: Gpa, hpa: Hpa) -> Result<()> {
        let piece = self.pieces.iter().find(|piece| piece.range.contains(gpa));
        let asked = piece.map(|piece| piece.hpa + (gpa.raw() - piece.range.start().raw()));
        ensure!(
            asked == Some(hpa.raw()),
            "{gpa:?} leads to {hpa:?}, which was never asked for"
        );
        Ok(())
    }

    /// The entry at which a walk towards `gpa` ends, and its level.
    fn last_entry(&self, gpa: Gpa) -> Result<(Hpa, Level)> {
        let geometry = self.table.geometry();
        let mut table = self.image.root().context("a tree without a root")?;
        for level in geometry.levels_down() {
            let entry = Hpa::new(table.raw() + geometry.index(level, gpa) * F::ENTRY_BYTES);
            let raw = self.entry(entry);
            if !F::is_table(level, raw) {
                return Ok((entry, level));
            }
            table = F::address(self.table.features(), level, raw);
        }
        bail!("a table below the pages, at {gpa:?}")
    }

    /// The entry at `entry`, as a number.
    fn entry(&self, entry: Hpa) -> u64 {
        in_order::<F>(self.image.load(entry, Ordering::Relaxed))
    }

    /// Puts the tables into the script, with the bit `flip` flipped in every leaf but that of the
    /// page at `code_gpa`, without which nothing could be asked.
    pub(crate) fn write(
        &self,
        script: &mut Script,
        code_gpa: u64,
        flip: Option<u32>,
    ) -> Result<()> {
        let Some(bit) = flip else {
            self.image.write(script);
            return Ok(());
        };
        let code = self.last_entry(Gpa::new(code_gpa))?.0;
        let leaves = self.leaf_entries()?;
        let flip = |entry: Hpa, value: u64| {
            if leaves.contains(&entry.raw()) && entry != code {
                value ^ in_order::<F>(1 << bit)
            } else {
                value
            }
        };
        self.image.changed(flip).write(script);
        Ok(())
    }

    /// Where the leaves are.
    fn leaf_entries(&self) -> Result<BTreeSet<u64>> {
        let mut entries = BTreeSet::new();
        for piece in &self.pieces {
            let bytes = self.table.geometry().entry_bytes(piece.level);
            let leaves = piece.range.bytes() / bytes;
            for leaf in 0..leaves {
                let gpa = Gpa::new(piece.range.start().raw() + leaf * bytes);
                let (entry, level) = self.last_entry(gpa)?;
                let raw = self.entry(entry);
                let decoded = F::decode(self.table.features(), level, raw);
                ensure!(
                    matches!(decoded, Entry::Leaf { .. }),
                    "{gpa:?} was mapped and has no leaf: {decoded:?}"
                );
                entries.insert(entry.raw());
            }
        }
        Ok(entries)
    }
}

/// Turns a value into the format's byte order, or back.
fn in_order<F: Format>(value: u64) -> u64 {
    match F::BYTE_ORDER {
        ByteOrder::Little => value.to_le(),
        ByteOrder::Big => value.to_be(),
    }
}
