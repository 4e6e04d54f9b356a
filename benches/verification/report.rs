//! The results: Markdown, which a terminal shows well enough too.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, ensure};

/// Where on a page the results are.
#[derive(Debug, Clone, Copy)]
pub struct Spot {
    /// The benchmark's name, in the comments around them.
    pub name: &'static str,
    /// What a page has above them when it has no place for them yet.
    pub heading: &'static str,
}

/// A table with what has to be known to read it.
#[derive(Debug)]
pub struct Section {
    title: String,
    table: Vec<Vec<String>>,
    pub notes: Vec<String>,
}

impl Section {
    pub fn new(title: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Self { title: title.to_owned(), table: vec![columns], notes: Vec::new() }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.table.push(cells.into());
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.title.is_empty() {
            writeln!(f, "### {}\n", self.title)?;
        }
        let columns = self.table.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = self.table.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or_default().max(3)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (index, row) in self.table.iter().enumerate() {
            for (cell, &width) in row.iter().zip(&widths) {
                write!(f, "| {cell:width$} ")?;
            }
            f.write_str("|\n")?;
            if index == 0 {
                widths.iter().try_for_each(|&width| write!(f, "|{:-<1$}", "", width + 2))?;
                f.write_str("|\n")?;
            }
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "\n{note}."))
    }
}

/// Rewrites the results in `page`: what is between two comments in it; the rest is people's.
pub fn rewrite(page: &Path, spot: Spot, sections: &[Section]) -> anyhow::Result<()> {
    let Spot { name, heading } = spot;
    let begin = format!("<!-- {name}: begin -->");
    let end = format!("<!-- {name}: end -->");
    let text = match fs::read_to_string(page) {
        Err(error) if error.kind() == ErrorKind::NotFound => "# Benchmarks\n".to_owned(),
        text => text?,
    };
    let text = if text.contains(&begin) {
        text
    } else {
        format!("{}\n\n{heading}\n\n{begin}\n{end}\n", text.trim_end())
    };
    let (before, rest) = text.split_once(&begin).context("the page has lost its beginning")?;
    let (_, after) = rest.split_once(&end).with_context(|| format!("there is no {end}"))?;
    ensure!(!after.contains(&begin), "{begin} is there twice");
    let results: Vec<String> = sections.iter().map(Section::to_string).collect();
    if let Some(folder) = page.parent() {
        fs::create_dir_all(folder)?;
    }
    Ok(fs::write(page, format!("{before}{begin}\n\n{}\n{end}{after}", results.join("\n")))?)
}
