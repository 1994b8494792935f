//! What the machine is: memory, devices, modules and command line, read from its device tree.
//!
//! Only devices that may be given to a guest are named here: they do no DMA, which would get past
//! the second-level translation, and the guest can do no harm with them that a real machine would
//! not take too. Everything else in the tree is neither mapped nor told to the guest.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use dtoolkit::error::{PropertyError, StandardError};
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::{NodeStandard as _, Status};
use dtoolkit::{Node as _, Property as _, ToCellInt as _};
use thiserror::Error;

use crate::span::Span;

/// Devices whose `reg` is given to the guest, by `compatible`, with the name they get.
const PASSED_THROUGH: [(&str, &str); 3] = [
    ("arm,pl011", "uart"),
    ("arm,pl031", "rtc"),
    ("arm,pl061", "gpio"),
];
/// The interrupt controller that the hypervisor can drive.
const GIC: &str = "arm,gic-v3";
/// The PCI host bridge whose configuration space is plain memory.
const PCI: &str = "pci-host-ecam-generic";

/// The timers that every CPU has.
const TIMER: &str = "arm,armv8-timer";

/// The machine that the hypervisor runs on. All addresses are host-physical.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Machine {
    /// The hypervisor's command line, empty if there is none.
    pub options: String,
    /// Banks of RAM.
    pub ram: Vec<Span>,
    /// Parts of RAM that firmware keeps.
    pub reserved: Vec<Span>,
    /// What may be given to the guest, in order of address.
    pub devices: Vec<Device>,
    /// The private interrupt (0 to 15) of the EL2 physical timer.
    pub hypervisor_timer: Option<u32>,
    /// The guest's kernel.
    pub kernel: Module,
    /// The guest's initial RAM disk.
    pub ramdisk: Option<Module>,
}

/// A device, or a window of one, that the guest may have.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Device {
    /// What it is: `uart`, `gicd`, `pci config`, ...
    pub name: String,
    /// Where its registers are, in whole pages.
    pub span: Span,
}

/// A file that the machine's loader put into memory for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Module {
    /// Where it lies.
    pub span: Span,
    /// The command line that came with it.
    pub arguments: String,
}

/// A device tree that does not describe a machine the hypervisor can run on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MachineError {
    /// A property that does not have the form its specification gives it.
    #[error("device tree node `{node}`: {error}")]
    Property {
        /// The node's name.
        node: String,
        /// What is wrong with it.
        error: StandardError,
    },
    /// A range that runs past the last address.
    #[error("device tree node `{0}` has a range that wraps")]
    Wraps(String),
    /// Something without which there is nothing to run, or nothing to run it with.
    #[error("the device tree has no {0}")]
    Missing(&'static str),
}

impl Machine {
    /// Reads the machine's device tree.
    ///
    /// # Errors
    ///
    /// A [`MachineError`] if the tree is malformed, or if RAM, a UART, a GIC or a guest kernel
    /// is missing from it.
    pub fn read(tree: &Fdt<'_>) -> Result<Self, MachineError> {
        let root = tree.root();
        let chosen = root
            .child("chosen")
            .ok_or(MachineError::Missing("/chosen node"))?;
        let kernel = module(root, "multiboot,kernel")?.ok_or(MachineError::Missing(
            "guest kernel (a module of a guest-loader)",
        ))?;
        let mut machine = Self {
            options: text(chosen, "bootargs")?,
            ram: Vec::new(),
            reserved: Vec::new(),
            devices: Vec::new(),
            hypervisor_timer: None,
            kernel,
            ramdisk: module(root, "multiboot,ramdisk")?,
        };
        for reservation in tree.memory_reservations() {
            let (start, size) = (reservation.address(), reservation.size());
            let wraps = || MachineError::Wraps("/memreserve/".to_string());
            machine
                .reserved
                .push(Span::new(start, size).ok_or_else(wraps)?);
        }
        for node in root.children().filter(is_enabled) {
            machine.read_node(node)?;
        }
        if let Some(keeper) = root.child("reserved-memory") {
            for node in keeper.children() {
                machine.reserved.extend(registers(node)?);
            }
        }
        machine.devices.sort_by_key(|device| device.span);
        machine.check()
    }

    /// The registers of the first device called `name`.
    pub fn device(&self, name: &str) -> Option<Span> {
        self.devices
            .iter()
            .find(|device| device.name == name)
            .map(|device| device.span)
    }

    fn check(self) -> Result<Self, MachineError> {
        if self.ram.is_empty() {
            return Err(MachineError::Missing("memory"));
        }
        for (name, what) in [
            ("uart", "PL011 UART"),
            ("gicd", "GICv3 distributor"),
            ("gicr", "GICv3 redistributor"),
        ] {
            self.device(name).ok_or(MachineError::Missing(what))?;
        }
        Ok(self)
    }

