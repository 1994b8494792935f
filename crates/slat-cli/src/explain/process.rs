//! The layout of a running process, from `/proc/PID/smaps` (proc(5)).
//!
//! Each mapping becomes a slot at the guest physical address that equals its host virtual one. What
//! is resident, and in which pages, decides what would be mapped at creation. Two things are not
//! told without privileges: physical addresses, so a PFNMAP is taken to be aligned as its virtual
//! address is; and which pages of a mapping are resident, so they are taken to be at its start.

use procfs::ProcError;
use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process, VmFlags};
use slat_report::size::Size;

use crate::format::Row;
use crate::layout::{Kind, Layout, Mapping, Pages, Resident, Slot};

/// Guest physical addresses have so many bits, or fewer if the format has: all that a process has
/// on most machines.
const ADDRESS_BITS: u8 = 48;

/// As many slots as KVM has.
const MOST: usize = 32_767;

/// Why a process cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// There is none of this number.
    #[error("there is no process {pid}")]
    NoSuchProcess {
        /// The number.
        pid: i32,
    },
    /// It is somebody else's.
    #[error(
        "the mappings of process {pid} may not be read: run as its user, or with the capability \
         CAP_SYS_PTRACE"
    )]
    NotPermitted {
        /// The number.
        pid: i32,
    },
    /// It has no mappings: a kernel thread, or a process that is ending.
    #[error("process {pid} has no mappings: it is a kernel thread, or has ended")]
    Empty {
        /// The number.
        pid: i32,
    },
    /// It has more mappings than a VM has slots.
    #[error("process {pid} has {mappings} mappings: a VM has at most {MOST} slots")]
    TooMany {
        /// The number.
        pid: i32,
        /// How many mappings.
        mappings: usize,
    },
    /// Its mappings are not made of the format's pages.
    #[error(
        "the mapping {name} of process {pid} at {hva:#x} is not made of whole pages of {page}, which \
         is what a host with `{format}` has"
    )]
    Pages {
        /// The number.
        pid: i32,
        /// The mapping's name.
        name: String,
        /// Where it is.
        hva: u64,
        /// The size of a page.
        page: Size,
        /// The format.
        format: &'static str,
    },
    /// The system told something else.
    #[error("the mappings of process {pid} cannot be read: {error}")]
    Other {
        /// The number.
        pid: i32,
        /// What the system told.
        error: ProcError,
    },
}

/// The mappings of the process numbered `pid` as a layout for tables of `format`, and what to know
/// about it.
///
/// # Errors
///
/// [`ProcessError`].
pub fn layout(pid: i32, format: &'static Row) -> Result<(Layout, Vec<String>), ProcessError> {
    let failed = |error| match error {
        ProcError::NotFound(_) => ProcessError::NoSuchProcess { pid },
        ProcError::PermissionDenied(_) => ProcessError::NotPermitted { pid },
        // The process ended between opening and reading (ESRCH).
        ProcError::Io(error, _) if error.raw_os_error() == Some(3) => {
            ProcessError::NoSuchProcess { pid }
        }
        error => ProcessError::Other { pid, error },
    };
    let process = Process::new(pid).map_err(failed)?;
    let maps = process.smaps().map_err(failed)?.0;
    if maps.is_empty() {
        return Err(ProcessError::Empty { pid });
    }
    if maps.len() > MOST {
        let mappings = maps.len();
        return Err(ProcessError::TooMany { pid, mappings });
    }
    let (layout, notes) = of_maps(&maps, format);
    let page = format.sizes().small();
    let broken = |mapping: &&Mapping| !(mapping.hva | mapping.bytes).is_multiple_of(page);
    match layout.mappings.iter().find(broken) {
        None => Ok((layout, notes)),
        Some(mapping) => Err(ProcessError::Pages {
            pid,
            name: mapping.name.clone(),
            hva: mapping.hva,
            page: Size(page),
            format: format.name(),
        }),
    }
}

