//! What is behind a region: the contract with the host's memory manager.
//!
//! A region names host virtual memory. What is there, the host knows: which mappings (VMAs),
//! which page, whether it may be written, how its memory behaves. `slat` asks through a [`Host`],
//! in two ways that differ in what they may do. A **peek** only looks: no allocation, no call
//! into a driver, no side effect; it runs while the host's mmap lock is held for reading. A
//! **fault** does what an access by the host itself would do, and may allocate, wait and fail.
//!
//! The host tells of its changes through a [`Notifier`].

use alloc::sync::Weak;
use core::fmt;

use slat_table::address::{Hpa, Hva, HvaRange};
use slat_table::attributes::{Access, MemoryType};

use crate::notifier::Notifier;

/// What kind of memory a mapping or page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageKind {
    /// Memory that the host manages page by page: RAM.
    Ram,
    /// Memory that the host maps but does not manage (`VM_PFNMAP`): device memory, as a rule.
    Pfnmap,
}

impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ram => "RAM",
            Self::Pfnmap => "PFNMAP",
        })
    }
}

/// A host mapping, as it was when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vma {
    /// The host virtual addresses it covers.
    pub range: HvaRange,
    /// Whether the host may write through it (`VM_WRITE`).
    pub writable: bool,
    /// What it maps.
    pub kind: PageKind,
    /// How its memory behaves.
    pub memory: MemoryType,
}

/// A page of host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPage {
    /// The host virtual addresses of the **host block** around the address asked for: the
    /// largest naturally aligned power of two that the host maps with one entry, or, for memory
    /// that it does not manage, any range that it maps linearly. Everything below holds for all
    /// of it.
    pub block: HvaRange,
    /// The host physical address of the block's first byte.
    pub hpa: Hpa,
    /// Whether the guest may write. May be true for a read: then a later write needs no fault.
    pub writable: bool,
    /// What kind of memory it is: decided by the page, not by the mapping.
    pub kind: PageKind,
    /// How the memory must behave.
    pub memory: MemoryType,
}

/// Why the host has no page to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// Peek only: there is a mapping, but to have pages in this range the host would have to
    /// act. At least the page asked for, and as much around it as the host can tell cheaply.
    #[error("nothing is present at {0}; the host would have to act")]
    NotPresent(HvaRange),
    /// No mapping covers the address.
    #[error("no mapping covers {0}")]
    NoVma(Hva),
    /// The mapping does not permit this access.
    #[error("the mapping at {hva} does not permit the access {access:?}")]
    NotPermitted {
        /// The address.
        hva: Hva,
        /// What was to be done.
        access: Access,
    },
    /// A driver refuses the access (its device is in reset, or its memory decoding off).
    #[error("the device behind {0} is not accessible")]
    DeviceGone(Hva),
    /// The memory has failed (`hwpoison`).
    #[error("the memory behind {0} has failed")]
    Poisoned(Hva),
    /// The host is in the middle of a change; ask again.
    #[error("the host is busy with {0}; ask again")]
    Busy(Hva),
    /// No memory for a page.
    #[error("the host has no memory for a page at {0}")]
    NoMemory(Hva),
}

/// The host's mappings under its mmap lock, held for reading. They do not change while this
/// lives; pages behind them may.
pub trait HostView {
    /// The mapping with the lowest addresses that ends after `hva` (as `find_vma` does), or
    /// `None`.
    fn find_vma(&self, hva: Hva) -> Option<Vma>;

    /// The page at `hva`, if the host has one that permits `access` already. Never allocates,
    /// calls a driver, or changes anything.
    ///
    /// # Errors
    ///
    /// [`ResolveError`]; [`NotPresent`](ResolveError::NotPresent) where only a fault could tell.
    fn peek(&self, hva: Hva, access: Access) -> Result<HostPage, ResolveError>;
}

/// A host memory manager.
///
/// # Safety
///
/// Memory safety of everything on the machine rests on what the implementer promises:
///
/// 0. Every registered notifier is told of every change, for as long as it is there.
/// 1. What [`peek`](HostView::peek) and [`fault`](Host::fault) returned (address, kind, memory
///    type, permission to write) stays true for the whole block until a [`Notifier::begin`]
///    covering it has **returned**. A gain of permission needs no notice.
/// 2. A change takes effect, and a page is given to anybody else, only after [`Notifier::begin`]
///    has returned. [`Notifier::end`] is called after the change; until then, a `peek` or `fault`
///    may return what was there before or what will be there after.
/// 3. A host block lies inside one mapping, contains the address asked for, and is mapped
///    linearly from its `hpa`.
#[expect(
    unsafe_code,
    reason = "implementing it is a promise that memory safety rests on"
)]
pub unsafe trait Host: Send + Sync + 'static {
    /// The mappings, locked for reading.
    type View<'a>: HostView
    where
        Self: 'a;

    /// From now on tells `notifier` of every change, as the safety section says, until it is
    /// gone. Guest memory calls this when it is made, before it asks for anything.
    fn register(&self, notifier: Weak<dyn Notifier>);

    /// Takes the mmap lock for reading.
    fn view(&self) -> Self::View<'_>;

    /// The page at `hva`, brought there if need be. May allocate, call drivers and wait; takes
    /// the mmap lock by itself.
    ///
    /// # Errors
    ///
    /// [`ResolveError`], but never [`NotPresent`](ResolveError::NotPresent).
    fn fault(&self, hva: Hva, access: Access) -> Result<HostPage, ResolveError>;
}
