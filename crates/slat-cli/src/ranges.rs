//! Checks that every file of ranges needs: each range is one, and no two overlap.

use core::ops::Range;

use slat_report::size::Size;
use slat_table::address::{Gpa, PageRange, RangeError};
use slat_table::format::GeometryError;
use toml::Spanned;

use crate::format::Row;
use crate::number::Number;
use crate::problem::Problem;

/// The most bytes that all mappings, or all slots, may have together: 64 TiB.
pub(crate) const MOST_BYTES: u64 = 64 << 40;

/// The format of the tables: the one `chosen` on the command line, or what the file gives, or the
/// default.
pub(crate) fn check_format(
    chosen: Option<&'static Row>,
    given: Option<&Spanned<String>>,
    problems: &mut Vec<Problem>,
) -> &'static Row {
    let named = |given: &Spanned<String>| match Row::named(given.get_ref()) {
        Ok(row) => Some(row),
        Err(error) => {
            problems.push(Problem::new(given.span(), error.to_string()));
            None
        }
    };
    let given = given.and_then(named);
    chosen.or(given).unwrap_or_default()
}

/// The width of a guest address: what is given if the format can do it, or else its own.
pub(crate) fn check_address_bits(
    format: &Row,
    given: Option<&Spanned<u8>>,
    problems: &mut Vec<Problem>,
) -> u8 {
    let Some(given) = given else {
        return format.address_bits();
    };
    match format.geometry(*given.get_ref()) {
        Ok(_) => *given.get_ref(),
        Err(GeometryError {
            bits,
            lowest,
            highest,
            ..
        }) => {
            let name = format.name();
            let message = format!(
                "{bits} guest address bits: from {lowest} to {highest} are possible with `{name}`"
            );
            problems.push(Problem::new(given.span(), message));
            format.address_bits()
        }
    }
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
    /// The range, if it is one, is made of pages of `format`, and ends at or below `end`.
    pub(crate) fn check(
        &self,
        format: &Row,
        end: u64,
        problems: &mut Vec<Problem>,
    ) -> Option<Placed> {
        let (start, bytes) = (self.start.get_ref().0, self.bytes.get_ref().0);
        let Self { label, key, .. } = self;
        let wrong = |span: Range<usize>, why: String| Problem::new(span, format!("{label}: {why}"));
        for (key, value) in [(*key, self.start), ("size", self.bytes)] {
            if !value.get_ref().0.is_multiple_of(format.sizes().small()) {
                problems.push(unaligned(&wrong, format, key, value));
                return None;
            }
        }
        // Any address type does: the rules are the same for all three.
        let range = match PageRange::<Gpa>::new(Gpa::new(start), bytes) {
            Ok(range) => range,
            Err(RangeError::Empty { .. }) => {
                problems.push(wrong(self.bytes.span(), "the size is 0".into()));
                return None;
            }
            Err(error) => {
                problems.push(wrong(self.start.span(), format!("{key} and size: {error}")));
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
    format: &Row,
    key: &str,
    value: &Spanned<Number>,
) -> Problem {
    let raw = value.get_ref().0;
    let page = format.sizes().small();
    let near = raw - raw % page;
    let why = format!(
        "the {key} {raw:#x} is not a multiple of the {} page of `{}`",
        Size(page),
        format.name()
    );
    let problem = wrong(value.span(), why);
    match near.checked_add(page) {
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
