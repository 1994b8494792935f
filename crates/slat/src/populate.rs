//! The one path by which anything is ever mapped.
//!
//! Creation-time mapping, faults and prefaulting all come here; they differ only in how the host
//! is asked (a peek or a fault) and how far one step may reach. The order of a step is the protocol's:
//! snapshot the sequences, ask the host, hold the stripes, check, install (P2, P3, P4). Nothing
//! is allocated, asked or awaited under a stripe.

use slat_table::address::{Gpa, GpaRange, Hpa, Hva, HvaRange};
use slat_table::attributes::{Access, Attributes, Execute, MemoryType, Permissions};
use slat_table::cache::{OutOfTables, TableCache};
use slat_table::format::Format;
use slat_table::geometry::{Geometry, Level};
use slat_table::hold::{Hold, Installed};
use slat_table::platform::Platform;
use slat_table::restriction::PartialBlock;
use slat_table::stripe::{Room, Snapshot};
use slat_table::table::{Leaves, LeavesError};

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
    /// Bytes of each leaf in it; of a run of leaves, all its bytes.
    pub(crate) leaf: u64,
    /// What kind of memory the host shows there.
    pub(crate) kind: PageKind,
    /// Whether the host lets it be written.
    pub(crate) writable: bool,
    /// Host address behind the first byte of `range`.
    pub(crate) hpa: Hpa,
    /// Leaves that were not there.
    pub(crate) new: u64,
    /// Leaves that were there and allow more now, or are young again.
    pub(crate) extended: u64,
}

impl Mapped {
    /// What was done if of all leaves only this one is known to be there.
    #[cold]
    fn only(self, leaf: GpaRange) -> Self {
        let offset = leaf.start().raw() - self.range.start().raw();
        Self {
            range: leaf,
            leaf: leaf.bytes(),
            hpa: Hpa::new(self.hpa.raw() + offset),
            ..self
        }
    }
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
    /// What the host shows does not cover a page of the format.
    #[error("the host's block {block} does not cover the page of {page:#x} bytes at {gpa}")]
    HostBlock {
        /// The guest address.
        gpa: Gpa,
        /// What the host shows.
        block: HvaRange,
        /// The format's page in bytes.
        page: u64,
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
    /// Bytes of each leaf, or run of leaves.
    leaf: u64,
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
        let page = self.table.page(request.gpa).ok_or(PopulateError::Retry)?;
        let hva = request.slot.hva_of(&page).ok_or(PopulateError::Retry)?;

        // P2: the sequence comes before the question.
        let snapshot = self.table.snapshot(&page);
        let answer = ask(hva.start(), request.access)?;
        if answer.block == hva {
            // Most hosts show one page. There is nothing to plan then, and what follows is
            // compiled for pages.
            let plan = Plan {
                range: page,
                level: Level::PAGE,
                leaf: page.bytes(),
                hpa: answer.hpa,
            };
            return self.install(request, &plan, &answer, &snapshot, tables);
        }
        self.populate_planned(request, &page, &answer, &snapshot, tables, || {
            ask(hva.start(), request.access)
        })
    }

    /// The same for an answer that may hold more than the page.
    #[inline(never)]
    fn populate_planned(
        &self,
        request: &Request<'_>,
        page: &GpaRange,
        answer: &HostPage,
        snapshot: &Snapshot,
        tables: &mut TableCache<'_, F, P>,
        ask: impl FnOnce() -> Result<HostPage, ResolveError>,
    ) -> Result<Mapped, PopulateError> {
        let plan = plan(self.table.geometry(), request, page, answer)?;
        if self.table.is_in_one_span(&plan.range) {
            self.install(request, &plan, answer, snapshot, tables)
        } else {
            self.populate_wide(request, page, &plan, ask, tables)
        }
    }

    /// P2: a leaf over several spans needs all their sequences before the question, so the host is
    /// asked again.
    #[cold]
    fn populate_wide(
        &self,
        request: &Request<'_>,
        page: &GpaRange,
        plan: &Plan,
        ask: impl FnOnce() -> Result<HostPage, ResolveError>,
        tables: &mut TableCache<'_, F, P>,
    ) -> Result<Mapped, PopulateError> {
        let snapshot = self.table.snapshot(&plan.range);
        let answer = ask()?;
        let again = self::plan(self.table.geometry(), request, page, &answer)?;
        if again.range != plan.range || again.level != plan.level {
            return Err(PopulateError::Retry);
        }
        self.install(request, &again, &answer, &snapshot, tables)
    }

