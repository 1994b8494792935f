//! An explanation for people: a table of regions, and under each what limits it and what would help.

use core::fmt::{self, Display};

use anstyle::{AnsiColor, Style};
use slat_report::Flushes;
use slat_report::size::Size;
use slat_report::text::blocks;

use super::{Because, Explanation, PartExplained, SlotExplained, When};

const TITLE: Style = Style::new().bold();
const QUIET: Style = Style::new().dimmed();
const HELP: Style = AnsiColor::Green.on_default();

const HEAD: [&str; 9] = [
    "name",
    "kind",
    "gpa",
    "hva",
    "size",
    "mapped",
    "in blocks",
    "entries",
    "faults",
];

impl Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AtCreation => "at creation",
            Self::AtCreationAndOnFault => "at creation, on fault",
            Self::OnFault => "on fault",
            Self::Never => "never",
        })
    }
}

impl Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<_> = self
            .slots
            .iter()
            .flat_map(|slot| slot.parts.iter().map(move |part| (part, cells(slot, part))))
            .collect();
        let widths: [usize; 9] = core::array::from_fn(|column| {
            let cells = rows.iter().map(|(_, row)| row[column].chars().count());
            cells.chain([HEAD[column].len()]).max().unwrap_or_default()
        });
        writeln!(
            f,
            "{TITLE}Regions{TITLE:#} of a guest with {} address bits, in tables of {}",
            self.address_bits, self.format
        )?;
        write!(f, "{QUIET}")?;
        row(f, &HEAD, &widths)?;
        write!(f, "{QUIET:#}")?;
        for (part, cells) in &rows {
            row(f, &cells.each_ref().map(String::as_str), &widths)?;
            details(f, part)?;
        }
        self.totals(f)?;
        for note in &self.notes {
            writeln!(f, "\n{note}")?;
        }
        Ok(())
    }
}

impl Explanation {
    fn totals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{TITLE}Cost{TITLE:#}")?;
        write!(f, "  entries       {}", self.entries)?;
        if self.entries_in_runs != 0 {
            write!(f, ", {} of them in runs", self.entries_in_runs)?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "  tables        {} in {} pages",
            Size(self.table_bytes),
            self.table_bytes / 4096
        )?;
        writeln!(
            f,
            "  faults        {} of a guest that touches everything ({} if nothing were mapped at \
             creation)",
            self.faults, self.faults_without_creation
        )?;
        writeln!(
            f,
            "  flushes       {} to map all of it, {} when the host takes it away",
            Maintenance(&self.flushes),
            Maintenance(&self.removal_flushes)
        )
    }
}

/// TLB maintenance in a few words.
struct Maintenance<'a>(&'a Flushes);

impl Display for Maintenance<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Flushes {
            entries,
            all,
            local,
            ..
        } = *self.0;
        let counts = [
            (entries, "of an entry"),
            (all, "of everything"),
            (local, "of one CPU"),
        ];
        let mut separator = "";
        for (count, what) in counts.into_iter().filter(|(count, _)| *count != 0) {
            write!(f, "{separator}{count} {what}")?;
            separator = " and ";
        }
        if separator.is_empty() {
            f.write_str("none")?;
        }
        Ok(())
    }
}

fn cells(slot: &SlotExplained, part: &PartExplained) -> [String; 9] {
    let mapping = part.mapping.as_deref();
    let name = match mapping {
        Some(mapping) if mapping != slot.name => format!("{}: {mapping}", slot.name),
        _ => slot.name.clone(),
    };
    let mut all = part.at_creation.clone();
    all.add_all(&part.on_fault);
    [
        name,
        part.kind.clone(),
        format!("{:#014x}", part.gpa),
        format!("{:#014x}", part.hva),
        Size(part.bytes).to_string(),
        part.mapped.to_string(),
        blocks(&all),
        part.entries.to_string(),
        part.faults.to_string(),
    ]
}

fn row(f: &mut fmt::Formatter<'_>, cells: &[&str; 9], widths: &[usize; 9]) -> fmt::Result {
    for (column, (cell, &width)) in cells.iter().zip(widths).enumerate() {
        match column {
            4 | 7 | 8 => write!(f, "  {cell:>width$}")?,
            _ => write!(f, "  {cell:<width$}")?,
        }
    }
    writeln!(f)
}

fn details(f: &mut fmt::Formatter<'_>, part: &PartExplained) -> fmt::Result {
    let mut because = |what: &str, all: &[Because]| {
        all.iter()
            .filter(|one| !one.obvious)
            .try_for_each(|Because { bytes, reason, .. }| {
                let bytes = Size(*bytes);
                writeln!(f, "  {QUIET}  {what}: {bytes}: {reason}{QUIET:#}")
            })
    };
    let never = part.mapped == When::Never;
    let unmapped = if never {
        "never mapped"
    } else {
        "not at creation"
    };
    because(unmapped, &part.not_at_creation)?;
    because("not larger", &part.not_larger)?;
    for (index, fix) in part.fixes.iter().enumerate() {
        let lead = if index == 0 { "fix" } else { " or" };
        writeln!(
            f,
            "    {HELP}{lead}: {}{HELP:#}: {} {} become {}",
            fix.change,
            fix.entries_before,
            if fix.entries_before == 1 {
                "entry"
            } else {
                "entries"
            },
            fix.entries_after
        )?;
    }
    Ok(())
}