fn of_maps(maps: &[MemoryMap], format: &'static Row) -> (Layout, Vec<String>) {
    let address_bits = format.address_bits().min(ADDRESS_BITS);
    let mut layout = Layout {
        format,
        address_bits,
        mappings: Vec::new(),
        slots: Vec::new(),
    };
    let mut notes = Vec::new();
    for (map, id) in maps.iter().zip(0..) {
        let mapping = mapping(map);
        if map.address.1 > 1 << address_bits {
            notes.push(format!(
                "{} at {:#x} is left out: it lies beyond {address_bits} guest address bits.",
                mapping.name, mapping.hva
            ));
            continue;
        }
        layout.slots.push(Slot {
            name: mapping.name.clone(),
            id,
            gpa: mapping.hva,
            bytes: mapping.bytes,
            hva: mapping.hva,
            read_only: !mapping.writable,
            on_fault: false,
        });
        layout.mappings.push(mapping);
    }
    let kinds = || {
        layout
            .mappings
            .iter()
            .map(|mapping| (mapping.kind, mapping.resident))
    };
    if kinds().any(|(kind, _)| matches!(kind, Kind::Pfnmap { .. })) {
        notes.push(
            "Physical addresses of PFNMAP memory cannot be read without privileges: they are \
             assumed to be aligned as the virtual ones are."
                .to_owned(),
        );
    }
    if kinds().any(|(_, resident)| matches!(resident, Resident::Some { .. })) {
        notes.push(
            "How much of a mapping is resident is known, but not where: it is taken to be at the \
             start."
                .to_owned(),
        );
    }
    (layout, notes)
}

fn mapping(map: &MemoryMap) -> Mapping {
    let (start, end) = map.address;
    let kind = kind(map);
    Mapping {
        name: name(&map.pathname),
        hva: start,
        bytes: end - start,
        kind,
        writable: map.perms.contains(MMPermissions::WRITE),
        pages: pages(map, kind),
        resident: resident(map, kind),
    }
}

fn name(path: &MMapPath) -> String {
    match path {
        MMapPath::Path(path) => path.display().to_string(),
        MMapPath::Heap => "[heap]".to_owned(),
        MMapPath::Stack => "[stack]".to_owned(),
        MMapPath::TStack(thread) => format!("[stack:{thread}]"),
        MMapPath::Vdso => "[vdso]".to_owned(),
        MMapPath::Vvar => "[vvar]".to_owned(),
        MMapPath::Vsyscall => "[vsyscall]".to_owned(),
        MMapPath::Rollup => "[rollup]".to_owned(),
        MMapPath::Anonymous => "anonymous".to_owned(),
        MMapPath::Vsys(key) => format!("/SYSV{key:08x}"),
        MMapPath::Other(name) => format!("[{name}]"),
    }
}

fn kind(map: &MemoryMap) -> Kind {
    let flags = map.extension.vm_flags;
    if !map.perms.contains(MMPermissions::READ) {
        Kind::NoAccess
    } else if flags.contains(VmFlags::PF) {
        // Taken to be aligned as the virtual address is: the lowest address that is.
        let hpa = map.address.0 % (1 << 46);
        Kind::Pfnmap { hpa }
    } else if map.inode != 0 && !flags.contains(VmFlags::HT) {
        Kind::File
    } else {
        Kind::Ram
    }
}

/// A size in smaps, in bytes.
fn amount(map: &MemoryMap, key: &str) -> u64 {
    map.extension.map.get(key).copied().unwrap_or(0)
}

fn pages(map: &MemoryMap, kind: Kind) -> Pages {
    match (kind, Size(amount(map, "KernelPageSize"))) {
        (Kind::NoAccess, _) => Pages::Small,
        (Kind::Pfnmap { .. }, _) => Pages::Auto,
        (_, Size(0x20_0000)) => Pages::Huge,
        (_, Size(0x4000_0000)) => Pages::Gigantic,
        // `THPeligible` (since Linux 5.0) is 1 where a fault may bring a huge page.
        (Kind::Ram, _) if amount(map, "THPeligible") != 0 => Pages::Auto,
        _ => Pages::Small,
    }
}

fn resident(map: &MemoryMap, kind: Kind) -> Resident {
    match kind {
        Kind::NoAccess => return Resident::Nothing,
        Kind::Pfnmap { .. } => return Resident::All,
        Kind::Ram | Kind::File => {}
    }
    let huge = ["AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"];
    let huge: u64 = huge.into_iter().map(|key| amount(map, key)).sum();
    // hugetlb pages are not in Rss.
    let hugetlb = amount(map, "Shared_Hugetlb") + amount(map, "Private_Hugetlb");
    let small = amount(map, "Rss").saturating_sub(huge);
    match (huge + hugetlb, small) {
        (0, 0) => Resident::Nothing,
        (all, 0) if all >= map.address.1 - map.address.0 => Resident::All,
        (_, 0) if hugetlb != 0 => Resident::Nothing,
        (huge, small) => Resident::Some { huge, small },
    }
}
