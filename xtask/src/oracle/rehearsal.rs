//! The TLB oracle: what a guest reaches after translations were taken away.
//!
//! Emulators remember translations as hardware does. So the payload runs `slat-table` itself, with
//! its TLB maintenance executed: it maps, lets the guest touch what was mapped, takes it away, and
//! lets the guest touch it again. A copy of the tree is kept here and says what the guest must
//! meet. With a piece of the maintenance left out on purpose, the guest must meet something else.

use core::ops::Range;

use anyhow::{Result, ensure};
use slat_oracle_protocol::script::{Access, Action, Means, Probe, Who};
use slat_oracle_protocol::tree::{Mapping, Omission, Removal, TreeOptions};
use slat_table::address::{Gpa, GpaRange};
use slat_table::attributes::{Attributes, MemoryType, Permissions};
use slat_table::format::Format;
use slat_table::geometry::Level;

use super::asker::{Asker, Guest};
use super::asking::Asking;
use super::judge::Outcome;
use super::random::Random;
use super::sheet::{Meets, Piece, Sheet};

/// Bits of a guest physical address.
const ADDRESS_BITS: u8 = 40;

const PAGE: u64 = 4096;
/// What a table of pages maps.
const SPAN: u64 = 512 * PAGE;

/// Where a scene plays: each has so much of the guest's addresses, below 4 GiB, for itself.
const SCENE: u64 = 0x1000_0000;

/// The machine, as far as rehearsals go.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    /// Memory that the guest is shown.
    pub(crate) memory: Range<u64>,
    /// Memory for tables.
    pub(crate) tables: Range<u64>,
    /// The page with the guest's code.
    pub(crate) code_hpa: u64,
    /// The guest.
    pub(crate) guest: Guest,
    /// How accesses are made: by a means that has the emulator forget nothing by itself.
    pub(crate) means: Means,
    /// The guest's own page table that maps the first 4 GiB to themselves, where the payload can
    /// switch its translation on.
    pub(crate) guest_table: Option<[u64; 4]>,
}

/// Writes a rehearsal with something left out. `expected` says what must come of an access.
pub(crate) fn rehearse<F: Format>(
    features: F::Features,
    stage: &Stage,
    seed: u64,
    omission: Omission,
    expected: impl Fn(&Meets, &Probe) -> Outcome,
) -> Result<Asking> {
    let code_gpa = 3 * PAGE;
    let mut rehearsal = Rehearsal {
        sheet: Sheet::<F>::new(features, ADDRESS_BITS, &stage.tables)?,
        asking: Asking::default(),
        stage,
        random: Random::new(seed),
        expected,
    };
    let options = TreeOptions {
        format: 0,
        address_bits: ADDRESS_BITS.into(),
        code_gpa,
        code_hpa: stage.code_hpa,
        omission,
    };
    rehearsal
        .asking
        .tree(&format!("own tree, {}", F::NAME), options);
    rehearsal.install(code_gpa, PAGE, stage.code_hpa, Level::PAGE, true)?;
    rehearsal.play()?;
    Ok(rehearsal.asking)
}

struct Rehearsal<'s, F: Format, E> {
    sheet: Sheet<F>,
    asking: Asking,
    stage: &'s Stage,
    random: Random,
    expected: E,
}

