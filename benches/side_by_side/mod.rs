//! The daemon beside nginx, the alternative for users who want speed, on the same files and the
//! same file system. The server has one core and the client another.

mod comparison;
mod line;
mod needs;
mod nginx;
mod nix;
mod report;
mod rows;
mod server;
mod sizes;

use comparison::Comparison;
use line::Line;
use rows::Row;

use crate::support::facts::output_of;
use crate::support::options::Options;
use crate::support::report::{Report, Spot, rewrite};
use crate::support::say;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Rows to measure: those whose names contain one of these words; default: all
    #[arg(conflicts_with = "write")]
    rows: Vec<String>,

    /// Print the names of the rows
    #[arg(long)]
    list: bool,

    /// Run the daemon with NIX_STORED_LOG_LEVEL=debug, which logs every request
    #[arg(long)]
    log_requests: bool,

    #[command(flatten)]
    options: Options,
}

impl Arguments {
    /// Whether the row with this name is measured.
    fn wants(&self, name: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|part| name.contains(part.as_str()))
    }
}

/// Runs the comparison. Rows that cannot be measured are errors; missed goals are not.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let rows: Vec<&Row> = rows::ALL.iter().filter(|row| arguments.wants(row.name)).collect();
    if arguments.list {
        rows.iter().for_each(|row| say(&format!("{:14} {}", row.name, row.about)));
        return Ok(());
    }
    anyhow::ensure!(!rows.is_empty(), "no row has such a name; --list shows them");
    let comparison = Comparison::new(arguments, rows.iter().any(|row| row.needs_nix))?;
    let mut report = Report::begin(&comparison.bench)?;
    let nginx = comparison.programs.nginx.display().to_string();
    let facts = &mut report.facts;
    facts.add("nginx", output_of(&nginx, &["-v"]).replace("nginx version: nginx/", ""));
    facts.add("nix", output_of("nix", &["--version"]).replace("nix (Nix) ", ""));
    let level = if arguments.log_requests { "`debug`: every request" } else { "default" };
    facts.add("log level of the daemon", level.to_owned());
    say(&facts.to_string());

    let mut lines = Vec::new();
    let mut failed = Vec::new();
    for row in rows {
        say(&format!("\n{}: {}", row.name, row.about));
        match (row.run)(&comparison) {
            Ok(measured) => {
                measured.iter().for_each(|line| say(&report::text::details(line)));
                lines.extend(measured);
            }
            Err(error) => {
                say(&format!("  FAILED: {error:#}"));
                failed.push(row.name);
            }
        }
    }
    report.add_others()?;
    say(&format!("\n{}", report::text::table(&lines)));
    say(&report.facts.to_string());
    anyhow::ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    write(arguments, &report, &lines)
}

fn write(arguments: &Arguments, report: &Report, lines: &[Line]) -> anyhow::Result<()> {
    let Some(page) = &arguments.options.write else { return Ok(()) };
    let name = if arguments.log_requests { "side_by_side --log-requests" } else { "side_by_side" };
    let spot = Spot { name, heading: "## Beside nginx" };
    rewrite(page, spot, &report::markdown::results(&report.facts, lines))?;
    // The image shows the default log level.
    if !arguments.log_requests {
        std::fs::write(page.with_extension("svg"), report::picture::draw(lines))?;
    }
    Ok(())
}
