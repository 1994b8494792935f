//! What the guest says on its console, and when.

use core::time::Duration;
use std::collections::BTreeMap;

use serde::Serialize;

/// Begins the lines that are meant for us.
const PREFIX: &str = "slat-guest: ";

/// The guest's console: complete lines with the time at which each ended.
#[derive(Debug, Default)]
pub(crate) struct Console {
    lines: Vec<Line>,
    partial: Vec<u8>,
}

/// One line of the console.
#[derive(Debug)]
struct Line {
    /// When it ended, from the start of the machine.
    at: Duration,
    text: String,
}

/// A line that the guest wrote for us: a word, then `key=value` pairs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Marker {
    /// What is being told.
    pub(crate) word: String,
    /// The pairs; words without a `=` are kept with an empty value.
    pub(crate) fields: BTreeMap<String, String>,
    /// When the line ended, from the start of the machine.
    #[serde(skip)]
    pub(crate) at: Duration,
}

impl Console {
    /// Takes in bytes that arrived at time `at`.
    pub(crate) fn take(&mut self, bytes: &[u8], at: Duration) {
        for &byte in bytes {
            if byte == b'\n' {
                let text = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
                self.lines.push(Line { at, text });
                self.partial.clear();
            } else {
                self.partial.push(byte);
            }
        }
    }

    /// The lines meant for us, in order.
    pub(crate) fn markers(&self) -> impl Iterator<Item = Marker> {
        self.lines.iter().filter_map(|line| {
            // The kernel may have begun a message on the same line.
            let (_, text) = line.text.split_once(PREFIX)?;
            let mut words = text.split_ascii_whitespace();
            Some(Marker {
                word: words.next()?.to_owned(),
                fields: words
                    .map(|word| word.split_once('=').unwrap_or((word, "")))
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .collect(),
                at: line.at,
            })
        })
    }

    /// The first line of ours that begins with `word`.
    pub(crate) fn marker(&self, word: &str) -> Option<Marker> {
        self.markers().find(|marker| marker.word == word)
    }

    /// Whether any line contains `text`.
    pub(crate) fn contains(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line.text.contains(text))
    }

    /// The last `count` lines, for a message about what went wrong.
    pub(crate) fn tail(&self, count: usize) -> String {
        let start = self.lines.len().saturating_sub(count);
        let lines = self.lines[start..].iter().map(|line| line.text.as_str());
        let partial = String::from_utf8_lossy(&self.partial);
        lines
            .chain([partial.trim_end()])
            .collect::<Vec<_>>()
            .join("\n")
    }
}

impl Marker {
    /// All that it says, on one line.
    pub(crate) fn words(&self) -> String {
        let pairs = self.fields.iter().map(|(key, value)| {
            if value.is_empty() {
                key.clone()
            } else {
                format!("{key}={value}")
            }
        });
        core::iter::once(self.word.clone())
            .chain(pairs)
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The number that `key` has.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.fields.get(key)?.parse().ok()
    }

    /// Whether `key` has this value.
    pub(crate) fn is(&self, key: &str, value: &str) -> bool {
        self.fields.get(key).is_some_and(|found| found == value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_in_pieces_of_console_output() {
        let mut console = Console::default();
        console.take(b"[    0.0] Booting\r\nslat-gue", Duration::from_secs(1));
        console.take(b"st: init ticks=12 hz=5\r\n", Duration::from_secs(2));
        console.take(
            b"[ 1.0] odd slat-guest: memory system_ram=x\r\nslat-guest",
            Duration::from_secs(3),
        );

        let init = console.marker("init").unwrap();
        assert_eq!(init.at, Duration::from_secs(2));
        assert_eq!(init.number("ticks"), Some(12));
        assert_eq!(init.number("missing"), None);
        let memory = console.marker("memory").unwrap();
        assert_eq!(memory.number("system_ram"), None);
        assert!(memory.is("system_ram", "x"));
        assert_eq!(console.markers().count(), 2);
        assert_eq!(
            console.tail(1),
            "[ 1.0] odd slat-guest: memory system_ram=x\nslat-guest"
        );
    }
}
