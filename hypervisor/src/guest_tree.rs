//! The device tree that the guest gets: the machine's own, less everything that is not the
//! guest's, with the guest's memory and command line.
//!
//! Linux finds its devices here alone. What the tree does not name is not there: DMA devices
//! (`fw-cfg`, virtio) and the interrupt translation service would be handed guest addresses where
//! they expect host addresses.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::standard::NodeStandard as _;
use dtoolkit::{Node as _, Property as _, ToPropertyValue};
use thiserror::Error;

use crate::machine;
use crate::span::Span;

/// Nodes without registers that a guest needs or can use.
const KEPT: [&str; 4] = [
    "arm,armv8-timer",
    "arm,armv8-pmuv3",
    "fixed-clock",
    "gpio-keys",
];
/// Properties of a host bridge that lead to devices which translate addresses or interrupts.
const BRIDGE_ONLY: [&str; 4] = ["msi-map", "msi-parent", "iommu-map", "iommu-map-mask"];

/// What the guest's tree says that the machine's does not. All addresses are guest-physical.
#[derive(Debug, Clone, Copy)]
#[expect(
    clippy::exhaustive_structs,
    reason = "built by the one program that uses it"
)]
pub struct Guest<'a> {
    /// The guest's RAM.
    pub ram: Span,
    /// The kernel's command line.
    pub arguments: &'a str,
    /// The initial RAM disk.
    pub ramdisk: Option<Span>,
    /// The affinity fields of the CPU that the guest runs on (`MPIDR_EL1`).
    pub cpu: u64,
}

/// A machine that no guest tree can be made from.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GuestTreeError {
    /// The CPU that the guest runs on is not in the machine's tree.
    #[error("the device tree has no CPU with affinity {0:#x}")]
    NoCpu(u64),
    /// The tree is larger than the boot protocol allows.
    #[error("the guest's device tree has {0} bytes, more than 2 MiB")]
    TooLarge(usize),
}

/// Builds the guest's tree from the machine's.
///
/// # Errors
///
/// A [`GuestTreeError`] if the guest's CPU is not in it, or if it grows too large.
pub fn build(machine: &Fdt<'_>, guest: Guest<'_>) -> Result<Vec<u8>, GuestTreeError> {
    let mut tree = DeviceTree::new();
    let host = machine.root();
    for property in host.properties() {
        tree.root
            .add_property(DeviceTreeProperty::from_property(&property));
    }
    for node in host.children() {
        if machine::is_passed_through(&node) {
            tree.root.add_child(passed_through(&node));
        } else if KEPT.iter().any(|name| node.is_compatible(name)) {
            tree.root.add_child(DeviceTreeNode::from_node(&node));
        }
    }
    tree.root.add_child(cpus(host, guest.cpu)?);
    tree.root.add_child(firmware());
    tree.root.add_child(memory(guest.ram));
    tree.root.add_child(chosen(host, guest));
    let blob = tree.to_dtb();
    if blob.len() as u64 > crate::layout::MOST_TREE {
        return Err(GuestTreeError::TooLarge(blob.len()));
    }
    Ok(blob)
}

fn passed_through(node: &FdtNode<'_>) -> DeviceTreeNode {
    let mut copy = DeviceTreeNode::from_node(node);
    for name in BRIDGE_ONLY {
        copy.remove_property(name);
    }
    let children: Vec<String> = node
        .children()
        .map(|child| child.name().to_string())
        .collect();
    for child in children {
        copy.remove_child(&child);
    }
    copy
}

/// The one CPU that the guest has. `cpu-map` names the others too, so it goes.
fn cpus(host: FdtNode<'_>, affinity: u64) -> Result<DeviceTreeNode, GuestTreeError> {
    let mut cpus = DeviceTreeNode::new_unchecked("cpus");
    let Some(node) = host.child("cpus") else {
        return Err(GuestTreeError::NoCpu(affinity));
    };
    for property in node.properties() {
        cpus.add_property(DeviceTreeProperty::from_property(&property));
    }
    let cpu = node.children().find(|cpu| {
        let is_cpu = cpu
            .property("device_type")
            .is_some_and(|kind| kind.value() == b"cpu\0");
        let reg = cpu.reg().ok().flatten().and_then(|mut regs| regs.next());
        is_cpu && reg.and_then(|reg| reg.address::<u64>().ok()) == Some(affinity)
    });
    cpus.add_child(DeviceTreeNode::from_node(
        &cpu.ok_or(GuestTreeError::NoCpu(affinity))?,
    ));
    Ok(cpus)
}

