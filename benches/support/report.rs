//! The results as Markdown, on the terminal and in a page.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use std::time::Instant;

use anyhow::{Context, ensure};

use crate::support::bench::Bench;
use crate::support::facts::Facts;
use crate::support::options::Options;
use crate::support::process::others_cpu_seconds;
use crate::support::say;

/// The place of the results on a page.
#[derive(Debug, Clone, Copy)]
pub struct Spot {
    /// The name of the benchmark in the comments around the results.
    pub name: &'static str,
    /// The heading for a page without results.
    pub heading: &'static str,
}

/// The results of a benchmark while it runs.
#[derive(Debug)]
pub struct Report {
    pub facts: Facts,
    sections: Vec<Section>,
    begin: Instant,
    others_at_begin: f64,
}

impl Report {
    pub fn begin(bench: &Bench) -> anyhow::Result<Self> {
        Ok(Self {
            facts: Facts::gather(bench)?,
            sections: Vec::new(),
            begin: Instant::now(),
            others_at_begin: others_cpu_seconds()?,
        })
    }

    /// Prints a section and keeps it for the page.
    pub fn add(&mut self, section: Section) {
        say(&format!("\n{section}"));
        self.sections.push(section);
    }

    /// Adds the number of cores that other processes used. That is never 0, because kernel threads
    /// write to the disk.
    pub fn add_others(&mut self) -> anyhow::Result<()> {
        let others = others_cpu_seconds()? - self.others_at_begin;
        let cores = others / self.begin.elapsed().as_secs_f64();
        self.facts.add("kept busy by others", format!("{cores:.2} cores"));
        Ok(())
    }

    /// Adds the facts and, with `--write`, rewrites the page. All started processes must have
    /// ended.
    pub fn end(mut self, options: &Options, spot: Spot) -> anyhow::Result<()> {
        self.add_others()?;
        let mut facts = Section::new("", &["measured with", ""]);
        for (name, value) in &self.facts.0 {
            facts.row([(*name).to_owned(), value.clone()]);
        }
        self.add(facts);
        let Some(page) = &options.write else { return Ok(()) };
        let results: Vec<String> = self.sections.iter().map(Section::to_string).collect();
        rewrite(page, spot, &results.join("\n"))
    }
}

/// A table with the notes below it.
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

/// Rewrites the results in a page: the text between two comments.
pub fn rewrite(page: &Path, spot: Spot, results: &str) -> anyhow::Result<()> {
    rewritten(page, spot, results).with_context(|| format!("writing {}", page.display()))
}

fn rewritten(page: &Path, spot: Spot, results: &str) -> anyhow::Result<()> {
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
    if let Some(folder) = page.parent() {
        fs::create_dir_all(folder)?;
    }
    Ok(fs::write(page, format!("{before}{begin}\n\n{results}\n{end}{after}"))?)
}
