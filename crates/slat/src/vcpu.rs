//! A vCPU's faults.
//!
//! A [`Vcpu`] owns what a fault needs so that nothing shared is written on its way: a cache of
//! tables, a snapshot of the slots, counters. A fault ends in an [`Outcome`] that says what to do
//! next; an error is only what is wrong with the host or with us.

use alloc::sync::Arc;
use core::fmt;

use slat_table::address::{Gpa, GpaRange, Hpa, Hva, HvaRange, PAGE_SIZE};
use slat_table::attributes::Access;
use slat_table::cache::{OutOfTables, TableCache};
use slat_table::format::Format;
use slat_table::platform::Platform;
use slat_table::table::LeavesError;

use crate::host::{Host, PageKind, ResolveError};
use crate::memory::GuestMemory;
use crate::populate::{Mapped, PopulateError, Reach, Request};
use crate::region::SlotId;
use crate::slots::SlotSet;
use crate::stats::FaultStats;

/// A guest access that the tables did not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where. Need not be aligned.
    pub gpa: Gpa,
    /// What the guest was doing. A walk of its own tables reads, unless the hardware sets
    /// accessed or dirty bits in them: then it writes.
    pub access: Access,
}

/// What became of a fault, and what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The page is mapped: resume the guest.
    Mapped {
        /// The slot.
        slot: SlotId,
        /// What is mapped now: the page or block around the fault.
        range: GpaRange,
        /// The host address behind the first byte of it.
        hpa: Hpa,
        /// What kind of memory it is.
        kind: PageKind,
    },
    /// It was mapped already and now allows more, or is young again: resume the guest.
    Extended {
        /// The slot.
        slot: SlotId,
    },
    /// It was mapped already, by another vCPU perhaps: resume the guest.
    Spurious {
        /// The slot.
        slot: SlotId,
    },
    /// The host or the slots were changing: resume the guest, which will fault again.
    Retry,
    /// No slot backs the address: emulate a device, or report an abort to the guest.
    Mmio {
        /// The address.
        gpa: Gpa,
        /// What the guest was doing.
        access: Access,
    },
    /// A write to a read-only slot: emulate it (a flash device, say), or report an abort.
    WriteToReadOnly {
        /// The slot.
        slot: SlotId,
        /// The address.
        gpa: Gpa,
    },
    /// The memory has failed: tell the guest (a memory error) or stop it.
    Poisoned {
        /// The slot.
        slot: SlotId,
        /// The host address behind the fault.
        hva: Hva,
    },
    /// The host refuses the access, or the guest executes device memory. What the VMM does is
    /// its policy: change the host's mapping and resume, or report an abort to the guest.
    Denied {
        /// The slot.
        slot: SlotId,
        /// The address.
        gpa: Gpa,
        /// What the guest was doing.
        access: Access,
        /// Why.
        reason: Denial,
    },
}

/// Why an access was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Denial {
    /// The host has no mapping there.
    NoMapping,
    /// The host's mapping does not permit the access.
    NotPermitted,
    /// The device behind the address is not accessible at present.
    DeviceGone,
    /// Device memory cannot be executed.
    NotExecutable,
    /// The memory type of the device memory there would not hold against the guest's own tables.
    MemoryType,
}

/// A fault that could not be handled. The guest may be resumed to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError {
    /// No memory for a table.
    #[error(transparent)]
    OutOfTables(#[from] OutOfTables),
    /// The host has no memory for a page.
    #[error("the host has no memory for the page at {0}")]
    HostNoMemory(Hva),
    /// The host shows less than a page of the format: its own pages are smaller, or it broke its
    /// contract.
    #[error("the host's block {block} does not cover the page of {page:#x} bytes at {gpa}")]
    HostBlock {
        /// The guest address.
        gpa: Gpa,
        /// What the host shows.
        block: HvaRange,
        /// The format's page in bytes.
        page: u64,
    },
    /// The format cannot express what the host has there, or the host broke its contract.
    #[error(transparent)]
    Unencodable(#[from] LeavesError),
}

/// How far a prefault got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefaulted {
    /// Bytes from the start of the range that are mapped.
    pub bytes: u64,
    /// What stopped it, if it did not reach the end.
    pub stopped: Option<Outcome>,
}

/// One vCPU's handle on the memory of its VM.
pub struct Vcpu<'m, F: Format, H: Host, P: Platform> {
    memory: &'m GuestMemory<F, H, P>,
    slots: Arc<SlotSet>,
    hint: usize,
    tables: TableCache<'m, F, P>,
    stats: FaultStats,
}

impl<'m, F: Format, H: Host, P: Platform> Vcpu<'m, F, H, P> {
    pub(crate) fn new(memory: &'m GuestMemory<F, H, P>) -> Self {
        Self {
            memory,
            slots: memory.slots(),
            hint: 0,
            tables: TableCache::new(&memory.table),
            stats: FaultStats::default(),
        }
    }

    /// Handles a fault.
    ///
    /// # Errors
    ///
    /// [`FaultError`] if memory ran out or the host's answer cannot be expressed.
    pub fn fault(&mut self, fault: Fault) -> Result<Outcome, FaultError> {
        let outcome = self.handle(fault, Reach::Leaf).map(|(outcome, _)| outcome);
        self.count(&outcome);
        outcome
    }

