//! The error numbers that Linux KVM answers with, for VMMs that speak its language.

use core::fmt;

/// An error number of the Linux ABI (`asm-generic/errno-base.h`, `errno.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Errno {
    /// Operation not permitted.
    EPERM,
    /// No such entry.
    ENOENT,
    /// Out of memory.
    ENOMEM,
    /// Bad address.
    EFAULT,
    /// Already exists.
    EEXIST,
    /// Invalid argument.
    EINVAL,
    /// Operation not supported.
    EOPNOTSUPP,
}

impl Errno {
    /// Its number, positive.
    pub const fn number(self) -> i32 {
        match self {
            Self::EPERM => 1,
            Self::ENOENT => 2,
            Self::ENOMEM => 12,
            Self::EFAULT => 14,
            Self::EEXIST => 17,
            Self::EINVAL => 22,
            Self::EOPNOTSUPP => 95,
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
