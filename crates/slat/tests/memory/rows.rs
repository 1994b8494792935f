//! The rows of the catalogue of formats, and one scenario as a test for each of them.
//!
//! A scenario is written once, generic over the format, in sizes that it asks its [`Row`] for. On
//! the first row these are a page of 4 KiB, a block of 2 MiB and one of 1 GiB; elsewhere a page may
//! have 64 KiB, a table of pages 256 entries, and there may be no block at all. Where hardware
//! lacks something, the scenario says what the answer is there.

use slat::Region;
use slat::config::Config;
use slat::region::Mapping as When;
use slat::table::address::Hpa;
use slat::table::attributes::{Attributes, MemoryType, Permissions};
use slat::table::format::{EncodeError, Format};
use slat::table::geometry::{Geometry, Level};

use crate::scripted_host::{Mapping, ScriptedHost};
use crate::vm::{Machine, Vm, region};

/// All of them.
pub(crate) const MEMORY_TYPES: [MemoryType; 5] = [
    MemoryType::WriteBack,
    MemoryType::WriteThrough,
    MemoryType::NonCacheable,
    MemoryType::Device,
    MemoryType::DeviceStrict,
];

/// Where most mappings begin: aligned for every block of every format.
const HVA: u64 = 1 << 56;

/// A format, a kind of hardware and a width of guest addresses; and where on it a scenario puts
/// what it needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<F: Format> {
    pub(crate) features: F::Features,
    pub(crate) bits: u8,
    pub(crate) geometry: Geometry,
    /// Bytes of a page.
    pub(crate) page: u64,
    /// What a table of pages maps. On most hardware there are blocks of this size.
    pub(crate) span: u64,
    /// Where most slots begin: a quarter of all guest addresses, so there is room for three.
    pub(crate) gpa: u64,
    /// Where most mappings begin.
    pub(crate) hva: u64,
    /// Where the frames that faults bring begin: far from the simulated machine's tables.
    pub(crate) frames: u64,
    /// Where frames are that a scenario chooses itself.
    pub(crate) chosen: u64,
    /// Where devices are, in the upper half of all host addresses.
    pub(crate) device: u64,
    /// First power of two that is no host address.
    pub(crate) host_end: u64,
}

impl<F: Format> Row<F> {
    pub(crate) fn new(features: F::Features, bits: u8) -> Self {
        let geometry = F::geometry(&features, bits).expect("a row of the catalogue");
        let page = geometry.entry_bytes(Level::PAGE);
        let ram = Attributes::new(Permissions::ALL, MemoryType::WriteBack);
        let is_address = |bit: &u32| {
            let hpa = Hpa::new(1 << bit);
            F::leaf(&features, Level::PAGE, hpa, ram).is_ok()
        };
        let host_bits = (page.trailing_zeros()..63)
            .take_while(is_address)
            .last()
            .expect("an address")
            + 1;
        Self {
            features,
            bits,
            geometry,
            page,
            span: 1 << geometry.span_shift(),
            gpa: 1 << (bits - 2),
            hva: HVA,
            frames: 1 << (host_bits - 2),
            chosen: 3 << (host_bits - 3),
            device: 1 << (host_bits - 1),
            host_end: 1 << host_bits,
        }
    }

    /// The largest leaf of `bytes` or fewer: what a host block of `bytes` becomes that is aligned
    /// everywhere.
    pub(crate) fn leaf_in(&self, bytes: u64) -> u64 {
        let mut sizes = self.geometry.leaf_sizes();
        let fits = sizes.find(|(_, leaf)| *leaf <= bytes);
        fits.expect("a page is small enough").1
    }

    /// Whether tables of pages can be replaced by a leaf.
    pub(crate) fn has_blocks(&self) -> bool {
        self.leaf_in(self.span) == self.span
    }

    /// The leaves larger than what a table of pages maps, as far as they fit into a slot.
    pub(crate) fn large_leaves(&self) -> Vec<(Level, u64)> {
        let sizes = self.geometry.leaf_sizes();
        let fitting = sizes.filter(|(_, bytes)| *bytes > self.span && *bytes <= self.gpa);
        fitting.collect()
    }

    /// The runs of blocks, of at least four, as far as they fit into a slot and the host's memory.
    pub(crate) fn runs_of_blocks(&self) -> Vec<(Level, u64)> {
        let blocks = self.geometry.leaf_levels_up().skip(1);
        let runs = blocks.filter_map(|level| Some((level, self.geometry.run_bytes(level)?)));
        runs.filter(|(level, run)| {
            let room = self.gpa.min(self.host_end >> 3);
            *run <= room && 4 * self.geometry.entry_bytes(*level) <= *run
        })
        .collect()
    }

