//! What a layout holds: boundaries first, then chance.
//!
//! Every layout has the guest's code, a page of each combination of attributes that the format
//! can encode, leaves of each size at both ends of the guest's address width, neighbours that
//! differ, leaves on both sides of the edge of a table, and runs that hardware may keep as one
//! translation. The rest is drawn anywhere.

use anyhow::{Result, ensure};
use slat_table::address::{Gpa, GpaRange};
use slat_table::attributes::{Attributes, MemoryType, Permissions};
use slat_table::format::Format;
use slat_table::geometry::Level;

use super::random::Random;
use super::sheet::{Ground, Piece, Sheet};

/// Pages of different attributes side by side: as many as differ, if they are so many.
const SWATCHES: u64 = 64;

/// Pieces drawn anywhere.
const RANDOM_PIECES: usize = 24;

/// Draws a layout into `sheet` and returns the address at which the guest sees its code.
///
/// `attributes` are those worth trying; the format may refuse some, but not all.
pub(crate) fn draw<F: Format>(
    sheet: &mut Sheet<F>,
    ground: &Ground,
    attributes: &[Attributes],
    random: &mut Random,
) -> Result<u64> {
    let code_gpa = place_code(sheet, ground)?;
    let mut drawer = Drawer {
        sheet,
        ground,
        attributes,
        random,
    };
    drawer.ends()?;
    drawer.swatches()?;
    drawer.neighbours()?;
    drawer.runs()?;
    for _ in 0..RANDOM_PIECES {
        drawer.anywhere()?;
    }
    Ok(code_gpa)
}

/// The guest's code, on the fourth page: out of the way of the edges.
fn place_code<F: Format>(sheet: &mut Sheet<F>, ground: &Ground) -> Result<u64> {
    let page = sheet.table().geometry().entry_bytes(Level::PAGE);
    let code_gpa = 3 * page;
    let placed = sheet.map(Piece {
        range: GpaRange::new(Gpa::new(code_gpa), page)?,
        hpa: ground.code_hpa,
        level: Level::PAGE,
        attributes: Attributes::new(Permissions::ALL, MemoryType::WriteBack),
    })?;
    ensure!(placed, "{} cannot map ordinary memory", F::NAME);
    Ok(code_gpa)
}

struct Drawer<'d, F: Format> {
    sheet: &'d mut Sheet<F>,
    ground: &'d Ground,
    attributes: &'d [Attributes],
    random: &'d mut Random,
}