    #[expect(
        clippy::inline_always,
        reason = "where the plan is one page, most of it is known when this is compiled"
    )]
    #[inline(always)]
    fn install(
        &self,
        request: &Request<'_>,
        plan: &Plan,
        page: &HostPage,
        snapshot: &Snapshot,
        tables: &mut TableCache<'_, F, P>,
    ) -> Result<Mapped, PopulateError> {
        let attributes = attributes::<F>(request, page, self.table.features())?;
        let encoded = self
            .table
            .leaves(plan.range, plan.hpa, plan.level, attributes);
        let mut leaves = match encoded {
            Ok(leaves) => leaves,
            Err(LeavesError::Carry { front }) => {
                return self.install_front(request, plan, front, page, snapshot, tables);
            }
            Err(error) => return Err(error.into()),
        };
        if request.slot.logs_dirty() {
            // A logged page is made writable, and not, by itself.
            leaves = leaves.without_runs();
        }
        let executable = attributes.permissions.execute != Execute::Never;
        self.table
            .platform()
            .prepare(plan.hpa, plan.range.bytes(), page.memory, executable);

        let installed = if self.table.is_in_one_span(&plan.range) {
            let hold = self.table.hold_span(plan.range.start());
            self.install_under(hold, request, snapshot, &leaves, tables)?
        } else {
            self.install_wide(request, *snapshot, leaves, tables)?
        };
        self.table.settle(&installed, plan.range);
        let mapped = |installed: &Installed| Mapped {
            range: plan.range,
            level: plan.level,
            leaf: plan.leaf,
            kind: page.kind,
            writable: page.writable,
            hpa: plan.hpa,
            new: installed.new,
            extended: installed.extended,
        };
        if installed.conflict.is_some() {
            let mapped = mapped(&installed);
            return self.install_one(request, *snapshot, leaves, mapped, installed, tables);
        }
        Ok(mapped(&installed))
    }

    /// Of leaves that cannot be counted through in one go, installs those in `front`, which can.
    /// The rest is another step.
    #[cold]
    fn install_front(
        &self,
        request: &Request<'_>,
        plan: &Plan,
        front: GpaRange,
        page: &HostPage,
        snapshot: &Snapshot,
        tables: &mut TableCache<'_, F, P>,
    ) -> Result<Mapped, PopulateError> {
        let front = Plan {
            range: front,
            ..*plan
        };
        self.install(request, &front, page, snapshot, tables)
    }

    /// A leaf over several spans needs all their stripes.
    #[cold]
    fn install_wide(
        &self,
        request: &Request<'_>,
        snapshot: Snapshot,
        leaves: Leaves,
        tables: &mut TableCache<'_, F, P>,
    ) -> Result<Installed, PopulateError> {
        let hold = self.table.hold(&leaves.range());
        self.install_under(hold, request, &snapshot, &leaves, tables)
    }

    /// P3: checks, in this order, under the stripes; then installs.
    #[expect(clippy::inline_always, reason = "as for `install`")]
    #[inline(always)]
    fn install_under<R: Room>(
        &self,
        mut hold: Hold<'_, F, P, R>,
        request: &Request<'_>,
        snapshot: &Snapshot,
        leaves: &Leaves,
        tables: &mut TableCache<'_, F, P>,
    ) -> Result<Installed, PopulateError> {
        if self.published.generation() != request.generation || !hold.is_current(snapshot) {
            return Err(PopulateError::Retry);
        }
        hold.install(leaves, tables)
            .map_err(|_| PopulateError::Retry)
    }

    /// P4: what is in the way of a run's other leaves, such as a sibling that has a table of its
    /// own, is not in the way of the one that was asked for: that one is then installed alone.
    /// Anything else is cleared away. `mapped` and `installed` are what was done before.
    #[cold]
    fn install_one(
        &self,
        request: &Request<'_>,
        snapshot: Snapshot,
        leaves: Leaves,
        mut mapped: Mapped,
        installed: Installed,
        tables: &mut TableCache<'_, F, P>,
    ) -> Result<Mapped, PopulateError> {
        let one = self.table.one_of_run(&leaves, request.gpa);
        let mut met = installed.conflict;
        let one = one.filter(|one| !met.is_some_and(|met| met.overlaps(&one.range())));
        if let Some(one) = one {
            // Between the two holds something may have changed: the checks are made again, of all
            // that the snapshot is of.
            let hold = self.table.hold(&leaves.range());
            let alone = self.install_under(hold, request, &snapshot, &one, tables)?;
            self.table.settle(&alone, one.range());
            met = alone.conflict;
            mapped = mapped.only(one.range());
            mapped.new += alone.new;
            mapped.extended += alone.extended;
        }
        match met {
            None => Ok(mapped),
            Some(conflict) => {
                self.clear_away(&conflict);
                Err(PopulateError::Retry)
            }
        }
    }

    /// P4: breaks and flushes what is in the way, so that the host can be asked again.
    #[cold]
    fn clear_away(&self, conflict: &GpaRange) {
        let mut restriction = self.table.restrict(conflict);
        drop(restriction.unmap(conflict, PartialBlock::Drop));
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
    let permissions = permissions(page.kind, write);
    if access == Access::Write && !permissions.write {
        // The host said yes to a write and then that the page is not writable.
        let hva = page.block.start();
        return Err(ResolveError::NotPermitted { hva, access }.into());
    }
    Ok(Attributes::new(permissions, page.memory))
}

