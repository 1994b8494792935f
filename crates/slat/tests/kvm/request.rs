//! What both are asked: the argument of `KVM_SET_USER_MEMORY_REGION`, any numbers.

use std::fmt;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use slat::table::address::{Gpa, Hva};
use slat::{Region, SlotId};

/// The guest's writes are to be logged.
pub(crate) const LOG_DIRTY: u32 = KVM_MEM_LOG_DIRTY_PAGES;
/// The guest may not write.
pub(crate) const READ_ONLY: u32 = KVM_MEM_READONLY;

/// A memory slot as a VMM asks KVM for it. A size of 0 asks for its deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// The id below, the address space in the upper 16 bits.
    pub(crate) id: u32,
    pub(crate) flags: u32,
    pub(crate) gpa: u64,
    pub(crate) bytes: u64,
    pub(crate) hva: u64,
}

impl Request {
    /// The deletion of slot `id`.
    pub(crate) fn deletion(id: u32) -> Self {
        Self {
            id,
            flags: 0,
            gpa: 0,
            bytes: 0,
            hva: 0,
        }
    }

    pub(crate) fn is_deletion(&self) -> bool {
        self.bytes == 0
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.flags & READ_ONLY != 0
    }

    pub(crate) fn logs_dirty(&self) -> bool {
        self.flags & LOG_DIRTY != 0
    }

    /// Whether there are flags that KVM does not know.
    pub(crate) fn has_unknown_flags(&self) -> bool {
        self.flags & !(LOG_DIRTY | READ_ONLY) != 0
    }

    /// The same without such flags: what slat is asked for, which has no flag words.
    pub(crate) fn without_unknown_flags(mut self) -> Self {
        self.flags &= LOG_DIRTY | READ_ONLY;
        self
    }

    /// Whether all but place and logging are as in `old`: what KVM lets change.
    pub(crate) fn may_follow(&self, old: &Self) -> bool {
        self.bytes == old.bytes
            && self.hva == old.hva
            && self.is_read_only() == old.is_read_only()
            && !self.has_unknown_flags()
    }

    /// Whether both are in one address space and share guest addresses. Wide enough not to wrap.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let end = |request: &Self| u128::from(request.gpa) + u128::from(request.bytes);
        self.id >> 16 == other.id >> 16
            && u128::from(self.gpa) < end(other)
            && u128::from(other.gpa) < end(self)
    }

    /// In slat's words.
    pub(crate) fn region(&self) -> Region {
        // The upper half is the address space, which is chosen by whom one asks.
        let id = SlotId(self.id & 0xffff);
        let region = Region::new(id, Gpa::new(self.gpa), self.bytes, Hva::new(self.hva));
        let region = if self.is_read_only() {
            region.read_only()
        } else {
            region
        };
        if self.logs_dirty() {
            region.log_dirty()
        } else {
            region
        }
    }

    /// In KVM's words.
    pub(crate) fn argument(&self) -> kvm_userspace_memory_region {
        kvm_userspace_memory_region {
            slot: self.id,
            flags: self.flags,
            guest_phys_addr: self.gpa,
            memory_size: self.bytes,
            userspace_addr: self.hva,
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            flags,
            gpa,
            bytes,
            hva,
        } = self;
        write!(
            f,
            "id {id:#x} flags {flags:#x} gpa {gpa:#x} size {bytes:#x} hva {hva:#x}"
        )
    }
}
