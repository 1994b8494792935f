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
const SOFTWARE_MASK: u64 = 0b11 << SOFTWARE_SHIFT;

/// Every bit that the encoder may set. Bit 5, G, is not among them: in a G-stage it means nothing
/// and software keeps it clear.
pub(super) const ALL: u64 =
    VALID | READ | WRITE | EXECUTE | USER | ACCESSED | DIRTY | SOFTWARE_MASK;

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
    if u64::from(software) > SOFTWARE_MASK >> SOFTWARE_SHIFT {
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

/// R, W and X. W without R is reserved; none of the three is a pointer to a table.
#[inline]
fn permission_bits(permissions: Permissions) -> Result<u64, EncodeError> {
    let Permissions {
        read,
        write,
        execute,
    } = permissions;
    let execute = match execute {
        Execute::Never => 0,
        Execute::Always => EXECUTE,
        Execute::Privileged | Execute::Unprivileged => {
            return Err(EncodeError::Permissions(permissions));
        }
    };
    match (read, write) {
        (true, true) => Ok(READ | WRITE | execute),
        (true, false) => Ok(READ | execute),
        (false, false) if execute != 0 => Ok(execute),
        (false, _) => Err(EncodeError::Permissions(permissions)),
    }
}

/// The attributes that [`encode`] made `raw` from; `None` if it makes no such leaf.
pub(super) fn decode(svadu: bool, raw: u64) -> Option<Attributes> {
    let has = |bit| raw & bit != 0;
    let permissions = Permissions {
        read: has(READ),
        write: has(WRITE),
        execute: if has(EXECUTE) {
            Execute::Always
        } else {
            Execute::Never
        },
    };
    let attributes = Attributes {
        permissions,
        memory: MemoryType::WriteBack,
        accessed: has(ACCESSED),
        dirty: svadu && has(DIRTY),
        software: u8::try_from((raw & SOFTWARE_MASK) >> SOFTWARE_SHIFT).ok()?,
        contiguous: false,
    };
    // What the encoder refuses, or would write otherwise, is not ours.
    (encode(svadu, attributes) == Ok(raw & ALL)).then_some(attributes)
}
