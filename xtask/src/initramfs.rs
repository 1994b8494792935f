//! The guest's initramfs: busybox, the agent, an init script and files to check.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use cpio::newc::{Builder, trailer};

/// File types of the archive's mode field (`cpio(5)`).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

/// How many files the checked workload reads, and the bytes in each.
const DATA_FILES: u32 = 8;
const DATA_BYTES: usize = 512 << 10;

/// Writes the archive to `path`.
pub(crate) fn write(path: &Path, busybox: &Path, agent: &Path) -> Result<()> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut archive = Archive::default();
    for directory in ["bin", "data", "dev", "proc", "sys", "tmp"] {
        archive.add(directory, DIRECTORY | 0o755, &[])?;
    }
    archive.add("init", REGULAR | 0o755, include_bytes!("init.sh"))?;
    archive.add("bin/busybox", REGULAR | 0o755, &read(busybox)?)?;
    archive.add("bin/slat-agent", REGULAR | 0o755, &read(agent)?)?;
    for number in 0..DATA_FILES {
        archive.add(
            &format!("data/{number}"),
            REGULAR | 0o644,
            &data_file(number),
        )?;
    }
    let mut file = fs::File::create(path)?;
    file.write_all(&trailer(archive.bytes)?)?;
    Ok(())
}

/// A `newc` archive under construction.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, contents: &[u8]) -> Result<()> {
        self.entries += 1;
        // Linux takes files with the same inode number for hard links.
        let entry = Builder::new(name).ino(self.entries).mode(mode).nlink(1);
        let mut writer = entry.write(&mut self.bytes, u32::try_from(contents.len())?);
        writer.write_all(contents)?;
        writer.finish()?;
        Ok(())
    }
}

/// A file that knows whether it is whole: the FNV-1a checksum of its remaining bytes comes first,
/// eight bytes little-endian, as the guest agent's `check` expects.
fn data_file(number: u32) -> Vec<u8> {
    // Knuth's 64-bit linear congruential generator; any bytes without a pattern would do.
    let mut state = u64::from(number) + 1;
    let mut step = || {
        state = state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        state.to_be_bytes()[0]
    };
    let contents: Vec<u8> = (0..DATA_BYTES - 8).map(|_| step()).collect();
    let checksum = contents
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    [checksum.to_le_bytes().as_slice(), &contents].concat()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use cpio::newc::Reader;

    use super::*;

    #[test]
    fn the_archive_can_be_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("busybox"), b"shell").unwrap();
        fs::write(path("agent"), b"agent").unwrap();
        write(&path("cpio"), &path("busybox"), &path("agent")).unwrap();

        let mut rest = Cursor::new(fs::read(path("cpio")).unwrap());
        let mut found = Vec::new();
        loop {
            let reader = Reader::new(rest).unwrap();
            let entry = reader.entry();
            if entry.is_trailer() {
                break;
            }
            found.push((entry.name().to_owned(), entry.mode(), entry.file_size()));
            rest = reader.finish().unwrap();
        }
        assert!(found.contains(&("bin/busybox".to_owned(), 0o100_755, 5)));
        assert!(found.contains(&("dev".to_owned(), 0o040_755, 0)));
        let init = found.iter().find(|(name, ..)| name == "init").unwrap();
        assert_eq!(init.1, 0o100_755);
        assert_eq!(
            found
                .iter()
                .filter(|(name, ..)| name.starts_with("data/"))
                .count(),
            8
        );
    }

    #[test]
    fn data_files_differ() {
        assert_ne!(data_file(0), data_file(1));
        assert_eq!(data_file(0).len(), DATA_BYTES);
    }
}
