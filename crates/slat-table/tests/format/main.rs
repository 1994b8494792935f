//! Formats: the laws that every one obeys, and each one's bits against its manual.

mod arm64;
mod laws;
#[path = "../engine/odd.rs"]
mod odd;

#[test]
fn the_odd_format_obeys_the_laws() {
    laws::check::<odd::Odd>(&(), 40);
}
