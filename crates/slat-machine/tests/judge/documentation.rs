//! The rules as `docs/machine.md` explains them.

use slat_machine::judge::Rule;

const PAGE: &str = include_str!("../../../../docs/machine.md");

/// The names of all rules, from what the deserializer says when it meets none of them.
fn rules() -> Vec<String> {
    let error = serde_json::from_str::<Rule>("\"no rule\"").unwrap_err();
    let text = error.to_string();
    let names = text.split('`').skip(1).step_by(2).map(str::to_owned);
    names.filter(|name| name != "no rule").collect()
}

#[test]
fn the_page_names_every_rule() {
    let rules = rules();
    assert!(rules.contains(&Rule::WriteToProtected.to_string()));
    let missing: Vec<_> = rules
        .iter()
        .filter(|rule| !PAGE.contains(&format!("`{rule}`")))
        .collect();
    assert!(missing.is_empty(), "not in docs/machine.md: {missing:?}");
}

#[test]
fn the_table_of_rules_names_nothing_else() {
    let rules = rules();
    let table = PAGE.lines().filter(|line| line.starts_with("| `"));
    let first_cells = table.filter_map(|line| line.split('|').nth(1));
    let mut names = 0;
    for name in first_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
        assert!(rules.iter().any(|rule| rule == name), "{name} is no rule");
        names += 1;
    }
    assert_eq!(names, rules.len(), "some rule is named twice");
}
