//! Why a layout cannot be examined.

use slat::table::address::Gpa;
use slat::table::table::NewTableError;
use slat::transaction::TransactionError;
use slat_mm::MapError;
use slat_report::size::Size;

/// Why a layout could not be examined.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ExamineError {
    /// Its ranges are not sound: see [`Layout::is_sound`](crate::layout::Layout::is_sound).
    #[error("the layout's ranges are not sound: not pages, out of bounds, or overlapping")]
    Unsound,
    /// It would take more leaves than are made.
    #[error(
        "slot `{slot}` would take about {leaves} entries of {block}, with the others more than the \
         {most} that are examined"
    )]
    TooManyLeaves {
        /// The slot's index in the layout.
        index: usize,
        /// The slot's name.
        slot: String,
        /// About so many leaves.
        leaves: u64,
        /// The size of most of them.
        block: Size,
        /// The most that are made.
        most: u64,
    },
    /// A mapping cannot be made.
    #[error("mapping `{name}`: {error}")]
    Map {
        /// The mapping's name.
        name: String,
        /// Why.
        error: MapError,
    },
    /// There is a device, of whose memory the format has no leaf.
    #[error(
        "mapping `{name}` is a device: `{format}` has no leaf that shows a device's memory and \
         holds against the guest"
    )]
    NoDevices {
        /// The mapping's index in the layout.
        index: usize,
        /// The mapping's name.
        name: String,
        /// The format.
        format: &'static str,
    },
    /// There is no room for a mapping's RAM in the host's physical addresses.
    #[error(
        "mapping `{name}`: {} of RAM do not fit beside the rest into the {bits} bits of a host \
         physical address that `{format}` has", Size(*.bytes)
    )]
    Room {
        /// The mapping's index in the layout.
        index: usize,
        /// The mapping's name.
        name: String,
        /// Its size.
        bytes: u64,
        /// Bits of a host physical address.
        bits: u8,
        /// The format.
        format: &'static str,
    },
    /// The guest cannot have the address width.
    #[error(transparent)]
    Table(#[from] NewTableError),
    /// The slots cannot be created.
    #[error("the slots cannot be created: {0}")]
    Slots(#[from] TransactionError),
    /// The model's memory ran out.
    #[error("slot `{slot}` at {gpa}: {why}")]
    Touch {
        /// The slot's name.
        slot: String,
        /// Where.
        gpa: Gpa,
        /// What the engine said.
        why: String,
    },
}
