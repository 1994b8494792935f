//! In which ways slat may answer differently from KVM, and why. Anything else is a failure.
//!
//! `docs/kvm-differences.md` lists the same, section by section; each has a test of its own
//! in `kvm_differential.rs` that shows it with the exact answers of both.

use std::fmt;

use slat::errno::Errno;
use slat::prepare::PrepareError;
use slat::region::RegionError;
use slat::transaction::TransactionError;

use super::request::Request;
use super::{Answer, EEXIST, EINVAL};

/// A difference that is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Difference {
    /// The very same request again does nothing in KVM. Slat creates a slot once.
    Repetition,
    /// KVM switches the logging of a slot by a request for the same slot. Slat has one verb for
    /// each thing, and this is none.
    FlagChange,
    /// KVM moves a slot when it is asked for at another guest address. In slat a move is a
    /// deletion and a creation in one transaction, which must then answer what KVM did.
    Move,
    /// Slat has no dirty log yet, and refuses to create a slot whose writes it would not log.
    DirtyLogging,
    /// KVM on x86 never looks at mappings. Slat refuses, as KVM on RISC-V does, a writable slot
    /// over a mapping that cannot be written.
    UnwritableMapping,
    /// A slot beyond the guest's addresses is `EINVAL` on x86 and, as on Arm, `EFAULT` in slat.
    /// Where the CPU's addresses are wider than the format's, KVM may even create it.
    AddressWidth,
    /// KVM refuses flags that it does not know. Slat has no flag words.
    UnknownFlag,
    /// KVM checks addresses and flags even of a deletion. Slat's has only an id.
    PlaceOfDeletion,
}

impl Difference {
    /// Every one.
    pub(crate) const ALL: [Self; 8] = [
        Self::Repetition,
        Self::FlagChange,
        Self::Move,
        Self::DirtyLogging,
        Self::UnwritableMapping,
        Self::AddressWidth,
        Self::UnknownFlag,
        Self::PlaceOfDeletion,
    ];

    /// Whether it is about a slot that exists: then slat can be asked for the same as a
    /// transaction.
    pub(crate) fn is_change_in_place(self) -> bool {
        matches!(self, Self::Repetition | Self::FlagChange | Self::Move)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Repetition => "same request again",
            Self::FlagChange => "change of flags",
            Self::Move => "move",
            Self::DirtyLogging => "dirty logging",
            Self::UnwritableMapping => "unwritable mapping",
            Self::AddressWidth => "address width",
            Self::UnknownFlag => "unknown flag",
            Self::PlaceOfDeletion => "place of a deletion",
        })
    }
}

/// Everything that explains two answers.
pub(crate) struct Case<'a> {
    pub(crate) request: &'a Request,
    /// The slot that has the id already.
    pub(crate) existing: Option<&'a Request>,
    /// Whether a slot of another id overlaps.
    pub(crate) overlaps: bool,
    pub(crate) kvm: Answer,
    pub(crate) slat: Result<(), TransactionError>,
    /// Bits of a guest physical address in KVM.
    pub(crate) kvm_bits: u8,
    /// End of the host virtual addresses that a slot may name.
    pub(crate) host_end: u64,
}

impl Case<'_> {
    /// Which difference this is, or `None` if there should be none.
    pub(crate) fn explain(&self) -> Option<Difference> {
        let refused = self.kvm == Err(EINVAL);
        if self.request.has_unknown_flags() && refused {
            return Some(Difference::UnknownFlag);
        }
        match self.slat {
            Ok(()) => self.explain_deletion(),
            Err(TransactionError::SlotExists(_)) => self.explain_change(),
            Err(TransactionError::Prepare(error)) => self.explain_refusal(&error),
            Err(TransactionError::Region {
                error: RegionError::AddressWidth { .. },
                ..
            }) => self.explain_width(),
            Err(_) => None,
        }
    }

    fn explain_deletion(&self) -> Option<Difference> {
        let Request { gpa, hva, .. } = *self.request;
        let page = slat::table::address::PAGE_SIZE;
        let wrong = gpa % page != 0 || hva % page != 0 || hva > self.host_end;
        let explained = self.request.is_deletion() && wrong && self.kvm == Err(EINVAL);
        explained.then_some(Difference::PlaceOfDeletion)
    }

    fn explain_change(&self) -> Option<Difference> {
        let old = self.existing.filter(|old| self.request.may_follow(old))?;
        if old.gpa != self.request.gpa {
            let expected = if self.overlaps { Err(EEXIST) } else { Ok(()) };
            return (self.kvm == expected).then_some(Difference::Move);
        }
        self.kvm.ok()?;
        Some(if old.flags == self.request.flags {
            Difference::Repetition
        } else {
            Difference::FlagChange
        })
    }

    fn explain_refusal(&self, error: &PrepareError) -> Option<Difference> {
        self.kvm.ok()?;
        match error {
            PrepareError::NotWritable { .. } if !self.request.is_read_only() => {
                Some(Difference::UnwritableMapping)
            }
            PrepareError::LoggingUnsupported { .. } if self.request.logs_dirty() => {
                Some(Difference::DirtyLogging)
            }
            _ => None,
        }
    }

    fn explain_width(&self) -> Option<Difference> {
        let end = u128::from(self.request.gpa) + u128::from(self.request.bytes);
        let expected = if end > 1 << self.kvm_bits {
            Err(EINVAL)
        } else {
            Ok(())
        };
        (self.kvm == expected).then_some(Difference::AddressWidth)
    }
}

/// Slat's answer in KVM's terms.
pub(crate) fn number(slat: &Result<(), TransactionError>) -> Answer {
    slat.as_ref()
        .copied()
        .map_err(|error| Errno::number(error.errno()))
}
