//! The lower ten bits of a leaf, the same in every mode: permissions, accessed, dirty, and two
//! bits for software ("Sv32: Addressing and Memory Protection").

use crate::attributes::{Attributes, Execute, MemoryType, Permissions};
use crate::format::EncodeError;

pub(super) const VALID: u64 = 1 << 0;
const READ: u64 = 1 << 1;
const WRITE: u64 = 1 << 2;
const EXECUTE: u64 = 1 << 3;
/// Every access of a guest counts as one of user mode, so a leaf without this bit maps nothing.
const USER: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 6;
const DIRTY: u64 = 1 << 7;
const SOFTWARE_SHIFT: u32 = 8;
const SOFTWARE_MAX: u64 = 0b11;

/// Every bit that the encoder may set. Bit 5, G, is not among them: in a G-stage it means nothing
/// and software keeps it clear.
pub(super) const ALL: u64 =
    VALID | READ | WRITE | EXECUTE | USER | ACCESSED | DIRTY | SOFTWARE_MAX << SOFTWARE_SHIFT;

/// The bits of a leaf with these attributes, memory type and run aside.
///
/// Without Svadu a store to a page whose D is clear faults, and nobody keeps D: it follows W.
#[inline]
pub(super) fn encode(svadu: bool, attributes: Attributes) -> Result<u64, EncodeError> {
    let Attributes {
        permissions,
        accessed,
        dirty,
        software,
        ..
    } = attributes;
    if u64::from(software) > SOFTWARE_MAX {
        return Err(EncodeError::Software(software));
    }
    if dirty && !svadu {
        return Err(EncodeError::Dirty);
    }
    let dirty = if svadu { dirty } else { permissions.write };
    let bit = |set, bit| if set { bit } else { 0 };
    Ok(VALID
        | USER
        | permission_bits(permissions)?
        | bit(accessed, ACCESSED)
        | bit(dirty, DIRTY)
        | u64::from(software) << SOFTWARE_SHIFT)
}

/// Whether a leaf can allow this. W without R is reserved, and with none of the three an entry is a
/// pointer to a table.
#[inline]
const fn can_allow(read: bool, write: bool, execute: bool) -> bool {
    read || (execute && !write)
}

/// R, W and X.
#[inline]
fn permission_bits(permissions: Permissions) -> Result<u64, EncodeError> {
    let Permissions {
        read,
        write,
        execute,
    } = permissions;
    let whole = matches!(execute, Execute::Never | Execute::Always);
    let execute = execute != Execute::Never;
    if !whole || !can_allow(read, write, execute) {
        return Err(EncodeError::Permissions(permissions));
    }
    let bit = |set, bit| if set { bit } else { 0 };
    Ok(bit(read, READ) | bit(write, WRITE) | bit(execute, EXECUTE))
}

/// The attributes that [`encode`] made `raw` from; `None` if it makes no such leaf.
#[inline]
pub(super) fn decode(svadu: bool, raw: u64) -> Option<Attributes> {
    let has = |bit| raw & bit != 0;
    let (read, write, execute) = (has(READ), has(WRITE), has(EXECUTE));
    let keeps_dirty = svadu || has(DIRTY) == write;
    if raw & (VALID | USER) != VALID | USER || !can_allow(read, write, execute) || !keeps_dirty {
        return None;
    }
    let execute = if execute {
        Execute::Always
    } else {
        Execute::Never
    };
    Some(Attributes {
        permissions: Permissions {
            read,
            write,
            execute,
        },
        memory: MemoryType::WriteBack,
        accessed: has(ACCESSED),
        dirty: svadu && has(DIRTY),
        software: (raw >> SOFTWARE_SHIFT & SOFTWARE_MAX) as u8,
        contiguous: false,
    })
}
