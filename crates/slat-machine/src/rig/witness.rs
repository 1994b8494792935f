//! Who watches a run: the judge, and whoever writes the trace.

use core::error::Error;
use std::fs::File;
use std::path::Path;

use super::{Finding, RigError};
use crate::event::Record;
use crate::judge::{Judge, Violation};
use crate::machine::Witness;
use crate::trace::Writer;

/// The judge of a run, and the writer of its trace if one was asked for.
pub(crate) struct Watch {
    judge: Judge,
    trace: Option<Writer<File>>,
}

impl Watch {
    pub(crate) fn new(trace: Option<&Path>) -> Result<Self, RigError> {
        let create = |path: &Path| {
            File::create(path)
                .map(Writer::new)
                .map_err(|error| RigError::Trace {
                    path: path.to_path_buf(),
                    error,
                })
        };
        Ok(Self {
            judge: Judge::new(),
            trace: trace.map(create).transpose()?,
        })
    }

    /// What the witness objected to, as a finding.
    pub(crate) fn finding(error: &(dyn Error + Send + Sync + 'static)) -> Finding {
        let violation = error.downcast_ref::<Violation>();
        let rule = violation.map_or_else(
            || "trace".to_owned(),
            |violation| violation.rule.to_string(),
        );
        Finding {
            rule,
            story: error.to_string(),
        }
    }
}

impl Witness for Watch {
    fn observe(&mut self, record: &Record) -> Result<(), Box<dyn Error + Send + Sync>> {
        // The record that is objected to belongs to the trace.
        if let Some(trace) = &mut self.trace {
            trace.write(record)?;
        }
        let judged = self.judge.judge(record);
        if judged.is_err()
            && let Some(trace) = &mut self.trace
        {
            trace.flush()?;
        }
        judged.map_err(Into::into)
    }
}
