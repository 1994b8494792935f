//! Numbers in a file: addresses and sizes, written as TOML numbers or as text with a unit.
//!
//! `4096`, `0x1000`, `"64K"`, `"1G"` and `"0xffff_0000_0000_0000"` are all numbers. Text is there for
//! units, and for addresses of the upper half, which TOML's signed numbers do not reach.

use core::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
use slat_report::size::Size;

/// A number of bytes, or an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Number(pub(crate) u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberVisitor)
    }
}

struct NumberVisitor;

impl Visitor<'_> for NumberVisitor {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of bytes, or text such as \"64K\" or \"0x1000\"")
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Number, E> {
        let wrong = || E::invalid_value(Unexpected::Signed(value), &self);
        u64::try_from(value).map(Number).map_err(|_| wrong())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Number, E> {
        Ok(Number(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Number, E> {
        let size: Result<Size, String> = value.parse();
        size.map(|Size(bytes)| Number(bytes)).map_err(E::custom)
    }
}