/// What is allowed of a page of this kind. Device memory is not executable.
#[inline]
pub(crate) const fn permissions(kind: PageKind, write: bool) -> Permissions {
    Permissions {
        read: true,
        write,
        execute: match kind {
            PageKind::Ram => Execute::Always,
            PageKind::Pfnmap => Execute::Never,
        },
    }
}

/// The largest leaf around `page` that the slot, the host's block, its alignment and logging allow;
/// of pages, or runs of pages, as many as there are from there on where the request reaches so far.
#[inline]
fn plan(
    geometry: &Geometry,
    request: &Request<'_>,
    page: &GpaRange,
    host: &HostPage,
) -> Result<Plan, PopulateError> {
    let slot = request.slot;
    // Where the host block lies in guest addresses, as far as the slot goes. The block lies in
    // one mapping and is linear, so a leaf inside it needs no other bound.
    let shown = slot.gpa_of(&host.block).filter(|shown| shown.covers(page));
    let Some(shown) = shown else {
        return Err(PopulateError::HostBlock {
            gpa: page.start(),
            block: host.block,
            page: page.bytes(),
        });
    };
    // Host memory that a page of the format is not aligned with is refused when encoded.
    let (level, leaf) = if shown.bytes() == page.bytes() || slot.logs_dirty() {
        (Level::PAGE, *page)
    } else {
        let fits = |leaf: &GpaRange| {
            shown.covers(leaf) && hpa_of(slot, host, leaf.start()).is_aligned(leaf.bytes())
        };
        largest_leaf(geometry, page.start(), fits).unwrap_or((Level::PAGE, *page))
    };
    let range = if level == Level::PAGE && request.reach == Reach::Run {
        as_far_as_alike(geometry, request, host, &shown, &leaf)
    } else {
        leaf
    };
    Ok(Plan {
        range,
        level,
        leaf: leaf.bytes(),
        hpa: hpa_of(slot, host, range.start()),
    })
}

/// The largest leaf around `gpa` that fits, where one fits only if the smaller ones inside it do.
#[inline(never)]
fn largest_leaf(
    geometry: &Geometry,
    gpa: Gpa,
    fits: impl Fn(&GpaRange) -> bool,
) -> Option<(Level, GpaRange)> {
    let around = |bytes| GpaRange::block_around(gpa, bytes).filter(&fits);
    let mut largest = None;
    for level in geometry.leaf_levels_up() {
        let Some(leaf) = around(geometry.entry_bytes(level)) else {
            break;
        };
        largest = Some((level, leaf));
        let Some(bytes) = geometry.run_bytes(level) else {
            continue;
        };
        let Some(run) = around(bytes) else { break };
        largest = Some((level, run));
    }
    largest
}

/// `leaf` and those of its size behind it: to where its span, or what the host shows, ends, or a
/// larger leaf could begin.
#[inline(never)]
fn as_far_as_alike(
    geometry: &Geometry,
    request: &Request<'_>,
    page: &HostPage,
    shown: &GpaRange,
    leaf: &GpaRange,
) -> GpaRange {
    let (start, bytes) = (leaf.start(), leaf.bytes());
    let end_of = |size| GpaRange::block_around(start, size).map_or(leaf.end(), |block| block.end());
    let larger = geometry
        .leaf_sizes()
        .filter(|(_, larger)| *larger > bytes && !request.slot.logs_dirty())
        .map(|(_, larger)| larger)
        .filter(|larger| hpa_of(request.slot, page, end_of(*larger)).is_aligned(*larger))
        .last();
    let limit = larger.map_or(end_of(geometry.table_maps(Level::PAGE)), end_of);
    let end = limit.min(shown.end().align_down(bytes));
    GpaRange::between(start, end.max(leaf.end())).unwrap_or(*leaf)
}

/// The host address behind `gpa`, of which the host's block is at `page`.
#[inline]
fn hpa_of(slot: &Slot, page: &HostPage, gpa: Gpa) -> Hpa {
    let hva = (gpa.raw().wrapping_sub(slot.range().start().raw())).wrapping_add(slot.hva().raw());
    Hpa::new(
        page.hpa
            .raw()
            .wrapping_add(hva.wrapping_sub(page.block.start().raw())),
    )
}

#[cfg(test)]
mod tests;
