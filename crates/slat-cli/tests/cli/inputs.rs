//! Bad files: each is refused with its line, its column and the reason.

use slat_cli::explain::{Advise, explain};

use super::{file, slat, text};

/// A layout that is fine.
const LAYOUT: &str = r#"
[[mapping]]
name = "RAM"
kind = "ram"
hva = 0x7f00_0000_0000
size = "4M"

[[slot]]
id = 1
gpa = 0x4000_0000
size = "4M"
hva = 0x7f00_0000_0000
"#;

/// What to write instead of what in a file, where the error is then, and what it says.
type Case = (&'static str, &'static str, &'static str, &'static str);

const MORE_MAPPINGS: &str = "[[slot]]\nid = 1";

const LAYOUTS: &[Case] = &[
    (
        "size = \"4M\"\n\n",
        "size = \"4M\"\ncolour = 1\n",
        ":7:1",
        "unknown field `colour`",
    ),
    (
        "kind = \"ram\"",
        "kind = \"rom\"",
        ":4:8",
        "unknown variant `rom`",
    ),
    (
        "hva = 0x7f00_0000_0000\nsize",
        "hva = true\nsize",
        ":5:7",
        "expected a number of bytes",
    ),
    (
        "size = \"4M\"\n\n",
        "size = \"4 monkeys\"\n\n",
        ":6:8",
        "`4 monkeys` is not a size",
    ),
    (
        "size = \"4M\"\n\n",
        "size = -4096\n\n",
        ":6:8",
        "integer `-4096`",
    ),
    ("size = \"4M\"\n\n", "size = 0\n\n", ":6:8", "the size is 0"),
    (
        "size = \"4M\"\n\n",
        "size = 100\n\n",
        ":6:8",
        "the size 0x64 is not a multiple",
    ),
    (
        "size = \"4M\"\n\n",
        "size = \"65T\"\n\n",
        ":5:7",
        "more than 64T in all",
    ),
    (
        "kind = \"ram\"",
        "kind = \"pfnmap\"",
        ":2:1",
        "pfnmap without `hpa`",
    ),
    (
        "kind = \"ram\"",
        "kind = \"ram\"\nhpa = 0",
        ":5:7",
        "has an `hpa` but is no pfnmap",
    ),
    (
        "kind = \"ram\"",
        "kind = \"ram\"\npages = \"1G\"",
        ":5:9",
        "not made of whole 1G pages",
    ),
    (
        "kind = \"ram\"",
        "kind = \"ram\"\npages = \"3K\"",
        ":5:9",
        "`3K` is no size of pages: hosts with `arm64-4k` have 4K, 2M, 1G",
    ),
    (
        "hva = 0x7f00_0000_0000\nsize",
        "hva = 0x7f00_0000_0001\nsize",
        ":5:7",
        "not a multiple",
    ),
    ("id = 1", "id = 40000", ":9:6", "ids are below 32767"),
    ("id = 1", "id = \"one\"", ":9:6", "expected u32"),
    ("id = 1\n", "", ":8:1", "missing field `id`"),
    (
        "gpa = 0x4000_0000",
        "gpa = 0x4000_0800",
        ":10:7",
        "gpa 0x40000800 is not a multiple",
    ),
    (
        "gpa = 0x4000_0000",
        "gpa = 0x1_0000_0000_0000",
        ":10:7",
        "ends beyond 0x1000000000000",
    ),
    (
        "gpa = 0x4000_0000",
        "gpa = \"0xffff_ffff_ffff_f000\"",
        ":10:7",
        "wrap around",
    ),
    (
        "\n[[mapping]]",
        "address-bits = 64\n[[mapping]]",
        ":1:16",
        "from 32 to 48 are possible",
    ),
    (
        "\n[[mapping]]",
        "format = \"arm65\"\n[[mapping]]",
        ":1:10",
        "there is no format `arm65`: there are arm64-4k,",
    ),
    (
        "\n[[mapping]]",
        "format = \"arm64-64k\"\n[[mapping]]\npages = \"1G\"",
        ":3:9",
        "`1G` is no size of pages: hosts with `arm64-64k` have 64K, 512M",
    ),
    (
        "\n[[mapping]]",
        "format = \"sv32x4\"\n[[mapping]]\nname = \"far\"\nkind = \"pfnmap\"\nhva = 0\nsize = \"1M\"\nhpa = 0x4_0000_0000\n[[mapping]]",
        ":7:7",
        "ends beyond 0x400000000",
    ),
    (
        "\n[[mapping]]",
        "format = \"s390-none\"\n[[mapping]]\nname = \"BAR\"\nkind = \"pfnmap\"\nhva = 0\nsize = \"1M\"\nhpa = 0\n[[mapping]]",
        ":2:1",
        "no leaf that shows a device's memory",
    ),
    ("[[slot]]", "[[slot]", ":8:8", "expected"),
    (
        MORE_MAPPINGS,
        "[[mapping]]\nkind = \"ram\"\nhva = 0x7f00_0020_0000\nsize = \"4M\"\n[[slot]]\nid = 1",
        ":10:7",
        "mapping 2 overlaps mapping `RAM` from hva 0x7f0000200000 to 0x7f0000400000",
    ),
    (
        MORE_MAPPINGS,
        "[[slot]]\nid = 1\ngpa = 0\nsize = 4096\nhva = 0\n[[slot]]\nid = 1",
        ":14:6",
        "two slots have the id 1",
    ),
    (
        MORE_MAPPINGS,
        "[[slot]]\nid = 2\ngpa = 0x4000_1000\nsize = 4096\nhva = 0\n[[slot]]\nid = 1",
        ":10:7",
        "slot 2 overlaps slot 1 from gpa 0x40001000 to 0x40002000",
    ),
];

