//! The command line: which look at memory is wanted.

use core::ffi::CStr;
use core::fmt;

use crate::console::say;
use crate::syscall::Errno;
use crate::{bar, check, counter, hole};

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line is not one that the agent knows.
    Usage,
    /// An argument is not a number.
    Number,
    /// The kernel refused something.
    System(Errno),
    /// Memory or a file did not hold what was written there; the line before says which.
    Mismatch,
    /// An access that should have ended in SIGBUS did not.
    NoAbort,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage => f.write_str(
                "usage: slat-agent counter NAME | bar FILE | hole ADDRESS | \
                 check SECONDS MEBIBYTES SEED FILE...",
            ),
            Self::Number => f.write_str("an argument is not a number"),
            Self::System(errno) => errno.fmt(f),
            Self::Mismatch => f.write_str("memory does not hold what was written"),
            Self::NoAbort => f.write_str("no external abort"),
        }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}

/// Runs the command that `arguments` (without the program's name) ask for.
pub(crate) fn run(arguments: &[&CStr]) -> Result<(), Failure> {
    let Some((name, arguments)) = arguments.split_first() else {
        return Err(Failure::Usage);
    };
    match (name.to_bytes(), arguments) {
        (b"counter", [name]) => {
            let name = name.to_str().map_err(|_| Failure::Usage)?;
            say!(
                "{name} ticks={} hz={}",
                counter::ticks(),
                counter::frequency()
            );
            Ok(())
        }
        (b"bar", [file]) => bar::run(file),
        (b"hole", [address]) => hole::run(number(address)?),
        (b"check", [seconds, mebibytes, seed, files @ ..]) => check::run(&check::Work {
            seconds: number(seconds)?,
            bytes: number(mebibytes)?
                .checked_mul(1 << 20)
                .ok_or(Failure::Number)?,
            seed: number(seed)?,
            files,
        }),
        _ => Err(Failure::Usage),
    }
}

/// A decimal number, or a hexadecimal one behind `0x`.
fn number(text: &CStr) -> Result<u64, Failure> {
    let text = text.to_str().map_err(|_| Failure::Number)?;
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
    .map_err(|_| Failure::Number)
}
