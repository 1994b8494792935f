//! Telling those who map what an address space has mapped.
//!
//! Everything that takes an address, a permission or memory away happens inside a [`Bracket`]:
//! every notifier's `begin` has returned before the change is made, and its `end` is called after.
//! A bracket is opened with the locks held that keep others from seeing the change half done, so
//! a notifier registered while it is open resolves nothing before the change is over.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use slat::notifier::{Notifier, Ticket};
use slat_table::address::HvaRange;
use slat_table::lock::{Locks, Mutex};

/// The notifiers of one address space.
pub(crate) struct Notifiers<L: Locks> {
    list: L::Mutex<List>,
}

struct List {
    registered: Vec<Weak<dyn Notifier>>,
    brackets: u64,
}

impl<L: Locks> Notifiers<L> {
    pub(crate) fn new() -> Self {
        Self {
            list: L::Mutex::new(List {
                registered: Vec::new(),
                brackets: 0,
            }),
        }
    }

    pub(crate) fn register(&self, notifier: Weak<dyn Notifier>) {
        self.list.lock().registered.push(notifier);
    }

    /// Whether it was registered.
    pub(crate) fn unregister(&self, notifier: &Weak<dyn Notifier>) -> bool {
        let mut list = self.list.lock();
        let before = list.registered.len();
        list.registered.retain(|known| !known.ptr_eq(notifier));
        list.registered.len() != before
    }

    /// The notifiers that are still there. Whoever asks must let go of them only after its locks:
    /// the last reference to a notifier may be among them, and letting go of it may come back.
    pub(crate) fn live(&self) -> Vec<Arc<dyn Notifier>> {
        self.list.lock().upgrade()
    }

    /// How many ranges were announced so far.
    pub(crate) fn brackets(&self) -> u64 {
        self.list.lock().brackets
    }
}

impl List {
    fn upgrade(&mut self) -> Vec<Arc<dyn Notifier>> {
        self.registered
            .retain(|notifier| notifier.strong_count() > 0);
        self.registered.iter().filter_map(Weak::upgrade).collect()
    }
}

/// A change under way: the tickets of all who were told.
///
/// Declare it before taking the locks of the change, so that it goes after them (see
/// [`Notifiers::live`]).
#[derive(Default)]
pub(crate) struct Bracket {
    open: Vec<(Arc<dyn Notifier>, Ticket)>,
    ended: Vec<Arc<dyn Notifier>>,
}

impl Bracket {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Takes `range` away from everybody. When this returns, it may be changed.
    pub(crate) fn begin<L: Locks>(&mut self, notifiers: &Notifiers<L>, range: HvaRange) {
        let live = {
            let mut list = notifiers.list.lock();
            list.brackets += 1;
            list.upgrade()
        };
        for notifier in live {
            let ticket = notifier.begin(range);
            self.open.push((notifier, ticket));
        }
    }

    /// Lets everybody see the ranges again. Frames that were taken away may be freed after this.
    pub(crate) fn end(&mut self) {
        for (notifier, ticket) in self.open.drain(..) {
            notifier.end(ticket);
            self.ended.push(notifier);
        }
    }
}

impl Drop for Bracket {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU64, Ordering};

    use slat_table::address::{Hva, PAGE_SIZE};
    use slat_table::lock::StdLocks;

    use super::*;

    /// How many changes it was told of and has not seen end.
    #[derive(Default)]
    struct Waiting(AtomicU64);

    impl Notifier for Waiting {
        fn begin(&self, _: HvaRange) -> Ticket {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ticket::nothing()
        }

        fn end(&self, _: Ticket) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }

        fn age(&self, _: HvaRange) -> bool {
            false
        }

        fn test_young(&self, _: HvaRange) -> bool {
            false
        }

        fn release(&self) {}
    }

    #[test]
    fn a_change_that_is_given_up_ends_for_everybody() {
        let waiting = Arc::new(Waiting::default());
        let notifier: Arc<dyn Notifier> = waiting.clone();
        let notifiers = Notifiers::<StdLocks>::new();
        notifiers.register(Arc::downgrade(&notifier));
        let mut bracket = Bracket::new();
        bracket.begin(&notifiers, HvaRange::new(Hva::new(0), PAGE_SIZE).unwrap());
        assert_eq!(waiting.0.load(Ordering::Relaxed), 1);
        drop(bracket);
        assert_eq!(waiting.0.load(Ordering::Relaxed), 0);
    }
}
