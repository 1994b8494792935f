//! Checks that every file of ranges needs: each range is one, and no two overlap.

use core::ops::{Range, RangeInclusive};

use slat_report::size::Size;
use slat_table::address::{Gpa, PAGE_SIZE, PageRange, RangeError};
use toml::Spanned;

use crate::number::Number;
use crate::problem::Problem;

/// The most bytes that all mappings, or all slots, may have together: 64 TiB.
pub(crate) const MOST_BYTES: u64 = 64 << 40;

/// Guest address bits that stage 2 with a 4 KiB granule can have (Arm DDI 0487, `VTCR_EL2.T0SZ`).
pub(crate) const ADDRESS_BITS: RangeInclusive<u8> = 32..=48;

/// Whether a guest can have so many address bits.
pub(crate) fn check_address_bits(bits: &Spanned<u8>, problems: &mut Vec<Problem>) -> bool {
    let possible = ADDRESS_BITS.contains(bits.get_ref());
    if !possible {
        let (given, from, to) = (bits.get_ref(), ADDRESS_BITS.start(), ADDRESS_BITS.end());
        let message = format!("{given} guest address bits: from {from} to {to} are possible");
        problems.push(Problem::new(bits.span(), message));
    }
    possible
}

/// A range as a file gives it.
pub(crate) struct Given<'a> {
    /// What to call it, such as "slot `RAM`".
    pub(crate) label: &'a str,
    /// What its start is called in the file: `gpa`, `hva`.
    pub(crate) key: &'static str,
    pub(crate) start: &'a Spanned<Number>,
    pub(crate) bytes: &'a Spanned<Number>,
}

/// A sound range and where the file says it.
pub(crate) struct Placed {
    pub(crate) label: String,
    pub(crate) key: &'static str,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) span: Range<usize>,
}

impl Given<'_> {
    /// The range, if it is one and ends at or below `end`.
    pub(crate) fn check(&self, end: u64, problems: &mut Vec<Problem>) -> Option<Placed> {
        let (start, bytes) = (self.start.get_ref().0, self.bytes.get_ref().0);
        let Self { label, key, .. } = self;
        let wrong = |span: Range<usize>, why: String| Problem::new(span, format!("{label}: {why}"));
        // Any address type does: the rules are the same for all three.
        let checked = PageRange::<Gpa>::new(Gpa::new(start), bytes);
        let range = match checked {
            Ok(range) => range,
            Err(error) => {
                let problem = match error {
                    RangeError::Empty { .. } => wrong(self.bytes.span(), "the size is 0".into()),
                    RangeError::StartUnaligned { .. } => unaligned(&wrong, key, self.start),
                    RangeError::SizeUnaligned { .. } => unaligned(&wrong, "size", self.bytes),
                    other => wrong(self.start.span(), format!("{key} and size: {other}")),
                };
                problems.push(problem);
                return None;
            }
        };
        if range.end().raw() > end {
            let why = format!("{range} ends beyond {end:#x}, the end of what a {key} can be");
            problems.push(wrong(self.start.span(), why));
            return None;
        }
        Some(Placed {
            label: (*label).to_owned(),
            key,
            start,
            end: range.end().raw(),
            span: self.start.span(),
        })
    }
}

fn unaligned(
    wrong: &dyn Fn(Range<usize>, String) -> Problem,
    key: &str,
    value: &Spanned<Number>,
) -> Problem {
    let raw = value.get_ref().0;
    let near = raw - raw % PAGE_SIZE;
    let why = format!("the {key} {raw:#x} is not a multiple of the 4 KiB page");
    let problem = wrong(value.span(), why);
    match near.checked_add(PAGE_SIZE) {
        Some(next) => problem.help(format!("the next multiples are {near:#x} and {next:#x}")),
        None => problem,
    }
}

/// What to call the `what` of this name, or of this number if it has none.
pub(crate) fn label(what: &str, name: Option<&str>, number: impl core::fmt::Display) -> String {
    match name {
        Some(name) => format!("{what} `{name}`"),
        None => format!("{what} {number}"),
    }
}

/// Refuses ranges that overlap, and more than [`MOST_BYTES`] of them.
pub(crate) fn check_all(placed: &[Placed], problems: &mut Vec<Problem>) {
    let mut sorted: Vec<_> = placed.iter().collect();
    sorted.sort_by_key(|range| range.start);
    let mut total: u64 = 0;
    let mut reaching: Option<&Placed> = None;
    for range in sorted {
        if let Some(before) = reaching.filter(|before| before.end > range.start) {
            let Placed { label, key, .. } = range;
            let end = before.end.min(range.end);
            let message = format!(
                "{label} overlaps {} from {key} {:#x} to {end:#x}",
                before.label, range.start
            );
            let related = format!("{} ends at {:#x}", before.label, before.end);
            problems.push(
                Problem::new(range.span.clone(), message).related(before.span.clone(), related),
            );
        }
        let sum = total.saturating_add(range.end - range.start);
        if total <= MOST_BYTES && sum > MOST_BYTES {
            let message = format!(
                "{} makes it more than {} in all",
                range.label,
                Size(MOST_BYTES)
            );
            problems.push(Problem::new(range.span.clone(), message).help("make something smaller"));
        }
        total = sum;
        if reaching.is_none_or(|before| range.end > before.end) {
            reaching = Some(range);
        }
    }
}
