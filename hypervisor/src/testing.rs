//! A machine's device tree for tests, in the shape that QEMU's `virt` gives.

use alloc::vec::Vec;

use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

/// What differs between the machines that tests ask for.
#[derive(Debug)]
pub(crate) struct MachineTree {
    pub(crate) ram_size: u64,
    pub(crate) kernel: bool,
    pub(crate) second_uart: Option<&'static str>,
    pub(crate) cpus: u32,
}

impl Default for MachineTree {
    fn default() -> Self {
        Self {
            ram_size: 0x4000_0000,
            kernel: true,
            second_uart: None,
            cpus: 1,
        }
    }
}

impl MachineTree {
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut tree = DeviceTree::new();
        let root = &mut tree.root;
        set(root, "#address-cells", cells(&[2]));
        set(root, "#size-cells", cells(&[2]));
        set(root, "interrupt-parent", cells(&[0x8002]));
        root.add_child(device("psci", "arm,psci-0.2", &[]));
        let mut memory = device("memory@40000000", "", &[(0x4000_0000, self.ram_size)]);
        set(&mut memory, "device_type", b"memory\0".to_vec());
        root.add_child(memory);
        root.add_child(device(
            "fw-cfg@9020000",
            "qemu,fw-cfg-mmio",
            &[(0x902_0000, 0x18)],
        ));
        root.add_child(device(
            "pl011@9000000",
            "arm,pl011",
            &[(0x900_0000, 0x1000)],
        ));
        root.add_child(device(
            "pl031@9010000",
            "arm,pl031",
            &[(0x901_0000, 0x1000)],
        ));
        root.add_child(device(
            "pl061@9030000",
            "arm,pl061",
            &[(0x903_0000, 0x1000)],
        ));
        let mut timer = device("timer", "arm,armv8-timer", &[]);
        set(
            &mut timer,
            "interrupts",
            cells(&[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]),
        );
        root.add_child(timer);
        if let Some(status) = self.second_uart {
            let mut uart = device("pl011@9040000", "arm,pl011", &[(0x904_0000, 0x1000)]);
            set(&mut uart, "status", [status.as_bytes(), b"\0"].concat());
            root.add_child(uart);
        }
        root.add_child(gic());
        root.add_child(pci());
        root.add_child(self.cpus());
        root.add_child(self.chosen());
        tree.to_dtb()
    }

    fn cpus(&self) -> DeviceTreeNode {
        let mut cpus = DeviceTreeNode::new_unchecked("cpus");
        set(&mut cpus, "#address-cells", cells(&[1]));
        set(&mut cpus, "#size-cells", cells(&[0]));
        cpus.add_child(DeviceTreeNode::new_unchecked("cpu-map"));
        for number in 0..self.cpus {
            let mut cpu = DeviceTreeNode::new_unchecked(alloc::format!("cpu@{number}"));
            set(&mut cpu, "device_type", b"cpu\0".to_vec());
            set(&mut cpu, "reg", cells(&[number]));
            cpus.add_child(cpu);
        }
        cpus
    }

    fn chosen(&self) -> DeviceTreeNode {
        let mut chosen = DeviceTreeNode::new_unchecked("chosen");
        set(&mut chosen, "bootargs", b"memory=64M\0".to_vec());
        set(&mut chosen, "stdout-path", b"/pl011@9000000\0".to_vec());
        if self.kernel {
            let reg = [(0x5000_0000, 0x19a_0000)];
            let mut kernel = device(
                "module@50000000",
                "multiboot,module\0multiboot,kernel",
                &reg,
            );
            set(&mut kernel, "bootargs", b"console=ttyAMA0\0".to_vec());
            chosen.add_child(kernel);
        }
        let reg = [(0x5400_0000, 0x1_2345)];
        chosen.add_child(device(
            "module@54000000",
            "multiboot,module\0multiboot,ramdisk",
            &reg,
        ));
        chosen
    }
}

fn gic() -> DeviceTreeNode {
    let mut gic = device(
        "intc@8000000",
        "arm,gic-v3",
        &[
            (0x800_0000, 0x1_0000),
            (0x80a_0000, 0xf6_0000),
            (0x801_0000, 0x2000),
        ],
    );
    set(&mut gic, "#redistributor-regions", cells(&[1]));
    gic.add_child(device(
        "its@8080000",
        "arm,gic-v3-its",
        &[(0x808_0000, 0x2_0000)],
    ));
    gic
}

fn pci() -> DeviceTreeNode {
    let mut pci = device(
        "pcie@10000000",
        "pci-host-ecam-generic",
        &[(0x40_1000_0000, 0x1000_0000)],
    );
    set(&mut pci, "#address-cells", cells(&[3]));
    set(&mut pci, "#size-cells", cells(&[2]));
    set(&mut pci, "msi-map", cells(&[0, 0x8003, 0, 0x1_0000]));
    #[rustfmt::skip]
    let ranges = [
        0x0100_0000, 0, 0, 0, 0x3eff_0000, 0, 0x1_0000,
        0x0200_0000, 0, 0x1000_0000, 0, 0x1000_0000, 0, 0x2eff_0000,
        0x0300_0000, 0x80, 0, 0x80, 0, 0x80, 0,
    ];
    set(&mut pci, "ranges", cells(&ranges));
    pci
}

fn device(name: &str, compatible: &str, spans: &[(u64, u64)]) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(name);
    if !compatible.is_empty() {
        set(
            &mut node,
            "compatible",
            [compatible.as_bytes(), b"\0"].concat(),
        );
    }
    if !spans.is_empty() {
        let reg = spans.iter().flat_map(|&(start, size)| {
            [start.to_be_bytes(), size.to_be_bytes()]
                .into_iter()
                .flatten()
        });
        set(&mut node, "reg", reg.collect());
    }
    node
}

fn cells(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_be_bytes())
        .collect()
}

fn set(node: &mut DeviceTreeNode, name: &str, value: Vec<u8>) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}
