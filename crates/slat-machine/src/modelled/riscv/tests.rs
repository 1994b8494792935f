//! The format's encoder and the model's walker, which share no code, against each other; and who
//! executes which fence.

use core::cell::{Cell, RefCell};
use core::fmt::Debug;

use proptest::prelude::*;
use slat_table::address::{Gpa, Hpa};
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::format::Entry;
use slat_table::geometry::{Geometry, Level};

use super::*;
use crate::address;
use crate::architecture::{Architecture, Descriptor, Leaf, from_registers, vm};

const VM: Vm = 0x35;
const CASES: u32 = 2000;

/// A row: a format with features, its tree, and the hardware that its registers describe.
#[derive(Debug)]
struct Row<F: Modelled> {
    features: F::Features,
    geometry: Geometry,
    hardware: Box<dyn Architecture>,
    /// Bits of a host physical address.
    host_bits: u8,
    /// Leaves that were compared: encoded, and found.
    leaves: [Cell<u32>; 2],
}

fn one_more(count: &Cell<u32>) {
    count.set(count.get() + 1);
}

impl<F: Modelled> Row<F> {
    fn new(features: F::Features, address_bits: u8, host_bits: u8) -> Self {
        let geometry = F::geometry(&features, address_bits).unwrap();
        let root = F::root(&features, &geometry, Hpa::new(0x8000_0000), VM);
        let registers = F::registers(&features, root, VM);
        assert_eq!(vm(&registers), VM);
        let hardware = from_registers(&registers).unwrap();
        assert_eq!(hardware.root(), address::Hpa(0x8000_0000));
        assert_eq!(hardware.address_bits(), address_bits);
        assert_eq!(hardware.entry_bytes(), F::ENTRY_BYTES);
        assert_eq!(
            hardware.caches_invalid(),
            F::rules(&features).caches_invalid
        );
        assert_eq!(hardware.levels().len(), geometry.root().index() + 1);
        for level in geometry.levels_down() {
            let (ours, theirs) = (geometry.shape(level), hardware.levels()[level.index()]);
            assert_eq!(
                (ours.shift, ours.index_bits),
                (theirs.shift, theirs.index_bits)
            );
        }
        Self {
            features,
            geometry,
            hardware,
            host_bits,
            leaves: [Cell::new(0), Cell::new(0)],
        }
    }

    /// The level, and the block of host memory that a leaf of it at `hpa` maps.
    fn place(&self, level: u8, hpa: u64) -> (Level, Hpa) {
        let levels = u8::try_from(self.hardware.levels().len()).unwrap();
        let level = Level::new(level % levels);
        let bytes = self.geometry.entry_bytes(level);
        (
            level,
            Hpa::new(hpa % (1 << self.host_bits)).align_down(bytes),
        )
    }

    /// What is encoded for the `index`th entry of a table reads as what was meant.
    fn leaf(&self, level: u8, hpa: u64, index: u64, attributes: Attributes) {
        let (level, hpa) = self.place(level, hpa);
        let Ok(raw) = F::leaf(&self.features, level, hpa, attributes) else {
            return;
        };
        one_more(&self.leaves[0]);
        let entry = address::Hpa(0x4000_0000 + index % 512 * F::ENTRY_BYTES);
        let read = self.hardware.decode_at(level.index(), entry, raw);
        let hpa = if attributes.contiguous {
            hpa.align_down(0x1_0000).raw() + index % 16 * 0x1000
        } else {
            hpa.raw()
        };
        assert_eq!(read, Descriptor::Leaf(self.meant(hpa, attributes)));
        self.set_by_hardware(level, raw, attributes);
    }

    /// What hardware makes of the entry, the format reads as the same leaf, used or written.
    fn set_by_hardware(&self, level: Level, raw: u64, attributes: Attributes) {
        let Entry::Leaf { hpa, .. } = F::decode(&self.features, level, raw) else {
            panic!("{raw:#x} is no leaf");
        };
        let decoded = |raw| F::decode(&self.features, level, raw);
        let accessed = self.hardware.with_accessed(level.index(), raw).map(decoded);
        let used = Attributes {
            accessed: true,
            ..attributes
        };
        let rules = F::rules(&self.features);
        let leaf = |attributes| Entry::Leaf { hpa, attributes };
        assert_eq!(accessed, rules.hardware_accessed.then(|| leaf(used)));
        let dirty = self.hardware.with_dirty(level.index(), raw).map(decoded);
        let written = Attributes {
            dirty: true,
            ..attributes
        };
        let kept = rules.hardware_dirty && attributes.permissions.write;
        assert_eq!(dirty, kept.then(|| leaf(written)));
    }

