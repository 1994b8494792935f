//! Where the guest's kernel, initial RAM disk and device tree go in the guest's memory.
//!
//! Linux asks for little (`Documentation/arch/arm64/booting.rst`, sections 2 to 5): the kernel lies
//! `text_offset` bytes after a 2 MiB boundary and needs `image_size` bytes; the device tree is on
//! an 8-byte boundary, at most 2 MiB large and in no part of the kernel's memory; the initial RAM
//! disk is near the kernel. So: kernel at the start of RAM, then the device tree in a 2 MiB block
//! of its own, then the RAM disk.

use thiserror::Error;

use crate::image::Image;
use crate::span::{BLOCK_SIZE, Span};

/// The most that a device tree may take (Linux, `booting.rst`, section 2).
pub const MOST_TREE: u64 = BLOCK_SIZE;

/// Where things go. All addresses are guest-physical.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Layout {
    /// The kernel's file; its first instruction comes first.
    pub kernel: Span,
    /// Room for the device tree.
    pub tree: Span,
    /// The initial RAM disk.
    pub ramdisk: Option<Span>,
}

/// Guest memory that is too small for what must go into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the kernel and its initial RAM disk need {needed} bytes of guest memory, it has {size}")]
#[non_exhaustive]
pub struct LayoutError {
    /// Bytes from the start of RAM to the end of the last thing in it.
    pub needed: u64,
    /// Bytes of RAM.
    pub size: u64,
}

impl Layout {
    /// Lays out a kernel of `kernel_size` bytes with header `image`, and a RAM disk of
    /// `ramdisk_size` bytes, in guest memory `ram`, which starts on a 2 MiB boundary.
    ///
    /// # Errors
    ///
    /// A [`LayoutError`] if they do not fit.
    pub fn new(
        ram: Span,
        image: Image,
        kernel_size: u64,
        ramdisk_size: Option<u64>,
    ) -> Result<Self, LayoutError> {
        let reach = |parts: &[u64]| {
            parts
                .iter()
                .try_fold(0_u64, |sum, part| sum.checked_add(*part))
        };
        let kernel_room = image.image_size.max(kernel_size);
        let tree_offset = reach(&[image.text_offset, kernel_room])
            .and_then(|end| end.checked_next_multiple_of(BLOCK_SIZE));
        let ramdisk_offset = tree_offset.and_then(|offset| offset.checked_add(MOST_TREE));
        let needed =
            ramdisk_offset.and_then(|offset| offset.checked_add(ramdisk_size.unwrap_or(0)));
        let span = |offset, size| Span::new(ram.start().checked_add(offset?)?, size);
        let error = LayoutError {
            needed: needed.unwrap_or(u64::MAX),
            size: ram.size(),
        };
        if error.needed > error.size {
            return Err(error);
        }
        Ok(Self {
            kernel: span(Some(image.text_offset), kernel_size).ok_or(error)?,
            tree: span(tree_offset, MOST_TREE).ok_or(error)?,
            ramdisk: match ramdisk_size {
                Some(size) => Some(span(ramdisk_offset, size).ok_or(error)?),
                None => None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: u64 = 0x4000_0000;
    const IMAGE: Image = Image {
        text_offset: 0,
        image_size: 0x1c8_0000,
    };

    fn ram(size: u64) -> Span {
        Span::new(RAM, size).expect("a test's range")
    }

    #[test]
    fn nothing_overlaps_the_memory_that_the_kernel_claims() {
        let layout = Layout::new(ram(64 << 20), IMAGE, 0x199_0000, Some(0x10_0001)).expect("fits");
        let claimed = Span::new(RAM, IMAGE.image_size).expect("valid");
        let ramdisk = layout.ramdisk.expect("asked for");
        assert_eq!(layout.kernel.start(), RAM);
        assert!(!layout.tree.overlaps(claimed) && !ramdisk.overlaps(claimed));
        assert!(!ramdisk.overlaps(layout.tree));
        assert!(layout.tree.start().is_multiple_of(8));
        assert!(ramdisk.end() <= RAM + (64 << 20));
    }

    #[test]
    fn a_kernel_that_wants_an_offset_gets_it() {
        let image = Image {
            text_offset: 0x8_0000,
            ..IMAGE
        };
        let layout = Layout::new(ram(64 << 20), image, 0x199_0000, None).expect("fits");
        assert_eq!(layout.kernel.start(), RAM + 0x8_0000);
        assert_eq!(layout.ramdisk, None);
    }

    #[test]
    fn too_little_memory_is_told_with_what_it_would_take() {
        let error = Layout::new(ram(64 << 20), IMAGE, 0x199_0000, Some(40 << 20));
        assert_eq!(
            error,
            Err(LayoutError {
                needed: (30 << 20) + (2 << 20) + (40 << 20),
                size: 64 << 20
            })
        );
        let image = Image {
            image_size: u64::MAX,
            ..IMAGE
        };
        assert!(Layout::new(ram(64 << 20), image, 1, None).is_err());
    }
}
