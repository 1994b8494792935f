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
