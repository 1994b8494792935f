//! System registers that the `aarch64-cpu` crate has no name for, by their encoding.

/// Reads a system register.
macro_rules! read {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading a system register changes nothing that Rust knows of.
        unsafe {
            core::arch::asm!(
                concat!("mrs {}, ", $name),
                out(reg) value,
                options(nomem, nostack, preserves_flags)
            );
        }
        value
    }};
}

/// Writes a system register. The caller says why that is sound.
macro_rules! write {
    ($name:literal, $value:expr) => {
        core::arch::asm!(
            concat!("msr ", $name, ", {}"),
            in(reg) u64::from($value),
            options(nostack, preserves_flags)
        )
    };
}

pub(super) use {read, write};
