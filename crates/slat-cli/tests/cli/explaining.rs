//! `slat explain`: layouts, their fixes, processes.

use serde_json::Value;

use super::{example, file, slat, text};

fn explain(name: &str) -> Value {
    slat(&["explain", text(&example(name)), "--json"]).json()
}

fn part(explanation: &Value, slot: usize, part: usize) -> &Value {
    &explanation["slots"][slot]["parts"][part]
}

#[test]
fn a_bar_that_is_64k_off_costs_an_entry_for_every_page_and_says_how_to_fix_it() {
    let before = explain("bar-off-by-64k.toml");
    let bar = part(&before, 0, 0);
    assert_eq!(bar["kind"], "pfnmap");
    assert_eq!(bar["device"], true);
    assert_eq!(bar["mapped"], "at-creation");
    assert_eq!(bar["at_creation"]["4K"], 262_144);
    assert_eq!(bar["faults"], 0);
    assert_eq!(bar["faults_without_creation"], 262_144);
    let reason = bar["not_larger"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("agree only modulo 64K"), "{reason}");
    let fixes = bar["fixes"].as_array().unwrap();
    let says = |change: &str, after: u64| {
        fixes
            .iter()
            .any(|fix| fix["change"] == change && fix["entries_after"] == after)
    };
    assert!(says("move the hva of BAR by -0x10000 to 0x7f0000000000", 1));
    assert!(says(
        "move the hva of BAR by +0x1f0000 to 0x7f0000200000",
        512
    ));

    let after = explain("bar.toml");
    let bar = part(&after, 0, 0);
    assert_eq!(bar["at_creation"]["1G"], 1);
    assert_eq!(bar["fixes"].as_array().unwrap().len(), 0);
    assert_eq!(after["table_bytes"], 2 * 4096);
}

#[test]
fn every_fix_gains_when_the_layout_is_changed_as_it_says() {
    let layout = std::fs::read_to_string(example("bar-off-by-64k.toml")).unwrap();
    let changed = layout.replace("0x7f00_0001_0000", "0x7f00_0020_0000");
    let changed = file(&changed);
    let explanation = slat(&["explain", text(changed.path()), "--json"]).json();
    assert_eq!(explanation["entries"], 512);
}

#[test]
fn a_guest_address_that_does_not_fit_the_device_is_what_is_moved() {
    let layout = std::fs::read_to_string(example("bar.toml")).unwrap();
    let moved = file(&layout.replace("0x80_0000_0000", "0x80_0001_0000"));
    let explanation = slat(&["explain", text(moved.path()), "--json"]).json();
    let fixes = part(&explanation, 0, 0)["fixes"].as_array().unwrap();
    assert_eq!(
        fixes[0]["change"],
        "move the gpa of BAR by -0x10000 to 0x8000000000"
    );
    assert_eq!(fixes[0]["entries_after"], 1);
}

#[test]
fn ram_that_is_off_by_a_page_is_moved() {
    let explanation = explain("ram-off-by-a-page.toml");
    let ram = part(&explanation, 0, 0);
    assert_eq!(ram["mapped"], "on-fault");
    assert_eq!(ram["on_fault"]["4K"], 16_384);
    assert_eq!(ram["fixes"][0]["entries_after"], 32);
}

#[test]
fn pages_that_are_too_small_and_off_by_a_page_are_changed_together() {
    let layout = std::fs::read_to_string(example("ram-off-by-a-page.toml")).unwrap();
    let small = file(&layout.replace("kind = \"ram\"", "kind = \"ram\"\npages = \"4K\""));
    let explanation = slat(&["explain", text(small.path()), "--json"]).json();
    let fix = &part(&explanation, 0, 0)["fixes"][0];
    assert_eq!(fix["kind"], "move-hva-and-larger-pages");
    assert_eq!(fix["entries_after"], 32);
}

#[test]
fn a_slot_is_split_where_one_half_must_move_alone() {
    let explanation = explain("two-in-one-slot.toml");
    let fix = part(&explanation, 0, 1)["fixes"][0]["change"]
        .as_str()
        .unwrap();
    assert!(
        fix.starts_with("split everything at gpa 0x42000000, move the hva of BAR"),
        "{fix}"
    );
}

#[test]
fn a_mapping_that_ends_early_is_grown() {
    let explanation = explain("short-mapping.toml");
    let fix = &part(&explanation, 0, 0)["fixes"][0];
    assert_eq!(fix["kind"], "grow-mapping");
    assert_eq!(fix["entries_before"], 526);
    assert_eq!(fix["entries_after"], 16);
    assert_eq!(part(&explanation, 0, 1)["mapped"], "never");
}

#[test]
fn a_vm_has_its_devices_at_creation_and_its_ram_on_fault() {
    let explanation = explain("vm.toml");
    let mapped: Vec<_> = (0..5)
        .map(|slot| part(&explanation, slot, 0)["mapped"].as_str().unwrap())
        .collect();
    let expected = [
        "on-fault",
        "at-creation",
        "at-creation",
        "at-creation",
        "never",
    ];
    assert_eq!(mapped, expected);
    assert_eq!(part(&explanation, 1, 0)["at_creation"]["1G"], 16);
    assert_eq!(explanation["faults"], 512);

    let out = slat(&["explain", text(&example("vm.toml"))]).expect(0);
    for expected in [
        "512 x 2M",
        "16 x 1G",
        "the host maps nothing there",
        "faults        512",
    ] {
        assert!(out.contains(expected), "no `{expected}` in\n{out}");
    }
    assert!(
        !out.contains('\u{1b}'),
        "styles in what is no terminal:\n{out}"
    );
}

#[test]
#[cfg(target_os = "linux")]
fn the_mappings_of_a_running_process_are_explained() {
    use std::process::{Command, Stdio};
    let mut child = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("there is a cat");
    // Once it has answered, it has mapped what it needs.
    let input = child.stdin.as_mut().expect("it is piped");
    std::io::Write::write_all(input, b"x").expect("it reads");
    let output = child.stdout.as_mut().expect("it is piped");
    std::io::Read::read_exact(output, &mut [0]).expect("it writes");
    let pid = child.id().to_string();
    let explanation = slat(&["explain", "--json", "--pid", &pid]).json();
    drop(child.stdin.take());
    child.wait().expect("it ends");

    let slots = explanation["slots"].as_array().unwrap();
    let named = |name: &str| slots.iter().find(|slot| slot["name"] == name);
    let stack = named("[stack]").expect("every process has a stack");
    assert_ne!(stack["parts"][0]["mapped"], "never");
    // Where the kernel gives programs its time, the page is PFNMAP: there from the start.
    if let Some(vvar) = named("[vvar]") {
        assert_eq!(vvar["parts"][0]["kind"], "pfnmap");
        assert_eq!(vvar["parts"][0]["mapped"], "at-creation");
    }
    for slot in slots {
        assert_eq!(slot["gpa"], slot["hva"]);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_process_that_is_not_there_is_an_error() {
    let ended = slat(&["explain", "--pid", "2147483646"]);
    assert_eq!(ended.code, 2);
    assert!(
        ended.err.contains("there is no process 2147483646"),
        "{}",
        ended.err
    );
}