    fn meant(&self, hpa: u64, attributes: Attributes) -> Leaf {
        let Permissions {
            read,
            write,
            execute,
        } = attributes.permissions;
        let kept = F::rules(&self.features).hardware_dirty;
        Leaf {
            hpa: address::Hpa(hpa),
            read,
            write: write && (attributes.dirty || !kept),
            becomes_dirty: write && kept && !attributes.dirty,
            dirty: attributes.dirty,
            execute: execute == Execute::Always,
            accessed: attributes.accessed,
            memory: match attributes.memory {
                MemoryType::WriteBack => 0,
                MemoryType::NonCacheable => 1,
                _ => 2,
            },
            device: attributes.memory == MemoryType::Device,
            run_bits: if attributes.contiguous { 4 } else { 0 },
        }
    }

    fn pointer(&self, level: u8, hpa: u64) {
        let (_, table) = self.place(0, hpa);
        for level in self.geometry.levels_down().filter(|it| *it != Level::PAGE) {
            let raw = F::table(&self.features, level, table);
            let expected = Descriptor::Table(address::Hpa(table.raw()));
            assert_eq!(self.hardware.decode(level.index(), raw), expected);
        }
        let (level, _) = self.place(level, 0);
        let empty = self.hardware.decode(level.index(), F::empty(level));
        assert_eq!(empty, Descriptor::Invalid);
    }

    /// Whatever is found in an entry, the two agree on it, or the format calls it foreign.
    fn anything(&self, level: u8, raw: u64) {
        let (level, _) = self.place(level, 0);
        let raw = if F::ENTRY_BYTES == 4 {
            raw & 0xffff_ffff
        } else {
            raw
        };
        let read = self.hardware.decode(level.index(), raw);
        match F::decode(&self.features, level, raw) {
            Entry::Empty => assert_eq!(read, Descriptor::Invalid, "{raw:#x}"),
            Entry::Table(table) => {
                assert_eq!(
                    read,
                    Descriptor::Table(address::Hpa(table.raw())),
                    "{raw:#x}"
                );
            }
            Entry::Leaf { hpa, attributes } => {
                one_more(&self.leaves[1]);
                let meant = Descriptor::Leaf(self.meant(hpa.raw(), attributes));
                assert_eq!(read, meant, "{raw:#x}");
            }
            Entry::Foreign(_) => assert_ne!(read, Descriptor::Invalid, "{raw:#x}"),
        }
    }
}

/// Attributes, most of which can be expressed.
fn attributes() -> impl Strategy<Value = Attributes> {
    let execute = prop_oneof![
        4 => Just(Execute::Never),
        4 => Just(Execute::Always),
        1 => Just(Execute::Privileged),
    ];
    let memory = prop_oneof![
        4 => Just(MemoryType::WriteBack),
        1 => Just(MemoryType::NonCacheable),
        1 => Just(MemoryType::Device),
    ];
    let bools: [BoxedStrategy<bool>; 5] = core::array::from_fn(|_| any::<bool>().boxed());
    (bools, execute, memory, 0..5u8).prop_map(
        |([read, write, accessed, dirty, contiguous], execute, memory, software)| Attributes {
            permissions: Permissions {
                read,
                write,
                execute,
            },
            memory,
            accessed,
            dirty,
            software,
            contiguous,
        },
    )
}

/// An entry that is not far from one that means something.
fn entries() -> impl Strategy<Value = u64> {
    let high = prop_oneof![4 => Just(0), 1 => 0..1024u64, 1 => Just(1 << 9)];
    (any::<u64>(), high, 0..1024u64, 0..64u32).prop_map(|(address, high, low, zeros)| {
        let page = address >> zeros << zeros & 0x003f_ffff_ffff_fc00;
        high << 54 | page | low | 1
    })
}

