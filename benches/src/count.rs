//! The one function inside which instructions are counted.

use core::hint::black_box;

/// Carries `operation` out. It is never inlined, so that a tool can tell when it is entered and
/// left by its name.
#[inline(never)]
pub(crate) fn measured<T>(operation: impl FnOnce() -> T) -> T {
    black_box(operation())
}
