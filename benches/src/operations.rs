//! The operations that have a budget, each over any format.

use core::hint::black_box;

use slat::{Config, Fault, GuestMemory, Region, SlotId};
use slat_table::address::{Gpa, GpaRange, Hpa, Hva, HvaRange};
use slat_table::attributes::{Access, Attributes, MemoryType, Permissions};
use slat_table::cache::TableCache;
use slat_table::format::Format;
use slat_table::geometry::Level;
use slat_table::restriction::PartialBlock;
use slat_table::table::{PageTable, TableOptions};

use crate::count::measured;
use crate::heap::Heap;
use crate::host::{BASE, Ram};

/// What can be counted.
pub(crate) const OPERATIONS: [&str; 8] = [
    "nothing",
    "install-page",
    "map-page",
    "map-range",
    "unmap-range",
    "translate",
    "fault",
    "invalidate-no-slot",
];

/// Spans that a range operation is about.
const SPANS: u64 = 64;
const GPA: u64 = 1 << 30;

macro_rules! formats {
    ($($row:ident $text:literal $($format:ident)::+ $($features:ident)::+ $bits:literal;)*) => {
        /// The formats by name.
        pub(crate) const FORMATS: [&str; [$($text),*].len()] = [$($text),*];

        /// Carries `operation` out in `format`: how many pages it was about.
        ///
        /// # Errors
        ///
        /// Which of the two is not known.
        pub(crate) fn run(operation: &str, format: &str) -> Result<u64, String> {
            match format {
                $($text => count::<$($format)::+>(operation, $($features)::+, $bits),)*
                _ => Err(format!("format `{format}`")),
            }
        }
    };
}

slat_table::every_format!(formats);

fn count<F: Format>(operation: &str, features: F::Features, bits: u8) -> Result<u64, String> {
    match operation {
        "nothing" => Ok(measured(|| 1)),
        "install-page" => Ok(install_page::<F>(features, bits)),
        "map-page" => Ok(map_page::<F>(features, bits)),
        "map-range" => Ok(map_range::<F>(features, bits)),
        "unmap-range" => Ok(unmap_range::<F>(features, bits)),
        "translate" => Ok(translate::<F>(features, bits)),
        "fault" => Ok(fault::<F>(features, bits)),
        "invalidate-no-slot" => Ok(invalidate_no_slot::<F>(features, bits)),
        _ => Err(format!("operation `{operation}`")),
    }
}

type Table<F> = PageTable<F, Heap>;

fn table<F: Format>(features: F::Features, address_bits: u8) -> Table<F> {
    let options = TableOptions {
        address_bits,
        ..TableOptions::default()
    };
    Table::new(Heap::new(), features, options).expect("a table of this width")
}

fn pages<F: Format>(table: &Table<F>, first: u64, count: u64) -> GpaRange {
    let page = table.geometry().entry_bytes(Level::PAGE);
    GpaRange::new(Gpa::new(GPA + first * page), count * page).expect("whole pages")
}

/// A page off from where runs are: what is counted are single leaves.
fn hpa_behind<F: Format>(table: &Table<F>, gpa: Gpa) -> Hpa {
    Hpa::new(gpa.raw() + GPA + table.geometry().entry_bytes(Level::PAGE))
}

/// Maps the pages of `range`, which lies in one span: encoded, under the stripe's lock, checked
/// against the sequence, made visible.
#[inline]
fn map<F: Format>(
    table: &Table<F>,
    cache: &mut TableCache<'_, F, Heap>,
    range: GpaRange,
    hpa: Hpa,
) {
    let attributes = Attributes::new(Permissions::ALL, MemoryType::WriteBack);
    let snapshot = table.snapshot(&range);
    let leaves = table
        .leaves(range, hpa, Level::PAGE, attributes)
        .expect("whole pages of one table");
    let mut hold = table.hold_span(range.start());
    assert!(hold.is_current(&snapshot));
    let installed = hold.install(&leaves, cache).expect("tables are ready");
    drop(hold);
    table.settle(&installed, range);
}

/// Maps the first page, and so makes the tables that its neighbours need. Returns where it is.
fn map_first_page<F: Format>(table: &Table<F>, cache: &mut TableCache<'_, F, Heap>) -> Gpa {
    cache.fill().expect("memory for tables");
    let page = pages(table, 0, 1);
    map(table, cache, page, hpa_behind(table, page.start()));
    page.start()
}

