//! How a host tells guest memory about its changes.
//!
//! A host calls [`begin`](Notifier::begin) before it changes a mapping or page and
//! [`end`](Notifier::end) after. When `begin` has returned, the guest reaches nothing in the
//! range; until `end`, nothing new is mapped there. Calls may nest and overlap, may come with any
//! host lock held, and never wait for a slot change (P12).

use slat_table::address::HvaRange;
use slat_table::restriction::Raised;

use crate::index::ActiveId;

/// An invalidation under way, to be handed back to [`Notifier::end`].
///
/// Keep the time between short: faults that meet it stall, and one over many spans stalls all
/// faults of the VM. One that is lost stalls them for good; nothing unsafe follows.
#[derive(Debug)]
#[must_use = "faults stall until this is handed to Notifier::end"]
pub struct Ticket {
    /// What is to be lowered and recorded as ended; `None` where nothing was begun.
    pub(crate) begun: Option<(Raised, ActiveId)>,
}

impl Ticket {
    /// A ticket of a notifier that has nothing mapped and never will have again, such as one that
    /// passes on to another which is gone. Ending it does nothing.
    pub const fn nothing() -> Self {
        Self { begun: None }
    }

    /// Tells the invalidations under way in one guest memory apart; `None` for
    /// [`nothing`](Self::nothing). For those who pass tickets on.
    pub fn id(&self) -> Option<u64> {
        self.begun.as_ref().map(|(_, active)| active.number())
    }
}

/// Somebody who maps what a host has mapped, and must hear before it changes.
pub trait Notifier: Send + Sync {
    /// Takes every translation of `range` away from the guest. Needs no memory to succeed, but
    /// asks for tables where a block is to be split rather than dropped.
    fn begin(&self, range: HvaRange) -> Ticket;

    /// Lets faults see the range again, as it is now. A ticket that another notifier made is
    /// ignored.
    fn end(&self, ticket: Ticket);

    /// Whether the guest used a page of `range` since the last call, and forgets it. A hint.
    fn age(&self, range: HvaRange) -> bool;

    /// Whether the guest used a page of `range` since `age` was last called. A hint.
    fn test_young(&self, range: HvaRange) -> bool;

    /// The host's address space goes away: takes everything from the guest.
    ///
    /// The host must have stopped answering before it calls this: every later peek and fault
    /// fails. One that was answered before finds its answer out of date. So when this returns,
    /// nothing is mapped and nothing will be.
    fn release(&self);
}
