//! s390 DAT tables.

use slat_table::address::{GpaRange, Hpa};
use slat_table::format::s390::{S390, S390Features, S390Root, maintenance};
use slat_table::platform::{Extent, TlbWork};

use super::{Cpus, Modelled};
use crate::event::{self, Registers, Vm};
use crate::s390::{self, Instruction};

impl Modelled for S390 {
    fn registers(features: &S390Features, root: S390Root, vm: Vm) -> Registers {
        Registers::S390(s390::Registers {
            vm,
            asce: root.asce,
            enhanced_dat_1: features.enhanced_dat_1,
            enhanced_dat_2: features.enhanced_dat_2,
            instruction_execution_protection: features.instruction_execution_protection,
        })
    }

    fn flush(_: &S390Features, _: Vm, work: &TlbWork, cpus: &impl Cpus) -> Extent {
        maintenance::flush(work, |instruction| cpus.here(executed(instruction)))
    }

    fn flush_local(_: &S390Features, _: Vm, range: GpaRange, cpus: &impl Cpus) {
        maintenance::flush_local(range, |instruction| cpus.here(executed(instruction)));
    }

    fn publish(_: &S390Features, cpus: &impl Cpus) {
        maintenance::publish(|instruction| cpus.here(executed(instruction)));
    }

    fn changed(_: &S390Features, _: Vm, entry: Hpa, old: u64, cpus: &impl Cpus) {
        if let Some(instruction) = maintenance::change(entry, u64::from_be(old)) {
            cpus.here(executed(instruction));
        }
    }
}

/// The instruction as the machine knows it.
fn executed(instruction: maintenance::Instruction) -> event::Instruction {
    use maintenance::Instruction as Issued;
    event::Instruction::S390(match instruction {
        Issued::Serialize => Instruction::Serialize,
        Issued::Ipte { origin, address } => Instruction::Ipte { origin, address },
        Issued::Idte { table, address } => Instruction::Idte { table, address },
        Issued::IdteByAsce => Instruction::IdteByAsce,
    })
}

#[cfg(test)]
mod tests {
    use core::cell::RefCell;

    use proptest::prelude::*;
    use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
    use slat_table::format::Format;
    use slat_table::geometry::Level;

    use super::*;
    use crate::address;
    use crate::architecture::{Architecture, Descriptor, from_registers};

    fn walker(features: S390Features, address_bits: u8) -> Box<dyn Architecture> {
        let geometry = S390::geometry(&features, address_bits).unwrap();
        let root = S390::root(&features, &geometry, Hpa::new(0x4000_4000), 5);
        let registers = S390::registers(&features, root, 5);
        let walker = from_registers(&registers).unwrap();
        assert_eq!(walker.root(), address::Hpa(0x4000_4000));
        assert_eq!(walker.levels().len(), geometry.root().index() + 1);
        for (number, shape) in walker.levels().iter().enumerate() {
            let level = Level::new(u8::try_from(number).unwrap());
            let ours = geometry.shape(level);
            assert_eq!(
                (shape.shift, shape.index_bits),
                (ours.shift, ours.index_bits)
            );
        }
        walker
    }

    fn features() -> impl Strategy<Value = S390Features> {
        (0..3_u8, any::<bool>()).prop_map(|(enhanced_dat, protection)| S390Features {
            enhanced_dat_1: enhanced_dat >= 1,
            enhanced_dat_2: enhanced_dat >= 2,
            instruction_execution_protection: protection,
        })
    }

    fn attributes() -> impl Strategy<Value = Attributes> {
        let execute = prop_oneof![Just(Execute::Never), Just(Execute::Always)];
        (any::<(bool, bool)>(), execute, 0..8_u8).prop_map(
            |((write, accessed), execute, software)| {
                let permissions = Permissions {
                    read: true,
                    write,
                    execute,
                };
                Attributes {
                    accessed,
                    software,
                    ..Attributes::new(permissions, MemoryType::WriteBack)
                }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_walker_reads_what_the_format_wrote(
            features in features(),
            attributes in attributes(),
            level in 0..3_u8,
            frame in any::<u64>(),
        ) {
            let level = Level::new(level);
            let hpa = frame & !(S390::leaf_step(level) - 1);
            let walker = walker(features, 63);
            let Ok(raw) = S390::leaf(&features, level, Hpa::new(hpa), attributes) else {
                return Ok(());
            };
            let got = walker.decode(level.index(), raw.to_be());
            let Permissions { read, write, execute } = attributes.permissions;
            match got {
                Descriptor::Invalid => prop_assert!(!attributes.accessed),
                Descriptor::Leaf(leaf) => {
                    prop_assert!(attributes.accessed && leaf.accessed);
                    prop_assert_eq!(leaf.hpa, address::Hpa(hpa));
                    prop_assert_eq!((leaf.read, leaf.write), (read, write));
                    prop_assert_eq!(leaf.execute, execute == Execute::Always);
                    prop_assert!(!leaf.becomes_dirty && !leaf.dirty && !leaf.device);
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }

        #[test]
        fn the_walker_follows_the_pointers_that_the_format_wrote(
            level in 1..5_u8,
            table in any::<u64>(),
        ) {
            let level = Level::new(level);
            let below = 0x3fff;
            let table = table & !below;
            let features = S390Features::ALL;
            let raw = S390::table(&features, level, Hpa::new(table));
            let got = walker(features, 63).decode(level.index(), raw.to_be());
            prop_assert_eq!(got, Descriptor::Table(address::Hpa(table)));
        }
    }

    #[test]
    fn trees_of_every_width_have_the_walkers_shape() {
        for bits in 31..=63 {
            let walker = walker(S390Features::NONE, bits);
            assert!(walker.address_bits() >= bits);
            for level in 0..walker.levels().len() {
                let empty = S390::empty(Level::new(u8::try_from(level).unwrap()));
                let entry = walker.decode(level, empty.to_be());
                assert_eq!(entry, Descriptor::Invalid);
            }
        }
    }

    #[derive(Default)]
    struct Recorder(RefCell<Vec<event::Instruction>>);

    impl Cpus for Recorder {
        fn here(&self, instruction: event::Instruction) {
            self.0.borrow_mut().push(instruction);
        }

        fn everywhere(&self, _: &[event::Instruction]) {
            panic!("invalidations reach all CPUs by themselves");
        }
    }

    #[test]
    fn the_change_of_a_valid_entry_issues_its_instruction() {
        let features = S390Features::ALL;
        let ram = Attributes::new(Permissions::ALL, MemoryType::WriteBack);
        let page = S390::leaf(&features, Level::PAGE, Hpa::new(0), ram).unwrap();
        let table = S390::table(&features, Level::new(2), Hpa::new(0x8000));
        let recorder = Recorder::default();
        for (entry, old) in [
            (0x5008, page),
            (0x5008, S390::empty(Level::PAGE)),
            (0xc010, table),
        ] {
            S390::changed(&features, 5, Hpa::new(entry), old.to_be(), &recorder);
        }
        let of_page = Instruction::Ipte {
            origin: 0x5000,
            address: 0x1000,
        };
        let of_table = Instruction::Idte {
            table: 0xc004,
            address: 2 << 31,
        };
        let expected = [of_page, of_table].map(event::Instruction::S390);
        assert_eq!(recorder.0.into_inner(), expected);
    }
}
