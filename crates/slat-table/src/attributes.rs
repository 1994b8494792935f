//! What a leaf allows and how its memory behaves, in terms that every format can be asked for.
//!
//! A format encodes these or refuses with an [`EncodeError`](crate::format::EncodeError); it
//! never drops one silently.

/// Who may fetch instructions from a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Execute {
    /// Nobody.
    Never,
    /// The guest's kernel only (Arm: EL1 with `FEAT_XNX`; EPT: mode-based execute control).
    Privileged,
    /// The guest's user programs only.
    Unprivileged,
    /// Both.
    Always,
}

impl Execute {
    /// What either of the two allows.
    #[inline]
    pub const fn union(self, other: Self) -> Self {
        match (self, other) {
            (Self::Never, only) | (only, Self::Never) => only,
            (Self::Privileged, Self::Privileged) => Self::Privileged,
            (Self::Unprivileged, Self::Unprivileged) => Self::Unprivileged,
            _ => Self::Always,
        }
    }
}

/// What a guest access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Load, or a walk of the guest's own tables.
    Read,
    /// Store, or an atomic read and write.
    Write,
    /// Instruction fetch.
    Execute,
}

/// Read, write and execute permission of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Permissions {
    /// Loads are allowed.
    pub read: bool,
    /// Stores are allowed.
    pub write: bool,
    /// Who may fetch instructions.
    pub execute: Execute,
}

impl Permissions {
    /// Read only, nothing executable.
    pub const READ: Self = Self {
        read: true,
        write: false,
        execute: Execute::Never,
    };
    /// Read and write, nothing executable: what device memory gets.
    pub const READ_WRITE: Self = Self {
        read: true,
        write: true,
        execute: Execute::Never,
    };
    /// Everything: what RAM gets.
    pub const ALL: Self = Self {
        read: true,
        write: true,
        execute: Execute::Always,
    };

    /// What either of the two allows.
    #[inline]
    pub const fn union(self, other: Self) -> Self {
        Self {
            read: self.read || other.read,
            write: self.write || other.write,
            execute: self.execute.union(other.execute),
        }
    }

    /// Whether an access of this kind is allowed. Execution counts as allowed if anybody may.
    #[inline]
    pub const fn allow(self, access: Access) -> bool {
        match access {
            Access::Read => self.read,
            Access::Write => self.write,
            Access::Execute => !matches!(self.execute, Execute::Never),
        }
    }
}

/// How memory behaves: caching, ordering, gathering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemoryType {
    /// Normal, write-back cacheable memory (Arm Normal WB; x86 WB; RISC-V PMA).
    WriteBack,
    /// Normal, write-through cacheable memory.
    WriteThrough,
    /// Normal, not cacheable (Arm Normal NC; x86 WC; RISC-V NC).
    NonCacheable,
    /// Device memory (Arm Device-nGnRE; x86 UC; RISC-V IO; POWER non-idempotent).
    Device,
    /// Device memory without early write acknowledgement (Arm Device-nGnRnE).
    DeviceStrict,
}

/// Everything a leaf says beside its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// What is allowed.
    pub permissions: Permissions,
    /// How the memory behaves.
    pub memory: MemoryType,
    /// The page was used since this was last cleared ("young").
    pub accessed: bool,
    /// The page was written since this was last cleared. A format without a dirty bit encodes
    /// only `false`.
    pub dirty: bool,
    /// Bits for software, at most as many as the format has.
    pub software: u8,
    /// The leaf is one of a run that hardware may keep as one translation. All leaves of a run say
    /// the same in everything else. Set by the engine, where the hardware has runs.
    pub contiguous: bool,
}

impl Attributes {
    /// Attributes of a fresh leaf: young, clean, no software bits, no run.
    #[inline]
    pub const fn new(permissions: Permissions, memory: MemoryType) -> Self {
        Self {
            permissions,
            memory,
            accessed: true,
            dirty: false,
            software: 0,
            contiguous: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_either_allows_both_together_allow() {
        use Execute::{Always, Never, Privileged, Unprivileged};
        for (one, other, both) in [
            (Never, Never, Never),
            (Never, Privileged, Privileged),
            (Unprivileged, Never, Unprivileged),
            (Privileged, Privileged, Privileged),
            (Unprivileged, Unprivileged, Unprivileged),
            (Privileged, Unprivileged, Always),
            (Always, Privileged, Always),
            (Never, Always, Always),
        ] {
            assert_eq!(one.union(other), both, "{one:?} and {other:?}");
            assert_eq!(other.union(one), both, "{other:?} and {one:?}");
        }
        let only_write = Permissions {
            read: false,
            ..Permissions::READ_WRITE
        };
        assert_eq!(Permissions::READ.union(only_write), Permissions::READ_WRITE);
        assert_eq!(only_write.union(Permissions::READ), Permissions::READ_WRITE);
    }

    #[test]
    fn an_access_is_allowed_by_its_own_permission() {
        let allowed = |permissions: Permissions| {
            [Access::Read, Access::Write, Access::Execute].map(|access| permissions.allow(access))
        };
        assert_eq!(allowed(Permissions::READ), [true, false, false]);
        assert_eq!(allowed(Permissions::READ_WRITE), [true, true, false]);
        assert_eq!(allowed(Permissions::ALL), [true, true, true]);
        let fetches = Permissions {
            read: false,
            write: false,
            execute: Execute::Unprivileged,
        };
        assert_eq!(allowed(fetches), [false, false, true]);
    }
}
