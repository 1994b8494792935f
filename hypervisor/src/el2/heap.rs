//! The hypervisor's heap: a little of the image's own memory to read the device tree with, then a
//! share of the machine's.

use buddy_system_allocator::LockedHeap;
use slat_hypervisor::span::Span;

/// Blocks of up to 2^31 bytes, more than any share of a machine's memory comes to.
#[global_allocator]
static HEAP: LockedHeap<32> = LockedHeap::empty();

/// Enough for the machine's device tree as values, and for EL2's tables.
const FIRST_SIZE: usize = 512 << 10;

static mut FIRST: [u8; FIRST_SIZE] = [0; FIRST_SIZE];

/// Makes the first part of the heap. Nothing may allocate before.
pub(super) fn begin() {
    let start = (&raw mut FIRST).expose_provenance();
    // SAFETY: called once, at the start; nothing else refers to this memory.
    unsafe {
        HEAP.lock().init(start, FIRST_SIZE);
    }
}

/// Adds the host-physical range `span` to the heap.
///
/// # Safety
///
/// The range must be mapped, and nobody else may use it from now on.
pub(super) unsafe fn grow(span: Span) {
    // SAFETY: the caller gives the range away.
    unsafe {
        HEAP.lock()
            .add_to_heap(span.start() as usize, span.end() as usize);
    }
}
