//! A host memory manager, for hosts that have no operating system below.
//!
//! A hypervisor on Linux has the kernel's memory manager: it maps memory with `mmap`, and the
//! kernel brings pages, moves them, takes them back, and tells the hypervisor's page tables of it.
//! One that runs on bare metal has none. This crate is a small one, made to be the
//! [`Host`](slat::host::Host) of a `slat` guest memory.
//!
//! An [`AddressSpace`] holds mappings (VMAs) of four kinds of [`Backing`]: anonymous memory, an
//! image that is copied when touched, device memory, and device memory that its
//! [driver](DriverDevice) may revoke at any time. It can be mapped, unmapped, protected,
//! populated, discarded, migrated, split, read and written. Everything that takes an address, a
//! permission or memory away is announced to the registered notifiers before it happens and
//! ended after, and no frame is given to anybody else before that.
//!
//! Memory comes from a [`Frames`]; locks from a [`Locks`](slat_table::lock::Locks) family.
//! Bookkeeping comes from the global allocator, and failing there is fatal as everywhere.
//!
//! ```
//! use std::sync::Arc;
//!
//! use slat_mm::arena::Arena;
//! use slat_mm::{AddressSpace, Backing, FrameSize, Protection};
//! use slat_table::address::{Hpa, HpaRange, Hva, HvaRange};
//! use slat_table::lock::StdLocks;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = Arc::new(Arena::new(HpaRange::new(Hpa::new(0x4000_0000), 8 << 20)?));
//! let space = AddressSpace::<_, StdLocks>::new(Arc::clone(&memory));
//!
//! let ram = HvaRange::new(Hva::new(0x1000_0000), 2 << 20)?;
//! space.map(ram, Protection::ReadWrite, Backing::Anonymous)?;
//! space.write(ram.start(), b"a guest's kernel")?;
//! assert_eq!(space.statistics().resident.huge, 1);
//!
//! space.migrate(ram.start(), FrameSize::Base)?;
//! let mut bytes = [0; 16];
//! space.read(ram.start(), &mut bytes)?;
//! assert_eq!(&bytes, b"a guest's kernel");
//!
//! drop(space);
//! assert_eq!(memory.allocated_pages(), 0);
//! # Ok(())
//! # }
//! ```

#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod address_space;
#[cfg(feature = "std")]
pub mod arena;
mod backing;
mod contents;
mod device;
mod driver;
mod extents;
pub mod frames;
mod host;
#[cfg(feature = "std")]
pub mod interpose;
mod migrate;
mod notify;
mod ram;
mod resident;
mod source;
pub mod stats;
mod vma;
mod window;

pub use address_space::{AddressSpace, ProtectError};
pub use backing::{Backing, MapError};
pub use contents::ContentsError;
pub use driver::DriverDevice;
pub use frames::{FrameSize, Frames};
pub use host::View;
pub use migrate::{MigrateError, SplitError};
pub use window::Protection;
