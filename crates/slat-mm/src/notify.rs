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
