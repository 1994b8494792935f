//! POWER radix tables, partition-scoped.

use slat_table::address::GpaRange;
use slat_table::format::power::{PageSize, Power, PowerFeatures, PowerRoot, maintenance};
use slat_table::platform::{Extent, TlbWork};

use super::{Cpus, Modelled};
use crate::event::{self, Registers, Vm};
use crate::power::{self, Instruction};

impl<P: PageSize> Modelled for Power<P> {
    fn registers(_: &PowerFeatures, root: PowerRoot, _: Vm) -> Registers {
        let [partition, _] = root.entry;
        Registers::Power(power::Registers {
            lpid: root.lpid,
            partition,
            page_shift: P::SHIFT,
        })
    }

    fn flush(_: &PowerFeatures, vm: Vm, work: &TlbWork, cpus: &impl Cpus) -> Extent {
        maintenance::flush::<P>(vm, work, |instruction| cpus.here(executed(instruction)))
    }

    fn flush_local(_: &PowerFeatures, vm: Vm, range: GpaRange, cpus: &impl Cpus) {
        maintenance::flush_local::<P>(vm, range, |instruction| cpus.here(executed(instruction)));
    }

    fn publish(_: &PowerFeatures, cpus: &impl Cpus) {
        maintenance::publish(|instruction| cpus.here(executed(instruction)));
    }
}

/// The instruction as the machine knows it.
fn executed(instruction: maintenance::Instruction) -> event::Instruction {
    use maintenance::Instruction as Issued;
    event::Instruction::Power(match instruction {
        Issued::Ptesync => Instruction::Ptesync,
        Issued::Eieio => Instruction::Eieio,
        Issued::Tlbsync => Instruction::Tlbsync,
        Issued::Tlbie(tlbie) => Instruction::Tlbie {
            ric: tlbie.ric() as u8,
            rb: tlbie.rb(),
        },
        Issued::Tlbiel(tlbie) => Instruction::Tlbiel {
            ric: tlbie.ric() as u8,
            rb: tlbie.rb(),
        },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use slat_table::address::Hpa;
    use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
    use slat_table::format::Format;
    use slat_table::format::power::{Page4K, Page64K};
    use slat_table::geometry::Level;

    use super::*;
    use crate::address;
    use crate::architecture::{Architecture, Descriptor, Leaf, from_registers};

    const ALL: PowerFeatures = PowerFeatures::ALL;

    fn walker<P: PageSize>(address_bits: u8) -> Box<dyn Architecture> {
        let geometry = Power::<P>::geometry(&ALL, address_bits).unwrap();
        let root = Power::<P>::root(&ALL, &geometry, Hpa::new(0x4001_0000), 5);
        let registers = Power::<P>::registers(&ALL, root, 5);
        let walker = from_registers(&registers).unwrap();
        assert_eq!(walker.root(), address::Hpa(0x4001_0000));
        assert_eq!(walker.levels().len(), geometry.root().index() + 1);
        for (number, shape) in walker.levels().iter().enumerate() {
            let ours = geometry.shape(Level::new(u8::try_from(number).unwrap()));
            assert_eq!(
                (shape.shift, shape.index_bits),
                (ours.shift, ours.index_bits)
            );
        }
        walker
    }

    fn attributes() -> impl Strategy<Value = Attributes> {
        let execute = prop_oneof![Just(Execute::Never), Just(Execute::Always)];
        let memory = prop_oneof![
            Just(MemoryType::WriteBack),
            Just(MemoryType::NonCacheable),
            Just(MemoryType::Device),
        ];
        let flags = any::<(bool, bool, bool, bool)>();
        (flags, execute, memory, 0..16_u8).prop_map(
            |((read, write, accessed, dirty), execute, memory, software)| Attributes {
                permissions: Permissions {
                    read,
                    write,
                    execute,
                },
                memory,
                accessed,
                dirty,
                software,
                contiguous: false,
            },
        )
    }

    /// What the walker should make of it.
    fn meant(hpa: u64, attributes: Attributes) -> Leaf {
        let Attributes {
            permissions,
            memory,
            accessed,
            dirty,
            ..
        } = attributes;
        Leaf {
            hpa: address::Hpa(hpa),
            read: permissions.read,
            write: permissions.write && dirty,
            becomes_dirty: permissions.write && !dirty,
            dirty,
            execute: permissions.execute == Execute::Always,
            accessed,
            memory: match memory {
                MemoryType::Device => 2,
                MemoryType::NonCacheable => 3,
                _ => 0,
            },
            device: memory == MemoryType::Device,
            run_bits: 0,
        }
    }

    fn check_leaf<P: PageSize>(level: Level, frame: u64, attributes: Attributes) {
        let hpa = frame >> 7 & !(Power::<P>::leaf_step(level) - 1);
        let Ok(raw) = Power::<P>::leaf(&ALL, level, Hpa::new(hpa), attributes) else {
            return;
        };
        let walker = walker::<P>(52);
        let read = |raw: u64| walker.decode(level.index(), raw.to_be());
        assert_eq!(read(raw), Descriptor::Leaf(meant(hpa, attributes)));
        // What the hardware writes, the format reads back.
        let accessed = walker.with_accessed(level.index(), raw.to_be()).unwrap();
        let young = Attributes {
            accessed: true,
            ..attributes
        };
        let again = Power::<P>::leaf(&ALL, level, Hpa::new(hpa), young);
        assert_eq!(again, Ok(u64::from_be(accessed)));
        let written = Attributes {
            dirty: true,
            ..young
        };
        let dirty = walker.with_dirty(level.index(), raw.to_be());
        let again = Power::<P>::leaf(&ALL, level, Hpa::new(hpa), written);
        assert_eq!(again.ok(), dirty.map(u64::from_be));
    }

    fn check_table<P: PageSize>(level: Level, table: u64) {
        let geometry = Power::<P>::geometry(&ALL, 52).unwrap();
        let bytes = u64::from(geometry.shape(level.down().unwrap()).table_bytes);
        let table = table >> 4 & !(bytes - 1);
        let raw = Power::<P>::table(&ALL, level, Hpa::new(table));
        let got = walker::<P>(40).decode(level.index(), raw.to_be());
        assert_eq!(got, Descriptor::Table(address::Hpa(table)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_walker_reads_what_the_format_wrote(
            attributes in attributes(),
            level in 0..3_u8,
            frame in any::<u64>(),
        ) {
            check_leaf::<Page4K>(Level::new(level), frame, attributes);
            check_leaf::<Page64K>(Level::new(level), frame, attributes);
        }

        #[test]
        fn the_walker_follows_the_pointers_that_the_format_wrote(
            level in 1..4_u8,
            table in any::<u64>(),
        ) {
            check_table::<Page4K>(Level::new(level), table);
            check_table::<Page64K>(Level::new(level), table);
        }
    }
}
