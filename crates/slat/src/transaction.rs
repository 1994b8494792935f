//! Changing the set of slots: all of it or nothing.
//!
//! A transaction collects deletions and creations and commits them together; vCPUs see the old
//! set or the new, never anything between. The order is the protocol's: everything that can fail
//! comes first; then the new slots become visible to invalidations, in one step with the check
//! that none is under way over them; then the new set is published, the point of no return (P10);
//! then what was deleted is unmapped, flushed, and leaves the invalidation index (P11); then what
//! was created is populated.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use slat_table::address::{Gpa, GpaRange};
use slat_table::attributes::Access;
use slat_table::cache::TableCache;
use slat_table::format::Format;
use slat_table::geometry::Level;
use slat_table::lock::{Locks, Mutex};
use slat_table::platform::Platform;
use slat_table::restriction::PartialBlock;

use crate::errno::Errno;
use crate::host::{Host, HostView, ResolveError};
use crate::memory::GuestMemory;
use crate::populate::{PopulateError, Reach, Request};
use crate::prepare::{PrepareError, prepare};
use crate::region::{Mapping, Region, RegionError, Slot, SlotId};
use crate::report::{Backing, Part, Reason, RegionReport};
use crate::slots::SlotSet;
use crate::stats::count;

/// Why a transaction was refused. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransactionError {
    /// A region breaks a rule that concerns it alone.
    #[error("{id}: {error}")]
    Region {
        /// The slot asked for.
        id: SlotId,
        /// The rule.
        error: RegionError,
    },
    /// A slot to be deleted does not exist.
    #[error("{0} does not exist")]
    NoSuchSlot(SlotId),
    /// A slot to be created exists and is not deleted in the same transaction.
    #[error("{0} exists already")]
    SlotExists(SlotId),
    /// Two slots would back the same guest addresses.
    #[error("{id} would overlap {with}")]
    Overlap {
        /// The slot asked for.
        id: SlotId,
        /// The slot it overlaps.
        with: SlotId,
    },
    /// The host's mappings do not suit.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// No memory for the new set.
    #[error("no memory for the new set of slots")]
    NoMemory,
}

impl TransactionError {
    /// What KVM on arm64 answers.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Region { error, .. } => error.errno(),
            // KVM takes a request for an existing id as a change of it, and allows only its
            // place and its logging to change: anything else is EINVAL.
            Self::NoSuchSlot(_) | Self::SlotExists(_) => Errno::EINVAL,
            Self::Overlap { .. } => Errno::EEXIST,
            Self::Prepare(error) => error.errno(),
            Self::NoMemory => Errno::ENOMEM,
        }
    }
}

/// A change of slots being put together. Nothing happens before [`commit`](Self::commit).
#[must_use = "a transaction does nothing before it is committed"]
pub struct Transaction<'m, F: Format, H: Host, P: Platform> {
    memory: &'m GuestMemory<F, H, P>,
    deletes: Vec<SlotId>,
    creates: Vec<Region>,
    no_memory: bool,
}

/// A slot about to be created.
struct Created {
    slot: Slot,
    parts: Vec<Part>,
}

impl<'m, F: Format, H: Host, P: Platform> Transaction<'m, F, H, P> {
    pub(crate) fn new(memory: &'m GuestMemory<F, H, P>) -> Self {
        Self {
            memory,
            deletes: Vec::new(),
            creates: Vec::new(),
            no_memory: false,
        }
    }

    /// Deletes the slot named `id`.
    pub fn delete(mut self, id: SlotId) -> Self {
        match self.deletes.try_reserve(1) {
            Ok(()) => self.deletes.push(id),
            Err(_) => self.no_memory = true,
        }
        self
    }

    /// Creates a slot for `region`. Its id may be one that this transaction deletes.
    pub fn create(mut self, region: Region) -> Self {
        match self.creates.try_reserve(1) {
            Ok(()) => self.creates.push(region),
            Err(_) => self.no_memory = true,
        }
        self
    }