    /// Maps `range` ahead of faults, as reads would, as far as the slots and the host allow.
    /// What is mapped may be taken away again at any time. Look at what comes back: a range that
    /// stopped early can be gone on with from there.
    ///
    /// # Errors
    ///
    /// [`FaultError`] if memory ran out or the host's answer cannot be expressed, and nothing was
    /// mapped before. Where something was, that is what is returned, stopped by
    /// [`Outcome::Retry`]: going on from there meets the error.
    pub fn prefault(&mut self, range: &GpaRange) -> Result<Prefaulted, FaultError> {
        let mut rest = Some(*range);
        while let Some(todo) = rest {
            let fault = Fault {
                gpa: todo.start(),
                access: Access::Read,
            };
            let bytes = todo.start().raw() - range.start().raw();
            let (outcome, end) = match self.handle(fault, Reach::Run) {
                Err(_) if bytes != 0 => (Outcome::Retry, None),
                handled => handled?,
            };
            let Some(end) = end else {
                return Ok(Prefaulted {
                    bytes,
                    stopped: Some(outcome),
                });
            };
            rest = todo.from(end);
        }
        Ok(Prefaulted {
            bytes: range.bytes(),
            stopped: None,
        })
    }

    /// Counters of this vCPU's faults.
    pub fn stats(&self) -> &FaultStats {
        &self.stats
    }

    /// The outcome, and the end of what is mapped now if something is.
    #[inline]
    fn handle(&mut self, fault: Fault, reach: Reach) -> Result<(Outcome, Option<Gpa>), FaultError> {
        self.refresh();
        let Fault { gpa, access } = fault;
        let Some(slot) = self.slots.find(gpa, &mut self.hint) else {
            return Ok((Outcome::Mmio { gpa, access }, None));
        };
        if access == Access::Write && slot.is_read_only() {
            return Ok((
                Outcome::WriteToReadOnly {
                    slot: slot.id(),
                    gpa,
                },
                None,
            ));
        }
        let generation = self.slots.generation();
        let request = Request {
            slot,
            generation,
            gpa: gpa.align_down(PAGE_SIZE),
            access,
            reach,
        };
        let host = &self.memory.host;
        let ask = |hva, access| host.fault(hva, access);
        match self.memory.populate(&request, ask, &mut self.tables) {
            Ok(mapped) => {
                self.stats.leaves[mapped.level.index()] += mapped.new;
                Ok((mapped_outcome(slot.id(), &mapped), Some(mapped.range.end())))
            }
            Err(error) => Ok((failed_outcome(slot.id(), fault, error)?, None)),
        }
    }

    /// P1: everything that follows rests on the newest set of slots.
    #[inline]
    fn refresh(&mut self) {
        if self.memory.published.generation() != self.slots.generation() {
            self.slots = self.memory.slots();
        }
    }

    fn count(&mut self, outcome: &Result<Outcome, FaultError>) {
        let counter = match outcome {
            Ok(Outcome::Mapped {
                kind: PageKind::Ram,
                ..
            }) => &mut self.stats.ram,
            Ok(Outcome::Mapped {
                kind: PageKind::Pfnmap,
                ..
            }) => &mut self.stats.pfnmap,
            Ok(Outcome::Extended { .. }) => &mut self.stats.extended,
            Ok(Outcome::Spurious { .. }) => &mut self.stats.spurious,
            Ok(Outcome::Retry) => &mut self.stats.retried,
            Ok(Outcome::Mmio { .. }) => &mut self.stats.mmio,
            Ok(Outcome::WriteToReadOnly { .. }) => &mut self.stats.read_only,
            Ok(Outcome::Poisoned { .. } | Outcome::Denied { .. }) | Err(_) => {
                &mut self.stats.denied
            }
        };
        *counter += 1;
    }
}

fn mapped_outcome(slot: SlotId, mapped: &Mapped) -> Outcome {
    if mapped.new != 0 {
        let Mapped {
            range, hpa, kind, ..
        } = *mapped;
        Outcome::Mapped {
            slot,
            range,
            hpa,
            kind,
        }
    } else if mapped.extended != 0 {
        Outcome::Extended { slot }
    } else {
        Outcome::Spurious { slot }
    }
}

fn failed_outcome(slot: SlotId, fault: Fault, error: PopulateError) -> Result<Outcome, FaultError> {
    let Fault { gpa, access } = fault;
    let denied = |reason| Outcome::Denied {
        slot,
        gpa,
        access,
        reason,
    };
    Ok(match error {
        PopulateError::Retry => Outcome::Retry,
        PopulateError::OutOfTables(error) => return Err(error.into()),
        PopulateError::Leaves(error) => return Err(error.into()),
        PopulateError::HostBlock { gpa, block, page } => {
            return Err(FaultError::HostBlock { gpa, block, page });
        }
        PopulateError::NotExecutable(_) => denied(Denial::NotExecutable),
        PopulateError::MemoryType { .. } => denied(Denial::MemoryType),
        PopulateError::Host(error) => match error {
            // A fault that only looks has broken the contract; asking again is all there is.
            ResolveError::Busy(_) | ResolveError::NotPresent(_) => Outcome::Retry,
            ResolveError::NoVma(_) => denied(Denial::NoMapping),
            ResolveError::NotPermitted { .. } => denied(Denial::NotPermitted),
            ResolveError::DeviceGone(_) => denied(Denial::DeviceGone),
            ResolveError::Poisoned(hva) => Outcome::Poisoned { slot, hva },
            ResolveError::NoMemory(hva) => return Err(FaultError::HostNoMemory(hva)),
        },
    })
}

impl<F: Format, H: Host, P: Platform> fmt::Debug for Vcpu<'_, F, H, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu")
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
