//! Every format with every kind of hardware that changes its shape, as one list.
//!
//! What holds for one format has to hold for all: tests, the model of the machine and the tools
//! run over this list, so a format that is added here is tested everywhere.

/// Expands `$each! { .. }` with the list of all formats, one line each:
///
/// ```text
/// name "name-for-people" Type features address_bits;
/// ```
///
/// `name` can name a test or module, `features` is an expression of the format's
/// [`Features`](crate::format::Format::Features), `address_bits` the widest guest address that
/// the line is for.
#[macro_export]
macro_rules! every_format {
    ($each:path) => {
        $each! {
            // Arm VMSAv8-64
            arm64_4k "arm64-4k" $crate::format::arm64::Arm64 $crate::format::arm64::Arm64Features::ALL 48;
            // Armv7 LPAE
            // Intel EPT
            // AMD nested paging
            // RISC-V
            // s390
            // POWER
        }
    };
}