    fn read_node(&mut self, node: FdtNode<'_>) -> Result<(), MachineError> {
        if is_memory(&node) {
            self.ram.extend(registers(node)?);
        } else if node.is_compatible(GIC) {
            let redistributors = regions_of_redistributors(&node);
            let spans = registers(node)?;
            for (index, span) in spans.into_iter().take(1 + redistributors).enumerate() {
                self.add_device(if index == 0 { "gicd" } else { "gicr" }, span);
            }
        } else if node.is_compatible(PCI) {
            for span in registers(node)? {
                self.add_device("pci config", span);
            }
            self.add_pci_windows(node)?;
        } else if node.is_compatible(TIMER) {
            self.hypervisor_timer = hypervisor_timer(node)?;
        } else {
            for (compatible, name) in PASSED_THROUGH {
                if node.is_compatible(compatible) {
                    for span in registers(node)? {
                        self.add_device(name, span);
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds what the host bridge forwards: `ranges`, whose first cell says which space it is
    /// (PCI Bus Binding to Open Firmware, revision 2.1, section 2.2.1.1).
    fn add_pci_windows(&mut self, node: FdtNode<'_>) -> Result<(), MachineError> {
        let error = |error: StandardError| property_error(&node, error);
        let Some(ranges) = node.ranges().map_err(|cause| error(cause.into()))? else {
            return Ok(());
        };
        for range in ranges {
            let space = range
                .child_bus_address
                .as_ref()
                .first()
                .map_or(0, |cell| cell.get());
            let name = match (space >> 24) & 3 {
                1 => "pci io",
                2 => "pci window",
                3 => "pci window 64",
                _ => continue,
            };
            let start = range.parent_bus_address().map_err(error)?;
            let size = range.length().map_err(error)?;
            self.add_device(name, new_span(&node, start, size)?);
        }
        Ok(())
    }

    /// Adds a device; the second one of a kind gets its address as part of its name.
    fn add_device(&mut self, kind: &str, span: Span) {
        let name = match self.device(kind) {
            None => kind.to_string(),
            Some(_) => format!("{kind}@{:x}", span.start()),
        };
        self.devices.push(Device {
            name,
            span: span.whole_pages(),
        });
    }
}

/// Whether the guest may see this node of the machine's tree, since all that it stands for is
/// passed through.
pub fn is_passed_through(node: &FdtNode<'_>) -> bool {
    let compatible = |name| node.is_compatible(name);
    is_enabled(node)
        && (compatible(GIC)
            || compatible(PCI)
            || PASSED_THROUGH.iter().any(|(name, _)| compatible(name)))
}

/// Whether this node is a bank of memory.
pub fn is_memory(node: &FdtNode<'_>) -> bool {
    node.property("device_type")
        .is_some_and(|kind| kind.value() == b"memory\0")
}

fn is_enabled(node: &FdtNode<'_>) -> bool {
    matches!(node.status(), Ok(Status::Okay))
}

fn regions_of_redistributors(gic: &FdtNode<'_>) -> usize {
    gic.property("#redistributor-regions")
        .and_then(|count| count.value_as::<u32>().ok())
        .map_or(1, |count| count as usize)
}

/// The EL2 physical timer's interrupt: the fourth of the timer node (Linux,
/// `Documentation/devicetree/bindings/timer/arm,arch_timer.yaml`), if it is a private one.
fn hypervisor_timer(node: FdtNode<'_>) -> Result<Option<u32>, MachineError> {
    let Some(interrupts) = node.property("interrupts") else {
        return Ok(None);
    };
    let error = |error: StandardError| property_error(&node, error);
    let mut interrupts = interrupts
        .as_prop_encoded_array([1, 1, 1])
        .map_err(|cause| error(cause.into()))?;
    let Some([kind, number, _]) = interrupts.nth(3) else {
        return Ok(None);
    };
    let is_private = kind.to_int::<u32>().map_err(error)? == 1;
    let number = number.to_int::<u32>().map_err(error)?;
    Ok((is_private && number < 16).then_some(number))
}

/// The module of this kind among those that the machine's loader left in `/chosen`.
fn module(root: FdtNode<'_>, kind: &str) -> Result<Option<Module>, MachineError> {
    let chosen = root
        .child("chosen")
        .ok_or(MachineError::Missing("/chosen node"))?;
    let Some(node) = chosen.children().find(|node| node.is_compatible(kind)) else {
        return Ok(None);
    };
    // QEMU's guest-loader writes addresses as the root has them and does not say so in `/chosen`.
    let cells = if chosen.property("#address-cells").is_some() {
        chosen
    } else {
        root
    };
    let cells = cells.address_space();
    let error = |error: StandardError| property_error(&node, error);
    let missing = MachineError::Missing("address of a guest-loader's module");
    let reg = node.property("reg").ok_or_else(|| missing.clone())?;
    let reg = reg
        .as_prop_encoded_array([cells.address_cells as usize, cells.size_cells as usize])
        .map_err(|cause| error(cause.into()))?
        .next();
    let [start, size] = reg.ok_or(missing)?;
    let start = start.to_int().map_err(error)?;
    let span = new_span(&node, start, size.to_int().map_err(error)?)?;
    Ok(Some(Module {
        span,
        arguments: text(node, "bootargs")?,
    }))
}

fn text(node: FdtNode<'_>, name: &str) -> Result<String, MachineError> {
    let Some(property) = node.property(name) else {
        return Ok(String::new());
    };
    let error = |cause: PropertyError| property_error(&node, cause.into());
    Ok(property.value_as::<&str>().map_err(error)?.to_string())
}

fn registers(node: FdtNode<'_>) -> Result<Vec<Span>, MachineError> {
    let error = |error: StandardError| property_error(&node, error);
    let mut spans = Vec::new();
    for reg in node
        .reg()
        .map_err(|cause| error(cause.into()))?
        .into_iter()
        .flatten()
    {
        let start = reg.address().map_err(error)?;
        let size = reg.size().map_err(error)?;
        spans.push(new_span(&node, start, size)?);
    }
    Ok(spans)
}

fn new_span(node: &FdtNode<'_>, start: u64, size: u64) -> Result<Span, MachineError> {
    Span::new(start, size).ok_or_else(|| MachineError::Wraps(node.name().to_string()))
}

fn property_error(node: &FdtNode<'_>, error: StandardError) -> MachineError {
    MachineError::Property {
        node: node.name().to_string(),
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MachineTree;

    fn span(start: u64, size: u64) -> Span {
        Span::new(start, size).expect("a test's range")
    }

    #[test]
    fn the_machine_is_read_from_its_tree() {
        let blob = MachineTree::default().build();
        let machine = Machine::read(&Fdt::new(&blob).expect("valid")).expect("complete");
        assert_eq!(machine.options, "memory=64M");
        assert_eq!(machine.hypervisor_timer, Some(10));
        assert_eq!(machine.ram, [span(0x4000_0000, 0x4000_0000)]);
        assert_eq!(machine.kernel.span, span(0x5000_0000, 0x19a_0000));
        assert_eq!(machine.kernel.arguments, "console=ttyAMA0");
        assert_eq!(
            machine.ramdisk.expect("one").span,
            span(0x5400_0000, 0x1_2345)
        );
        let devices: Vec<_> = machine
            .devices
            .iter()
            .map(|d| (d.name.as_str(), d.span.start()))
            .collect();
        assert_eq!(
            devices,
            [
                ("gicd", 0x800_0000),
                ("gicr", 0x80a_0000),
                ("uart", 0x900_0000),
                ("rtc", 0x901_0000),
                ("gpio", 0x903_0000),
                ("pci window", 0x1000_0000),
                ("pci io", 0x3eff_0000),
                ("pci config", 0x40_1000_0000),
                ("pci window 64", 0x80_0000_0000),
            ]
        );
    }

    #[test]
    fn devices_that_do_dma_are_not_passed_through() {
        let blob = MachineTree::default().build();
        let machine = Machine::read(&Fdt::new(&blob).expect("valid")).expect("complete");
        assert!(
            machine
                .devices
                .iter()
                .all(|device| !device.span.contains(0x902_0000))
        );
    }

    #[test]
    fn disabled_devices_are_left_out_and_second_ones_told_apart() {
        let blob = MachineTree {
            second_uart: Some("okay"),
            ..MachineTree::default()
        }
        .build();
        let machine = Machine::read(&Fdt::new(&blob).expect("valid")).expect("complete");
        assert_eq!(
            machine.device("uart@9040000"),
            Some(span(0x904_0000, 0x1000))
        );
        let blob = MachineTree {
            second_uart: Some("disabled"),
            ..MachineTree::default()
        }
        .build();
        let machine = Machine::read(&Fdt::new(&blob).expect("valid")).expect("complete");
        assert_eq!(machine.device("uart@9040000"), None);
    }

    #[test]
    fn a_machine_without_a_guest_kernel_is_refused() {
        let blob = MachineTree {
            kernel: false,
            ..MachineTree::default()
        }
        .build();
        let error = Machine::read(&Fdt::new(&blob).expect("valid")).expect_err("no kernel");
        assert!(matches!(error, MachineError::Missing(what) if what.contains("kernel")));
    }

    #[test]
    fn a_range_that_wraps_is_refused() {
        let blob = MachineTree {
            ram_size: u64::MAX,
            ..MachineTree::default()
        }
        .build();
        let error = Machine::read(&Fdt::new(&blob).expect("valid")).expect_err("wraps");
        assert_eq!(error, MachineError::Wraps("memory@40000000".to_string()));
    }
}