fn check<F: Modelled>(row: &Row<F>) {
    let config = ProptestConfig {
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::with_cases(CASES)
    };
    let drawn = (
        any::<(u8, u64, u64)>(),
        attributes(),
        prop_oneof![3 => entries(), 1 => any::<u64>()],
    );
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let outcome = runner.run(&drawn, |((level, hpa, index), attributes, raw)| {
        row.leaf(level, hpa, index, attributes);
        row.pointer(level, hpa);
        row.anything(level, raw);
        Ok(())
    });
    outcome.unwrap();
    let enough = |count: &Cell<u32>| count.get() > CASES / 100;
    assert!(row.leaves.iter().all(enough), "{:?}", row.leaves);
}

#[test]
fn the_walker_reads_what_the_encoder_of_sv32x4_meant() {
    check(&Row::<Sv32x4>::new(Sv32x4Features::ALL, 34, 34));
    check(&Row::<Sv32x4>::new(Sv32x4Features::NONE, 34, 34));
}

#[test]
fn the_walker_reads_what_the_encoder_of_sv39x4_meant() {
    check(&Row::<RiscV>::new(RiscVFeatures::ALL, 41, 56));
    check(&Row::<RiscV>::new(RiscVFeatures::NONE, 41, 56));
}

#[test]
fn the_walker_reads_what_the_encoder_of_sv48x4_meant() {
    check(&Row::<RiscV>::new(RiscVFeatures::ALL, 50, 56));
}

#[test]
fn the_walker_reads_what_the_encoder_of_sv57x4_meant() {
    check(&Row::<RiscV>::new(RiscVFeatures::ALL, 59, 56));
}

/// Who was told to execute what.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    here: RefCell<Vec<event::Instruction>>,
    everywhere: RefCell<Vec<event::Instruction>>,
}

impl Cpus for Told {
    fn here(&self, instruction: event::Instruction) {
        assert!(self.everywhere.borrow().is_empty(), "the interrupt is last");
        self.here.borrow_mut().push(instruction);
    }

    fn everywhere(&self, instructions: &[event::Instruction]) {
        self.everywhere.borrow_mut().extend(instructions);
    }
}

impl Told {
    fn by(tell: impl FnOnce(&Self)) -> [Vec<event::Instruction>; 2] {
        let told = Self::default();
        tell(&told);
        [told.here.into_inner(), told.everywhere.into_inner()]
    }
}

const FENCE: event::Instruction = event::Instruction::RiscV(Instruction::Fence);

fn hfence(gpa: Option<u64>) -> event::Instruction {
    let vmid = Some(VM);
    event::Instruction::RiscV(match gpa {
        None => Instruction::HfenceGvma { vmid },
        Some(gpa) => {
            let operand = gpa >> 2;
            Instruction::HfenceGvmaAddress { operand, vmid }
        }
    })
}

fn page() -> GpaRange {
    GpaRange::new(Gpa::new(0x4000_1000), 0x1000).unwrap()
}

#[test]
fn a_flush_brings_the_writes_to_memory_and_then_has_every_hart_fence() {
    let flush = |work| {
        Told::by(|told| {
            RiscV::flush(&RiscVFeatures::ALL, VM, &work, told);
        })
    };
    let leaves = flush(TlbWork::leaves(page(), Level::PAGE));
    assert_eq!(leaves, [vec![FENCE], vec![hfence(Some(0x4000_1000))]]);
    let tables = flush(TlbWork::everything_in(page()));
    assert_eq!(tables, [vec![FENCE], vec![hfence(None)]]);
    assert_eq!(flush(TlbWork::default()), [vec![], vec![]]);
}

#[test]
fn a_local_flush_interrupts_nobody() {
    let none = Told::by(|told| RiscV::flush_local(&RiscVFeatures::NONE, VM, page(), told));
    assert_eq!(none, [vec![hfence(None)], vec![]]);
    let narrow = Told::by(|told| Sv32x4::flush_local(&Sv32x4Features::ALL, VM, page(), told));
    assert_eq!(narrow, [vec![hfence(Some(0x4000_1000))], vec![]]);
    let published = Told::by(|told| RiscV::publish(&RiscVFeatures::ALL, told));
    assert_eq!(published, [vec![FENCE], vec![]]);
}
