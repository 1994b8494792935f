//! Traces: whatever a file holds, it is judged or refused, twice in the same way.

use slat_machine::trace;

/// Judges a trace.
///
/// # Panics
///
/// If reader or judge do, or if two readings differ.
pub fn run(bytes: &[u8]) {
    let verdict = || match trace::check(bytes) {
        Ok(verdict) => (
            Some(verdict.records),
            verdict.violation.map(|found| found.to_string()),
        ),
        Err(error) => (None, Some(error.to_string())),
    };
    assert_eq!(verdict(), verdict());
}