impl<F: Format> Drawer<'_, F> {
    fn bytes(&self, level: Level) -> u64 {
        self.sheet.table().geometry().entry_bytes(level)
    }

    /// The first address beyond the guest's.
    fn end(&self) -> u64 {
        1 << self.sheet.table().geometry().address_bits()
    }

    fn leaf_levels(&self) -> Vec<Level> {
        self.sheet.table().geometry().leaf_levels().collect()
    }

    /// Maps `leaves` leaves at `gpa`, as far as they are inside one table and free.
    fn leaves(
        &mut self,
        gpa: u64,
        level: Level,
        leaves: u64,
        attributes: Attributes,
    ) -> Result<bool> {
        let geometry = self.sheet.table().geometry();
        let (bytes, maps) = (geometry.entry_bytes(level), geometry.table_maps(level));
        let table_end = (gpa / maps + 1).saturating_mul(maps).min(self.end());
        let size = (leaves * bytes).min(table_end.saturating_sub(gpa));
        if size == 0 {
            return Ok(false);
        }
        let Some(hpa) = self.host(size, bytes) else {
            return Ok(false);
        };
        self.sheet.map(Piece {
            range: GpaRange::new(Gpa::new(gpa), size)?,
            hpa,
            level,
            attributes,
        })
    }

    /// Host memory for `size` bytes, aligned to `alignment`: ours where it fits, or far away.
    fn host(&mut self, size: u64, alignment: u64) -> Option<u64> {
        let memory = &self.ground.memory;
        let near = memory.start..memory.end.saturating_sub(size - alignment);
        let near = self.random.aligned(&near, alignment);
        let far = self.ground.far_bits.and_then(|bits| {
            let end = (1u64 << bits).checked_sub(size - alignment)?;
            self.random.aligned(&(0..end), alignment)
        });
        // A block larger than our memory shows it all if it shows any of it.
        let around = (size == alignment).then(|| memory.start / alignment * alignment);
        match (near, far) {
            (Some(near), Some(far)) => Some(if self.random.one_in(3) { far } else { near }),
            (Some(near), None) => Some(near),
            (None, far) => {
                if self.random.one_in(2) {
                    far.or(around)
                } else {
                    around.or(far)
                }
            }
        }
    }

    fn any_attributes(&mut self) -> Attributes {
        *self.random.pick(self.attributes)
    }

    /// A page of each kind, side by side, and for each larger size a few leaves.
    fn swatches(&mut self) -> Result<()> {
        let page = self.bytes(Level::PAGE);
        let first = 8 * page;
        let mut placed = 0;
        for attributes in self.attributes {
            if placed == SWATCHES {
                break;
            }
            let gpa = first + placed * page;
            placed += u64::from(self.leaves(gpa, Level::PAGE, 1, *attributes)?);
        }
        ensure!(
            placed != 0,
            "{} can encode none of these attributes",
            F::NAME
        );
        for level in self.leaf_levels() {
            for leaf in 2..8 {
                let attributes = self.any_attributes();
                self.leaves_within(leaf * self.bytes(level), level, 1, attributes)?;
            }
        }
        Ok(())
    }

    /// The same, unless it lies beyond the guest's addresses.
    fn leaves_within(
        &mut self,
        gpa: u64,
        level: Level,
        leaves: u64,
        attributes: Attributes,
    ) -> Result<()> {
        if gpa
            .checked_add(self.bytes(level))
            .is_some_and(|end| end <= self.end())
        {
            self.leaves(gpa, level, leaves, attributes)?;
        }
        Ok(())
    }

    /// Leaves of each size at both ends of the guest's addresses, as close as they can stand.
    fn ends(&mut self) -> Result<()> {
        for level in self.leaf_levels().into_iter().rev() {
            let bytes = self.bytes(level);
            let (first, last) = (self.any_attributes(), self.any_attributes());
            self.leaves_within(
                if level == Level::PAGE { 0 } else { bytes },
                level,
                1,
                first,
            )?;
            let gap = if level == Level::PAGE { 1 } else { 2 };
            if let Some(gpa) = self.end().checked_sub(gap * bytes) {
                self.leaves_within(gpa, level, 1, last)?;
            }
        }
        Ok(())
    }

    /// Leaves beside leaves of another kind, with a gap behind them, across the edge of a table.
    fn neighbours(&mut self) -> Result<()> {
        for level in self.leaf_levels() {
            let geometry = self.sheet.table().geometry();
            let (bytes, maps) = (geometry.entry_bytes(level), geometry.table_maps(level));
            let Some(edge) = self.random.aligned(&(maps..self.end()), maps) else {
                continue;
            };
            for gpa in [edge - 3 * bytes, edge - bytes, edge, edge + bytes] {
                let attributes = self.any_attributes();
                self.leaves_within(gpa, level, 1, attributes)?;
            }
        }
        Ok(())
    }

    /// Leaves that hardware may keep as one translation, and such leaves short of one.
    fn runs(&mut self) -> Result<()> {
        for level in self.leaf_levels() {
            let bytes = self.bytes(level);
            let Some(run) = self.sheet.table().geometry().run_bytes(level) else {
                continue;
            };
            for leaves in [run / bytes, run / bytes, run / bytes - 1] {
                let Some(gpa) = self.random.aligned(&(run..self.end()), run) else {
                    continue;
                };
                let attributes = self.any_attributes();
                self.run(gpa, level, leaves * bytes, run, attributes)?;
            }
        }
        Ok(())
    }

    /// Leaves at `gpa` that are aligned for a run on the host's side too.
    fn run(
        &mut self,
        gpa: u64,
        level: Level,
        size: u64,
        run: u64,
        attributes: Attributes,
    ) -> Result<()> {
        let Some(hpa) = self.host(run, run) else {
            return Ok(());
        };
        self.sheet.map(Piece {
            range: GpaRange::new(Gpa::new(gpa), size)?,
            hpa,
            level,
            attributes,
        })?;
        Ok(())
    }

    /// A few leaves somewhere: near others as often as not, where tables are shared.
    fn anywhere(&mut self) -> Result<()> {
        let level = *self.random.pick(&self.leaf_levels());
        let bytes = self.bytes(level);
        let pieces = self.sheet.pieces();
        let near = *self.random.pick(pieces);
        let maps = self.sheet.table().geometry().table_maps(level);
        let around = near.range.start().raw() / maps * maps;
        let space = if self.random.one_in(2) {
            around..around.saturating_add(maps).min(self.end())
        } else {
            0..self.end()
        };
        let Some(gpa) = self.random.aligned(&space, bytes) else {
            return Ok(());
        };
        let (leaves, attributes) = (1 + self.random.below(4), self.any_attributes());
        self.leaves(gpa, level, leaves, attributes)?;
        Ok(())
    }
}