/// Installs a page that was encoded before, under the stripe's lock, and makes it visible.
fn install_page<F: Format>(features: F::Features, bits: u8) -> u64 {
    let table = table::<F>(features, bits);
    let mut cache = TableCache::new(&table);
    map_first_page(&table, &mut cache);
    let second = pages(&table, 1, 1);
    let attributes = Attributes::new(Permissions::ALL, MemoryType::WriteBack);
    let hpa = hpa_behind(&table, second.start());
    let leaves = table.leaves(second, hpa, Level::PAGE, attributes);
    let leaves = black_box(leaves.expect("a page"));
    measured(|| {
        let mut hold = table.hold_span(second.start());
        let installed = hold.install(&leaves, &mut cache).expect("a table is there");
        drop(hold);
        table.settle(&installed, second);
    });
    1
}

fn map_page<F: Format>(features: F::Features, bits: u8) -> u64 {
    let table = table::<F>(features, bits);
    let mut cache = TableCache::new(&table);
    map_first_page(&table, &mut cache);
    let second = pages(&table, 1, 1).start();
    let (gpa, hpa) = black_box((second, hpa_behind(&table, second)));
    measured(|| {
        let page = table.page(gpa).expect("an address of the guest's");
        map(&table, &mut cache, page, hpa);
    });
    1
}

fn map_spans<F: Format>(table: &Table<F>, cache: &mut TableCache<'_, F, Heap>, each: u64) {
    for span in 0..SPANS {
        cache.fill().expect("memory for tables");
        let range = pages(table, span * each, each);
        map(table, cache, range, hpa_behind(table, range.start()));
    }
}

fn pages_of_a_span<F: Format>(table: &Table<F>) -> u64 {
    1 << table.geometry().shape(Level::PAGE).index_bits
}

fn map_range<F: Format>(features: F::Features, bits: u8) -> u64 {
    let table = table::<F>(features, bits);
    let each = pages_of_a_span(&table);
    let mut cache = TableCache::new(&table);
    measured(|| map_spans(&table, &mut cache, black_box(each)));
    SPANS * each
}

fn unmap_range<F: Format>(features: F::Features, bits: u8) -> u64 {
    let table = table::<F>(features, bits);
    let each = pages_of_a_span(&table);
    let mut cache = TableCache::new(&table);
    map_spans(&table, &mut cache, each);
    let all = black_box(pages(&table, 0, SPANS * each));
    measured(|| {
        let mut restriction = table.restrict(&all);
        drop(restriction.unmap(&all, PartialBlock::Drop));
        drop(restriction);
    });
    assert_eq!(table.translate(all.start()), None);
    SPANS * each
}

fn translate<F: Format>(features: F::Features, bits: u8) -> u64 {
    let table = table::<F>(features, bits);
    let mut cache = TableCache::new(&table);
    let gpa = black_box(map_first_page(&table, &mut cache));
    let found = measured(|| table.gpa_to_hpa(gpa));
    u64::from(found.is_some())
}

fn guest<F: Format>(
    features: F::Features,
    bits: u8,
) -> std::sync::Arc<GuestMemory<F, Ram<F>, Heap>> {
    let config = Config::new().address_bits(bits);
    let memory =
        GuestMemory::new(Ram::new(), Heap::new(), features, config).expect("memory for tables");
    let region = Region::new(SlotId(1), Gpa::new(GPA), 1 << 29, Hva::new(BASE));
    memory.insert(region).expect("a good region");
    memory
}

fn fault<F: Format>(features: F::Features, bits: u8) -> u64 {
    let memory = guest::<F>(features, bits);
    let page = memory.table().geometry().entry_bytes(Level::PAGE);
    let mut vcpu = memory.vcpu();
    let at = |number: u64| Fault {
        gpa: Gpa::new(GPA + number * page),
        access: Access::Write,
    };
    // The first one uses the tables made ready, the second makes others ready.
    for number in 0..2 {
        vcpu.fault(at(number)).expect("a good access");
    }
    let third = black_box(at(2));
    measured(|| vcpu.fault(third)).expect("a good access");
    1
}

fn invalidate_no_slot<F: Format>(features: F::Features, bits: u8) -> u64 {
    let memory = guest::<F>(features, bits);
    let elsewhere = HvaRange::new(Hva::new(BASE + (1 << 29)), 4096).expect("whole pages");
    // The first one grows the list of those under way.
    drop(memory.invalidate(elsewhere));
    let elsewhere = black_box(elsewhere);
    measured(|| drop(memory.invalidate(elsewhere)));
    1
}
