//! What memory holds before anybody has written to it: zeros, or an image.

use alloc::sync::Arc;

use slat_table::address::{Hpa, PAGE_SIZE};

use crate::frames::{FrameSize, Frames};

/// The first contents of a RAM object.
pub(crate) enum Source {
    /// Anonymous memory: demand-zero.
    Zero,
    /// Read-only bytes, followed by zeros up to the end of their last page.
    Image(Arc<[u8]>),
}

impl Source {
    /// Whether the first touch may bring a 2 MiB frame. An image is copied page by page: most of
    /// what is read of one is never touched around.
    pub(crate) fn prefers_huge(&self) -> bool {
        matches!(self, Self::Zero)
    }

    /// Whether a fresh frame may be written without another fault. A page of an image is not,
    /// so that it is known which pages still equal the image.
    pub(crate) fn starts_writable(&self) -> bool {
        matches!(self, Self::Zero)
    }

    /// Gives the frame at `frame` the contents of the object from `offset` on.
    pub(crate) fn fill<F: Frames>(&self, frames: &F, frame: Hpa, size: FrameSize, offset: u64) {
        frames.zero(frame, size);
        let bytes = self.bytes_from(offset);
        for (page, bytes) in pages_of(size).zip(bytes.chunks(page_bytes())) {
            frames.write(Hpa::new(frame.raw() + page), bytes);
        }
    }

    /// Reads the contents at `offset`.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) {
        let bytes = self.bytes_from(offset);
        let (head, tail) = into.split_at_mut(bytes.len().min(into.len()));
        head.copy_from_slice(&bytes[..head.len()]);
        tail.fill(0);
    }

    fn bytes_from(&self, offset: u64) -> &[u8] {
        match self {
            Self::Zero => &[],
            Self::Image(image) => {
                usize::try_from(offset).ok().and_then(|offset| image.get(offset..)).unwrap_or(&[])
            }
        }
    }
}

fn pages_of(size: FrameSize) -> impl Iterator<Item = u64> {
    (0..size.bytes()).step_by(page_bytes())
}

const fn page_bytes() -> usize {
    PAGE_SIZE as usize
}