    /// Does it all. Reports on the slots created, in the order in which they were asked for.
    ///
    /// When this returns, the guest reaches nothing of the slots deleted. Waits for invalidations
    /// that are under way over the slots created, however long they take, so it must not be called
    /// from inside one, nor with the host's mmap lock held (P12).
    ///
    /// # Errors
    ///
    /// [`TransactionError`]; nothing has changed then.
    pub fn commit(self) -> Result<Vec<RegionReport>, TransactionError> {
        if self.no_memory {
            return Err(TransactionError::NoMemory);
        }
        let memory = self.memory;
        let transactions = memory.transactions.lock();
        let old = memory.slots();
        let deleted = self.deleted(&old)?;
        let created = self.created(&old)?;
        let set = Arc::new(successor(&old, &deleted, &created)?);
        let mut reports = Vec::new();
        reports
            .try_reserve_exact(created.len())
            .map_err(|_| TransactionError::NoMemory)?;
        memory
            .index
            .lock()
            .reserve(created.len())
            .map_err(|_| TransactionError::NoMemory)?;

        memory.enter_index(&created);
        memory.published.publish(Arc::clone(&set));
        for slot in &deleted {
            memory.retire(slot);
        }
        for Created { slot, parts } in created {
            let mut report = RegionReport::new(&slot, parts, memory.table.geometry());
            memory.populate_created(&slot, set.generation(), &mut report);
            reports.push(report);
        }
        count(&memory.counters.transactions);
        drop(transactions);
        Ok(reports)
    }

    fn deleted(&self, old: &SlotSet) -> Result<Vec<Slot>, TransactionError> {
        let mut deleted: Vec<Slot> = Vec::new();
        deleted
            .try_reserve_exact(self.deletes.len())
            .map_err(|_| TransactionError::NoMemory)?;
        for id in &self.deletes {
            let twice = deleted.iter().any(|slot| slot.id() == *id);
            match old.by_id(*id) {
                Some(slot) if !twice => deleted.push(*slot),
                _ => return Err(TransactionError::NoSuchSlot(*id)),
            }
        }
        Ok(deleted)
    }

    fn created(&self, old: &SlotSet) -> Result<Vec<Created>, TransactionError> {
        let memory = self.memory;
        let mut created: Vec<Created> = Vec::new();
        created
            .try_reserve_exact(self.creates.len())
            .map_err(|_| TransactionError::NoMemory)?;
        for region in &self.creates {
            let id = region.id();
            let geometry = memory.table.geometry();
            let slot = region
                .validate_numbers(&memory.config, geometry)
                .map_err(|error| TransactionError::Region { id, error })?;
            let others = || {
                let staying = |slot: &&Slot| !self.deletes.contains(&slot.id());
                let created = created.iter().map(|created| &created.slot);
                old.slots().iter().filter(staying).chain(created)
            };
            // As KVM does, the id is judged before the place.
            if others().any(|other| other.id() == id) {
                return Err(TransactionError::SlotExists(id));
            }
            if let Some(with) = others().find(|other| other.range().overlaps(&slot.range())) {
                let with = with.id();
                return Err(TransactionError::Overlap { id, with });
            }
            // KVM leaves the width to the architecture, which comes after the other slots.
            slot.validate_width(geometry)
                .map_err(|error| TransactionError::Region { id, error })?;
            created.push(Created {
                slot,
                parts: Vec::new(),
            });
        }
        // The mmap lock is let go again before anything waits for invalidations: one of those
        // may end only when its holder gets that lock for writing.
        let view = memory.host.view();
        for Created { slot, parts } in &mut created {
            let features = memory.table.features();
            *parts = prepare::<F>(slot, &view, features, memory.config.write_check)?;
        }
        Ok(created)
    }
}

fn successor(
    old: &SlotSet,
    deleted: &[Slot],
    created: &[Created],
) -> Result<SlotSet, TransactionError> {
    let mut slots = Vec::new();
    let most = old.slots().len() + created.len();
    slots
        .try_reserve_exact(most)
        .map_err(|_| TransactionError::NoMemory)?;
    let stays = |slot: &&Slot| !deleted.iter().any(|deleted| deleted.id() == slot.id());
    slots.extend(old.slots().iter().filter(stays));
    slots.extend(created.iter().map(|created| created.slot));
    Ok(old.successor(slots))
}

