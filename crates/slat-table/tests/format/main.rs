//! Formats: the laws that every one obeys, and each one's bits against its manual.

mod arm64;
mod armv7;
mod ept;
mod laws;
mod npt;
#[path = "../engine/odd.rs"]
mod odd;
mod power;
mod riscv;
mod s390;

#[test]
fn the_odd_format_obeys_the_laws() {
    laws::check::<odd::Odd>(&(), 40);
}

/// A test of the laws for each row of the catalogue.
macro_rules! obey_the_laws {
    ($($row:ident $name:literal $($format:ident)::+ $($features:ident)::+ $bits:literal;)*) => {$(
        #[test]
        fn $row() {
            crate::laws::check::<$($format)::+>(&$($features)::+, $bits);
        }
    )*};
}

mod every_row_obeys_the_laws {
    slat_table::every_format!(obey_the_laws);
}
