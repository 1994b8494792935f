//! The header of an arm64 Linux `Image`, which says where the kernel wants to lie and how much
//! memory it needs (Linux, `Documentation/arch/arm64/booting.rst`, section 4).

use thiserror::Error;

/// Bytes in the header.
pub const HEADER_SIZE: usize = 64;

/// `ARM\x64`, at byte 56.
const MAGIC: u32 = 0x644d_5241;

/// What the loader needs from the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Image {
    /// Offset of the image from a 2 MiB boundary, in bytes.
    pub text_offset: u64,
    /// Bytes that the kernel takes from its first byte on, more than the file has: `.bss` and
    /// the early page tables are counted in.
    pub image_size: u64,
}

/// A kernel that cannot be booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Too short to have a header.
    #[error("{0} bytes are too few for an arm64 Image")]
    Short(u64),
    /// No arm64 Image, or a compressed one.
    #[error("no arm64 Image: the magic number is {0:#x} (compressed kernels must be unpacked)")]
    Magic(u32),
    /// The header of a kernel older than 3.17, which does not say how large it is.
    #[error("the kernel does not say its size")]
    NoSize,
    /// A big-endian kernel, whose device tree would be the only thing it could read.
    #[error("the kernel is big-endian (flags {0:#x})")]
    BigEndian(u64),
    /// A kernel with a larger granule than the hypervisor's report and tables are about.
    #[error("the kernel wants to lie {0:#x} bytes after a 2 MiB boundary, which is no whole page")]
    TextOffset(u64),
}

impl Image {
    /// Reads the header at the start of `file`.
    ///
    /// # Errors
    ///
    /// An [`ImageError`] if this is not a kernel that the boot protocol can start.
    pub fn parse(file: &[u8]) -> Result<Self, ImageError> {
        let header = file
            .first_chunk::<HEADER_SIZE>()
            .ok_or(ImageError::Short(file.len() as u64))?;
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let (text_offset, image_size, flags, magic) =
            (word(8), word(16), word(24), word(56) & u64::from(u32::MAX));
        if magic != u64::from(MAGIC) {
            #[expect(clippy::cast_possible_truncation, reason = "masked to 32 bits above")]
            return Err(ImageError::Magic(magic as u32));
        }
        if image_size == 0 {
            return Err(ImageError::NoSize);
        }
        if flags & 1 != 0 {
            return Err(ImageError::BigEndian(flags));
        }
        if !text_offset.is_multiple_of(crate::span::PAGE_SIZE) {
            return Err(ImageError::TextOffset(text_offset));
        }
        Ok(Self {
            text_offset,
            image_size,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text_offset: u64, image_size: u64, flags: u64) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[8..16].copy_from_slice(&text_offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&image_size.to_le_bytes());
        bytes[24..32].copy_from_slice(&flags.to_le_bytes());
        bytes[56..60].copy_from_slice(&MAGIC.to_le_bytes());
        bytes
    }

    #[test]
    fn a_kernel_says_where_it_goes() {
        let image = Image::parse(&header(0x8_0000, 0x1d0_0000, 0xa));
        assert_eq!(
            image,
            Ok(Image {
                text_offset: 0x8_0000,
                image_size: 0x1d0_0000
            })
        );
    }

    #[test]
    fn what_is_no_bootable_kernel_is_refused() {
        assert_eq!(Image::parse(&[0x1f, 0x8b]), Err(ImageError::Short(2)));
        assert_eq!(Image::parse(&[0; 64]), Err(ImageError::Magic(0)));
        assert_eq!(Image::parse(&header(0, 0, 0xa)), Err(ImageError::NoSize));
        assert_eq!(
            Image::parse(&header(0, 1, 0xb)),
            Err(ImageError::BigEndian(0xb))
        );
        assert_eq!(
            Image::parse(&header(8, 1, 0xa)),
            Err(ImageError::TextOffset(8))
        );
    }
}
