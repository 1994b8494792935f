//! The file's tables, and how they become a plan.

use serde::Deserialize;
use slat_machine::event::AccessKind;
use slat_machine::rig::plan::{Backing, Churn, Features, Mapping, Slot, Touch};
use slat_machine::rig::{self, Plan};
use slat_report::size::Size;
use slat_table::address::PAGE_SIZE;
use toml::Spanned;

use crate::format::Row;
use crate::layout::HOST_END;
use crate::number::Number;
use crate::problem::{Problem, Problems};
use crate::ranges::{Given, Placed, check_address_bits, check_all, check_format, label};
use crate::slots::{GivenSlot, check_slots};

/// The most CPUs that the model has.
const MOST_CPUS: u8 = 16;

/// The most RAM that the modelled machine has.
const MOST_RAM: u64 = 64 << 30;

/// The largest image: its contents are made in memory.
const MOST_IMAGE: u64 = 64 << 20;

/// End of the host physical addresses of the model, which have 48 bits or fewer.
const PHYSICAL_END: u64 = 1 << 48;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    machine: Machine,
    #[serde(default)]
    mapping: Vec<Spanned<FileMapping>>,
    #[serde(default)]
    slot: Vec<Spanned<FileSlot>>,
    #[serde(default)]
    touch: Vec<Spanned<FileTouch>>,
    #[serde(default)]
    churn: Churn,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Machine {
    guest_cpus: Spanned<u8>,
    host_cpus: Spanned<u8>,
    ram: Spanned<Number>,
    steps: Spanned<u64>,
    format: Option<Spanned<String>>,
    address_bits: Option<Spanned<u8>>,
    #[serde(default)]
    hardware_accessed: bool,
    #[serde(default)]
    hardware_dirty: bool,
    #[serde(default = "yes")]
    force_write_back: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FileMapping {
    name: String,
    kind: FileKind,
    hva: Spanned<Number>,
    size: Spanned<Number>,
    hpa: Option<Spanned<Number>>,
    #[serde(default = "yes")]
    writable: bool,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum FileKind {
    Anonymous,
    Image,
    Device,
    Revocable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FileSlot {
    id: Spanned<u32>,
    name: String,
    gpa: Spanned<Number>,
    size: Spanned<Number>,
    hva: Spanned<Number>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    on_fault: bool,
    #[serde(default)]
    weight: u32,
    #[serde(default)]
    replaceable: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FileTouch {
    cpu: Spanned<u8>,
    gpa: Spanned<Number>,
    size: Spanned<Number>,
    #[serde(default = "page")]
    stride: Spanned<Number>,
    access: AccessKind,
}

const fn yes() -> bool {
    true
}

fn page() -> Spanned<Number> {
    Spanned::new(0..0, Number(4096))
}

pub(super) fn parse(
    text: &str,
    format: Option<&'static Row>,
) -> Result<(Plan, &'static Row), Problems> {
    let file: File = toml::from_str(text).map_err(|error| Problems::of_toml(&error))?;
    let mut problems = Vec::new();
    let machine = &file.machine;
    check_machine(machine, &mut problems);
    if file.slot.is_empty() {
        let nothing = Problem::new(0..0, "the scenario has no slot");
        problems.push(nothing.help("a slot is a table [[slot]] with id, name, gpa, size and hva"));
    }
    let format = check_format(format, machine.format.as_ref(), &mut problems);
    let address_bits = check_address_bits(format, machine.address_bits.as_ref(), &mut problems);
    let mappings = mappings(format, &file.mapping, &mut problems);
    let slots = slots(format, &file.slot, address_bits, &mut problems);
    let boot = touches(&file, address_bits, &mut problems);
    check_weights(&file, &mut problems);
    let plan = Plan {
        address_bits,
        features: Features {
            hardware_accessed: machine.hardware_accessed,
            hardware_dirty: machine.hardware_dirty,
            force_write_back: machine.force_write_back,
        },
        guest_cpus: *machine.guest_cpus.get_ref(),
        host_cpus: *machine.host_cpus.get_ref(),
        ram: machine.ram.get_ref().0,
        mappings,
        slots,
        boot,
        steps: *machine.steps.get_ref(),
        churn: file.churn,
    };
    check_room(format, machine, &plan, &mut problems);
    Problems::none_or(problems, (plan, format))
}

/// Frames and tables come from RAM, which has to lie where entries can point to.
fn check_room(format: &Row, machine: &Machine, plan: &Plan, problems: &mut Vec<Problem>) {
    if !problems.is_empty() {
        return;
    }
    let (start, bytes) = rig::layout::ram(plan);
    let end = format.host_end();
    if start.0.checked_add(bytes).is_none_or(|sum| sum > end) {
        let message = format!(
            "{} of RAM from {:#x} on end beyond {end:#x}, the end of the host physical addresses \
             of `{}`",
            Size(bytes),
            start.0,
            format.name()
        );
        let help = "less RAM, or devices below or above it, make room";
        problems.push(Problem::new(machine.ram.span(), message).help(help));
    }
}

fn check_machine(machine: &Machine, problems: &mut Vec<Problem>) {
    let mut wrong = |bad: bool, span: core::ops::Range<usize>, message: String| {
        if bad {
            problems.push(Problem::new(span, message));
        }
    };
    let (guest, host) = (*machine.guest_cpus.get_ref(), *machine.host_cpus.get_ref());
    let all = u16::from(guest) + u16::from(host);
    wrong(
        guest == 0,
        machine.guest_cpus.span(),
        "no CPU runs the guest: `guest-cpus` must be at least 1".to_owned(),
    );
    wrong(
        all > u16::from(MOST_CPUS),
        machine.host_cpus.span(),
        format!("{all} CPUs: the model has at most {MOST_CPUS}, guest's and host's together"),
    );
    let ram = machine.ram.get_ref().0;
    wrong(
        ram == 0 || !ram.is_multiple_of(2 << 20) || ram > MOST_RAM,
        machine.ram.span(),
        format!(
            "{} of RAM: must be a multiple of 2M, from 2M to {}",
            Size(ram),
            Size(MOST_RAM)
        ),
    );
    if *machine.steps.get_ref() == 0 {
        let message = "0 steps: nothing would happen";
        problems.push(Problem::new(machine.steps.span(), message));
    }
}

fn mappings(
    format: &Row,
    given: &[Spanned<FileMapping>],
    problems: &mut Vec<Problem>,
) -> Vec<Mapping> {
    let (mut placed, mut devices, mut mappings) = (Vec::new(), Vec::new(), Vec::new());
    for table in given {
        let mapping = table.get_ref();
        let label = label("mapping", Some(&mapping.name), 0);
        let range = Given {
            label: &label,
            key: "hva",
            start: &mapping.hva,
            bytes: &mapping.size,
        };
        let range = range.check(format, HOST_END, problems);
        check_frames(format, mapping, &label, problems);
        // What an image contains is made only for one of sound size.
        let backing = range
            .as_ref()
            .and_then(|_| backing(format, table, &mut devices, problems));
        mappings.extend(backing.map(|backing| Mapping {
            name: mapping.name.clone(),
            hva: mapping.hva.get_ref().0,
            bytes: mapping.size.get_ref().0,
            writable: mapping.writable,
            backing,
        }));
        placed.extend(range);
    }
    check_all(&placed, problems);
    check_all(&devices, problems);
    mappings
}

/// The host of the model has frames of 4 KiB and 2 MiB, and no others.
const FRAME: u64 = 2 << 20;

/// Where the format's page is larger than 4 KiB, only what lies in a frame of 2 MiB can be mapped.
fn check_frames(format: &Row, mapping: &FileMapping, label: &str, problems: &mut Vec<Problem>) {
    let page = format.sizes().small();
    if page == PAGE_SIZE || !matches!(mapping.kind, FileKind::Anonymous) {
        return;
    }
    let broken = |value: &&Spanned<Number>| !value.get_ref().0.is_multiple_of(FRAME);
    if let Some(value) = [&mapping.hva, &mapping.size].into_iter().find(broken) {
        let message = format!(
            "{label} has {:#x}, which is no multiple of 2M: where pages have {}, as with `{}`, the \
             model's RAM comes in whole frames of 2M",
            value.get_ref().0,
            Size(page),
            format.name()
        );
        let help = "align hva and size to 2M, or take a format with pages of 4K";
        problems.push(Problem::new(value.span(), message).help(help));
    }
}

fn backing(
    format: &Row,
    table: &Spanned<FileMapping>,
    devices: &mut Vec<Placed>,
    problems: &mut Vec<Problem>,
) -> Option<Backing> {
    let mapping = table.get_ref();
    let FileMapping { name, size, .. } = mapping;
    let is_device = matches!(mapping.kind, FileKind::Device | FileKind::Revocable);
    if is_device && !format.has_devices() {
        let message = format!(
            "mapping `{name}` is a device: `{}` has no leaf that shows a device's memory and holds \
             against the guest",
            format.name()
        );
        let help = "leave the device out, or take another format";
        problems.push(Problem::new(table.span(), message).help(help));
        return None;
    }
    match (mapping.kind, &mapping.hpa) {
        (kind @ (FileKind::Device | FileKind::Revocable), Some(hpa)) => {
            let device = Given {
                label: &format!("the device memory of mapping `{name}`"),
                key: "hpa",
                start: hpa,
                bytes: size,
            };
            let end = PHYSICAL_END.min(format.host_end());
            devices.push(device.check(format, end, problems)?);
            let hpa = hpa.get_ref().0;
            Some(match kind {
                FileKind::Revocable => Backing::Revocable { hpa },
                _ => Backing::Device { hpa },
            })
        }
        (FileKind::Device | FileKind::Revocable, None) => {
            let message = format!("mapping `{name}` is a device without `hpa`");
            let help = "say which host physical address is behind its first byte";
            problems.push(Problem::new(table.span(), message).help(help));
            None
        }
        (FileKind::Anonymous | FileKind::Image, Some(hpa)) => {
            let message = format!("mapping `{name}` has an `hpa` but is no device");
            let help = "the host chooses where its RAM is";
            problems.push(Problem::new(hpa.span(), message).help(help));
            None
        }
        (FileKind::Anonymous, None) => Some(Backing::Anonymous),
        (FileKind::Image, None) => image(name, size, problems),
    }
}

/// Contents of which each word says where it is, so that a page out of place shows.
fn image(name: &str, size: &Spanned<Number>, problems: &mut Vec<Problem>) -> Option<Backing> {
    let bytes = size.get_ref().0;
    if bytes > MOST_IMAGE {
        let message = format!(
            "the image `{name}` has {}: at most {}",
            Size(bytes),
            Size(MOST_IMAGE)
        );
        problems.push(Problem::new(size.span(), message));
        return None;
    }
    let mut contents = Vec::new();
    for word in 1..=bytes / 8 {
        let word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        contents.extend_from_slice(&word.to_le_bytes());
    }
    Some(Backing::Image(contents.into()))
}

fn slots(
    format: &Row,
    given: &[Spanned<FileSlot>],
    bits: u8,
    problems: &mut Vec<Problem>,
) -> Vec<Slot> {
    let slots = given.iter().map(Spanned::get_ref);
    let checked: Vec<_> = slots.clone().map(FileSlot::given).collect();
    check_slots(format, &checked, bits, HOST_END, problems);
    let made = |slot: &FileSlot| Slot {
        name: slot.name.clone(),
        id: *slot.id.get_ref(),
        gpa: slot.gpa.get_ref().0,
        bytes: slot.size.get_ref().0,
        hva: slot.hva.get_ref().0,
        read_only: slot.read_only,
        on_fault: slot.on_fault,
        weight: slot.weight,
        replaceable: slot.replaceable,
    };
    slots.map(made).collect()
}

impl FileSlot {
    fn given(&self) -> GivenSlot<'_> {
        GivenSlot {
            id: &self.id,
            name: Some(&self.name),
            gpa: &self.gpa,
            hva: &self.hva,
            size: &self.size,
        }
    }
}

/// A run in which nobody touches anything shows nothing.
fn check_weights(file: &File, problems: &mut Vec<Problem>) {
    let weights = file
        .slot
        .iter()
        .map(|slot| u64::from(slot.get_ref().weight));
    if let Some(slot) = file.slot.first()
        && weights.sum::<u64>() == 0
    {
        let message = "no slot has a `weight`: the guest would access nothing after its boot";
        problems.push(Problem::new(slot.span(), message));
    }
}

fn touches(file: &File, bits: u8, problems: &mut Vec<Problem>) -> Vec<Touch> {
    let cpus = *file.machine.guest_cpus.get_ref();
    let mut touches = Vec::new();
    for table in &file.touch {
        let touch = table.get_ref();
        let cpu = *touch.cpu.get_ref();
        if cpu >= cpus {
            let message = format!("the guest has no CPU {cpu}: there are {cpus}, from 0 on");
            problems.push(Problem::new(touch.cpu.span(), message));
        }
        let (gpa, bytes) = (touch.gpa.get_ref().0, touch.size.get_ref().0);
        let end = gpa.checked_add(bytes);
        if bytes == 0 || end.is_none_or(|end| end > 1 << bits) {
            let message = format!(
                "{bytes:#x} bytes from {gpa:#x} are nothing that a guest with {bits} address \
                 bits can touch"
            );
            problems.push(Problem::new(touch.gpa.span(), message));
        }
        let stride = touch.stride.get_ref().0;
        if stride == 0 {
            problems.push(Problem::new(
                touch.stride.span(),
                "a stride of 0 never ends",
            ));
        }
        touches.push(Touch {
            cpu,
            gpa,
            bytes,
            stride,
            kind: touch.access,
        });
    }
    touches
}
