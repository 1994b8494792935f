//! The payload's heap: what `slat-table` keeps beside its tables, which is one allocation for each
//! tree. Nothing is taken back; a payload makes a few trees and ends.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

const BYTES: usize = 1 << 20;

/// A heap of one mebibyte.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Heap {
    memory: UnsafeCell<[u8; BYTES]>,
    used: AtomicUsize,
}

// SAFETY: each byte is handed out once, and `used` is atomic.
unsafe impl Sync for Heap {}

impl Heap {
    /// An empty heap.
    #[expect(clippy::new_without_default, reason = "it is made in a static")]
    #[expect(clippy::large_stack_arrays, reason = "a static is on no stack")]
    pub const fn new() -> Self {
        Self {
            memory: UnsafeCell::new([0; BYTES]),
            used: AtomicUsize::new(0),
        }
    }
}

// SAFETY: memory is handed out once, aligned as asked for where that is no more than the heap's
// own alignment, and inside the heap.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = self.used.load(Ordering::Relaxed);
        let start = used.next_multiple_of(layout.align());
        let Some(end) = start.checked_add(layout.size()) else {
            return ptr::null_mut();
        };
        if end > BYTES || layout.align() > align_of::<Self>() {
            return ptr::null_mut();
        }
        // There is one CPU, and it does one thing at a time.
        self.used.store(end, Ordering::Relaxed);
        let memory: *mut u8 = self.memory.get().cast();
        // SAFETY: `start` is at most `BYTES`.
        unsafe { memory.add(start) }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}
