//! Plans made by hand, for tests that want one thing to happen, in the sizes of any row of the
//! catalogue of formats.

use slat_machine::event::AccessKind;
use slat_machine::host::Disturbance;
use slat_machine::rig::formats::ROWS;
use slat_machine::rig::plan::{Backing, Churn, Features, Mapping, Plan, Slot, Touch};
use slat_machine::rig::script::Step;
use slat_machine::rig::{Options, Outcome, Row};
use slat_table::address::PAGE_SIZE;
use slat_table::geometry::{Geometry, Level};

use crate::caught::{clean, scaled};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// The host's large frames.
pub(crate) const FRAME: u64 = 2 * MIB;

/// Where the first mapping is, the first slot, and devices.
pub(crate) const HVA: u64 = 0x7f00_0000_0000;
pub(crate) const GPA: u64 = GIB;
pub(crate) const DEVICE: u64 = 4 * GIB;

/// A row of the catalogue, and the sizes that it gives a scenario. The host's frames are of 4 KiB
/// and 2 MiB on all of them; where a page is larger, only what lies in one of 2 MiB can be mapped.
pub(crate) struct On {
    pub(crate) format: &'static Row,
    /// 40 where the format does so many.
    pub(crate) address_bits: u8,
    geometry: Geometry,
    /// Bytes of a page.
    pub(crate) page: u64,
    /// Some pages, which fit into a frame eight times.
    pub(crate) few: u64,
}

impl On {
    pub(crate) fn named(name: &str) -> Self {
        let format = Row::named(name).expect("a row of the catalogue");
        let tree = |bits| Some((bits, format.geometry(bits, FEATURES)?));
        let usual = tree(40).filter(|_| format.address_bits() >= 40);
        let (address_bits, geometry) = usual
            .or_else(|| tree(format.address_bits()))
            .expect("the row's own width");
        let page = geometry.entry_bytes(Level::PAGE);
        Self {
            format,
            address_bits,
            geometry,
            page,
            few: (16 * page).min(FRAME / 8),
        }
    }

    /// The first row is explored at length. Of the others, which are many, debug builds have one
    /// short run each.
    fn is_first(&self) -> bool {
        core::ptr::eq(self.format, &raw const ROWS[0])
    }

    /// Asserts what chance brings about, where there are enough steps and seeds for it. Elsewhere a
    /// run shows that nothing is found.
    pub(crate) fn expect(&self, happened: bool) {
        assert!(happened || !self.is_first());
    }

    pub(crate) fn seeds(&self, release: u64) -> u64 {
        let seeds = scaled(release);
        if self.is_first() {
            seeds
        } else {
            (seeds / 10).max(1)
        }
    }

    /// The largest leaf that frames of 2 MiB can be mapped with.
    pub(crate) fn leaf_of_ram(&self) -> u64 {
        let sizes = self.geometry.leaf_sizes().map(|(_, bytes)| bytes);
        let fits = sizes.filter(|bytes| *bytes <= FRAME);
        fits.max().expect("a page")
    }

    /// What an entry of a leaf of `bytes` bytes maps: less than that if it is one of a run.
    pub(crate) fn entry_of(&self, bytes: u64) -> u64 {
        let mut sizes = self.geometry.leaf_sizes();
        let (level, _) = sizes
            .find(|(_, size)| *size == bytes)
            .expect("a size of leaves");
        self.geometry.entry_bytes(level)
    }

    /// What one leaf above the pages maps, of up to a gibibyte: the largest that there is.
    pub(crate) fn block(&self) -> Option<u64> {
        let levels = self
            .geometry
            .leaf_levels()
            .filter(|level| *level != Level::PAGE);
        let sizes = levels.map(|level| self.geometry.entry_bytes(level));
        sizes.filter(|bytes| *bytes <= GIB).max()
    }

    /// The same, if it covers several tables of pages.
    pub(crate) fn wide_block(&self) -> Option<u64> {
        let span = self.geometry.table_maps(Level::PAGE);
        self.block().filter(|bytes| *bytes > span)
    }

    /// Whether devices can be mapped.
    pub(crate) fn has_devices(&self) -> bool {
        self.format.has_devices(FEATURES)
    }

    /// `bytes` of the host's memory, or as much as comes in frames that can be mapped.
    pub(crate) fn frames(&self, bytes: u64) -> u64 {
        if self.page == PAGE_SIZE {
            bytes
        } else {
            bytes.next_multiple_of(FRAME)
        }
    }

