//! Traces: what happened on a machine, as text.
//!
//! A trace is a list of [`Record`]s, one JSON object on each line, in order. [`check`] has a trace
//! judged; it also takes the format of the external checker casemate (see [`crate::casemate`]),
//! which it recognises by the first character.

use std::io::{self, BufRead, BufWriter, Read as _, Write};

use serde::Serialize;

use crate::casemate;
use crate::event::Record;
use crate::judge::{Judge, Violation};

/// The longest line that is read, in bytes.
pub const LONGEST_LINE: u64 = 1 << 20;

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct TraceError {
    /// The line, counted from 1.
    pub line: u64,
    /// What is wrong with it.
    #[source]
    pub reason: Reason,
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// It has more than [`LONGEST_LINE`] bytes.
    #[error("longer than {LONGEST_LINE} bytes")]
    TooLong,
    /// It is no record.
    #[error("no record: {0}")]
    NoRecord(#[from] serde_json::Error),
    /// It is no record of casemate's.
    #[error("no record: {0}")]
    NoCasemateRecord(#[from] casemate::ImportError),
    /// It cannot be read at all.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Writes a trace.
#[derive(Debug)]
pub struct Writer<W: Write> {
    to: BufWriter<W>,
}

impl<W: Write> Writer<W> {
    /// A trace that goes to `to`, by way of a buffer.
    pub fn new(to: W) -> Self {
        Self {
            to: BufWriter::new(to),
        }
    }

    /// Adds a record.
    ///
    /// # Errors
    ///
    /// What `to` says.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        serde_json::to_writer(&mut self.to, record)?;
        self.to.write_all(b"\n")
    }

    /// Writes out what is in the buffer.
    ///
    /// # Errors
    ///
    /// What `to` says.
    pub fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The records of a trace, one after the other. Ends after the first error.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    line: u64,
    buffer: Vec<u8>,
    ended: bool,
}

/// Reads a trace of ours.
pub fn read<R: BufRead>(from: R) -> Reader<R> {
    Reader {
        from,
        line: 0,
        buffer: Vec::new(),
        ended: false,
    }
}

impl<R: BufRead> Reader<R> {
    /// The next line that is not blank, in the buffer; false at the end.
    fn next_line(&mut self) -> Result<bool, Reason> {
        loop {
            self.buffer.clear();
            let mut limited = self.from.by_ref().take(LONGEST_LINE + 1);
            let length = limited.read_until(b'\n', &mut self.buffer)?;
            if length == 0 {
                return Ok(false);
            }
            self.line += 1;
            if length as u64 > LONGEST_LINE {
                return Err(Reason::TooLong);
            }
            if !self.buffer.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Record, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let record = match self.next_line() {
            Ok(true) => serde_json::from_slice(&self.buffer).map_err(Reason::from),
            Ok(false) => {
                self.ended = true;
                return None;
            }
            Err(reason) => Err(reason),
        };
        self.ended = record.is_err();
        let line = self.line.max(1);
        Some(record.map_err(|reason| TraceError { line, reason }))
    }
}

/// What became of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// How many records were judged, the one that broke a rule included.
    pub records: u64,
    /// The rule that was broken, if one was.
    pub violation: Option<Violation>,
}

/// Has a trace judged: ours, or casemate's if its first character is a parenthesis.
///
/// # Errors
///
/// [`TraceError`] if it cannot be read up to the first violation.
pub fn check<R: BufRead>(mut from: R) -> Result<Verdict, TraceError> {
    let mut line = 0;
    let first = first_character(&mut from, &mut line).map_err(|error| TraceError {
        line: line + 1,
        reason: error.into(),
    })?;
    if first == Some(b'(') {
        judge(casemate::read_from_line(from, line))
    } else {
        let mut reader = read(from);
        reader.line = line;
        judge(reader)
    }
}

/// Has records judged, up to the first violation.
///
/// # Errors
///
/// The first error among them.
pub fn judge<E>(records: impl IntoIterator<Item = Result<Record, E>>) -> Result<Verdict, E> {
    let mut judge = Judge::new();
    for record in records {
        if let Err(violation) = judge.judge(&record?) {
            return Ok(Verdict {
                records: judge.records(),
                violation: Some(violation),
            });
        }
    }
    Ok(Verdict {
        records: judge.records(),
        violation: None,
    })
}

/// The first character that is not blank, which stays to be read; counts the lines before it.
fn first_character(from: &mut impl BufRead, lines: &mut u64) -> io::Result<Option<u8>> {
    loop {
        let available = from.fill_buf()?;
        if available.is_empty() {
            return Ok(None);
        }
        let blank = available
            .iter()
            .take_while(|byte| byte.is_ascii_whitespace());
        let mut length = 0;
        for byte in blank {
            length += 1;
            *lines += u64::from(*byte == b'\n');
        }
        let first = available.get(length).copied();
        from.consume(length);
        if first.is_some() {
            return Ok(first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    fn records() -> Vec<Record> {
        let events = [Event::Locked { lock: 1 }, Event::Unlocked { lock: 1 }];
        let numbered = (0..).zip(events);
        numbered
            .map(|(step, event)| Record {
                step,
                cpu: 3,
                event,
            })
            .collect()
    }

    #[test]
    fn what_was_written_is_read() {
        let mut text = Vec::new();
        let mut writer = Writer::new(&mut text);
        for record in records() {
            writer.write(&record).unwrap();
        }
        writer.flush().unwrap();
        drop(writer);
        let read: Vec<Record> = read(&text[..]).collect::<Result<_, _>>().unwrap();
        assert_eq!(read, records());
    }

    #[test]
    fn an_error_names_its_line_and_ends_the_trace() {
        let text = b"\n{\"step\":0,\"cpu\":0,\"event\":\"locked\",\"lock\":1}\n\nrubbish\n{}\n";
        let mut reader = read(&text[..]);
        assert!(reader.next().unwrap().is_ok());
        assert_eq!(reader.next().unwrap().unwrap_err().line, 4);
        assert!(reader.next().is_none());
        assert_eq!(check(&text[..]).unwrap_err().line, 4);
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_memory() {
        let endless = io::BufReader::new(io::repeat(b'x'));
        let error = check(endless).unwrap_err();
        assert!(matches!(error.reason, Reason::TooLong));
    }

    #[test]
    fn an_endless_parenthesis_is_refused_too() {
        let endless = io::BufReader::new(io::repeat(b'('));
        assert!(check(endless).is_err());
    }

    #[test]
    fn nothing_is_a_trace_without_records() {
        assert_eq!(check(&b" \n\n"[..]).unwrap().records, 0);
    }
}
