//! Who watches a run: the judge, and whoever writes the trace.

use core::error::Error;
use std::fs::File;
use std::path::Path;

use super::{Finding, RigError};
use crate::event::Record;
use crate::judge::{Judge, Violation};
use crate::machine::Witness;
use crate::trace::Writer;

/// The judge of a run, if it is to be judged, and the writer of its trace, if one was asked for.
pub(crate) struct Watch {
    judge: Option<Judge>,
    trace: Option<Writer<File>>,
}

/// A CPU of the machine cached what the judge believes that every CPU has forgotten: one of the two
/// is wrong about the hardware.
#[derive(Debug, thiserror::Error)]
#[error("{UNEXPECTED}: the judge believes that this was forgotten: {0:?}")]
struct Unexpected(Record);

const UNEXPECTED: &str = "unexpected-translation";

impl Watch {
    pub(crate) fn new(judged: bool, trace: Option<&Path>) -> Result<Self, RigError> {
        let create = |path: &Path| {
            File::create(path)
                .map(Writer::new)
                .map_err(|error| RigError::Trace {
                    path: path.to_path_buf(),
                    error,
                })
        };
        Ok(Self {
            judge: judged.then(Judge::new),
            trace: trace.map(create).transpose()?,
        })
    }

    /// What the witness objected to, as a finding.
    pub(crate) fn finding(error: &(dyn Error + Send + Sync + 'static)) -> Finding {
        let rule = if let Some(violation) = error.downcast_ref::<Violation>() {
            violation.rule.to_string()
        } else if error.is::<Unexpected>() {
            UNEXPECTED.to_owned()
        } else {
            "trace".to_owned()
        };
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
        let Some(judge) = &mut self.judge else {
            return Ok(());
        };
        let judged = judge.judge(record);
        if judged.is_err()
            && let Some(trace) = &mut self.trace
        {
            trace.flush()?;
        }
        judged?;
        if judge.expects(&record.event) {
            Ok(())
        } else {
            Err(Unexpected(record.clone()).into())
        }
    }
}
