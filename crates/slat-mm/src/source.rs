//! What memory holds before anybody has written to it: zeros, or an image.

use alloc::sync::Arc;

use slat_table::address::Hpa;

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
        let end = usize::try_from(size.bytes())
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        if end > 0 {
            frames.write(frame, &bytes[..end]);
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
            Self::Image(image) => usize::try_from(offset)
                .ok()
                .and_then(|offset| image.get(offset..))
                .unwrap_or(&[]),
        }
    }
}
