//! `slat formats`, and `--format` of the other commands.

use serde_json::Value;

use super::{example, file, slat, text};

fn formats() -> Vec<Value> {
    let Value::Array(formats) = slat(&["formats", "--json"]).json() else {
        panic!("a list is printed");
    };
    formats
}

fn names() -> Vec<String> {
    let name = |format: &Value| format["name"].as_str().expect("it is text").to_owned();
    formats().iter().map(name).collect()
}

#[test]
fn every_format_is_listed_with_what_it_can() {
    let all = formats();
    let of = |name: &str| all.iter().find(|format| format["name"] == name).unwrap();
    assert_eq!(of("arm64-64k")["leaves"].to_string(), r#"["64K","512M"]"#);
    assert_eq!(of("arm64-4k")["runs"].to_string(), r#"["64K","32M","16G"]"#);
    assert_eq!(of("arm64-4k")["fewest_address_bits"], 32);
    assert_eq!(of("ept-5")["levels"], 5);
    assert_eq!(of("ept-4")["flush"], "interrupt");
    assert_eq!(of("ept-none")["accessed"], "nobody");
    assert_eq!(of("power-4k")["big_endian"], true);
    assert_eq!(of("s390-none")["devices"], false);
    assert_eq!(of("sv39x4-none")["caches_invalid"], true);

    let table = slat(&["formats"]).expect(0);
    for name in names() {
        let begins = |line: &str| line.split(' ').next() == Some(&name);
        assert!(table.lines().any(begins), "no {name} in\n{table}");
    }
}

#[test]
fn a_layout_is_explained_with_every_format() {
    let layout = example("devices.toml");
    for format in formats().iter().filter(|format| format["devices"] == true) {
        let name = format["name"].as_str().unwrap();
        let explained = slat(&["explain", text(&layout), "--format", name, "--json"]).json();
        assert_eq!(explained["format"], name);
        assert_eq!(explained["address_bits"], format["address_bits"], "{name}");
        let parts = |slot: usize| &explained["slots"][slot]["parts"][0];
        assert_eq!(parts(0)["mapped"], "on-fault", "{name}");
        assert_eq!(parts(1)["mapped"], "at-creation", "{name}");
        assert_eq!(parts(1)["faults"], 0, "{name}");
        assert_eq!(parts(2)["mapped"], "on-fault", "{name}");
        let mapped = |slot: usize| {
            let blocks = [&parts(slot)["at_creation"], &parts(slot)["on_fault"]];
            let entries = blocks
                .iter()
                .flat_map(|of| of.as_object().unwrap().values());
            entries.filter_map(Value::as_u64).sum::<u64>()
        };
        let all: u64 = (0..3).map(mapped).sum();
        assert_eq!(explained["entries"], all, "{name}");
    }
}

#[test]
fn blocks_pages_and_advice_are_those_of_the_format() {
    let ram = example("ram-off-by-a-page.toml");
    let layout = std::fs::read_to_string(&ram).unwrap();
    let s390 = file(&format!("format = \"s390-region3\"\n{layout}"));
    let explained = slat(&["explain", text(s390.path()), "--json"]).json();
    let part = &explained["slots"][0]["parts"][0];
    assert_eq!(part["on_fault"]["4K"], 16_384);
    assert_eq!(part["fixes"][0]["entries_after"], 64, "blocks of 1 MiB");

    let small = layout.replace("0x7f00_0000_1000", "0x7f00_2000_0000");
    let small = file(&small.replace("kind = \"ram\"", "kind = \"ram\"\npages = \"4K\""));
    let arguments = ["explain", text(small.path()), "--format", "arm64-16k"];
    let out = slat(&arguments).expect(0);
    for expected in [
        "4096 x 16K",
        "the host maps it in pages of 16K",
        "fix: back RAM with 32M pages",
        "4096 entries become 2",
    ] {
        assert!(out.contains(expected), "no `{expected}` in\n{out}");
    }
}

#[test]
fn a_layout_in_smaller_pages_than_the_format_has_is_refused() {
    let ram = example("ram-off-by-a-page.toml");
    let ended = slat(&["explain", text(&ram), "--format", "arm64-64k"]);
    assert_eq!(ended.code, 2);
    let says = "hva 0x7f0000001000 is not a multiple of the 64K page of `arm64-64k`";
    assert!(ended.err.contains(says), "{}", ended.err);
}

#[test]
fn ram_that_a_host_of_the_format_cannot_have_is_refused_where_it_is_given() {
    let layout = file(
        "[[mapping]]\nname = \"RAM\"\nkind = \"ram\"\nhva = 0\nsize = \"32G\"\n\
         [[slot]]\nid = 0\ngpa = 0\nsize = \"1G\"\nhva = 0\n",
    );
    let ended = slat(&["explain", text(layout.path()), "--format", "sv32x4"]);
    assert_eq!(ended.code, 2);
    for says in [":1:1", "32G of RAM do not fit", "34 bits"] {
        assert!(ended.err.contains(says), "no `{says}` in\n{}", ended.err);
    }
}

#[test]
fn runs_are_counted_where_hardware_has_them_and_take_one_fault_each() {
    let layout = example("devices-off-by-64k.toml");
    let explain = |format| {
        let arguments = ["explain", text(&layout), "--format", format, "--json"];
        let explained = slat(&arguments).json();
        ["entries_in_runs", "faults_without_creation"].map(|key| explained[key].as_u64().unwrap())
    };
    assert_eq!(explain("sv39x4"), [16_384, 256 + 1_024]);
    assert_eq!(explain("ept-4"), [0, 256 + 16_384]);
    let out = slat(&["explain", text(&layout)]).expect(0);
    assert!(out.contains("16384 of them in runs"), "{out}");
}

#[test]
fn a_layout_is_compared_over_all_formats() {
    let layout = example("devices.toml");
    let compared = slat(&["explain", text(&layout), "--format", "all", "--json"]).json();
    let rows = compared["formats"].as_array().unwrap();
    let left_out = compared["left_out"].as_array().unwrap();
    assert_eq!(rows.len() + left_out.len(), names().len());
    assert_eq!(left_out[0]["format"], "s390-none");
    for row in rows {
        let faults = |life: &str| row[life]["faults"].as_u64().unwrap();
        assert!(faults("at_creation") < faults("on_fault"), "{row}");
        assert_ne!(
            row["removal_flushes"]["entries"].as_u64().unwrap()
                + row["removal_flushes"]["all"].as_u64().unwrap(),
            0,
            "{row}"
        );
    }
    let alone = slat(&["explain", text(&layout), "--format", "ept-4", "--json"]).json();
    let ept = rows.iter().find(|row| row["format"] == "ept-4").unwrap();
    assert_eq!(ept["table_bytes"], alone["table_bytes"]);
    assert_eq!(ept["at_creation"]["faults"], alone["faults"]);
    assert_eq!(ept["on_fault"]["faults"], alone["faults_without_creation"]);
}

#[test]
fn only_a_layout_can_be_compared_and_only_a_sound_one() {
    let ended = slat(&["explain", "--pid", "1", "--format", "all"]);
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("only a layout"), "{}", ended.err);
    let ended = slat(&["explain", "--format", "all", text(file("x = 1").path())]);
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains(":1:1"), "{}", ended.err);
}