impl<F: Format, H: Host, P: Platform> GuestMemory<F, H, P> {
    /// P10: lets invalidations find the new slots, at a moment when none is under way over them.
    fn enter_index(&self, created: &[Created]) {
        loop {
            let mut index = self.index.lock();
            let met = created
                .iter()
                .map(|created| created.slot.hva_range())
                .any(|range| index.is_active(&range));
            if !met {
                for created in created {
                    index.enter(created.slot);
                }
                return;
            }
            drop(index);
            P::Locks::relax();
        }
    }

    /// P11: takes away what a slot no longer published has mapped.
    fn retire(&self, slot: &Slot) {
        let mut restriction = self.table.restrict(&slot.range());
        drop(restriction.unmap(&slot.range(), PartialBlock::Drop));
        drop(restriction.prune(&slot.range()));
        drop(restriction);
        self.index.lock().leave(slot);
    }

    /// Maps what the host can translate without doing anything, by the fault path's own rules.
    /// What meets an invalidation is skipped, never awaited (P10).
    fn populate_created(&self, slot: &Slot, generation: u64, report: &mut RegionReport) {
        let mut tables = TableCache::new(&self.table);
        for part in report.parts_mut() {
            if let Backing::Vma(vma) = part.backing()
                && !vma.writable
                && !slot.is_read_only()
            {
                part.note(Reason::NotWritable, part.range().bytes());
            }
            match (part.backing(), slot.mapping()) {
                (Backing::Hole, _) => part.note(Reason::Hole, part.range().bytes()),
                (_, Mapping::OnFault) => part.note(Reason::OnFault, part.range().bytes()),
                (Backing::Vma(_), Mapping::AtCreation) => {
                    self.populate_part(slot, generation, part, &mut tables);
                }
            }
        }
    }

    fn populate_part(
        &self,
        slot: &Slot,
        generation: u64,
        part: &mut Part,
        tables: &mut TableCache<'_, F, P>,
    ) {
        let geometry = self.table.geometry();
        let mut rest = Some(part.range());
        while let Some(todo) = rest {
            let (gpa, access) = (todo.start(), Access::Read);
            let request = Request {
                slot,
                generation,
                gpa,
                access,
                reach: Reach::Run,
            };
            // The mmap lock is taken for each step, so that writers need not wait for a whole
            // region.
            let view = self.host.view();
            let done = self.populate(&request, |hva, access| view.peek(hva, access), tables);
            drop(view);
            let end = match &done {
                Ok(mapped) => {
                    part.note_mapped(geometry, slot, mapped);
                    mapped.range.end()
                }
                Err(error) => {
                    let end = self.end_of_failure(slot, &todo, error);
                    let skipped = todo.bytes() - todo.from(end).map_or(0, |rest| rest.bytes());
                    part.note(Reason::of_error(error), skipped);
                    end
                }
            };
            rest = todo.from(end);
        }
    }

    /// Where to go on after the start of `todo` could not be mapped.
    fn end_of_failure(&self, slot: &Slot, todo: &GpaRange, error: &PopulateError) -> Gpa {
        let gpa = todo.start();
        let page = self.table.geometry().block(Level::PAGE, gpa);
        let next_page = page.map_or(todo.end(), |page| page.end());
        let after = |range: Option<GpaRange>| range.map_or(next_page, |range| range.end());
        match error {
            PopulateError::Host(ResolveError::NotPresent(absent)) => {
                after(slot.gpa_of(absent)).max(next_page)
            }
            // A removal marks whole spans, so the rest of this one would meet it too.
            PopulateError::Retry => after(self.table.geometry().span(gpa)),
            // What memory is left is better kept for the guest's own faults.
            PopulateError::OutOfTables(_) => todo.end(),
            _ => next_page,
        }
    }
}

impl<F: Format, H: Host, P: Platform> fmt::Debug for Transaction<'_, F, H, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("deletes", &self.deletes)
            .field("creates", &self.creates)
            .finish_non_exhaustive()
    }
}
