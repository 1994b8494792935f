//! Answers: text, one line each, since every emulated machine has a console of some kind.
//!
//! ```text
//! slat-oracle 1
//! = 40001000
//! ! 93c08006 40001 0 7
//! end 2
//! ```
//!
//! The first line is [`HELLO`]; what a console shows before it is not ours. An answer begins with
//! `=` for an access that went through and `!` for one that did not, and goes on with what the
//! payload read from the hardware, in hexadecimal. The last line says how many answers there were;
//! `error` and a reason stand in its place if the payload could not go on.

use core::fmt;

/// How many words an answer has.
pub const WORDS: usize = 4;

/// The first line.
pub const HELLO: &str = "slat-oracle 1";

/// What came of one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The access went through.
    Completed([u64; WORDS]),
    /// It trapped.
    Trapped([u64; WORDS]),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mark, words) = match self {
            Self::Completed(words) => ('=', words),
            Self::Trapped(words) => ('!', words),
        };
        write!(f, "{mark}")?;
        // Zeros at the end are most of what there is; consoles are slow.
        let used = words.len() - words.iter().rev().take_while(|word| **word == 0).count();
        words[..used]
            .iter()
            .try_for_each(|word| write!(f, " {word:x}"))
    }
}

/// The last line, after so many answers.
#[derive(Clone, Copy, Debug)]
pub struct End(pub u64);

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "end {}", self.0)
    }
}

#[cfg(any(feature = "std", test))]
pub use reading::{Unreadable, read};

#[cfg(any(feature = "std", test))]
mod reading {
    use std::borrow::ToOwned as _;
    use std::string::String;
    use std::vec::Vec;

    use super::{Answer, HELLO, WORDS};

    /// A console that does not hold a whole list of answers.
    #[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
    pub enum Unreadable {
        /// The payload never began.
        #[error("the payload did not begin to answer")]
        Silent,
        /// The payload could not go on.
        #[error("the payload stopped after {after} answers: {reason}")]
        Stopped {
            /// How many answers came before.
            after: usize,
            /// Its own words.
            reason: String,
        },
        /// There is no last line.
        #[error("the answers break off after {0}")]
        Cut(usize),
        /// A line that is no answer.
        #[error("answer {number} cannot be read: {line:?}")]
        Line {
            /// How many answers came before.
            number: usize,
            /// The line.
            line: String,
        },
        /// The last line counts other than we do.
        #[error("{found} answers came, {said} were sent")]
        Count {
            /// What came.
            found: usize,
            /// What the last line says.
            said: String,
        },
    }

    /// Reads what a console showed.
    ///
    /// # Errors
    ///
    /// [`Unreadable`] says what is missing or wrong.
    pub fn read(console: &str) -> Result<Vec<Answer>, Unreadable> {
        let mut lines = console.lines().map(str::trim_end);
        if !lines.any(|line| line.ends_with(HELLO)) {
            return Err(Unreadable::Silent);
        }
        let mut answers = Vec::new();
        for line in lines {
            if let Some(said) = line.strip_prefix("end ") {
                let found = answers.len();
                return if said.parse() == Ok(found) {
                    Ok(answers)
                } else {
                    let said = said.to_owned();
                    Err(Unreadable::Count { found, said })
                };
            }
            if let Some(reason) = line.strip_prefix("error ") {
                return Err(Unreadable::Stopped {
                    after: answers.len(),
                    reason: reason.to_owned(),
                });
            }
            let answer = answer(line).ok_or_else(|| Unreadable::Line {
                number: answers.len(),
                line: line.to_owned(),
            })?;
            answers.push(answer);
        }
        Err(Unreadable::Cut(answers.len()))
    }

    fn answer(line: &str) -> Option<Answer> {
        let mut parts = line.split(' ');
        let mark = parts.next()?;
        let mut words = [0; WORDS];
        for (index, part) in parts.enumerate() {
            *words.get_mut(index)? = u64::from_str_radix(part, 16).ok()?;
        }
        match mark {
            "=" => Some(Answer::Completed(words)),
            "!" => Some(Answer::Trapped(words)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::format;

    use super::*;

    #[test]
    fn what_is_said_is_read_back() {
        let answers = [
            Answer::Completed([0x4000_1000, 0, 0, 0]),
            Answer::Completed([0; WORDS]),
            Answer::Trapped([1, 0, u64::MAX, 4]),
        ];
        let lines = answers.map(|answer| format!("{answer}\r\n")).concat();
        let console = format!("firmware says hello\n{HELLO}\r\n{lines}{}\n", End(3));
        assert_eq!(read(&console).unwrap(), answers);
    }

    #[test]
    fn anything_less_than_a_whole_list_is_an_error() {
        let said = |lines: &str| read(&format!("{HELLO}\n{lines}"));
        assert_eq!(read("= 1\nend 1\n"), Err(Unreadable::Silent));
        assert_eq!(said("= 1\n"), Err(Unreadable::Cut(1)));
        let stopped = said("= 1\nerror no memory\n").unwrap_err();
        assert!(
            matches!(stopped, Unreadable::Stopped { after: 1, reason } if reason == "no memory")
        );
        assert!(matches!(
            said("= 1\nend 2\n"),
            Err(Unreadable::Count { found: 1, .. })
        ));
        for line in ["? 1", "= x", "= 1 2 3 4 5", ""] {
            let seen = said(&format!("{line}\n"));
            assert!(matches!(seen, Err(Unreadable::Line { .. })), "{line}");
        }
    }
}
