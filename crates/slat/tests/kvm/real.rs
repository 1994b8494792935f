//! A VM of the real KVM, and its limits.
//!
//! The limits are asked for or found out by trying, since they depend on the CPU, the kernel and
//! how KVM runs there. Nothing of the VM but its memory slots is used: it has no vCPU, so nothing
//! is ever mapped or written through a slot.

use std::fmt;

use kvm_bindings::KVM_CAP_MULTI_ADDRESS_SPACE;
use kvm_ioctls::{Cap, Error, Kvm, VmFd};
use slat::table::address::PAGE_SIZE;

use super::Answer;
use super::request::Request;

/// Width of the widest guest physical address that x86 has (52 bits with every kind of paging).
const WIDEST_GUEST: u8 = 52;

/// Bits of user space with four and with five levels of host tables. The last page of each is
/// kept free by Linux (`TASK_SIZE_MAX`).
const USER_BITS: [u8; 2] = [47, 56];

/// A VM of the real KVM.
pub(crate) struct RealKvm(VmFd);

/// What its answers depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Number of slot ids in each address space.
    pub(crate) slot_ids: u32,
    /// Number of address spaces: 2 where there is system management mode.
    pub(crate) spaces: u32,
    /// Width of a guest physical address in bits.
    pub(crate) guest_bits: u8,
    /// End of the host virtual addresses that a slot may name.
    pub(crate) host_end: u64,
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            slot_ids,
            spaces,
            guest_bits,
            host_end,
        } = self;
        write!(
            f,
            "{slot_ids} ids, {spaces} address spaces, {guest_bits} guest address bits, \
             user space to {host_end:#x}"
        )
    }
}

impl RealKvm {
    /// A new VM, or why there can be none.
    pub(crate) fn open() -> Result<Self, String> {
        let kvm = Kvm::new().map_err(|error| format!("cannot open /dev/kvm: {error}"))?;
        let vm = kvm.create_vm();
        let vm = vm.map_err(|error| format!("cannot create a VM: {error}"))?;
        Ok(Self(vm))
    }

    /// `KVM_SET_USER_MEMORY_REGION`.
    #[expect(
        unsafe_code,
        reason = "it names addresses, of which KVM could make use"
    )]
    pub(crate) fn ask(&self, request: &Request) -> Answer {
        // SAFETY: KVM reads and writes memory behind a slot only when a vCPU runs or a device is
        // asked to, and this VM has neither; so no address named here is ever used.
        let answer = unsafe { self.0.set_user_memory_region(request.argument()) };
        answer.map_err(Error::errno)
    }

    /// What its answers depend on. The VM must have no slots; it has none afterwards.
    pub(crate) fn limits(&self) -> Limits {
        let slot_ids = self.0.check_extension_int(Cap::NrMemslots);
        let spaces = self
            .0
            .check_extension_raw(KVM_CAP_MULTI_ADDRESS_SPACE.into());
        let guest_bits = (32..=WIDEST_GUEST)
            .rev()
            .find(|bits| self.takes((1 << bits) - PAGE_SIZE, 0))
            .expect("a VM can have 4 GiB of guest addresses");
        let host_end = USER_BITS
            .map(|bits| (1 << bits) - PAGE_SIZE)
            .into_iter()
            .rev()
            .find(|end| self.takes(0, end - PAGE_SIZE))
            .expect("a process can have 47 bits of addresses");
        Limits {
            slot_ids: slot_ids.try_into().expect("a number of ids"),
            // KVMs without the question have one.
            spaces: spaces.max(1).try_into().expect("a number of spaces"),
            guest_bits,
            host_end,
        }
    }

    /// Whether a slot of one page can be there.
    fn takes(&self, gpa: u64, hva: u64) -> bool {
        let page = Request {
            id: 0,
            flags: 0,
            gpa,
            bytes: PAGE_SIZE,
            hva,
        };
        let taken = self.ask(&page).is_ok();
        if taken {
            let answer = self.ask(&Request::deletion(0));
            answer.expect("a slot that was created can be deleted");
        }
        taken
    }
}
