//! The tables of a VM, to look at but not to change.
//!
//! What is mapped is decided by slots and the host alone, so guest memory does not hand out the
//! [`PageTable`], through which anything could be installed.

use core::fmt;

use slat_table::address::GpaRange;
use slat_table::format::{Format, Rules};
use slat_table::geometry::{Geometry, Level, MAX_LEVELS};
use slat_table::platform::Platform;
use slat_table::table::{PageTable, VmidError};

/// A look at the tables of a VM.
pub struct TableView<'m, F: Format, P: Platform>(pub(crate) &'m PageTable<F, P>);

impl<'m, F: Format, P: Platform> TableView<'m, F, P> {
    /// What the root pointer must hold for the VM named `vmid`.
    ///
    /// # Errors
    ///
    /// [`VmidError`], if the hardware would take it for another VM's.
    pub fn root(&self, vmid: u16) -> Result<F::Root, VmidError> {
        self.0.root(vmid)
    }

    /// The tree's shape.
    pub fn geometry(&self) -> &'m Geometry {
        self.0.geometry()
    }

    /// What the hardware at hand has.
    pub fn features(&self) -> &'m F::Features {
        self.0.features()
    }

    /// What the hardware at hand asks of whoever changes entries.
    pub fn rules(&self) -> &'m Rules {
        self.0.rules()
    }

    /// The machine below.
    pub fn platform(&self) -> &'m P {
        self.0.platform()
    }

    /// Calls `visit` for every leaf that maps part of `range`, in ascending order.
    /// See [`PageTable::for_each_leaf`].
    pub fn for_each_leaf(&self, range: &GpaRange, visit: impl FnMut(GpaRange, Level)) {
        self.0.for_each_leaf(range, visit);
    }

    /// Number of leaves by level that map part of `range`.
    pub fn count_leaves(&self, range: &GpaRange) -> [u64; MAX_LEVELS] {
        self.0.count_leaves(range)
    }
}

impl<F: Format, P: Platform> fmt::Debug for TableView<'_, F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}