#[test]
fn a_format_that_is_none_is_refused_with_those_there_are() {
    for command in ["run", "explain"] {
        let ended = slat(&[command, "--format", "arm65", "x.toml"]);
        assert_eq!(ended.code, 2);
        for says in ["no format `arm65`", "arm64-4k, ", "power-64k"] {
            assert!(ended.err.contains(says), "no `{says}` in\n{}", ended.err);
        }
    }
}

#[test]
fn the_built_in_scenario_runs_on_every_format_that_has_devices() {
    for format in formats() {
        let name = format["name"].as_str().unwrap();
        let arguments = ["run", "--seed", "7", "--steps", "4000", "--format", name];
        let ended = slat(&arguments);
        if format["devices"] == true {
            let out = ended.expect(0);
            assert!(out.contains("0 violations"), "{name}: {out}");
        } else {
            assert_eq!(ended.code, 2, "{name}");
            let says = "has no leaf that shows a device's memory";
            assert!(ended.err.contains(says), "{name}: {}", ended.err);
        }
    }
}

#[test]
fn a_scenario_names_its_format_and_the_option_wins() {
    let scenario = slat_cli::scenario::DEFAULT;
    let ept = scenario.replace("# format = \"arm64-4k\"", "format = \"ept-4\"");
    let ept = file(&ept);
    let run = |format: &[&str]| {
        let mut arguments = vec!["run", text(ept.path()), "--seed", "7", "--steps", "4000"];
        arguments.extend(format);
        slat(&arguments).expect(0)
    };
    let built_in =
        |format| slat(&["run", "--seed", "7", "--steps", "4000", "--format", format]).expect(0);
    assert_eq!(run(&[]), built_in("ept-4"));
    assert_eq!(run(&["--format", "s390-region3"]), built_in("s390-region3"));
    assert_ne!(built_in("ept-4"), built_in("s390-region3"));
}

#[test]
fn a_scenario_that_does_not_fit_a_format_says_what_to_change() {
    let scenario = slat_cli::scenario::DEFAULT;
    let refused = |from: &str, to: &str, format: &str, says: &[&str]| {
        assert!(scenario.contains(from), "{from}");
        let changed = file(&scenario.replace(from, to));
        let ended = slat(&["run", text(changed.path()), "--format", format]);
        assert_eq!(ended.code, 2);
        for says in says {
            assert!(ended.err.contains(says), "no `{says}` in\n{}", ended.err);
        }
    };
    let wide = ("# address-bits = 40 ", "address-bits = 40 ");
    refused(
        wide.0,
        wide.1,
        "sv32x4",
        &[":10:16", "from 12 to 34 are possible with `sv32x4`"],
    );
    let gpa = ("gpa = 0x3000_0000", "gpa = 0x8000_0000");
    refused(
        gpa.0,
        gpa.1,
        "s390-segment",
        &["ends beyond 0x80000000, the end of what a gpa"],
    );
    let page = ("hva = 0x7c00_0000_0000", "hva = 0x7c00_0000_4000");
    refused(
        page.0,
        page.1,
        "arm64-64k",
        &["not a multiple of the 64K page of `arm64-64k`"],
    );
    let frame = ("size = \"256M\"", "size = \"257M\"");
    refused(
        frame.0,
        frame.1,
        "arm64-64k",
        &["whole frames of 2M", "align hva and size to 2M"],
    );
    let hpa = ("hpa = 0x2_0000_0000", "hpa = 0x4_0000_0000");
    refused(
        hpa.0,
        hpa.1,
        "sv32x4",
        &["ends beyond 0x400000000, the end of what a hpa"],
    );
    let ram = ("ram = \"512M\"", "ram = \"20G\"");
    refused(
        ram.0,
        ram.1,
        "sv32x4",
        &["20G of RAM", "of `sv32x4`", ":7:7"],
    );
}
