//! Layouts in TOML.

use core::ops::Range;

use serde::Deserialize;
use slat_report::size::Size;
use toml::Spanned;

use super::{HOST_END, Kind, Layout, Mapping, Pages, Resident, Slot};
use crate::format::Row;
use crate::number::Number;
use crate::problem::{Problem, Problems};
use crate::ranges::{Given, Placed, check_address_bits, check_all, check_format, label};
use crate::slots::{GivenSlot, check_slots};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    format: Option<Spanned<String>>,
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
    pages: Option<Spanned<String>>,
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

/// Where a layout's file says what may turn out to be wrong later.
pub(crate) struct Places {
    /// Each slot's size.
    pub(crate) sizes: Vec<Range<usize>>,
    /// Each mapping.
    pub(crate) mappings: Vec<Range<usize>>,
}

/// Reads a layout.
///
/// # Errors
///
/// [`Problems`]: everything that is wrong with it, each with its place in `text`.
pub fn parse(text: &str) -> Result<Layout, Problems> {
    parse_with_places(text, None).map(|(layout, _)| layout)
}

/// Reads a layout for tables of `format`, whatever the file says of it. Says also what is where.
pub(crate) fn parse_with_places(
    text: &str,
    format: Option<&'static Row>,
) -> Result<(Layout, Places), Problems> {
    let file: File = toml::from_str(text).map_err(|error| Problems::of_toml(&error))?;
    let mut problems = Vec::new();
    let format = check_format(format, file.format.as_ref(), &mut problems);
    if file.slot.is_empty() {
        let nothing = Problem::new(0..0, "the layout has no slot");
        problems.push(nothing.help("a slot is a table [[slot]] with id, gpa, size and hva"));
    }
    let given = file.address_bits.as_ref();
    let address_bits = check_address_bits(format, given, &mut problems);
    let mappings = mappings(format, &file.mapping, &mut problems);
    let slots = slots(format, &file.slot, address_bits, &mut problems);
    let places = Places {
        sizes: file
            .slot
            .iter()
            .map(|slot| slot.get_ref().size.span())
            .collect(),
        mappings: file.mapping.iter().map(Spanned::span).collect(),
    };
    let layout = Layout {
        format,
        address_bits,
        mappings,
        slots,
    };
    Problems::none_or(problems, (layout, places))
}

fn mappings(
    format: &Row,
    given: &[Spanned<FileMapping>],
    problems: &mut Vec<Problem>,
) -> Vec<Mapping> {
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
        let range = range.check(format, HOST_END, problems);
        let kind = kind(format, table, &label, &mut devices, problems);
        let pages = pages(format, mapping, range.as_ref(), problems);
        placed.extend(range);
        let populated = mapping.populated;
        let populated = populated.unwrap_or(mapping.kind == FileKind::Pfnmap);
        let unnamed = || format!("mapping {}", index + 1);
        mappings.push(Mapping {
            name: mapping.name.clone().unwrap_or_else(unnamed),
            hva: mapping.hva.get_ref().0,
            bytes: mapping.size.get_ref().0,
            kind,
            writable: mapping.writable,
            pages,
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
    format: &Row,
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
            devices.extend(device.check(format, format.host_end(), &mut found));
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

/// The pages asked for. Those of a size come from hugetlbfs, which maps nothing but whole ones.
fn pages(
    format: &Row,
    mapping: &FileMapping,
    range: Option<&Placed>,
    problems: &mut Vec<Problem>,
) -> Pages {
    let Some(given) = &mapping.pages else {
        return Pages::Auto;
    };
    let sizes = format.sizes();
    let Some(pages) = sizes.named(given.get_ref()) else {
        let message = format!(
            "`{}` is no size of pages: hosts with `{}` have {}",
            given.get_ref(),
            format.name(),
            sizes.in_words()
        );
        let help = "`4K`, `2M` and `1G` also stand for the page, the huge and the gigantic page, \
                    where there are such; `auto` for what the host does by itself";
        problems.push(Problem::new(given.span(), message).help(help));
        return Pages::Auto;
    };
    let mut above_small = sizes.above_small();
    let (Some((_, bytes)), Some(range)) = (above_small.find(|(kind, _)| *kind == pages), range)
    else {
        return pages;
    };
    let whole = range.start.is_multiple_of(bytes) && range.end.is_multiple_of(bytes);
    if mapping.kind != FileKind::Pfnmap && !whole {
        let message = format!(
            "{} from {:#x} to {:#x} is not made of whole {} pages",
            range.label,
            range.start,
            range.end,
            Size(bytes)
        );
        let help = "align hva and size to it, or leave `pages` out";
        problems.push(Problem::new(given.span(), message).help(help));
    }
    pages
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
