//! The memory of one VM.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;

use slat_table::address::{Gpa, GpaRange};
use slat_table::cache::TableCache;
use slat_table::format::Format;
use slat_table::geometry::Level;
use slat_table::lock::{Locks, Mutex};
use slat_table::platform::Platform;
use slat_table::sync::Ordering;
use slat_table::table::{NewTableError, PageTable};
use slat_table::walk::Translation;

use crate::config::Config;
use crate::host::Host;
use crate::index::InvalidationIndex;
use crate::notifier::Notifier;
use crate::region::{Region, SlotId};
use crate::report::RegionReport;
use crate::slots::{Published, SlotSet};
use crate::stats::{Counters, MemoryStats};
use crate::transaction::{Transaction, TransactionError};
use crate::vcpu::Vcpu;
use crate::view::TableView;

pub(crate) type LockOf<P, T> = <<P as Platform>::Locks as Locks>::Mutex<T>;

/// The memory of one VM: its slots, and the tables that show them to the guest.
///
/// Shared by all vCPUs and the VMM's threads; every method takes `&self`. When it is dropped, no
/// CPU may still run the guest on its tables.
///
/// Lock order (P12): the transaction lock, then the wait for invalidations (with the index lock
/// taken and let go), then the host's mmap lock, then stripes by index. The index lock is taken
/// and let go with no other lock of ours inside.
pub struct GuestMemory<F: Format, H: Host, P: Platform> {
    // Dropped before the host, whose memory it shows.
    pub(crate) table: PageTable<F, P>,
    pub(crate) host: H,
    pub(crate) config: Config,
    pub(crate) transactions: LockOf<P, ()>,
    pub(crate) published: Published<P::Locks>,
    pub(crate) index: LockOf<P, InvalidationIndex>,
    pub(crate) counters: Counters,
}

impl<F: Format, H: Host, P: Platform> GuestMemory<F, H, P> {
    /// Memory without slots, backed by `host`, with tables and TLBs from `platform`. `features`
    /// says what of the format the CPU has. It registers with the host, which tells it of every
    /// change from then on.
    ///
    /// # Errors
    ///
    /// [`NewTableError`], if the address width or the number of stripes is not possible or there
    /// is no memory for the root table.
    pub fn new(
        host: H,
        platform: P,
        features: F::Features,
        config: Config,
    ) -> Result<Arc<Self>, NewTableError> {
        let table = PageTable::new(platform, features, config.table)?;
        Ok(Arc::new_cyclic(|memory: &Weak<Self>| {
            // Nothing is asked of the host before it knows whom to tell of changes.
            let notifier: Weak<dyn Notifier> = memory.clone();
            host.register(notifier);
            Self {
                table,
                host,
                config,
                transactions: Mutex::new(()),
                published: Published::new(),
                index: Mutex::new(InvalidationIndex::default()),
                counters: Counters::new(),
            }
        }))
    }

    /// The tables, to look at. What the hardware needs to know is [`TableView::root`].
    pub fn table(&self) -> TableView<'_, F, P> {
        TableView(&self.table)
    }

    /// The host's memory manager.
    pub fn host(&self) -> &H {
        &self.host
    }

    /// The slots as they are now.
    pub fn slots(&self) -> Arc<SlotSet> {
        self.published.snapshot()
    }

    /// Begins a change of slots that happens as a whole or not at all.
    pub fn transaction(&self) -> Transaction<'_, F, H, P> {
        Transaction::new(self)
    }

    /// Creates one slot and maps what can be mapped at once.
    ///
    /// # Errors
    ///
    /// [`TransactionError`]; nothing has changed then.
    pub fn insert(&self, region: Region) -> Result<RegionReport, TransactionError> {
        let mut reports = self.transaction().create(region).commit()?;
        let Some(report) = reports.pop() else {
            unreachable!("a transaction reports on each slot that it creates")
        };
        Ok(report)
    }

    /// Deletes one slot. When this returns, the guest reaches none of it.
    ///
    /// # Errors
    ///
    /// [`TransactionError`]; nothing has changed then.
    pub fn remove(&self, id: SlotId) -> Result<(), TransactionError> {
        self.transaction().delete(id).commit().map(drop)
    }

    /// A handle for one vCPU.
    pub fn vcpu(&self) -> Vcpu<'_, F, H, P> {
        Vcpu::new(self)
    }

    /// Where the guest's `gpa` is in host memory now, and what it may do there, as the tables
    /// say. `None` if nothing is mapped, whether or not a fault would map it.
    pub fn translate(&self, gpa: Gpa) -> Option<Translation> {
        self.table.translate(gpa)
    }

    /// The fewest bytes of tables that could map what is mapped now.
    pub fn minimum_table_bytes(&self) -> u64 {
        let mut leaves: Vec<(GpaRange, Level)> = Vec::new();
        for slot in self.slots().slots() {
            self.table
                .for_each_leaf(&slot.range(), |range, level| match leaves.last_mut() {
                    Some((last, same)) if *same == level && last.end() == range.start() => {
                        *last = last.hull(&range);
                    }
                    _ => leaves.push((range, level)),
                });
        }
        self.table.geometry().minimum_table_bytes(&leaves)
    }

    /// Breaks the blocks of `range` that are larger than leaves of `to` into such, with all they
    /// allow kept, so that later changes to single pages of it cost less. Best effort: what meets
    /// an invalidation, or lacks memory for a table, is left to faults.
    pub fn split(&self, range: &GpaRange, to: Level) {
        let mut tables = TableCache::new(&self.table);
        drop(self.table.restrict(range).split(range, to, &mut tables));
    }

    /// Counters since the beginning.
    pub fn stats(&self) -> MemoryStats {
        let read = |counter: &slat_table::sync::Counter| counter.load(Ordering::Relaxed);
        MemoryStats {
            invalidations: read(&self.counters.invalidations),
            invalidations_hit: read(&self.counters.invalidations_hit),
            agings: read(&self.counters.agings),
            transactions: read(&self.counters.transactions),
            flushes: self.table.flushes(),
            tables: self.table.tables(),
            table_bytes: self.table.table_bytes(),
        }
    }
}

impl<F: Format, H: Host, P: Platform> fmt::Debug for GuestMemory<F, H, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestMemory")
            .field("table", &self.table)
            .field("slots", &self.slots())
            .finish_non_exhaustive()
    }
}
