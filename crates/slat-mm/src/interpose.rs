//! Standing between guest memory and its host: to watch, to limit, to disturb.
//!
//! An [`Interposed`] host is a [`Host`] around a [`Host`]. Before each question of guest memory it
//! asks an [`Interpose`], which may refuse it; after, the interposer may cut the answered block
//! down to a part, and is told the answer. It also hears of every notice on its way to guest
//! memory. A tool explains with it how a kernel would map what an address space cannot
//! know; a test makes a host slow, short of memory, or fond of small blocks, and writes down what
//! it said.
//!
//! Whatever the interposer does, the contract with guest memory is kept: refusing and narrowing are
//! things that any host may do, and nothing else is possible. So `Interpose` is a safe trait.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use slat::host::{Host, HostPage, HostView, ResolveError, Vma};
use slat::notifier::{Notifier, Ticket};
use slat_table::address::{Hpa, Hva, HvaRange, PAGE_SIZE};
use slat_table::attributes::Access;

/// How guest memory asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "the two ways of the host contract")]
pub enum Question {
    /// [`HostView::peek`]: only looking, with the mmap lock held for reading.
    Peek,
    /// [`Host::fault`].
    Fault,
}

/// What happens between guest memory and its host. Every method does nothing by default.
///
/// Methods are called with the locks that the caller of the host or of the notifier holds, so they
/// must not call either.
pub trait Interpose: Send + Sync + 'static {
    /// Guest memory is about to ask for the page at `hva`. Returns what tells this question from
    /// others, for [`answered`](Self::answered).
    ///
    /// # Errors
    ///
    /// What guest memory is answered; the host is not asked.
    fn asked(&self, question: Question, hva: Hva, access: Access) -> Result<u64, ResolveError> {
        let _ = (question, hva, access);
        Ok(0)
    }

    /// Which part of `page.block` guest memory may see. Only a naturally aligned block around
    /// `hva`, or for memory that the host does not manage any range of pages around it, is a
    /// sensible answer; what is not inside the block is cut off, and an answer without `hva`
    /// counts as all of it.
    fn narrow(&self, hva: Hva, page: &HostPage) -> HvaRange {
        let _ = hva;
        page.block
    }

    /// The question that `asked` numbered `number` was answered; this is what guest memory gets.
    fn answered(&self, number: u64, answer: &Result<HostPage, ResolveError>) {
        let _ = (number, answer);
    }

    /// The host is about to change `range`; guest memory is told next. `notice` is never the same
    /// again. The end of the whole address space ([`Notifier::release`]) is a notice of
    /// everything.
    fn beginning(&self, notice: u64, range: HvaRange) {
        let _ = (notice, range);
    }

    /// Guest memory has been told: the guest reaches nothing of the notice's range.
    fn begun(&self, notice: u64) {
        let _ = notice;
    }

    /// The host has made its change; guest memory is told next.
    fn ended(&self, notice: u64) {
        let _ = notice;
    }
}

/// A host with somebody in between.
///
/// Let go of the guest memory that asks it only while the host changes nothing: a notice under way
/// keeps the memory alive, and its end would take everything apart with the host's locks held.
pub struct Interposed<H: Host, I: Interpose> {
    host: H,
    interposer: Arc<I>,
    /// The notifiers registered with the inner host; guest memory's own are behind them.
    watched: Mutex<Vec<Arc<Watched<I>>>>,
    notices: Arc<AtomicU64>,
}

impl<H: Host, I: Interpose> Interposed<H, I> {
    /// `host`, with `interposer` in between.
    pub fn new(host: H, interposer: Arc<I>) -> Self {
        Self {
            host,
            interposer,
            watched: Mutex::default(),
            notices: Arc::default(),
        }
    }

    /// The host.
    pub fn inner(&self) -> &H {
        &self.host
    }

    /// Who is in between.
    pub fn interposer(&self) -> &Arc<I> {
        &self.interposer
    }
}

/// Asks by `ask` on behalf of guest memory.
fn ask<I: Interpose>(
    interposer: &I,
    (question, hva, access): (Question, Hva, Access),
    ask: impl FnOnce() -> Result<HostPage, ResolveError>,
) -> Result<HostPage, ResolveError> {
    let number = interposer.asked(question, hva, access)?;
    let answer = ask().map(|page| narrowed(&page, hva, interposer.narrow(hva, &page)));
    interposer.answered(number, &answer);
    answer
}

/// `page`, with no more than `wanted` of its block.
fn narrowed(page: &HostPage, hva: Hva, wanted: HvaRange) -> HostPage {
    let block = page
        .block
        .intersection(&wanted)
        .filter(|block| block.contains(hva))
        .unwrap_or(page.block);
    let skipped = block.start().raw() - page.block.start().raw();
    HostPage {
        block,
        hpa: Hpa::new(page.hpa.raw() + skipped),
        ..*page
    }
}

