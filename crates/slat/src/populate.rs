//! The one path by which anything is ever mapped.
//!
//! Creation-time mapping, faults and prefaulting all come here; they differ only in how the host
//! is asked (a peek or a fault) and how far one step may reach. The order of a step is the protocol's:
//! snapshot the sequences, ask the host, hold the stripes, check, install (P2, P3, P4). Nothing
//! is allocated, asked or awaited under a stripe.

use slat_table::address::{Gpa, GpaRange, Hpa, Hva};
use slat_table::attributes::{Access, Attributes, Execute, MemoryType, Permissions};
use slat_table::cache::{OutOfTables, TableCache};
use slat_table::format::Format;
use slat_table::geometry::{Geometry, Level};
use slat_table::hold::Installed;
use slat_table::platform::Platform;
use slat_table::restriction::PartialBlock;
use slat_table::table::LeavesError;

use crate::host::{Host, HostPage, PageKind, ResolveError};
use crate::memory::GuestMemory;
use crate::region::Slot;

/// How far a step may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// One leaf: what a fault asks for.
    Leaf,
    /// All pages that one answer of the host and one hold of a stripe allow.
    Run,
}

/// One step: map what is at `gpa`.
#[derive(Clone, Copy)]
pub(crate) struct Request<'s> {
    pub(crate) slot: &'s Slot,
    /// Generation of the set that `slot` is from.
    pub(crate) generation: u64,
    pub(crate) gpa: Gpa,
    pub(crate) access: Access,
    pub(crate) reach: Reach,
}

/// What a step did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapped {
    /// What is mapped now.
    pub(crate) range: GpaRange,
    pub(crate) level: Level,
    pub(crate) page: HostPage,
    /// Host address behind the first byte of `range`.
    pub(crate) hpa: Hpa,
    pub(crate) installed: Installed,
}

