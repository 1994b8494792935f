//! What can be mapped.

use alloc::sync::Arc;
use core::fmt;

use slat::host::PageKind;
use slat_table::address::{Hpa, HpaRange, HvaRange, PAGE_SIZE, RangeError};
use slat_table::attributes::MemoryType;
use slat_table::lock::Locks;

use crate::device::Linear;
use crate::driver::DriverDevice;
use crate::notify::Notifiers;
use crate::ram::Ram;
use crate::source::Source;
use crate::vma::{Object, Vmas};

/// What a new mapping shows.
pub enum Backing<L: Locks> {
    /// Memory that starts as zeros, in 2 MiB frames where they fit and can be had.
    Anonymous,
    /// Bytes that are never changed: each page is copied when it is first touched. What is left
    /// of the last page reads as zeros.
    Image(Arc<[u8]>),
    /// Device memory from `hpa` on, as long as the mapping. No other mapping of the address space
    /// may show any of it. That the memory may be given away is for the caller to know.
    Linear {
        /// The first byte; a multiple of the page size.
        hpa: Hpa,
        /// How the memory behaves.
        memory: MemoryType,
    },
    /// A part of a device that may be revoked at any time.
    Driver {
        /// The device.
        device: DriverDevice<L>,
        /// Bytes from the device's start to what is mapped; a multiple of the page size.
        offset: u64,
    },
}

/// Why something could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The address space has been released.
    #[error("{range} cannot be mapped: the address space has been released")]
    Released {
        /// The range given.
        range: HvaRange,
    },
    /// Something is mapped there already.
    #[error("{range} overlaps the mapping {existing}")]
    Overlap {
        /// The range given.
        range: HvaRange,
        /// The first mapping in its way.
        existing: HvaRange,
    },
    /// The image ends before the last page of the mapping begins.
    #[error("an image of {bytes} bytes does not reach to the end of {range}")]
    ImageTooShort {
        /// The range given.
        range: HvaRange,
        /// The image's size.
        bytes: usize,
    },
    /// The physical range is none.
    #[error("the device memory cannot be mapped: {0}")]
    Physical(RangeError),
    /// A device's memory is mapped already.
    #[error("the device memory {hpa} is mapped already, at {existing}")]
    InUse {
        /// The physical range asked for.
        hpa: HpaRange,
        /// The mapping that shows some of it.
        existing: HvaRange,
    },
    /// The mapping would not lie inside its device.
    #[error("{bytes:#x} bytes at {offset:#x} do not lie in the device's {device}")]
    OutsideDevice {
        /// The offset given.
        offset: u64,
        /// Size of the range given.
        bytes: u64,
        /// The device's memory.
        device: HpaRange,
    },
    /// The offset is not a multiple of the page size.
    #[error("the offset {offset:#x} is not a multiple of the 4 KiB page")]
    OffsetUnaligned {
        /// The offset given.
        offset: u64,
    },
}

impl<L: Locks> Backing<L> {
    /// Whether this can be mapped at `range` beside `vmas`.
    pub(crate) fn check(&self, range: HvaRange, vmas: &Vmas<L>) -> Result<(), MapError> {
        match self {
            Self::Anonymous => Ok(()),
            Self::Image(image) => {
                let bytes = image.len();
                let enough = u64::try_from(bytes).is_ok_and(|b| b > range.bytes() - PAGE_SIZE);
                if enough {
                    Ok(())
                } else {
                    Err(MapError::ImageTooShort { range, bytes })
                }
            }
            Self::Linear { hpa, .. } => {
                let hpa = HpaRange::new(*hpa, range.bytes()).map_err(MapError::Physical)?;
                unused(hpa, vmas, |_| true)
            }
            Self::Driver { device, offset } => {
                let hpa = part_of(device.range(), *offset, range.bytes())?;
                // A device may be mapped more than once, but not what is mapped exclusively.
                unused(hpa, vmas, |object| matches!(object, Object::Linear(_)))
            }
        }
    }

    /// The object to show, and from which offset on.
    pub(crate) fn into_object(self, notifiers: &Arc<Notifiers<L>>) -> (Object<L>, u64) {
        match self {
            Self::Anonymous => (Object::Ram(Arc::new(Ram::new(Source::Zero))), 0),
            Self::Image(image) => (Object::Ram(Arc::new(Ram::new(Source::Image(image)))), 0),
            Self::Linear { hpa, memory } => {
                let (start, kind) = (hpa, PageKind::Pfnmap);
                let linear = Linear {
                    start,
                    memory,
                    kind,
                };
                (Object::Linear(linear), 0)
            }
            Self::Driver { device, offset } => (
                Object::Driver(Arc::new(device.map(Arc::clone(notifiers)))),
                offset,
            ),
        }
    }
}

/// The `bytes` bytes at `offset` of the device memory at `device`.
fn part_of(device: HpaRange, offset: u64, bytes: u64) -> Result<HpaRange, MapError> {
    if !offset.is_multiple_of(PAGE_SIZE) {
        return Err(MapError::OffsetUnaligned { offset });
    }
    device
        .start()
        .checked_add(offset)
        .and_then(|start| HpaRange::new(start, bytes).ok())
        .filter(|part| device.covers(part))
        .ok_or(MapError::OutsideDevice {
            offset,
            bytes,
            device,
        })
}

/// Whether none of the mappings that `counts` shows any of the device memory at `hpa`.
fn unused<L: Locks>(
    hpa: HpaRange,
    vmas: &Vmas<L>,
    counts: impl Fn(&Object<L>) -> bool,
) -> Result<(), MapError> {
    let shows = |shown: HpaRange| shown.overlaps(&hpa);
    match vmas
        .iter()
        .find(|vma| counts(&vma.object) && vma.device_memory().is_some_and(shows))
    {
        Some(vma) => Err(MapError::InUse {
            hpa,
            existing: vma.range(),
        }),
        None => Ok(()),
    }
}

impl<L: Locks> fmt::Debug for Backing<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Image(image) => write!(f, "Image({} bytes)", image.len()),
            Self::Linear { hpa, memory } => f
                .debug_struct("Linear")
                .field("hpa", hpa)
                .field("memory", memory)
                .finish(),
            Self::Driver { device, offset } => f
                .debug_struct("Driver")
                .field("device", device)
                .field("offset", offset)
                .finish(),
        }
    }
}