fn firmware() -> DeviceTreeNode {
    let mut psci = DeviceTreeNode::new_unchecked("psci");
    let versions = vec!["arm,psci-1.0", "arm,psci-0.2"];
    set(&mut psci, "compatible", versions);
    set(&mut psci, "method", "smc");
    psci
}

fn memory(ram: Span) -> DeviceTreeNode {
    let mut memory = DeviceTreeNode::new_unchecked(format!("memory@{:x}", ram.start()));
    set(&mut memory, "device_type", "memory");
    let reg = [ram.start().to_be_bytes(), ram.size().to_be_bytes()].concat();
    set(&mut memory, "reg", reg);
    memory
}

fn chosen(host: FdtNode<'_>, guest: Guest<'_>) -> DeviceTreeNode {
    let mut chosen = DeviceTreeNode::new_unchecked("chosen");
    for name in ["stdout-path", "kaslr-seed", "rng-seed"] {
        let property = host.child("chosen").and_then(|node| node.property(name));
        if let Some(property) = property {
            chosen.add_property(DeviceTreeProperty::from_property(&property));
        }
    }
    set(&mut chosen, "bootargs", guest.arguments);
    if let Some(ramdisk) = guest.ramdisk {
        set(&mut chosen, "linux,initrd-start", ramdisk.start());
        set(&mut chosen, "linux,initrd-end", ramdisk.end());
    }
    chosen
}

fn set(node: &mut DeviceTreeNode, name: &str, value: impl ToPropertyValue) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MachineTree;

    fn guest() -> Guest<'static> {
        Guest {
            ram: Span::new(0x4000_0000, 64 << 20).expect("valid"),
            arguments: "console=ttyAMA0 quiet",
            ramdisk: Span::new(0x4200_0000, 0x1_2345),
            cpu: 0,
        }
    }

    fn built(machine: &MachineTree, guest: Guest<'_>) -> Vec<u8> {
        let blob = machine.build();
        build(&Fdt::new(&blob).expect("valid"), guest).expect("a tree")
    }

    #[test]
    fn the_guest_sees_its_own_memory_and_arguments() {
        let blob = built(&MachineTree::default(), guest());
        let tree = Fdt::new(&blob).expect("valid");
        let memory = tree.find_node("/memory").expect("one");
        let reg = memory
            .reg()
            .expect("valid")
            .expect("one")
            .next()
            .expect("one");
        assert_eq!(
            (reg.address::<u64>(), reg.size::<u64>()),
            (Ok(0x4000_0000), Ok(64 << 20))
        );
        let chosen = tree.find_node("/chosen").expect("one");
        let text = |name| {
            chosen
                .property(name)
                .expect(name)
                .value_as::<&str>()
                .expect(name)
        };
        let number = |name| {
            chosen
                .property(name)
                .expect(name)
                .value_as::<u64>()
                .expect(name)
        };
        assert_eq!(text("bootargs"), "console=ttyAMA0 quiet");
        assert_eq!(text("stdout-path"), "/pl011@9000000");
        assert_eq!(number("linux,initrd-start"), 0x4200_0000);
        assert_eq!(number("linux,initrd-end"), 0x4201_2345);
        assert_eq!(chosen.children().count(), 0, "modules are the hypervisor's");
    }

    #[test]
    fn devices_that_are_not_the_guests_are_not_in_its_tree() {
        let blob = built(&MachineTree::default(), guest());
        let tree = Fdt::new(&blob).expect("valid");
        for path in ["/fw-cfg@9020000", "/intc@8000000/its@8080000"] {
            assert!(tree.find_node(path).is_none(), "{path}");
        }
        for path in [
            "/pl011@9000000",
            "/intc@8000000",
            "/pcie@10000000",
            "/timer",
            "/psci",
        ] {
            assert!(tree.find_node(path).is_some(), "{path}");
        }
        let pci = tree.find_node("/pcie@10000000").expect("one");
        assert!(pci.property("msi-map").is_none() && pci.property("ranges").is_some());
    }

    #[test]
    fn the_guest_has_the_one_cpu_that_it_runs_on() {
        let blob = built(
            &MachineTree {
                cpus: 3,
                ..MachineTree::default()
            },
            Guest { cpu: 2, ..guest() },
        );
        let tree = Fdt::new(&blob).expect("valid");
        let cpus = tree.find_node("/cpus").expect("one");
        let names: Vec<_> = cpus.children().map(|cpu| cpu.name().to_string()).collect();
        assert_eq!(names, ["cpu@2"]);
    }

    #[test]
    fn an_unknown_cpu_is_refused() {
        let blob = MachineTree::default().build();
        let error = build(
            &Fdt::new(&blob).expect("valid"),
            Guest { cpu: 7, ..guest() },
        );
        assert_eq!(error, Err(GuestTreeError::NoCpu(7)));
    }
}
