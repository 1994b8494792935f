//! Table memory: which tables there are, what is written in them and by whom, and where each one
//! hangs in a tree.

use std::collections::BTreeMap;

use super::order::Stamp;
use super::ranges::Span;
use super::story::Did;
use crate::address::Hpa;
use crate::event::{Vm, WriteKind};

/// Where a table hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) vm: Vm,
    /// Its level; pages are level 0.
    pub(super) level: usize,
    /// The first guest physical address that it translates.
    pub(super) gpa: u64,
}

/// A CPU that cached what an entry says.
#[derive(Clone, Copy, Debug)]
pub(super) struct CachedBy {
    pub(super) did: Did,
    pub(super) combined: bool,
}

/// An entry that was written.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) raw: u64,
    /// The software that wrote it last, and what it knew.
    pub(super) writer: Stamp,
    pub(super) did: Did,
    pub(super) kind: WriteKind,
    /// The first CPU seen to cache it as it is.
    pub(super) cached: Option<CachedBy>,
}

/// A table.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) span: Span,
    pub(super) allocated: Did,
    pub(super) place: Option<Place>,
    /// Where the pointer to it is and who wrote it; a root has none.
    pub(super) linked: Option<(Hpa, Did)>,
    /// By address. An entry that was not written is 0.
    pub(super) entries: BTreeMap<u64, Entry>,
}

/// All tables, by address.
#[derive(Debug, Default)]
pub(super) struct Tables(BTreeMap<u64, Table>);

impl Tables {
    /// The table that starts at `start`.
    pub(super) fn get(&self, start: Hpa) -> Option<&Table> {
        self.0.get(&start.0)
    }

    pub(super) fn get_mut(&mut self, start: Hpa) -> Option<&mut Table> {
        self.0.get_mut(&start.0)
    }

    /// The table that `address` lies in.
    pub(super) fn containing(&self, address: u64) -> Option<&Table> {
        let (_, table) = self.0.range(..=address).next_back()?;
        table.span.contains(address).then_some(table)
    }

    pub(super) fn containing_mut(&mut self, address: u64) -> Option<&mut Table> {
        let (_, table) = self.0.range_mut(..=address).next_back()?;
        table.span.contains(address).then_some(table)
    }

    /// Some table that overlaps `span`.
    pub(super) fn overlapping(&self, span: Span) -> Option<&Table> {
        let (_, table) = self.0.range(..span.end).next_back()?;
        (table.span.end > span.start).then_some(table)
    }

    pub(super) fn insert(&mut self, span: Span, allocated: Did) {
        let table = Table {
            span,
            allocated,
            place: None,
            linked: None,
            entries: BTreeMap::new(),
        };
        self.0.insert(span.start, table);
    }

    pub(super) fn remove(&mut self, start: Hpa) {
        self.0.remove(&start.0);
    }
}
