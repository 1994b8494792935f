//! Table memory that is not there yet: where the engine builds tables for a machine that is still
//! to be started.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slat_oracle_protocol::script::{Action, Script};
use slat_table::address::{GpaRange, Hpa};
use slat_table::lock::StdLocks;
use slat_table::platform::{Platform, TableMemory, Tlb, TlbWork};
use slat_table::sync::Ordering;

/// Tables at host physical addresses from a chosen one on. Clones are the same memory.
#[derive(Clone, Debug)]
pub(crate) struct Image(Arc<Mutex<Contents>>);

#[derive(Debug)]
struct Contents {
    /// First address not handed out.
    next: u64,
    /// Address behind the last that may be.
    end: u64,
    /// Tables handed out: address and size.
    tables: Vec<(u64, u32)>,
    /// Entries written, in the order of the machine's memory.
    entries: BTreeMap<u64, u64>,
}

impl Image {
    /// An image whose tables lie in `start..end`.
    pub(crate) fn new(start: u64, end: u64) -> Self {
        Self(Arc::new(Mutex::new(Contents {
            next: start,
            end,
            tables: Vec::new(),
            entries: BTreeMap::new(),
        })))
    }

    /// The first table handed out, which is the root.
    pub(crate) fn root(&self) -> Option<Hpa> {
        self.contents()
            .tables
            .first()
            .map(|(table, _)| Hpa::new(*table))
    }

    /// A copy with every entry changed.
    pub(crate) fn changed(&self, change: impl Fn(Hpa, u64) -> u64) -> Self {
        let contents = self.contents();
        let entries = contents.entries.iter();
        Self(Arc::new(Mutex::new(Contents {
            next: contents.next,
            end: contents.end,
            tables: contents.tables.clone(),
            entries: entries
                .map(|(entry, value)| (*entry, change(Hpa::new(*entry), *value)))
                .collect(),
        })))
    }

    /// Has the script put the tables into the machine's memory.
    pub(crate) fn write(&self, script: &mut Script) {
        let contents = self.contents();
        for &(table, bytes) in &contents.tables {
            let bytes = u64::from(bytes);
            script.push(&Action::Fill {
                at: table,
                bytes,
                word: 0,
            });
            let mut entries = contents.entries.range(table..table + bytes).peekable();
            while let Some((&at, first)) = entries.next() {
                let mut run = first.to_ne_bytes().to_vec();
                let mut behind = at + 8;
                while let Some((_, next)) = entries.next_if(|(at, _)| **at == behind) {
                    run.extend_from_slice(&next.to_ne_bytes());
                    behind += 8;
                }
                script.push(&Action::Copy { at, bytes: &run });
            }
        }
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TableMemory for Image {
    fn allocate(&self, bytes: u32) -> Option<Hpa> {
        let mut contents = self.contents();
        let table = contents.next.checked_next_multiple_of(u64::from(bytes))?;
        let next = table.checked_add(u64::from(bytes))?;
        if next > contents.end {
            return None;
        }
        contents.next = next;
        contents.tables.push((table, bytes));
        Some(Hpa::new(table))
    }

    fn free(&self, table: Hpa, bytes: u32) {
        let mut contents = self.contents();
        let table = table.raw();
        contents.tables.retain(|known| known.0 != table);
        contents
            .entries
            .retain(|entry, _| !(table..table + u64::from(bytes)).contains(entry));
    }

    fn load(&self, entry: Hpa, _: Ordering) -> u64 {
        let contents = self.contents();
        contents.entries.get(&entry.raw()).copied().unwrap_or(0)
    }

    fn store(&self, entry: Hpa, value: u64, _: Ordering) {
        self.contents().entries.insert(entry.raw(), value);
    }

    fn compare_exchange(&self, entry: Hpa, old: u64, new: u64) -> Result<(), u64> {
        let mut contents = self.contents();
        let value = contents.entries.entry(entry.raw()).or_insert(0);
        if *value == old {
            *value = new;
            Ok(())
        } else {
            Err(*value)
        }
    }

    fn swap(&self, entry: Hpa, new: u64) -> u64 {
        let mut contents = self.contents();
        contents.entries.insert(entry.raw(), new).unwrap_or(0)
    }
}

/// No machine runs yet, so nothing remembers anything.
impl Tlb for Image {
    fn flush(&self, _: &TlbWork) {}

    fn flush_local(&self, _: GpaRange) {}

    fn publish(&self) {}
}

impl Platform for Image {
    type Locks = StdLocks;
}
