//! A host around the address space that writes down what it is asked, and may let who asks wait.

use std::sync::{Arc, Mutex, Weak};

use slat::host::{Host, HostPage, HostView, ResolveError};
use slat::notifier::Notifier;
use slat_mm::View;
use slat_table::address::Hva;
use slat_table::attributes::Access;
use slat_table::lock::StdLocks;

use crate::machine::Space;

/// A fault that the host was asked to handle: where, and how the memory was accessed.
pub(crate) type Upcall = (u64, Access);

/// What happens in the middle of a fault for which the host has no page yet. Returns whether the
/// page may be brought now; otherwise the host is busy.
type Serve = dyn Fn(Upcall) -> bool + Send + Sync;

/// The host. Clones are the same host.
#[derive(Clone)]
pub(crate) struct AskingHost {
    space: Space,
    upcalls: Arc<Mutex<Vec<Upcall>>>,
    serve: Arc<Serve>,
}

impl AskingHost {
    /// A host that brings pages from `space`, each after `serve` has agreed.
    pub(crate) fn new(
        space: Space,
        serve: impl Fn(Upcall) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self {
            space,
            upcalls: Arc::default(),
            serve: Arc::new(serve),
        }
    }

    /// What was asked since the last call.
    pub(crate) fn upcalls(&self) -> Vec<Upcall> {
        core::mem::take(&mut self.upcalls.lock().unwrap())
    }
}

// SAFETY: every answer is the address space's own, given or withheld; the notifiers are registered
// with it. So its promises are kept by it.
#[expect(unsafe_code, reason = "the trait is unsafe to implement")]
unsafe impl Host for AskingHost {
    type View<'a> = View<'a, StdLocks>;

    fn register(&self, notifier: Weak<dyn Notifier>) {
        self.space.register(notifier);
    }

    fn view(&self) -> Self::View<'_> {
        Host::view(&self.space)
    }

    fn fault(&self, hva: Hva, access: Access) -> Result<HostPage, ResolveError> {
        let absent = matches!(
            Host::view(&self.space).peek(hva, access),
            Err(ResolveError::NotPresent(_))
        );
        if absent {
            let upcall = (hva.raw(), access);
            self.upcalls.lock().unwrap().push(upcall);
            if !(self.serve)(upcall) {
                return Err(ResolveError::Busy(hva));
            }
        }
        self.space.fault(hva, access)
    }
}
