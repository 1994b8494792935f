//! Sizes of memory as people write them: `64M`, `3G`, `300004K`, `0x1000`, or a plain number of
//! bytes.

use alloc::format;
use alloc::string::{String, ToString as _};
use core::fmt;
use core::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// One mebibyte.
pub const MIB: u64 = 1 << 20;

const UNITS: [(char, u64); 4] = [('T', 1 << 40), ('G', 1 << 30), ('M', MIB), ('K', 1 << 10)];

impl Size {
    /// A number of mebibytes.
    pub const fn mebibytes(count: u64) -> Self {
        Self(count * MIB)
    }

    /// This size, rounded up to a multiple of `unit`.
    ///
    /// # Panics
    ///
    /// If `unit` is zero bytes. In a debug build also if the result exceeds 64 bits.
    pub const fn round_up(self, unit: Self) -> Self {
        Self(self.0.next_multiple_of(unit.0))
    }
}

impl FromStr for Size {
    type Err = String;

    /// A decimal number with or without a unit, or `0x` and a hexadecimal number of bytes. Between
    /// hexadecimal digits there may be underscores.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is not a size: write a whole number and K, M, G or T, such as 512M")
        };
        if let Some(digits) = text.strip_prefix("0x") {
            return hexadecimal(digits).map(Self).ok_or_else(wrong);
        }
        let unit = UNITS
            .into_iter()
            .find(|(letter, _)| text.ends_with([*letter, letter.to_ascii_lowercase()]));
        let (digits, unit) = match unit {
            Some((_, unit)) => (&text[..text.len() - 1], unit),
            None => (text, 1),
        };
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        digits
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(unit))
            .map(Self)
            .ok_or_else(wrong)
    }
}

/// The number that hexadecimal `digits` write.
fn hexadecimal(digits: &str) -> Option<u64> {
    let digits = digits.replace('_', "");
    // `from_str_radix` would take a sign.
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(&digits, 16).ok()
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl fmt::Display for Size {
    /// In the largest unit that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = UNITS
            .into_iter()
            .find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit))
            .map_or_else(
                || self.0.to_string(),
                |(letter, unit)| format!("{}{letter}", self.0 / unit),
            );
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [
            ("64M", 64 << 20),
            ("3G", 3 << 30),
            ("300004K", 300_004 << 10),
            ("4097", 4097),
            ("1T", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)));
            assert_eq!(Size(bytes).to_string(), text);
        }
        assert_eq!("512m".parse(), Ok(Size::mebibytes(512)));
        assert_eq!("0x7f_0000_1000".parse(), Ok(Size(0x7f_0000_1000)));
        assert_eq!(Size(0).to_string(), "0");
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "M",
            "-1M",
            "+1M",
            "1.5G",
            "64MB",
            "99999999999T",
            "0x",
            "0x+1",
            "0x1K",
            "0x10000000000000000",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