/// Addresses to ask about: one part both ends of the guest's addresses and both sides of what is
/// mapped, in an order that is drawn; the other part anywhere.
pub(crate) fn addresses<F: Format>(
    sheet: &Sheet<F>,
    wanted: usize,
    random: &mut Random,
) -> Vec<u64> {
    let geometry = sheet.table().geometry();
    let end = 1u64 << geometry.address_bits();
    let mut edges = Vec::new();
    for piece in sheet.pieces() {
        let bytes = geometry.entry_bytes(piece.level);
        let (first, after) = (piece.range.start().raw(), piece.range.end().raw());
        edges.extend([first, first + bytes - 1, after - bytes, after - 1]);
        edges.extend(
            [first.wrapping_sub(1), after]
                .into_iter()
                .filter(|at| *at < end),
        );
    }
    random.shuffle(&mut edges);
    let mut addresses = vec![0, end - 1, end, end | (end - 1)];
    addresses.extend(edges.into_iter().take(wanted / 4 * 3));
    while addresses.len() < wanted {
        let piece = random.pick(sheet.pieces());
        addresses.push(match random.below(8) {
            0 => random.below(end),
            1 => {
                // In the same table as something mapped, or its neighbour.
                let maps = geometry.table_maps(piece.level);
                let around = piece.range.start().raw() / maps * maps;
                around.saturating_add(random.below(2 * maps)).min(end - 1)
            }
            _ => piece.range.start().raw() + random.below(piece.range.bytes()),
        });
    }
    addresses
}

/// Addresses 4 bytes before the edges of what is mapped: a load of 8 bytes there takes in both
/// sides.
pub(crate) fn across_edges<F: Format>(
    sheet: &Sheet<F>,
    wanted: usize,
    random: &mut Random,
) -> Vec<u64> {
    let geometry = sheet.table().geometry();
    let end = 1u64 << geometry.address_bits();
    let mut edges = Vec::new();
    for piece in sheet.pieces() {
        let bytes = geometry.entry_bytes(piece.level);
        let (first, after) = (piece.range.start().raw(), piece.range.end().raw());
        edges.extend([first, first + bytes, after]);
    }
    edges.retain(|edge| *edge != 0 && *edge < end);
    random.shuffle(&mut edges);
    edges
        .into_iter()
        .take(wanted)
        .map(|edge| edge - 4)
        .collect()
}