/// Changes to the built-in scenario.
const SCENARIOS: &[Case] = &[
    (
        "guest-cpus = 4 ",
        "guest-cpus = 0 ",
        ":5:14",
        "no CPU runs the guest",
    ),
    (
        "guest-cpus = 4 ",
        "guest-cpus = 200 ",
        ":6:13",
        "the model has at most 16",
    ),
    (
        "ram = \"512M\"",
        "ram = \"1M\"",
        ":7:7",
        "must be a multiple of 2M",
    ),
    (
        "steps = 2_000_000 ",
        "steps = 0 ",
        ":8:9",
        "nothing would happen",
    ),
    (
        "# address-bits = 40 ",
        "address-bits = 20 ",
        ":10:16",
        "from 32 to 48 are possible",
    ),
    (
        "# format = \"arm64-4k\"",
        "format = \"arm65\"",
        ":9:10",
        "there is no format `arm65`: there are arm64-4k,",
    ),
    (
        "[machine]",
        "[machinery]",
        ":4:2",
        "unknown field `machinery`",
    ),
    (
        "migrate = 8",
        "migrate = \"often\"",
        "migrate = ",
        "expected u32",
    ),
    ("cpu = 3", "cpu = 4", "cpu = ", "the guest has no CPU 4"),
    (
        "stride = \"2M\"",
        "stride = 0",
        "stride = ",
        "a stride of 0 never ends",
    ),
    (
        "access = \"execute\"",
        "access = \"sing\"",
        "access = ",
        "unknown variant `sing`",
    ),
    (
        "size = \"2M\"\nwritable",
        "size = \"1G\"\nwritable",
        "size = ",
        "at most 64M",
    ),
    ("id = 3", "id = 2", "id = 2", "two slots have the id 2"),
    (
        "hpa = 0x2_0000_0000",
        "hpa = 0x1_0000_1000",
        "hpa = ",
        "overlaps the device memory",
    ),
];

fn refused(command: &str, whole: &str, case: &Case) {
    let (from, to, place, reason) = *case;
    assert!(whole.contains(from), "`{from}` is not there to be replaced");
    let changed = file(&whole.replacen(from, to, 1));
    let path = text(changed.path());
    let ended = slat(&[command, path]);
    let err = &ended.err;
    assert_eq!(ended.code, 2, "{from:?} -> {to:?}: {err}");
    assert!(err.contains(reason), "no `{reason}` in\n{err}");
    assert!(err.contains(&format!("--> {path}:")), "no file in\n{err}");
    assert!(err.contains(place), "no `{place}` in\n{err}");
    assert!(!err.contains("panicked"), "{err}");
}