/// Why a step mapped nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PopulateError {
    /// The host or the slots changed meanwhile; try again.
    #[error("the host or the slots changed meanwhile")]
    Retry,
    /// The host has no page to show.
    #[error(transparent)]
    Host(#[from] ResolveError),
    /// Device memory cannot be executed.
    #[error("{0} is device memory, which cannot be executed")]
    NotExecutable(Gpa),
    /// The page's memory type would not hold against the guest's own tables.
    #[error("{gpa} is device memory of type {memory:?}, which cannot be honoured")]
    MemoryType {
        /// The guest address.
        gpa: Gpa,
        /// The memory type.
        memory: MemoryType,
    },
    /// No memory for a table.
    #[error(transparent)]
    OutOfTables(#[from] OutOfTables),
    /// The format cannot express the leaf, or the host broke its contract about blocks.
    #[error(transparent)]
    Leaves(#[from] LeavesError),
}

/// What a step would install.
struct Plan {
    range: GpaRange,
    level: Level,
    hpa: Hpa,
}

impl<F: Format, H: Host, P: Platform> GuestMemory<F, H, P> {
    /// Maps what is at `request.gpa`, if nothing changes meanwhile. `ask` is how the host is
    /// asked.
    #[inline]
    pub(crate) fn populate(
        &self,
        request: &Request<'_>,
        ask: impl Fn(Hva, Access) -> Result<HostPage, ResolveError>,
        tables: &mut TableCache<'_, F, P>,
    ) -> Result<Mapped, PopulateError> {
        tables.fill()?;
        let geometry = self.table.geometry();
        let page = GpaRange::block_around(request.gpa, geometry.entry_bytes(Level::PAGE))
            .ok_or(PopulateError::Retry)?;
        let hva = request
            .slot
            .hva_of(&page)
            .ok_or(PopulateError::Retry)?
            .start();

        // P2: the sequence comes before the question.
        let mut snapshot = self.table.snapshot(&page);
        let mut answer = ask(hva, request.access)?;
        let mut plan = plan(geometry, request, page.start(), &answer);
        let wide = self.table.snapshot(&plan.range);
        if wide.set() != snapshot.set() {
            // P2: a leaf over several spans needs all their sequences before the question.
            snapshot = wide;
            answer = ask(hva, request.access)?;
            let again = self::plan(geometry, request, page.start(), &answer);
            if again.range != plan.range || again.level != plan.level {
                return Err(PopulateError::Retry);
            }
            plan = again;
        }
        self.install(request, &plan, answer, &snapshot, tables)
    }

    #[inline]
    fn install(
        &self,
        request: &Request<'_>,
        plan: &Plan,
        page: HostPage,
        snapshot: &slat_table::stripe::Snapshot,
        tables: &mut TableCache<'_, F, P>,
    ) -> Result<Mapped, PopulateError> {
        let attributes = attributes::<F>(request, &page, self.table.features())?;
        let leaves = self
            .table
            .leaves(plan.range, plan.hpa, plan.level, attributes)?;
        let executable = attributes.permissions.execute != Execute::Never;
        self.table
            .platform()
            .prepare(plan.hpa, plan.range.bytes(), page.memory, executable);

        let mut hold = self.table.hold(&plan.range);
        // P3: in this order, under the stripes.
        if self.published.generation() != request.generation || !hold.is_current(snapshot) {
            return Err(PopulateError::Retry);
        }
        let installed = hold
            .install(&leaves, tables)
            .map_err(|_| PopulateError::Retry)?;
        drop(hold);
        self.table.settle(&installed, plan.range);
        if let Some(conflict) = installed.conflict {
            // P4: break and flush what is in the way, then ask again.
            drop(
                self.table
                    .restrict(&conflict)
                    .unmap(&conflict, PartialBlock::Drop),
            );
            return Err(PopulateError::Retry);
        }
        Ok(Mapped {
            range: plan.range,
            level: plan.level,
            page,
            hpa: plan.hpa,
            installed,
        })
    }
}

/// What the leaf allows: never more than the slot and the page do.
#[inline]
fn attributes<F: Format>(
    request: &Request<'_>,
    page: &HostPage,
    features: &F::Features,
) -> Result<Attributes, PopulateError> {
    let Request {
        slot, gpa, access, ..
    } = *request;
    if page.kind == PageKind::Pfnmap {
        if access == Access::Execute {
            return Err(PopulateError::NotExecutable(gpa));
        }
        // Checked when the region was created, but the mapping may be another one by now.
        if !F::forces(features, page.memory) {
            let memory = page.memory;
            return Err(PopulateError::MemoryType { gpa, memory });
        }
    }
    // A logged page becomes writable only by a write, which the log then knows of.
    let logged = slot.logs_dirty() && access != Access::Write;
    let write = page.writable && !slot.is_read_only() && !logged;
    let execute = match page.kind {
        PageKind::Ram => Execute::Always,
        PageKind::Pfnmap => Execute::Never,
    };
    let permissions = Permissions {
        read: true,
        write,
        execute,
    };
    if access == Access::Write && !permissions.write {
        // The host said yes to a write and then that the page is not writable.
        let hva = page.block.start();
        return Err(ResolveError::NotPermitted { hva, access }.into());
    }
    Ok(Attributes::new(permissions, page.memory))
}

/// The largest leaf around `gpa` that the slot, the host's block, its alignment and logging
/// allow, or the run of pages from there.
#[inline]
fn plan(geometry: &Geometry, request: &Request<'_>, gpa: Gpa, page: &HostPage) -> Plan {
    let slot = request.slot;
    // Where the host block lies in guest addresses, as far as the slot goes. The block lies in
    // one mapping and is linear, so a leaf inside it needs no other bound.
    let page_bytes = geometry.entry_bytes(Level::PAGE);
    let single = GpaRange::block_around(gpa, page_bytes).unwrap_or(slot.range());
    let shown = slot.gpa_of(&page.block).unwrap_or(single);
    let hpa_of = |at: Gpa| {
        let hva = (at.raw() - slot.range().start().raw()) + slot.hva().raw();
        Hpa::new(
            page.hpa
                .raw()
                .wrapping_add(hva.wrapping_sub(page.block.start().raw())),
        )
    };
    let largest = geometry
        .leaf_levels()
        .filter(|level| *level == Level::PAGE || !slot.logs_dirty());
    for level in largest {
        let Some(block) = geometry.block(level, gpa) else {
            continue;
        };
        if level != Level::PAGE && shown.covers(&block) {
            let hpa = hpa_of(block.start());
            if hpa.is_aligned(block.bytes()) {
                return Plan {
                    range: block,
                    level,
                    hpa,
                };
            }
        }
    }
    let span = GpaRange::block_around(gpa, 1 << geometry.span_shift()).unwrap_or(single);
    let run = span.intersection(&shown).and_then(|run| run.from(gpa));
    let range = match (request.reach, run) {
        (Reach::Run, Some(run)) => run,
        _ => single,
    };
    Plan {
        range,
        level: Level::PAGE,
        hpa: hpa_of(range.start()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::region::{Region, SlotId};
    use crate::testing::{FEATURES, geometry};
    use slat_table::address::{HvaRange, PAGE_SIZE};
    use slat_table::format::arm64::Arm64;

    const BLOCK: u64 = 2 << 20;
    const HVA: u64 = 0x7f00_0000_0000;

    fn slot(region: Region) -> Slot {
        region.validate(&Config::new(), &geometry()).unwrap()
    }

    fn region() -> Region {
        let gpa = Gpa::new(4 * BLOCK);
        Region::new(SlotId(1), gpa, 4 * BLOCK, Hva::new(HVA))
    }

    fn page() -> HostPage {
        HostPage {
            block: HvaRange::new(Hva::new(HVA), 4 * BLOCK).unwrap(),
            hpa: Hpa::new(0x8000_0000),
            writable: true,
            kind: PageKind::Ram,
            memory: MemoryType::WriteBack,
        }
    }

    fn request(slot: &Slot, access: Access) -> Request<'_> {
        Request {
            slot,
            generation: 1,
            gpa: Gpa::new(5 * BLOCK + PAGE_SIZE),
            access,
            reach: Reach::Leaf,
        }
    }

    #[test]
    fn a_logged_slot_is_mapped_in_pages() {
        let size = |region: Region| {
            let slot = slot(region);
            let request = request(&slot, Access::Write);
            plan(&geometry(), &request, request.gpa, &page())
                .range
                .bytes()
        };
        assert_eq!(size(region()), BLOCK);
        assert_eq!(size(region().log_dirty()), PAGE_SIZE);
        let never_written = region().log_dirty().read_only();
        assert_eq!(size(never_written), BLOCK);
    }

    #[test]
    fn a_logged_page_becomes_writable_by_a_write_only() {
        let logged = slot(region().log_dirty());
        for access in [Access::Read, Access::Write, Access::Execute] {
            let request = request(&logged, access);
            let given = attributes::<Arm64>(&request, &page(), &FEATURES).unwrap();
            assert_eq!(given.permissions.write, access == Access::Write);
        }
    }

    #[test]
    fn an_answer_about_another_place_is_taken_for_one_page() {
        let slot = slot(region());
        let request = request(&slot, Access::Read);
        let elsewhere = HostPage {
            block: HvaRange::new(Hva::new(HVA - BLOCK), BLOCK).unwrap(),
            ..page()
        };
        let plan = plan(&geometry(), &request, request.gpa, &elsewhere);
        assert_eq!(plan.range.bytes(), PAGE_SIZE);
    }
}