/// The inner host's mappings under its mmap lock.
pub struct InterposedView<'a, V, I> {
    view: V,
    interposer: &'a I,
}

impl<V: HostView, I: Interpose> HostView for InterposedView<'_, V, I> {
    fn find_vma(&self, hva: Hva) -> Option<Vma> {
        self.view.find_vma(hva)
    }

    fn peek(&self, hva: Hva, access: Access) -> Result<HostPage, ResolveError> {
        let question = (Question::Peek, hva, access);
        ask(self.interposer, question, || self.view.peek(hva, access))
    }
}

impl<V, I> fmt::Debug for InterposedView<'_, V, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterposedView").finish_non_exhaustive()
    }
}

// SAFETY: by the number of the promise, each resting on the inner host having made it:
// 0. `register` registers with the inner host a notifier that passes on to the given one every
//    call, and lives as long as this host: every change that the inner host tells of arrives. One
//    that is gone need not be told, and `begin` then returns a ticket for nothing.
// 1. What `peek` and `fault` return is an error or an answer of the inner host to the same
//    question, with nothing changed but the block, cut down to a part of it with the address of
//    that part's first byte. What holds for all of a block holds for a part of it; a `begin` that
//    covers it is passed on before it returns to the inner host.
// 2. `begin` and `end` are passed on inside the inner host's own calls, so what comes before and
//    after them stays where it was.
// 3. The cut block is an intersection of ranges of whole pages with the inner block, so it lies in
//    the same mapping and is as linear; one without the address asked for is not used.
#[expect(unsafe_code, reason = "the promise to guest memory is an unsafe trait")]
unsafe impl<H: Host, I: Interpose> Host for Interposed<H, I> {
    type View<'a> = InterposedView<'a, H::View<'a>, I>;

    fn register(&self, notifier: Weak<dyn Notifier>) {
        let watched = Arc::new(Watched {
            interposer: Arc::clone(&self.interposer),
            notices: Arc::clone(&self.notices),
            open: Mutex::default(),
            notifier,
        });
        let passing_on: Weak<Watched<I>> = Arc::downgrade(&watched);
        locked(&self.watched).push(watched);
        self.host.register(passing_on);
    }

    fn view(&self) -> Self::View<'_> {
        InterposedView {
            view: self.host.view(),
            interposer: &self.interposer,
        }
    }

    fn fault(&self, hva: Hva, access: Access) -> Result<HostPage, ResolveError> {
        let question = (Question::Fault, hva, access);
        ask(&*self.interposer, question, || self.host.fault(hva, access))
    }
}

impl<H: Host + fmt::Debug, I: Interpose> fmt::Debug for Interposed<H, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interposed")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// A notifier that tells the interposer, and passes on.
struct Watched<I> {
    interposer: Arc<I>,
    notices: Arc<AtomicU64>,
    /// The notices under way, by the ids of their tickets.
    open: Mutex<Vec<(Option<u64>, u64)>>,
    notifier: Weak<dyn Notifier>,
}

impl<I: Interpose> Notifier for Watched<I> {
    fn begin(&self, range: HvaRange) -> Ticket {
        let Some(notifier) = self.notifier.upgrade() else {
            return Ticket::nothing();
        };
        let notice = self.notices.fetch_add(1, Ordering::Relaxed);
        self.interposer.beginning(notice, range);
        let ticket = notifier.begin(range);
        self.interposer.begun(notice);
        locked(&self.open).push((ticket.id(), notice));
        ticket
    }

    fn end(&self, ticket: Ticket) {
        let notice = {
            let mut open = locked(&self.open);
            let id = ticket.id();
            let at = open.iter().position(|(known, _)| *known == id);
            at.map(|at| open.swap_remove(at).1)
        };
        // Before guest memory is told: from then on it may ask and believe the answer.
        if let Some(notice) = notice {
            self.interposer.ended(notice);
        }
        if let Some(notifier) = self.notifier.upgrade() {
            notifier.end(ticket);
        }
    }

    fn age(&self, range: HvaRange) -> bool {
        let live = self.notifier.upgrade();
        live.is_some_and(|notifier| notifier.age(range))
    }

    fn test_young(&self, range: HvaRange) -> bool {
        let live = self.notifier.upgrade();
        live.is_some_and(|notifier| notifier.test_young(range))
    }

    fn release(&self) {
        let everything = HvaRange::new(Hva::new(0), !(PAGE_SIZE - 1));
        if let (Some(notifier), Ok(everything)) = (self.notifier.upgrade(), everything) {
            let notice = self.notices.fetch_add(1, Ordering::Relaxed);
            self.interposer.beginning(notice, everything);
            notifier.release();
            self.interposer.begun(notice);
            self.interposer.ended(notice);
        }
    }
}

/// What is behind the lock is sound between any two statements, so a panic elsewhere does no harm.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
