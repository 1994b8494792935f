//! A host memory manager of eight pages. What it has at a page is one relaxed atomic, so nothing
//! orders a change and a look at it but the protocol's own locks and barriers.

use std::sync::{Arc, Weak};

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{RwLock, RwLockReadGuard};
use slat::host::{Host, HostPage, HostView, PageKind, ResolveError, Vma};
use slat::notifier::Notifier;
use slat_table::address::{Hpa, Hva, HvaRange, PAGE_SIZE};
use slat_table::attributes::{Access, MemoryType};

const PAGES: u64 = 8;
const WRITABLE: u64 = 1 << 0;
const ORDER_SHIFT: u32 = 1;
const ORDER_MASK: u64 = 0b11 << ORDER_SHIFT;

/// What the host has at a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    /// The frame.
    pub(crate) frame: Hpa,
    /// log2 of the pages in the block around it.
    pub(crate) order: u32,
    /// Whether it may be written.
    pub(crate) writable: bool,
}

/// The host. Clones are the same host.
#[derive(Clone, Debug)]
pub(crate) struct ModelHost {
    pages: Arc<Vec<AtomicU64>>,
    /// Held for reading while somebody looks at mappings. Most tests change none and do without.
    mmap: Option<Arc<RwLock<()>>>,
}

/// The mappings, locked for reading if there is a lock.
#[derive(Debug)]
pub(crate) struct View<'a> {
    host: &'a ModelHost,
    _lock: Option<RwLockReadGuard<'a, ()>>,
}

/// The frame number `number`.
pub(crate) fn frame(number: u64) -> Hpa {
    Hpa::new(0x10_0000 + number * PAGE_SIZE)
}

/// The pages `first` to `first + pages` of the host's addresses.
pub(crate) fn hva_pages(first: u64, pages: u64) -> HvaRange {
    HvaRange::new(Hva::new(first * PAGE_SIZE), pages * PAGE_SIZE).expect("a range of pages")
}

impl ModelHost {
    /// Page `n` is frame `n`, writable, in blocks of `1 << order` pages.
    pub(crate) fn with_blocks(order: u32) -> Self {
        let page = |number| Page {
            frame: frame(number),
            order,
            writable: true,
        };
        let words = (0..PAGES).map(|number| AtomicU64::new(encode(page(number))));
        Self {
            pages: Arc::new(words.collect()),
            mmap: None,
        }
    }

    /// The same with a lock on its mappings.
    pub(crate) fn with_mmap_lock(mut self) -> Self {
        self.mmap = Some(Arc::new(RwLock::new(())));
        self
    }

    /// Makes `change` with the mappings locked for writing.
    pub(crate) fn change_mappings(&self, change: impl FnOnce()) {
        let lock = self
            .mmap
            .as_ref()
            .map(|mmap| mmap.write().expect("no panic"));
        change();
        drop(lock);
    }

    /// What is at page `number` from now on.
    pub(crate) fn set(&self, number: u64, page: Page) {
        let word = self.word(number).expect("a page");
        word.store(encode(page), Ordering::Relaxed);
    }

    /// Page `number` is one of its own and in `frame` from now on.
    pub(crate) fn move_page(&self, number: u64, frame: Hpa) {
        let page = Page {
            frame,
            order: 0,
            writable: true,
        };
        self.set(number, page);
    }

    /// The block of `1 << order` pages around page `number` is in blocks of `1 << to` pages from
    /// now on, all pages where they were at first. Nothing is taken away by that.
    pub(crate) fn shape_block(&self, number: u64, order: u32, to: u32) {
        let first = number >> order << order;
        for page in first..first + (1 << order) {
            let (frame, writable) = (frame(page), true);
            self.set(
                page,
                Page {
                    frame,
                    order: to,
                    writable,
                },
            );
        }
    }

    fn word(&self, number: u64) -> Option<&AtomicU64> {
        self.pages.get(usize::try_from(number).ok()?)
    }

    fn look(&self, hva: Hva, access: Access) -> Result<HostPage, ResolveError> {
        let number = hva.raw() / PAGE_SIZE;
        let word = self.word(number).ok_or(ResolveError::NoVma(hva))?;
        let page = decode(word.load(Ordering::Relaxed));
        if access == Access::Write && !page.writable {
            return Err(ResolveError::NotPermitted { hva, access });
        }
        let first = number >> page.order << page.order;
        Ok(HostPage {
            block: hva_pages(first, 1 << page.order),
            hpa: Hpa::new(page.frame.raw() - (number - first) * PAGE_SIZE),
            writable: page.writable,
            kind: PageKind::Ram,
            memory: MemoryType::WriteBack,
        })
    }
}

fn encode(page: Page) -> u64 {
    let writable = if page.writable { WRITABLE } else { 0 };
    page.frame.raw() | u64::from(page.order) << ORDER_SHIFT | writable
}

fn decode(raw: u64) -> Page {
    Page {
        frame: Hpa::new(raw & !0xfff),
        order: ((raw & ORDER_MASK) >> ORDER_SHIFT) as u32,
        writable: raw & WRITABLE != 0,
    }
}

impl HostView for View<'_> {
    fn find_vma(&self, hva: Hva) -> Option<Vma> {
        let range = hva_pages(0, PAGES);
        (hva < range.end()).then_some(Vma {
            range,
            writable: true,
            kind: PageKind::Ram,
            memory: MemoryType::WriteBack,
        })
    }

    fn peek(&self, hva: Hva, access: Access) -> Result<HostPage, ResolveError> {
        self.host.look(hva, access)
    }
}

// SAFETY: no memory is behind the frames of this host, so nothing rests on its promises. The
// tests keep them all the same: a frame is given away only between a notifier's two calls.
unsafe impl Host for ModelHost {
    type View<'a> = View<'a>;

    /// The tests themselves say what they change.
    fn register(&self, _: Weak<dyn Notifier>) {}

    fn view(&self) -> View<'_> {
        View {
            host: self,
            _lock: self
                .mmap
                .as_ref()
                .map(|mmap| mmap.read().expect("no panic")),
        }
    }

    fn fault(&self, hva: Hva, access: Access) -> Result<HostPage, ResolveError> {
        self.look(hva, access)
    }
}