    /// A size of several spans: that of the smallest leaf over them, or four spans.
    pub(crate) fn large(&self) -> u64 {
        let smallest = self.large_leaves().last().map(|(_, bytes)| *bytes);
        smallest.unwrap_or(4 * self.span)
    }

    /// Whether a leaf can say that it was not used.
    pub(crate) fn ages(&self) -> bool {
        let ram = Attributes::new(Permissions::ALL, MemoryType::WriteBack);
        let unused = Attributes {
            accessed: false,
            ..ram
        };
        F::leaf(&self.features, Level::PAGE, Hpa::new(0), unused).is_ok()
    }

    /// What prevents a page of device memory of this type from being mapped, if something does.
    pub(crate) fn refuses_device(&self, memory: MemoryType) -> Option<EncodeError> {
        let device = Attributes::new(Permissions::READ_WRITE, memory);
        F::leaf(&self.features, Level::PAGE, Hpa::new(0), device).err()
    }

    /// Whether device memory of this type is mapped, and is what the guest gets.
    pub(crate) fn honours(&self, memory: MemoryType) -> bool {
        F::forces(&self.features, memory) && self.refuses_device(memory).is_none()
    }

    /// How a host maps device memory on this hardware; `None` if it cannot be mapped at all: it
    /// must not be executable, which early s390 cannot say.
    pub(crate) fn device_memory(&self) -> Option<MemoryType> {
        [MemoryType::Device, MemoryType::WriteBack]
            .into_iter()
            .find(|memory| self.honours(*memory))
    }

    /// Memory that faults bring page by page.
    pub(crate) fn ram(&self, start: u64, bytes: u64) -> Mapping {
        Mapping::ram(start, bytes).blocks(self.page)
    }

    /// Memory that is there without a fault, linear from `hpa` on: a device, or RAM in blocks as
    /// large as fit where devices cannot be mapped.
    pub(crate) fn linear(&self, start: u64, bytes: u64, hpa: u64) -> Mapping {
        let device = Mapping::device(start, bytes, hpa);
        match self.device_memory() {
            Some(memory) => device.memory(memory),
            None => device.is_ram(),
        }
    }

    /// Limits as wide as the row.
    pub(crate) fn config(&self) -> Config {
        Config::new().address_bits(self.bits).slot_pages(u64::MAX)
    }

    /// A VM over `mappings`.
    pub(crate) fn vm(&self, mappings: &[Mapping]) -> Vm<F> {
        self.vm_with(self.config(), mappings)
    }

    pub(crate) fn vm_with(&self, config: Config, mappings: &[Mapping]) -> Vm<F> {
        let host = ScriptedHost::with_frames(self.frames, mappings);
        Vm::on(Machine::new(), host, self.features, config)
    }

    /// A VM whose slot 1 shows `mapping`, which starts at `hva`, with nothing mapped yet.
    pub(crate) fn vm_on_fault(&self, mapping: Mapping) -> Vm<F> {
        let vm = self.vm(&[mapping]);
        let region = self.slot_1(mapping.vma.range.bytes());
        vm.memory.insert(region.mapping(When::OnFault)).unwrap();
        vm
    }

    /// A VM whose slot 1 shows `bytes` bytes of linear memory, mapped at creation.
    pub(crate) fn vm_linear(&self, bytes: u64) -> Vm<F> {
        let vm = self.vm(&[self.linear(self.hva, bytes, self.device)]);
        vm.memory.insert(self.slot_1(bytes)).unwrap();
        assert_eq!(vm.mapped_bytes(), bytes);
        vm
    }

    fn slot_1(&self, bytes: u64) -> Region {
        region(1, self.gpa, bytes, self.hva)
    }
}

/// Makes each of these functions a test for every row of the catalogue. They are generic over the
/// format and take a [`Row`].
macro_rules! for_every_format {
    ($($scenario:ident,)*) => {$(
        mod $scenario {
            use super::$scenario as scenario;
            slat::table::every_format!(crate::rows::tests_of_rows);
        }
    )*};
}

/// One test for each row, which calls `scenario`.
macro_rules! tests_of_rows {
    ($($row:ident $name:literal $($format:ident)::+ $($features:ident)::+ $bits:literal;)*) => {$(
        #[test]
        fn $row() {
            scenario(crate::rows::Row::<$($format)::+>::new($($features)::+, $bits));
        }
    )*};
}

pub(crate) use {for_every_format, tests_of_rows};
