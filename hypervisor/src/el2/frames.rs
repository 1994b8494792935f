//! The machine's memory by the frame: where guest memory and its tables come from.
//!
//! EL2 maps all RAM at its own address, so the hypervisor reaches a frame at its host-physical
//! address. The guest may read a frame past the caches (before it switches its MMU on, and
//! whenever its own tables say so), so what the hypervisor writes is cleaned, and what it reads is
//! cleaned and invalidated first. A CPU whose stage 2 forces write-back needs neither.

use core::sync::atomic::{AtomicU64, Ordering};

use buddy_system_allocator::FrameAllocator;
use slat::table::address::Hpa;
use slat_hypervisor::span::{PAGE_SIZE, Span};
use slat_mm::frames::{FrameSize, Frames};
use spin::Mutex;

use super::{bulk, cache};

/// Blocks of up to 2^32 pages: 16 TiB.
const ORDERS: usize = 33;

/// The free frames.
pub(super) struct HostMemory {
    allocator: Mutex<FrameAllocator<ORDERS>>,
    free_pages: AtomicU64,
    /// Whether the guest cannot get past the caches.
    coherent: bool,
}

impl HostMemory {
    /// Makes frames of `spans`. `coherent` says that stage 2 forces write-back.
    ///
    /// # Safety
    ///
    /// The spans must be RAM that EL2 maps at its own address and that nobody else uses.
    pub(super) unsafe fn new(spans: &[Span], coherent: bool) -> Self {
        let mut allocator = FrameAllocator::new();
        let mut pages = 0;
        for span in spans {
            allocator.insert(number(span.start())..number(span.end()));
            pages += span.size() / PAGE_SIZE;
        }
        Self {
            allocator: Mutex::new(allocator),
            free_pages: AtomicU64::new(pages),
            coherent,
        }
    }

    /// Free memory in 4 KiB frames.
    pub(super) fn free_pages(&self) -> u64 {
        self.free_pages.load(Ordering::Relaxed)
    }

    /// `bytes` bytes (a power of two, at least a page) on a boundary of that size, or `None`.
    pub(super) fn take(&self, bytes: u64) -> Option<Hpa> {
        let frame = self.allocator.lock().alloc(number(bytes))?;
        self.free_pages
            .fetch_sub(bytes / PAGE_SIZE, Ordering::Relaxed);
        Some(Hpa::new(frame as u64 * PAGE_SIZE))
    }

    /// Takes back what `take` gave, or a naturally aligned part of it.
    pub(super) fn give_back(&self, start: Hpa, bytes: u64) {
        self.allocator
            .lock()
            .dealloc(number(start.raw()), number(bytes));
        self.free_pages
            .fetch_add(bytes / PAGE_SIZE, Ordering::Relaxed);
    }

    /// Fills `bytes` bytes at `start` with zeros, for every observer.
    pub(super) fn clear(&self, start: Hpa, bytes: u64) {
        // SAFETY: frames are RAM that EL2 maps, and this one is the caller's.
        unsafe { bulk::zero(pointer(start), bytes) };
        self.show(start, bytes);
    }

    /// Makes what the hypervisor wrote visible to a guest that gets past the caches.
    fn show(&self, start: Hpa, bytes: u64) {
        if !self.coherent {
            cache::clean(span(start, bytes));
        }
    }

    /// Makes what the guest wrote past the caches visible to the hypervisor.
    fn see(&self, start: Hpa, bytes: u64) {
        if !self.coherent {
            cache::clean_and_invalidate(span(start, bytes));
        }
    }
}

impl Frames for HostMemory {
    fn allocate(&self, size: FrameSize) -> Option<Hpa> {
        self.take(size.bytes())
    }

    fn free(&self, frame: Hpa, size: FrameSize) {
        self.give_back(frame, size.bytes());
    }

    fn zero(&self, frame: Hpa, size: FrameSize) {
        self.clear(frame, size.bytes());
    }

    fn copy(&self, from: Hpa, to: Hpa, size: FrameSize) {
        self.see(from, size.bytes());
        // SAFETY: both are frames: RAM that EL2 maps, apart from each other. The guest may write
        // to `from` meanwhile only if the address space has left it mapped, which it never does
        // before a copy.
        unsafe { bulk::copy(pointer(from), pointer(to), size.bytes()) };
        self.show(to, size.bytes());
    }

    fn read(&self, from: Hpa, bytes: &mut [u8]) {
        self.see(from, bytes.len() as u64);
        // SAFETY: the bytes lie in one frame, which is RAM that EL2 maps.
        unsafe { pointer(from).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
    }

    fn write(&self, to: Hpa, bytes: &[u8]) {
        // The lines at both ends may hold more than what is written, and be older than it.
        let last = (bytes.len() as u64).saturating_sub(1);
        self.see(to, 1);
        self.see(Hpa::new(to.raw() + last), 1);
        // SAFETY: the bytes fit into one frame, which is RAM that EL2 maps.
        unsafe { pointer(to).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.show(to, bytes.len() as u64);
    }
}

fn pointer(address: Hpa) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(address.raw() as usize)
}

fn number(bytes: u64) -> usize {
    (bytes / PAGE_SIZE) as usize
}

fn span(start: Hpa, bytes: u64) -> Span {
    Span::new(start.raw(), bytes).unwrap_or_else(|| unreachable!("no frame wraps"))
}
