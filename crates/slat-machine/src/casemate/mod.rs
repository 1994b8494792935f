//! The format of *casemate*, an external checker of Arm page-table protocols
//! (github.com/rems-project/casemate): a second opinion on our traces, and a way for ours on
//! traces of others.
//!
//! The format is a list of records in parentheses: writes to tracked memory, barriers,
//! invalidations, writes to system registers, locks, and hints for the checker.
//!
//! The checker knows less than happens here. [`export`] leaves out what does not concern it (the
//! host, the guest's accesses), what it does not model (bits that hardware sets), and maintenance
//! that reaches one CPU only, at which it stops; [`ExportError`] is what it cannot be told at all.
//! It knows nothing of happens-before, and wants the CPU that made an entry invalid to flush it
//! too. Run it with its lock discipline off (`-R`): it wants each tree protected by one lock, and
//! ours is not.

mod export;
mod import;

pub use export::{ExportError, export};
pub(crate) use import::read_from_line;
pub use import::{ImportError, Importer, read};
