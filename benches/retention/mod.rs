//! The cost of keeping a large cache within its limits.
//!
//! - `commands`: time and memory of `gc --dry-run`, `stats` and `gc` on a cache of 200,000 paths
//!   with a million references, each in its own process.
//! - `latency`: the latency of narinfo requests while the daemon collects, beside that without a
//!   collection.

mod cache;
mod commands;
mod latency;

use cache::LargeCache;

use crate::support::bench::Bench;
use crate::support::options::Options;
use crate::support::report::{Report, Spot};

const SPOT: Spot = Spot { name: "retention", heading: "## Retention" };

pub fn run(options: &Options) -> anyhow::Result<()> {
    let bench = Bench::new(options)?;
    let mut report = Report::begin(&bench)?;
    let cache = LargeCache::make(&bench)?;
    report.add(commands::measure(&bench, &cache)?);
    report.add(latency::measure(&bench, &cache)?);
    report.end(options, SPOT)
}
