//! What is wrong with a file, shown at the line where it is.
//!
//! Parsers collect [`Problem`]s rather than stop at the first. [`Problems::render`] shows each as a
//! compiler does: message, file, line, column, the line itself, and what is wrong with the marked
//! part of it.

use core::fmt;
use core::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use crate::source::Source;

/// The most problems of one file that are shown.
const SHOWN: usize = 20;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, with the value that is.
    pub message: String,
    /// The bytes of the text that it is about.
    pub span: Range<usize>,
    /// What to do about it.
    pub help: Option<String>,
    /// Another place that it has to do with, and what is there.
    pub related: Option<(Range<usize>, String)>,
}

impl Problem {
    /// A problem with the text at `span`.
    pub fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            span,
            help: None,
            related: None,
        }
    }

    /// Says also what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Points also at `span`, where `what` is.
    #[must_use]
    pub fn related(mut self, span: Range<usize>, what: impl Into<String>) -> Self {
        self.related = Some((span, what.into()));
        self
    }
}

/// All that was found wrong with a text: at least one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// One problem.
    pub fn one(problem: Problem) -> Self {
        Self(vec![problem])
    }

    /// What the TOML parser did not like.
    pub(crate) fn of_toml(error: &toml::de::Error) -> Self {
        let span = error.span().unwrap_or_default();
        Self::one(Problem::new(span, error.message()))
    }

    /// `value` if nothing was found, all that was found otherwise.
    pub(crate) fn none_or<T>(problems: Vec<Problem>, value: T) -> Result<T, Self> {
        if problems.is_empty() {
            Ok(value)
        } else {
            Err(Self(problems))
        }
    }

    /// The problems, in the order in which they were found.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// The problems with the lines of `source` that they are about, styled for a terminal.
    pub fn render(&self, source: &Source) -> String {
        let shown = self.0.iter().take(SHOWN);
        let mut texts: Vec<_> = shown.map(|problem| render(problem, source)).collect();
        if self.0.len() > SHOWN {
            texts.push(format!("and {} more", self.0.len() - SHOWN));
        }
        texts.join("\n") + "\n"
    }
}

fn render(problem: &Problem, source: &Source) -> String {
    let within = |span: &Range<usize>| {
        let end = span.end.min(source.text.len());
        span.start.min(end)..end
    };
    let marked = AnnotationKind::Primary.span(within(&problem.span));
    let other = problem.related.iter();
    let others = other.map(|(span, what)| AnnotationKind::Context.span(within(span)).label(what));
    let snippet = Snippet::source(&source.text)
        .path(&source.name)
        .annotation(marked)
        .annotations(others);
    let group = Level::ERROR
        .primary_title(&problem.message)
        .element(snippet);
    let group = match &problem.help {
        Some(help) => group.element(Level::HELP.message(help)),
        None => group,
    };
    Renderer::styled().render(&[group])
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}", problem.message)?;
        }
        Ok(())
    }
}

impl core::error::Error for Problems {}
