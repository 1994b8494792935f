//! Text in columns, each as wide as its widest cell.

/// `rows` under `head`, which may have several lines. The first column, and those that `left` names,
/// are flush left; the others, which are numbers, flush right.
pub(crate) fn columns<const N: usize>(
    head: &[[&str; N]],
    rows: &[[String; N]],
    left: &[usize],
) -> String {
    let head = head.iter().map(|line| line.map(str::to_owned));
    let lines: Vec<_> = head.chain(rows.iter().cloned()).collect();
    let widths: [usize; N] = core::array::from_fn(|column| {
        let cells = lines.iter().map(|line| line[column].chars().count());
        cells.max().unwrap_or_default()
    });
    let cell = |column: usize, cell: &str| {
        let width = widths[column];
        if column == 0 || left.contains(&column) {
            format!("{cell:<width$}")
        } else {
            format!("{cell:>width$}")
        }
    };
    let lines = lines.iter().map(|line| {
        let cells = line.iter().enumerate();
        let cells: Vec<_> = cells.map(|(column, text)| cell(column, text)).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::columns;

    #[test]
    fn a_column_is_as_wide_as_its_widest_cell() {
        let rows = [["a", "7", "x"], ["long", "1000", ""]].map(|row| row.map(str::to_owned));
        let text = columns(&[["name", "n", "what"]], &rows, &[2]);
        assert_eq!(text, "name     n  what\na        7  x\nlong  1000\n");
    }
}
