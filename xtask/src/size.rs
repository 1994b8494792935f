//! Sizes of memory as people write them: `64M`, `3G`, `300004K`, or a plain number of bytes.

use core::fmt;
use core::str::FromStr;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

/// One mebibyte.
pub(crate) const MIB: u64 = 1 << 20;

const UNITS: [(char, u64); 4] = [('T', 1 << 40), ('G', 1 << 30), ('M', MIB), ('K', 1 << 10)];

impl Size {
    /// A number of mebibytes.
    pub(crate) const fn mebibytes(count: u64) -> Self {
        Self(count * MIB)
    }

    /// This size, rounded up to a multiple of `unit`.
    pub(crate) const fn round_up(self, unit: Self) -> Self {
        Self(self.0.next_multiple_of(unit.0))
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is not a size: write a whole number and K, M, G or T, such as 512M")
        };
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
            "0x10",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
