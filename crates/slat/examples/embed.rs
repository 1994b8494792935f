//! All that an embedder writes: a host, and what a VMM calls. The platform here is the simulated
//! machine; the example `platform` writes one. Run it with `cargo run -p slat --example embed`.

use std::collections::BTreeSet;
use std::sync::{Mutex, Weak};

use slat::host::{Host, HostPage, HostView, PageKind, ResolveError, Vma};
use slat::notifier::Notifier;
use slat::table::address::{Gpa, Hpa, Hva, HvaRange, PAGE_SIZE};
use slat::table::attributes::{Access, MemoryType};
use slat::table::format::arm64::{Arm64, Arm64Features};
use slat::table::lock::StdLocks;
use slat::table::simulated::SimulatedPlatform;
use slat::{Config, Fault, GuestMemory, Region, SlotId};

/// The host: mappings that stay, at the same address in virtual and physical memory, and the
/// pages of RAM that are there.
struct Kernel([Vma; 2], Mutex<BTreeSet<Hva>>);
impl HostView for &Kernel {
    fn find_vma(&self, hva: Hva) -> Option<Vma> {
        self.0.into_iter().find(|vma| vma.range.end() > hva)
    }
    fn peek(&self, hva: Hva, _: Access) -> Result<HostPage, ResolveError> {
        let vma = self.find_vma(hva).filter(|vma| vma.range.contains(hva));
        let Vma {
            range,
            writable,
            kind,
            memory,
        } = vma.ok_or(ResolveError::NoVma(hva))?;
        let page = HvaRange::block_around(hva, PAGE_SIZE).ok_or(ResolveError::NoVma(hva))?;
        if kind == PageKind::Ram && !self.1.lock().unwrap().contains(&page.start()) {
            return Err(ResolveError::NotPresent(page));
        }
        let block = if kind == PageKind::Ram { page } else { range };
        Ok(HostPage {
            block,
            hpa: Hpa::new(block.start().raw()),
            writable,
            kind,
            memory,
        })
    }
}
#[expect(unsafe_code, reason = "implementing the trait is a promise")]
// SAFETY: a page goes only between the beginning and the end of an invalidation, see `main`.
unsafe impl Host for Kernel {
    type View<'a> = &'a Self;
    fn register(&self, _: Weak<dyn Notifier>) {} // `main` is the only one who changes anything
    fn view(&self) -> &Self {
        self
    }
    fn fault(&self, hva: Hva, access: Access) -> Result<HostPage, ResolveError> {
        self.1.lock().unwrap().insert(hva);
        self.view().peek(hva, access)
    }
}

fn vma(start: u64, bytes: u64, kind: PageKind, memory: MemoryType) -> Vma {
    let range = HvaRange::new(Hva::new(start), bytes).unwrap();
    Vma {
        range,
        writable: true,
        kind,
        memory,
    }
}

fn main() {
    let ram = vma(0x8000_0000, 4 << 20, PageKind::Ram, MemoryType::WriteBack);
    let device = vma(0x8040_0000, 2 << 20, PageKind::Pfnmap, MemoryType::Device);
    let host = Kernel([ram, device], Mutex::default());
    let features = Arm64Features {
        physical_bits: 40,
        force_write_back: true,
        execute_never_extended: false,
        hardware_accessed: false,
        hardware_dirty: false,
        vmid16: false,
        coherent_instruction_cache: false,
    };
    let machine = SimulatedPlatform::<StdLocks>::new();
    let memory = GuestMemory::<Arm64, _, _>::new(host, machine, features, Config::new()).unwrap();

    // The device is mapped now; RAM comes when the guest touches it.
    let gpa = Gpa::new(0x4000_0000);
    let region = Region::new(SlotId(1), gpa, 6 << 20, ram.range.start());
    println!("{}", memory.insert(region).unwrap());
    let mut vcpu = memory.vcpu();
    let access = Access::Write;
    println!("{:?}", vcpu.fault(Fault { gpa, access }).unwrap());

    // The host takes the page back: it says so, does it, and has done it.
    let change = memory.invalidate(HvaRange::new(ram.range.start(), PAGE_SIZE).unwrap());
    memory.host().1.lock().unwrap().remove(&ram.range.start());
    drop(change);
    assert_eq!(memory.translate(gpa), None);
    println!("{}", vcpu.stats());
}
