//! The arm64 boot image: what the machine's loader takes.
//!
//! QEMU loads a file by the Linux arm64 boot protocol (the kernel's
//! `Documentation/arch/arm64/booting.rst`) when it is a flat image that begins with the protocol's
//! 64-byte header. The linker makes an ELF file, so its loadable segments are laid out here by
//! their physical addresses, with zeroes between them.

use core::ops::Range;

use anyhow::{Context as _, Result, anyhow, ensure};
use object::Endianness;
use object::elf::PT_LOAD;
use object::read::elf::{ElfFile64, ProgramHeader as _};

/// Flat images larger than this are taken for a linker script gone wrong.
const LARGEST: u64 = 256 << 20;

/// Lays out the loadable segments of the ELF file `elf` from the lowest physical address on.
pub(crate) fn flatten(elf: &[u8]) -> Result<Vec<u8>> {
    lay_out(elf, 0..u64::MAX)
}

/// The same for the segments that begin at physical addresses in `range`.
pub(crate) fn lay_out(elf: &[u8], range: Range<u64>) -> Result<Vec<u8>> {
    let file = ElfFile64::<Endianness>::parse(elf).context("not a 64-bit ELF file")?;
    let endian = file.endian();
    let mut segments = Vec::new();
    for header in file.elf_program_headers() {
        let loaded = header.p_type(endian) == PT_LOAD && header.p_filesz(endian) > 0;
        if loaded && range.contains(&header.p_paddr(endian)) {
            let data = header
                .data(endian, elf)
                .map_err(|()| anyhow!("a segment lies outside the file"))?;
            segments.push((header.p_paddr(endian), data));
        }
    }
    let base = segments
        .iter()
        .map(|(address, _)| *address)
        .min()
        .ok_or_else(|| anyhow!("the file has nothing to load"))?;
    let mut image = Vec::new();
    for (address, data) in segments {
        let start = address - base;
        ensure!(
            start < LARGEST,
            "a segment lies {start:#x} bytes behind the first"
        );
        let start = usize::try_from(start)?;
        let end = start + data.len();
        if image.len() < end {
            image.resize(end, 0);
        }
        image[start..end].copy_from_slice(data);
    }
    Ok(image)
}

/// Checks that `image` begins with the arm64 boot header.
pub(crate) fn check(image: &[u8]) -> Result<()> {
    const MAGIC: Range<usize> = 56..60;
    ensure!(
        image.get(MAGIC) == Some(b"ARM\x64"),
        "it has no arm64 Image header (an uncompressed or gzip-compressed arm64 Image is needed)"
    );
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A file that is just a boot header.
    pub(crate) fn smallest() -> Vec<u8> {
        let mut image = vec![0; 64];
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    /// An ELF file with segments of these physical addresses and contents.
    fn elf(segments: &[(u64, &[u8])]) -> Vec<u8> {
        const HEADER: u16 = 64;
        const ENTRY: u16 = 56;
        let mut file = vec![0; usize::from(HEADER) + usize::from(ENTRY) * segments.len()];
        file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00");
        let mut put = |offset: usize, bytes: &[u8]| {
            file[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(16, &2_u16.to_le_bytes());
        put(18, &183_u16.to_le_bytes());
        put(20, &1_u32.to_le_bytes());
        put(32, &u64::from(HEADER).to_le_bytes());
        put(52, &HEADER.to_le_bytes());
        put(54, &ENTRY.to_le_bytes());
        put(56, &u16::try_from(segments.len()).unwrap().to_le_bytes());
        for (index, (address, data)) in segments.iter().enumerate() {
            let at = usize::from(HEADER) + index * usize::from(ENTRY);
            let offset = file.len() as u64;
            for (field, value) in [
                (8, offset),
                (16, address + 0xffff_0000_0000_0000),
                (24, *address),
                (32, data.len() as u64),
                (40, data.len() as u64 + 4096),
            ] {
                file[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
            }
            file[at..at + 4].copy_from_slice(&1_u32.to_le_bytes());
            file.extend_from_slice(data);
        }
        file
    }

    #[test]
    fn segments_are_laid_out_by_physical_address() {
        let file = elf(&[(0x4000_0008, b"later"), (0x4000_0000, b"first")]);
        assert_eq!(flatten(&file).unwrap(), b"first\0\0\0later");
    }

    #[test]
    fn a_stray_segment_or_another_file_is_refused() {
        assert!(flatten(&elf(&[(0, b"a"), (1 << 40, b"b")])).is_err());
        assert!(flatten(&elf(&[])).is_err());
        assert!(flatten(b"#!/bin/sh\n").is_err());
    }

    #[test]
    fn the_boot_header_is_looked_for() {
        assert!(check(&smallest()).is_ok());
        assert!(check(&[0; 64]).is_err());
        assert!(check(b"short").is_err());
    }
}
