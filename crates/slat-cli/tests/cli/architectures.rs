//! The tables of `docs/architectures.md` are what the commands above them print.

use std::path::Path;

use super::slat;

const PAGE: &str = include_str!("../../../../docs/architectures.md");

/// The transcripts of the page: each a command and what it printed.
fn transcripts() -> Vec<(&'static str, &'static str)> {
    let blocks = PAGE.split("```console\n").skip(1);
    let block = |block: &'static str| {
        let text = block.split("```").next().expect("a split has a first part");
        text.strip_prefix("$ slat ")?.split_once('\n')
    };
    blocks.filter_map(block).collect()
}

#[test]
fn the_tables_are_what_the_commands_above_them_print() {
    let transcripts = transcripts();
    assert_eq!(transcripts.len(), 3, "the formats, and two layouts");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (command, printed) in transcripts {
        let arguments = command.split(' ').map(|argument| {
            if argument.contains('/') {
                root.join(argument).into_os_string()
            } else {
                argument.into()
            }
        });
        let now = slat(&arguments.collect::<Vec<_>>()).expect(0);
        assert_eq!(
            printed, now,
            "docs/architectures.md is out of date: `slat {command}` prints\n{now}"
        );
    }
}

#[test]
fn both_layouts_are_compared() {
    for layout in ["devices.toml", "devices-off-by-64k.toml"] {
        let compared = |(command, _): &(&str, &str)| {
            command.contains("--format all") && command.ends_with(layout)
        };
        assert!(transcripts().iter().any(compared), "{layout}");
    }
}
