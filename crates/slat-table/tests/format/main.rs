//! Formats: the laws that every one obeys, and each one's bits against its manual.

mod arm64;
mod laws;
