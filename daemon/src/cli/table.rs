//! Plain tables: columns aligned by spaces, headings in capitals, nothing that a pipe or a screen reader would stumble over.

/// Rows under headings.
#[derive(Debug)]
pub(super) struct Table {
    headings: Vec<&'static str>,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows. A heading that begins with `>` is of a column of figures, aligned to the right.
    pub(super) fn new(headings: &[&'static str]) -> Self {
        Self {
            headings: headings.iter().map(|heading| heading.trim_start_matches('>')).collect(),
            right: headings.iter().map(|heading| heading.starts_with('>')).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row: a cell for each heading.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.headings.len(), "a cell for each heading");
        self.rows.push(cells.into());
    }

    /// The text, each line ended; only the headings if there are no rows.
    pub(super) fn render(&self) -> String {
        let headings: Vec<String> = self.headings.iter().map(|&heading| heading.to_owned()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&headings).chain(&self.rows).collect();
        let widths: Vec<usize> = (0..headings.len())
            .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
            .collect();
        let mut out = String::new();
        for line in lines {
            let mut text = String::new();
            for (column, cell) in line.iter().enumerate() {
                if column > 0 {
                    text.push_str("  ");
                }
                let width = widths[column];
                text.push_str(&if self.right[column] { format!("{cell:>width$}") } else { format!("{cell:<width$}") });
            }
            out.push_str(text.trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_blanks() {
        let mut table = Table::new(&["NAME", ">MEMORY", "NOTE"]);
        table.row(["redis".to_owned(), "1.0 GiB".to_owned(), String::new()]);
        table.row(["größer".to_owned(), "64 B".to_owned(), "yes".to_owned()]);
        assert_eq!(table.render(), "NAME     MEMORY  NOTE\nredis   1.0 GiB\ngrößer     64 B  yes\n");
    }

    #[test]
    fn a_table_without_rows_is_its_headings() {
        assert_eq!(Table::new(&["NAME", ">MEMORY"]).render(), "NAME  MEMORY\n");
    }
}