impl<F: Format, E: Fn(&Meets, &Probe) -> Outcome> Rehearsal<'_, F, E> {
    /// All scenes.
    fn play(&mut self) -> Result<()> {
        let scenes = [
            Self::pages_one_by_one,
            Self::part_of_a_range,
            Self::block_in_part,
            Self::whole_table,
            Self::more_than_is_named,
            Self::part_of_a_run,
            Self::write_protected,
            Self::guest_tables,
        ];
        let mut numbered = (1..).zip(scenes);
        numbered.try_for_each(|(number, scene)| scene(self, number * SCENE))
    }

    /// Pages far apart, each taken away by itself and replaced by another.
    fn pages_one_by_one(&mut self, at: u64) -> Result<()> {
        let pages: Vec<_> = (0..8).map(|page| at + page * (SPAN + 5 * PAGE)).collect();
        for _ in 0..2 {
            for gpa in &pages {
                self.map(*gpa, PAGE, Level::PAGE)?;
                self.touch(*gpa, Access::Read)?;
                self.touch(*gpa + PAGE - 8, Access::Write)?;
            }
            for gpa in &pages {
                self.remove(*gpa, PAGE, true)?;
                self.touch(*gpa, Access::Read)?;
                self.touch(*gpa, Access::Write)?;
            }
        }
        Ok(())
    }

    /// The middle of neighbouring pages.
    fn part_of_a_range(&mut self, at: u64) -> Result<()> {
        let at = at + 3 * PAGE;
        self.map(at, 12 * PAGE, Level::PAGE)?;
        self.touch_pages(at, 12)?;
        self.remove(at + 4 * PAGE, 5 * PAGE, true)?;
        self.touch_pages(at, 12)?;
        self.remove(at, 12 * PAGE, true)?;
        self.touch_pages(at, 12)
    }

    /// A page in the middle of a block, which is split; then one of the rest, with all of it.
    fn block_in_part(&mut self, at: u64) -> Result<()> {
        let block = self.sheet.table().geometry().entry_bytes(Level::new(1));
        let page = at + block / 2;
        let touched = [at, page - PAGE, page, page + PAGE, at + block - PAGE];
        for split in [true, false] {
            self.map(at, block, Level::new(1))?;
            self.touch_each(&touched)?;
            self.remove(page, PAGE, split)?;
            self.touch_each(&touched)?;
            self.remove(at, block, true)?;
            self.touch_each(&touched)?;
        }
        Ok(())
    }

    /// A table with everything in it; then a block in its place.
    fn whole_table(&mut self, at: u64) -> Result<()> {
        self.map(at + 7 * PAGE, 9 * PAGE, Level::PAGE)?;
        self.touch_pages(at + 6 * PAGE, 11)?;
        self.remove(at, SPAN, true)?;
        self.touch_pages(at + 6 * PAGE, 11)?;
        self.map(at, SPAN, Level::new(1))?;
        self.touch_pages(at + 6 * PAGE, 11)
    }

    /// More pages than are invalidated one by one.
    fn more_than_is_named(&mut self, at: u64) -> Result<()> {
        let (first, rest) = (at + 500 * PAGE, at + SPAN);
        self.map(first, 12 * PAGE, Level::PAGE)?;
        self.map(rest, 511 * PAGE, Level::PAGE)?;
        let touched = [first, first + 11 * PAGE, rest, rest + 510 * PAGE];
        self.touch_each(&touched)?;
        self.remove(first + PAGE, 521 * PAGE, true)?;
        self.touch_each(&touched)
    }

    /// One page of a run that hardware may keep as one translation.
    fn part_of_a_run(&mut self, at: u64) -> Result<()> {
        self.map(at, 32 * PAGE, Level::PAGE)?;
        self.touch_pages(at, 32)?;
        self.remove(at + 5 * PAGE, PAGE, true)?;
        self.touch_pages(at, 32)?;
        self.remove(at + 16 * PAGE, 16 * PAGE, true)?;
        self.touch_pages(at, 32)
    }

    /// A page that comes back for reading only.
    fn write_protected(&mut self, at: u64) -> Result<()> {
        for page in 0..4 {
            let gpa = at + page * PAGE;
            let hpa = self.memory(PAGE, PAGE)?;
            self.install(gpa, PAGE, hpa, Level::PAGE, true)?;
            self.touch(gpa, Access::Write)?;
            self.remove(gpa, PAGE, true)?;
            self.install(gpa, PAGE, hpa, Level::PAGE, false)?;
            self.touch(gpa, Access::Read)?;
            self.touch(gpa, Access::Write)?;
        }
        Ok(())
    }

    /// Pages that hold the guest's own tables: what the MMU remembers of those are translations by
    /// guest physical address.
    fn guest_tables(&mut self, at: u64) -> Result<()> {
        let Some(table) = self.stage.guest_table else {
            return Ok(());
        };
        let pages: Vec<_> = (0..6).map(|page| at + page * PAGE).collect();
        let hpa = self.memory(6 * PAGE, PAGE)?;
        self.install(at, 6 * PAGE, hpa, Level::PAGE, true)?;
        for page in 0..6 {
            for (index, entry) in (0..).zip(table) {
                self.asking.put(hpa + page * PAGE + 8 * index, entry);
            }
        }
        for round in 0..2 {
            for gpa in &pages {
                let probe = Probe {
                    gpa: *gpa,
                    access: Access::Read,
                    who: Who::Kernel,
                    means: Means::GuestTable,
                };
                let meets = self.sheet.meets(*gpa)?;
                self.asking.access(probe, (self.expected)(&meets, &probe));
            }
            if round == 0 {
                self.remove(at, 6 * PAGE, true)?;
            }
        }
        Ok(())
    }

    fn touch_pages(&mut self, at: u64, pages: u64) -> Result<()> {
        (0..pages).try_for_each(|page| self.touch(at + page * PAGE, Access::Read))
    }

    fn touch_each(&mut self, addresses: &[u64]) -> Result<()> {
        let touch = |gpa: &u64| self.touch(*gpa, Access::Read);
        addresses.iter().try_for_each(touch)
    }

    /// Has the guest touch an address.
    fn touch(&mut self, gpa: u64, access: Access) -> Result<()> {
        let probe = Probe {
            gpa,
            access,
            who: Who::Kernel,
            means: self.stage.means,
        };
        let meets = self.sheet.meets(gpa)?;
        let expected = (self.expected)(&meets, &probe);
        let guest = self.stage.guest.clone();
        Asker::new(&self.sheet, &mut self.asking, guest, false).access(probe, &meets, expected)
    }

    /// Memory that is drawn.
    fn memory(&mut self, bytes: u64, alignment: u64) -> Result<u64> {
        let end = self.stage.memory.end - bytes;
        let hpa = self
            .random
            .aligned(&(self.stage.memory.start..end), alignment);
        hpa.ok_or_else(|| anyhow::anyhow!("no room for {bytes:#x} bytes"))
    }

    /// Maps memory that is drawn, aligned so that runs are possible.
    fn map(&mut self, gpa: u64, bytes: u64, level: Level) -> Result<()> {
        let alignment = if level == Level::PAGE {
            // As far from a multiple of a run as the guest's side is.
            16 * PAGE
        } else {
            self.sheet.table().geometry().entry_bytes(level)
        };
        let hpa = self.memory(bytes + alignment, alignment)? + gpa % alignment;
        self.install(gpa, bytes, hpa, level, true)
    }

    fn install(
        &mut self,
        gpa: u64,
        bytes: u64,
        hpa: u64,
        level: Level,
        writable: bool,
    ) -> Result<()> {
        let permissions = Permissions {
            write: writable,
            ..Permissions::ALL
        };
        let placed = self.sheet.map(Piece {
            range: GpaRange::new(Gpa::new(gpa), bytes)?,
            hpa,
            level,
            attributes: Attributes::new(permissions, MemoryType::WriteBack),
        })?;
        ensure!(placed, "{gpa:#x} cannot be mapped");
        if hpa != self.stage.code_hpa {
            self.asking.script().push(&Action::Map(Mapping {
                gpa,
                bytes,
                hpa,
                level: level.index() as u64,
                writable,
            }));
        }
        Ok(())
    }

    fn remove(&mut self, gpa: u64, bytes: u64, split: bool) -> Result<()> {
        self.sheet
            .remove(&GpaRange::new(Gpa::new(gpa), bytes)?, split);
        let removal = Removal { gpa, bytes, split };
        self.asking.script().push(&Action::Remove(removal));
        Ok(())
    }
}
