//! Layouts in TOML.

use core::ops::Range;

use serde::Deserialize;
use slat_report::size::Size;
use toml::Spanned;

use super::{DEVICE_END, HOST_END, Kind, Layout, Mapping, Pages, Resident, Slot};
use crate::number::Number;
use crate::problem::{Problem, Problems};
use crate::ranges::{Given, Placed, check_address_bits, check_all, label};
use crate::slots::{GivenSlot, check_slots};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    address_bits: Option<Spanned<u8>>,
    #[serde(default)]
    mapping: Vec<Spanned<FileMapping>>,
    #[serde(default)]
    slot: Vec<Spanned<FileSlot>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FileMapping {
    name: Option<String>,
    kind: FileKind,
    hva: Spanned<Number>,
    size: Spanned<Number>,
    hpa: Option<Spanned<Number>>,
    #[serde(default = "yes")]
    writable: bool,
    pages: Option<Spanned<Pages>>,
    populated: Option<bool>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum FileKind {
    Ram,
    File,
    Pfnmap,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FileSlot {
    id: Spanned<u32>,
    name: Option<String>,
    gpa: Spanned<Number>,
    size: Spanned<Number>,
    hva: Spanned<Number>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    on_fault: bool,
}

const fn yes() -> bool {
    true
}

/// Reads a layout.
///
/// # Errors
///
/// [`Problems`]: everything that is wrong with it, each with its place in `text`.
pub fn parse(text: &str) -> Result<Layout, Problems> {
    parse_with_places(text).map(|(layout, _)| layout)
}

/// Reads a layout, and says where each slot's size is given.
pub(crate) fn parse_with_places(text: &str) -> Result<(Layout, Vec<Range<usize>>), Problems> {
    let file: File = toml::from_str(text).map_err(|error| Problems::of_toml(&error))?;
    let mut problems = Vec::new();
    if file.slot.is_empty() {
        let nothing = Problem::new(0..0, "the layout has no slot");
        problems.push(nothing.help("a slot is a table [[slot]] with id, gpa, size and hva"));
    }
    let address_bits = address_bits(file.address_bits.as_ref(), &mut problems);
    let mappings = mappings(&file.mapping, &mut problems);
    let slots = slots(&file.slot, address_bits, &mut problems);
    let sizes = file.slot.iter().map(|slot| slot.get_ref().size.span());
    let layout = Layout {
        address_bits,
        mappings,
        slots,
    };
    Problems::none_or(problems, (layout, sizes.collect()))
}

fn address_bits(given: Option<&Spanned<u8>>, problems: &mut Vec<Problem>) -> u8 {
    const DEFAULT: u8 = 40;
    given
        .filter(|bits| check_address_bits(bits, problems))
        .map_or(DEFAULT, |bits| *bits.get_ref())
}

fn mappings(given: &[Spanned<FileMapping>], problems: &mut Vec<Problem>) -> Vec<Mapping> {
    let mut placed = Vec::new();
    let mut devices = Vec::new();
    let mut mappings = Vec::new();
    for (index, table) in given.iter().enumerate() {
        let mapping = table.get_ref();
        let label = label("mapping", mapping.name.as_deref(), index + 1);
        let range = Given {
            label: &label,
            key: "hva",
            start: &mapping.hva,
            bytes: &mapping.size,
        };
        let range = range.check(HOST_END, problems);
        let kind = kind(table, &label, &mut devices, problems);
        if let Some(range) = range {
            check_pages(mapping, &range, problems);
            placed.push(range);
        }
        let populated = mapping.populated;
        let populated = populated.unwrap_or(mapping.kind == FileKind::Pfnmap);
        let unnamed = || format!("mapping {}", index + 1);
        mappings.push(Mapping {
            name: mapping.name.clone().unwrap_or_else(unnamed),
            hva: mapping.hva.get_ref().0,
            bytes: mapping.size.get_ref().0,
            kind,
            writable: mapping.writable,
            pages: mapping
                .pages
                .as_ref()
                .map_or(Pages::Auto, |pages| *pages.get_ref()),
            resident: if populated {
                Resident::All
            } else {
                Resident::Nothing
            },
        });
    }
    check_all(&placed, problems);
    check_all(&devices, problems);
    mappings
}

/// What is behind a mapping. A PFNMAP must say where, nothing else may.
fn kind(
    table: &Spanned<FileMapping>,
    label: &str,
    devices: &mut Vec<Placed>,
    problems: &mut Vec<Problem>,
) -> Kind {
    let mapping = table.get_ref();
    match (mapping.kind, &mapping.hpa) {
        (FileKind::Pfnmap, Some(hpa)) => {
            let device = Given {
                label: &format!("the device memory of {label}"),
                key: "hpa",
                start: hpa,
                bytes: &mapping.size,
            };
            // A wrong size is told once, by the check of the mapping itself.
            let mut found = Vec::new();
            devices.extend(device.check(DEVICE_END, &mut found));
            problems.extend(found.into_iter().filter(|p| p.span == hpa.span()));
            return Kind::Pfnmap {
                hpa: hpa.get_ref().0,
            };
        }
        (FileKind::Pfnmap, None) => {
            let message = format!("{label} is a pfnmap without `hpa`");
            let help = "say which host physical address is behind its first byte";
            problems.push(Problem::new(table.span(), message).help(help));
        }
        (_, Some(hpa)) => {
            let message = format!("{label} has an `hpa` but is no pfnmap");
            let help = "the host chooses where RAM and files are";
            problems.push(Problem::new(hpa.span(), message).help(help));
        }
        (_, None) => {}
    }
    match mapping.kind {
        FileKind::File => Kind::File,
        FileKind::Ram | FileKind::Pfnmap => Kind::Ram,
    }
}

/// Pages that are asked for by size come from hugetlbfs, which maps nothing but whole ones.
fn check_pages(mapping: &FileMapping, range: &Placed, problems: &mut Vec<Problem>) {
    let Some(pages) = &mapping.pages else {
        return;
    };
    let bytes = match pages.get_ref() {
        Pages::Huge => 2 << 20,
        Pages::Gigantic => 1 << 30,
        Pages::Auto | Pages::Small => return,
    };
    let whole = range.start.is_multiple_of(bytes) && range.end.is_multiple_of(bytes);
    if mapping.kind != FileKind::Pfnmap && !whole {
        let size = Size(bytes);
        let message = format!(
            "{} from {:#x} to {:#x} is not made of whole {size} pages",
            range.label, range.start, range.end
        );
        let help = "align hva and size to it, or leave `pages` out";
        problems.push(Problem::new(pages.span(), message).help(help));
    }
}

fn slots(given: &[Spanned<FileSlot>], bits: u8, problems: &mut Vec<Problem>) -> Vec<Slot> {
    let slots = given.iter().map(Spanned::get_ref);
    let checked: Vec<_> = slots.clone().map(FileSlot::given).collect();
    check_slots(&checked, bits, HOST_END, problems);
    let made = |slot: &FileSlot| Slot {
        name: name_of(slot),
        id: *slot.id.get_ref(),
        gpa: slot.gpa.get_ref().0,
        bytes: slot.size.get_ref().0,
        hva: slot.hva.get_ref().0,
        read_only: slot.read_only,
        on_fault: slot.on_fault,
    };
    slots.map(made).collect()
}

impl FileSlot {
    fn given(&self) -> GivenSlot<'_> {
        GivenSlot {
            id: &self.id,
            name: self.name.as_deref(),
            gpa: &self.gpa,
            hva: &self.hva,
            size: &self.size,
        }
    }
}

fn name_of(slot: &FileSlot) -> String {
    let unnamed = || format!("slot {}", slot.id.get_ref());
    slot.name.clone().unwrap_or_else(unnamed)
}
