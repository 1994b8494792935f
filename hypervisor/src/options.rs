//! The hypervisor's own command line: the `bootargs` that the machine's device tree carries.
//!
//! It is a list of words such as `memory=512M mmio=create ram=fault churn seed=7`. The guest's
//! command line is not here: it comes with the guest's kernel.

use slat_report::Mapped;
use thiserror::Error;

use crate::span::PAGE_SIZE;

/// The least memory that a guest may have: below it Linux dies before it can say so.
pub const LEAST_MEMORY: u64 = 64 << 20;

/// How often the churn timer ticks, if the command line does not say.
const DEFAULT_RATE: u32 = 500;
/// A faster timer would leave the guest no time between two ticks.
const HIGHEST_RATE: u32 = 10_000;

/// What the command line asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Bytes of guest RAM: whole pages, [`LEAST_MEMORY`] or more.
    pub memory: u64,
    /// When device regions are mapped.
    pub mmio: Mapped,
    /// When RAM is mapped.
    pub ram: Mapped,
    /// Whether the host changes the guest's memory while the guest runs.
    pub churn: Option<Churn>,
}

/// How the host changes the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Churn {
    /// What the choices are made from; `None` leaves it to the hypervisor.
    pub seed: Option<u64>,
    /// Timer ticks in a second.
    pub rate: u32,
}

/// A command line that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OptionError<'a> {
    /// A word that is no option.
    #[error("unknown option `{0}`: expected memory=, mmio=, ram=, churn, seed= or rate=")]
    Unknown(&'a str),
    /// An option whose value is out of its range.
    #[error("{option}={value}: expected {expected}")]
    Value {
        /// The option's name.
        option: &'static str,
        /// The value as written.
        value: &'a str,
        /// The values that there are.
        expected: &'static str,
    },
    /// `seed` or `rate` without `churn`.
    #[error("{0} says how churn works, and churn is not on")]
    NeedsChurn(&'static str),
}

impl Options {
    /// Reads a command line. What it leaves out has its default: 512 MiB, devices mapped when
    /// created, RAM on fault, no churn.
    ///
    /// # Errors
    ///
    /// An [`OptionError`] for the first word that is no option or has a value out of range.
    pub fn parse(line: &str) -> Result<Self, OptionError<'_>> {
        let mut options = Self {
            memory: 512 << 20,
            mmio: Mapped::Create,
            ram: Mapped::Fault,
            churn: None,
        };
        let (mut churn, mut seed, mut rate) = (false, None, None);
        for word in line.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("memory", value)) => options.memory = memory(value)?,
                Some(("mmio", value)) => options.mmio = mapped("mmio", value)?,
                Some(("ram", value)) => options.ram = mapped("ram", value)?,
                Some(("seed", value)) => seed = Some(number("seed", value)?),
                Some(("rate", value)) => rate = Some(frequency(value)?),
                None if word == "churn" => churn = true,
                _ => return Err(OptionError::Unknown(word)),
            }
        }
        match (churn, seed, rate) {
            (true, ..) => {
                options.churn = Some(Churn {
                    seed,
                    rate: rate.unwrap_or(DEFAULT_RATE),
                });
            }
            (false, Some(_), _) => return Err(OptionError::NeedsChurn("seed")),
            (false, None, Some(_)) => return Err(OptionError::NeedsChurn("rate")),
            (false, None, None) => {}
        }
        Ok(options)
    }
}

fn memory(value: &str) -> Result<u64, OptionError<'_>> {
    let expected = "whole pages of 4096 bytes, at least 64M, as in 512M, 3G or 300004K";
    let error = OptionError::Value {
        option: "memory",
        value,
        expected,
    };
    let (digits, shift) = match value.as_bytes().last() {
        Some(b'K' | b'k') => (&value[..value.len() - 1], 10),
        Some(b'M' | b'm') => (&value[..value.len() - 1], 20),
        Some(b'G' | b'g') => (&value[..value.len() - 1], 30),
        _ => (value, 0),
    };
    let bytes = digits
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(1 << shift));
    match bytes {
        Some(bytes) if bytes >= LEAST_MEMORY && bytes.is_multiple_of(PAGE_SIZE) => Ok(bytes),
        _ => Err(error),
    }
}

fn mapped<'a>(option: &'static str, value: &'a str) -> Result<Mapped, OptionError<'a>> {
    match value {
        "create" => Ok(Mapped::Create),
        "fault" => Ok(Mapped::Fault),
        _ => Err(OptionError::Value {
            option,
            value,
            expected: "create or fault",
        }),
    }
}

fn number<'a>(option: &'static str, value: &'a str) -> Result<u64, OptionError<'a>> {
    let expected = "a number below 2^64";
    value.parse().map_err(|_| OptionError::Value {
        option,
        value,
        expected,
    })
}

fn frequency(value: &str) -> Result<u32, OptionError<'_>> {
    let expected = "1 to 10000 ticks in a second";
    match value.parse() {
        Ok(rate) if (1..=HIGHEST_RATE).contains(&rate) => Ok(rate),
        _ => Err(OptionError::Value {
            option: "rate",
            value,
            expected,
        }),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString as _;

    use super::*;

    #[test]
    fn an_empty_line_gives_the_defaults() {
        let options = Options::parse("").expect("nothing to refuse");
        assert_eq!(options.memory, 512 << 20);
        assert_eq!((options.mmio, options.ram), (Mapped::Create, Mapped::Fault));
        assert_eq!(options.churn, None);
    }

    #[test]
    fn every_option_is_read() {
        let options = Options::parse(
            " memory=300004K mmio=fault  ram=create churn seed=18446744073709551615 rate=100",
        )
        .expect("all in range");
        assert_eq!(options.memory, 300_004 << 10);
        assert_eq!((options.mmio, options.ram), (Mapped::Fault, Mapped::Create));
        assert_eq!(
            options.churn,
            Some(Churn {
                seed: Some(u64::MAX),
                rate: 100
            })
        );
    }

    #[test]
    fn sizes_take_the_usual_units() {
        for (text, bytes) in [("64M", 64 << 20), ("3G", 3 << 30), ("67108864", 64 << 20)] {
            let line = std::format!("memory={text}");
            assert_eq!(
                Options::parse(&line).map(|options| options.memory),
                Ok(bytes)
            );
        }
    }

    #[test]
    fn values_out_of_range_name_the_option_and_the_range() {
        for line in [
            "memory=",
            "memory=M",
            "memory=63M",
            "memory=67108865",
            "memory=99999999999999G",
            "mmio=never",
            "ram=",
            "churn rate=0",
            "churn rate=10001",
            "churn seed=-1",
        ] {
            let error = Options::parse(line).expect_err(line).to_string();
            let option = line
                .rsplit(' ')
                .next()
                .and_then(|word| word.split('=').next());
            assert!(error.starts_with(option.expect("a word")), "{error}");
            assert!(error.contains("expected"), "{error}");
        }
    }

    #[test]
    fn unknown_words_and_churn_options_without_churn_are_refused() {
        assert_eq!(
            Options::parse("memoy=1G"),
            Err(OptionError::Unknown("memoy=1G"))
        );
        assert_eq!(
            Options::parse("churn=yes"),
            Err(OptionError::Unknown("churn=yes"))
        );
        assert_eq!(
            Options::parse("seed=1"),
            Err(OptionError::NeedsChurn("seed"))
        );
        assert_eq!(
            Options::parse("rate=1"),
            Err(OptionError::NeedsChurn("rate"))
        );
    }
}
