//! Frames of physical memory: where an address space gets the memory that it gives to a guest.
//!
//! A frame is a naturally aligned piece of host physical memory of one of two sizes. An embedder
//! brings a [`Frames`]: on bare metal an allocator over the machine's RAM, in a test an
//! [`Arena`](crate::arena::Arena).

use alloc::sync::Arc;
use core::fmt;

use slat_table::address::{Hpa, PAGE_SIZE};

/// How large a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrameSize {
    /// 4 KiB: a page.
    Base,
    /// 2 MiB: what one last-level table maps with a 4 KiB granule.
    Huge,
}

impl FrameSize {
    /// Size in bytes, which is also the alignment.
    #[inline]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Base => PAGE_SIZE,
            Self::Huge => 512 * PAGE_SIZE,
        }
    }
}

impl fmt::Display for FrameSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "4 KiB",
            Self::Huge => "2 MiB",
        })
    }
}

/// Physical memory by the frame.
///
/// The isolation of the guest rests on these laws:
/// * `allocate` hands out memory that nobody else has until it is freed, aligned to its size;
/// * what is freed is what was allocated; only a [`Huge`](FrameSize::Huge) frame may come back
///   as its 512 [`Base`](FrameSize::Base) frames, one by one and at any time;
/// * `zero`, `copy`, `read` and `write` see what the guest last wrote to the frame, and what they
///   write is what the guest will see, by whatever caches it accesses the frame.
///
/// The address space calls these with its own locks held, so they must not call back into it.
pub trait Frames: Send + Sync + 'static {
    /// A frame of `size` with any contents, or `None` if there is none.
    fn allocate(&self, size: FrameSize) -> Option<Hpa>;

    /// Takes the frame at `frame` back.
    fn free(&self, frame: Hpa, size: FrameSize);

    /// Fills the frame at `frame` with zeros.
    fn zero(&self, frame: Hpa, size: FrameSize);

    /// Copies all of the frame at `from` to the one at `to`.
    fn copy(&self, from: Hpa, to: Hpa, size: FrameSize);

    /// Reads the bytes at `from`, which lie in one frame.
    fn read(&self, from: Hpa, bytes: &mut [u8]);

    /// Writes `bytes` at `to`; they fit in one frame.
    fn write(&self, to: Hpa, bytes: &[u8]);
}

impl<F: Frames> Frames for Arc<F> {
    fn allocate(&self, size: FrameSize) -> Option<Hpa> {
        (**self).allocate(size)
    }

    fn free(&self, frame: Hpa, size: FrameSize) {
        (**self).free(frame, size);
    }

    fn zero(&self, frame: Hpa, size: FrameSize) {
        (**self).zero(frame, size);
    }

    fn copy(&self, from: Hpa, to: Hpa, size: FrameSize) {
        (**self).copy(from, to, size);
    }

    fn read(&self, from: Hpa, bytes: &mut [u8]) {
        (**self).read(from, bytes);
    }

    fn write(&self, to: Hpa, bytes: &[u8]) {
        (**self).write(to, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::FrameSize;
    use alloc::string::ToString as _;

    #[test]
    fn sizes_are_named_as_people_write_them() {
        assert_eq!(FrameSize::Base.to_string(), "4 KiB");
        assert_eq!(FrameSize::Huge.to_string(), "2 MiB");
    }
}