    /// A plan without mappings and slots, on four guest CPUs and two of the host.
    pub(crate) fn nothing(&self) -> Plan {
        Plan {
            address_bits: self.address_bits,
            features: FEATURES,
            guest_cpus: 4,
            host_cpus: 2,
            ram: 64 * MIB,
            mappings: Vec::new(),
            slots: Vec::new(),
            boot: Vec::new(),
            steps: match (self.is_first(), self.format.fills_tables()) {
                (true, _) => 30_000,
                (false, false) => 6_000,
                (false, true) => 25_000,
            },
            churn: Churn::default(),
        }
    }

    /// One slot over one mapping of anonymous memory.
    pub(crate) fn ram(&self, bytes: u64) -> Plan {
        Plan {
            mappings: vec![mapping(HVA, bytes, Backing::Anonymous)],
            slots: vec![slot(1, GPA, bytes, HVA)],
            ..self.nothing()
        }
    }

    /// One slot over one device.
    pub(crate) fn device(&self, bytes: u64) -> Plan {
        Plan {
            mappings: vec![mapping(HVA, bytes, Backing::Device { hpa: DEVICE })],
            slots: vec![slot(1, GPA, bytes, HVA)],
            ..self.nothing()
        }
    }

    pub(crate) fn touch(&self, cpu: u8, gpa: u64, bytes: u64, kind: AccessKind) -> Touch {
        Touch {
            cpu,
            gpa,
            bytes,
            stride: self.page,
            kind,
        }
    }

    /// Runs a plan with several seeds, undisturbed and, if there is time, disturbed; nothing may be
    /// found. Gives the outcomes of the undisturbed runs.
    pub(crate) fn explore(&self, plan: &Plan) -> Vec<Outcome> {
        let seeds = self.seeds(20);
        let short = cfg!(debug_assertions) && !self.is_first();
        let disturbed = if short { 0 } else { seeds };
        for seed in seeds..seeds + disturbed {
            let options = Options {
                format: self.format,
                seed,
                disturbance: Disturbance {
                    busy: Some(10),
                    no_memory: Some(30),
                    narrow: Some(3),
                },
                failing: Some(20),
                ..Options::default()
            };
            clean(plan, &options);
        }
        let run = |seed| {
            let options = Options {
                format: self.format,
                seed,
                ..Options::default()
            };
            clean(plan, &options)
        };
        (0..seeds).map(run).collect()
    }

    /// Runs a script on a plan with so many seeds; nothing may be found.
    pub(crate) fn explore_script(&self, plan: &Plan, script: &[Step], seeds: u64) -> Vec<Outcome> {
        let plan = Plan {
            steps: u64::MAX,
            ..plan.clone()
        };
        let run = |seed| {
            let options = Options {
                format: self.format,
                seed,
                script: script.to_vec(),
                ..Options::default()
            };
            clean(&plan, &options)
        };
        (0..self.seeds(seeds)).map(run).collect()
    }

    /// How many rounds a script of so many has: fewer where there are many rows.
    pub(crate) fn rounds(&self, first: u64) -> u64 {
        if self.is_first() { first } else { first / 10 }
    }
}

/// What CPUs have if a plan says nothing else.
pub(crate) const FEATURES: Features = Features {
    hardware_accessed: false,
    hardware_dirty: false,
    force_write_back: true,
};

pub(crate) fn mapping(hva: u64, bytes: u64, backing: Backing) -> Mapping {
    Mapping {
        name: format!("{hva:#x}"),
        hva,
        bytes,
        writable: true,
        backing,
    }
}

pub(crate) fn slot(id: u32, gpa: u64, bytes: u64, hva: u64) -> Slot {
    Slot {
        name: format!("slot {id}"),
        id,
        gpa,
        bytes,
        hva,
        read_only: false,
        on_fault: false,
        weight: 1,
        replaceable: false,
    }
}

/// How often the host did `what`, over all runs.
pub(crate) fn times(outcomes: &[Outcome], what: &str) -> u64 {
    let churns = outcomes
        .iter()
        .filter_map(|outcome| outcome.report.churn.as_ref());
    churns.filter_map(|churn| churn.changes.get(what)).sum()
}

/// Makes each of these functions a test for every row of the catalogue. They take an [`On`].
macro_rules! for_every_format {
    ($($scenario:ident,)*) => {$(
        mod $scenario {
            use super::$scenario as scenario;
            slat_table::every_format!(crate::scenario::tests_of_rows);
        }
    )*};
}

/// One test for each row, which calls `scenario`.
macro_rules! tests_of_rows {
    ($($row:ident $name:literal $($format:ident)::+ $($features:ident)::+ $bits:literal;)*) => {$(
        #[test]
        fn $row() {
            scenario(&crate::scenario::On::named($name));
        }
    )*};
}

pub(crate) use {for_every_format, tests_of_rows};