#[test]
fn a_bad_layout_is_refused_with_line_column_and_reason() {
    slat(&["explain", text(file(LAYOUT).path())]).expect(0);
    for case in LAYOUTS {
        refused("explain", LAYOUT, case);
    }
}

#[test]
fn a_bad_scenario_is_refused_with_line_column_and_reason() {
    for case in SCENARIOS {
        refused("run", slat_cli::scenario::DEFAULT, case);
    }
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let bad = LAYOUT
        .replace("id = 1", "id = 99999")
        .replace("size = \"4M\"\n\n", "size = 1\n\n");
    let ended = slat(&["explain", text(file(&bad).path())]);
    assert_eq!(ended.err.matches("error: ").count(), 2, "{}", ended.err);
}

#[test]
fn a_layout_of_absurd_cost_is_refused_at_once() {
    let dear = LAYOUT
        .replace("size = \"4M\"", "size = \"1T\"")
        .replace("kind = \"ram\"", "kind = \"ram\"\npages = \"4K\"")
        .replace("0x4000_0000", "0");
    let ended = slat(&["explain", text(file(&dear).path())]);
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("entries of 4K"), "{}", ended.err);
    assert!(ended.err.contains(":12:8"), "{}", ended.err);
}

#[test]
fn nothing_at_all_is_no_layout_and_no_scenario() {
    let empty = file("");
    let ended = slat(&["explain", text(empty.path())]);
    assert!(
        ended.code == 2 && ended.err.contains("has no slot"),
        "{}",
        ended.err
    );
    let ended = slat(&["run", text(empty.path())]);
    assert!(
        ended.code == 2 && ended.err.contains("missing field `machine`"),
        "{}",
        ended.err
    );
}

#[test]
fn a_hundred_megabytes_of_garbage_are_refused_at_once() {
    let garbage = file("");
    garbage
        .as_file()
        .set_len(100 << 20)
        .expect("a sparse file can be made");
    for command in ["run", "explain"] {
        let ended = slat(&[command, text(garbage.path())]);
        assert_eq!(ended.code, 2);
        assert!(ended.err.contains("larger than 1 MiB"), "{}", ended.err);
        assert!(ended.err.contains(text(garbage.path())), "{}", ended.err);
    }
    let ended = slat(&["check", text(garbage.path())]);
    assert_eq!(ended.code, 2, "{}", ended.err);
}

/// Damaged files are refused or taken, but nothing panics.
#[test]
fn no_damage_to_a_file_makes_a_parser_panic() {
    let values = [
        "0",
        "-1",
        "1",
        "\"64T\"",
        "0x7fff_ffff_ffff_f000",
        "\"0xffff_ffff_ffff_f000\"",
    ];
    // A small image takes less time to make.
    let scenario = slat_cli::scenario::DEFAULT.replace("\"2M\"\nwritable", "\"8K\"\nwritable");
    for whole in [LAYOUT, &scenario] {
        let lines: Vec<_> = whole.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let key = line.split_once('=').map_or("x", |(key, _)| key);
            let with = values.iter().map(|value| format!("{key} = {value}"));
            for new in with.chain([String::new(), "\u{0}".to_owned(), line.repeat(2)]) {
                let mut damaged = lines.clone();
                damaged[at] = &new;
                let damaged = damaged.join("\n");
                if let Ok(layout) = slat_cli::layout::parse(&damaged) {
                    // An error is an answer too.
                    drop(explain(&layout, Advise::PagesOnly));
                }
                drop(slat_cli::scenario::parse(&damaged));
            }
        }
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    for command in ["run", "explain", "check"] {
        let ended = slat(&[command, "/nowhere/at/all"]);
        assert_eq!(ended.code, 2);
        assert!(ended.err.contains("/nowhere/at/all"), "{}", ended.err);
    }
}
