//! Files that people hand to the command: read whole, but only if they are small and are text.
//!
//! A layout or a scenario is some kilobytes. Whatever is larger than [`LIMIT`] is a mistake (a disk
//! image, a core dump), and is refused after reading no more than the limit.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// The most that a file may have, in bytes: 1 MiB.
pub const LIMIT: u64 = 1 << 20;

/// A text and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file's name, as it was given.
    pub name: String,
    /// What it says.
    pub text: String,
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The system refuses it.
    #[error("{name}: {error}")]
    Io {
        /// The file's name.
        name: String,
        /// What the system said.
        error: io::Error,
    },
    /// It has more than [`LIMIT`] bytes.
    #[error("{name}: larger than 1 MiB, which no scenario or layout is")]
    TooLarge {
        /// The file's name.
        name: String,
    },
    /// It is no text.
    #[error("{name}:{line}: not text in UTF-8")]
    NotText {
        /// The file's name.
        name: String,
        /// The first line that is none, counted from 1.
        line: usize,
    },
}

impl Source {
    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// [`SourceError`] names the file and says why it could not be read.
    pub fn read(path: &Path) -> Result<Self, SourceError> {
        let name = path.display().to_string();
        let mut bytes = Vec::new();
        // The length that the system tells is not trusted: a pipe or a device has none.
        let read = File::open(path).and_then(|file| file.take(LIMIT + 1).read_to_end(&mut bytes));
        match read {
            Err(error) => Err(SourceError::Io { name, error }),
            Ok(length) if length as u64 > LIMIT => Err(SourceError::TooLarge { name }),
            Ok(_) => Self::from_bytes(name, bytes),
        }
    }

    fn from_bytes(name: String, bytes: Vec<u8>) -> Result<Self, SourceError> {
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self { name, text }),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let before = &error.as_bytes()[..valid];
                let line = before.split(|byte| *byte == b'\n').count();
                Err(SourceError::NotText { name, line })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_refused_with_its_line() {
        let error = Source::from_bytes("a.toml".to_owned(), b"fine\n\xff".to_vec()).unwrap_err();
        assert_eq!(error.to_string(), "a.toml:2: not text in UTF-8");
    }
}
