//! The checks that a region must pass before anything is changed.
//!
//! Under the host's mmap lock, held for reading, the mappings behind the region are walked in
//! order, as KVM on Arm did in `kvm_arch_prepare_memory_region()`. Holes are fine: the host may
//! map something there later. What these checks are worth: they are a snapshot, and catch a
//! VMM's mistakes early. What keeps the guest safe is decided again at every fault.

use alloc::vec::Vec;

use slat_table::address::{Hpa, HvaRange};
use slat_table::attributes::{Attributes, MemoryType};
use slat_table::format::{EncodeError, Format};
use slat_table::geometry::Level;

use crate::config::WriteCheck;
use crate::errno::Errno;
use crate::host::{HostView, PageKind, Vma};
use crate::populate::permissions;
use crate::region::{Slot, SlotId};
use crate::report::{Backing, Part};

/// Why the host's mappings do not suit a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// The region is writable, a mapping behind it is not.
    #[error("{id} is writable, but the mapping {vma} behind it is not")]
    NotWritable {
        /// The slot asked for.
        id: SlotId,
        /// The mapping.
        vma: HvaRange,
    },
    /// Device memory cannot be logged: it is written behind the log's back.
    #[error("{id} logs writes, but the mapping {vma} behind it is device memory")]
    DeviceLogged {
        /// The slot asked for.
        id: SlotId,
        /// The mapping.
        vma: HvaRange,
    },
    /// The mapping's memory type would not hold against the guest's own tables.
    #[error("{id}: the memory type {memory:?} of the device mapping {vma} cannot be honoured")]
    MemoryType {
        /// The slot asked for.
        id: SlotId,
        /// The mapping.
        vma: HvaRange,
        /// Its memory type.
        memory: MemoryType,
    },
    /// The format, on the hardware at hand, cannot express a page of the mapping: it has no such
    /// memory type, or cannot forbid execution. No fault could ever map one.
    #[error("{id}: the device mapping {vma} cannot be expressed: {cause}")]
    Unencodable {
        /// The slot asked for.
        id: SlotId,
        /// The mapping.
        vma: HvaRange,
        /// What of it.
        cause: EncodeError,
    },
    /// Logging is asked for, which this version does not do.
    #[error("{id} logs writes, which is not supported")]
    LoggingUnsupported {
        /// The slot asked for.
        id: SlotId,
    },
    /// No memory for the report.
    #[error("no memory to report on {id}")]
    NoMemory {
        /// The slot asked for.
        id: SlotId,
    },
}

impl PrepareError {
    /// What KVM on arm64 answers, or answered while it had the check.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::NotWritable { .. } => Errno::EPERM,
            Self::DeviceLogged { .. } | Self::MemoryType { .. } | Self::Unencodable { .. } => {
                Errno::EINVAL
            }
            Self::LoggingUnsupported { .. } => Errno::EOPNOTSUPP,
            Self::NoMemory { .. } => Errno::ENOMEM,
        }
    }
}

/// Checks `slot` against the host's mappings and describes them, one part each, holes included.
pub(crate) fn prepare<F: Format>(
    slot: &Slot,
    view: &impl HostView,
    features: &F::Features,
    write_check: WriteCheck,
) -> Result<Vec<Part>, PrepareError> {
    let id = slot.id();
    let mut parts = Vec::new();
    let mut rest = Some(slot.hva_range());
    while let Some(todo) = rest {
        let found = view.find_vma(todo.start());
        let (part, backing) = match found.map(|vma| (vma, vma.range.intersection(&todo))) {
            Some((vma, Some(inside))) if inside.start() == todo.start() => {
                check::<F>(slot, &vma, features, write_check)?;
                (inside, Backing::Vma(vma))
            }
            Some((_, Some(later))) => match HvaRange::between(todo.start(), later.start()) {
                Some(hole) => (hole, Backing::Hole),
                None => break,
            },
            _ => (todo, Backing::Hole),
        };
        parts
            .try_reserve(1)
            .map_err(|_| PrepareError::NoMemory { id })?;
        if let Some(gpa) = slot.gpa_of(&part) {
            parts.push(Part::new(gpa, part, backing));
        }
        rest = todo.from(part.end());
    }
    if slot.logs_dirty() {
        return Err(PrepareError::LoggingUnsupported { id });
    }
    Ok(parts)
}

fn check<F: Format>(
    slot: &Slot,
    vma: &Vma,
    features: &F::Features,
    write_check: WriteCheck,
) -> Result<(), PrepareError> {
    let id = slot.id();
    let unwritable = !slot.is_read_only() && !vma.writable;
    if unwritable && write_check == WriteCheck::Strict {
        return Err(PrepareError::NotWritable { id, vma: vma.range });
    }
    if vma.kind == PageKind::Pfnmap {
        if slot.logs_dirty() {
            return Err(PrepareError::DeviceLogged { id, vma: vma.range });
        }
        if !F::forces(features, vma.memory) {
            return Err(PrepareError::MemoryType {
                id,
                vma: vma.range,
                memory: vma.memory,
            });
        }
        let writable = vma.writable && !slot.is_read_only();
        let permissions = permissions(vma.kind, writable);
        // Whether a leaf can be expressed does not depend on the address, as long as there is one.
        let leaf = Attributes::new(permissions, vma.memory);
        if let Err(cause) = F::leaf(features, Level::PAGE, Hpa::new(0), leaf) {
            let vma = vma.range;
            return Err(PrepareError::Unencodable { id, vma, cause });
        }
    }
    Ok(())
}
