//! `nix-stored stats`: statistics of the cache.

use std::fmt;
use std::process::ExitCode;
use std::time::SystemTime;

use serde::Serialize;

use super::cache_command::{OpenCache, load_inventory, on_cache};
use super::gc::SumLine;
use super::output::{Output, count, serialize_time, size, time};
use crate::cache::GRACE;
use crate::config::Config;
use crate::inventory::{Inventory, Stats};
use crate::nix::StoreDir;
use crate::retention::{Analysis, Limits, Pins, Plan, RemovalSum};

/// Number of largest paths to list.
const LARGEST_PATHS: usize = 10;

#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Exit status: 0 done; 1 failed; 64 the configuration or the arguments are wrong."
)]
pub(super) struct StatsArgs {
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: StatsArgs, config: Config) -> anyhow::Result<ExitCode> {
    let store_dir = config.cache_info.store_dir.clone();
    let limits = Limits::new(&config.retention, GRACE);
    on_cache("stats", config, async move |OpenCache { cache, .. }| {
        let inventory = load_inventory(&cache).await?;
        let pins = Pins::of(&cache).list().await?;
        let analysis = Analysis::new(&inventory, &pins);
        let plan = analysis.plan(&limits, SystemTime::now());
        let stats = Stats::of(&inventory);
        let retention = CollectionEstimate::new(&plan, &analysis, &limits);
        let largest = largest(&inventory, &store_dir);
        let (pins, free_space) = (pins.len(), cache.store().free_space());
        args.output.print(&StatsOutput::new(&stats, largest, pins, free_space, retention))?;
        Ok(ExitCode::SUCCESS)
    })
}

#[derive(Debug, Serialize)]
struct StatsOutput {
    paths: usize,
    /// Number of paths mirrored from an upstream and not uploaded since.
    mirrored_paths: usize,
    own_nar_bytes: u64,
    mirrored_nar_bytes: u64,
    nars: usize,
    other_objects: usize,
    bytes: u64,
    nar_bytes: u64,
    unpacked_bytes: u64,
    /// Unpacked size of the NARs, divided by their stored size.
    compression_ratio: Option<f64>,
    orphan_nars: usize,
    orphan_nar_bytes: u64,
    paths_without_nar: usize,
    unparsed_narinfos: usize,
    unreadable_narinfos: usize,
    last_used: Option<TimeRange>,
    uploaded: Option<TimeRange>,
    largest: Vec<LargePath>,
    pins: usize,
    free_space: Option<u64>,
    retention: CollectionEstimate,
}

#[derive(Debug, Serialize)]
struct TimeRange {
    #[serde(serialize_with = "serialize_time")]
    oldest: SystemTime,
    #[serde(serialize_with = "serialize_time")]
    newest: SystemTime,
}

#[derive(Debug, Serialize)]
struct LargePath {
    store_path: String,
    name: String,
    size: u64,
    nar_size: u64,
}

/// Preview of a collection by the configured limits.
#[derive(Debug, Serialize)]
struct CollectionEstimate {
    max_size: Option<u64>,
    max_age_seconds: Option<u64>,
    paths: usize,
    bytes: u64,
    over_limit: u64,
    by_reason: Vec<RemovalSum>,
}

impl CollectionEstimate {
    fn new(plan: &Plan, analysis: &Analysis<'_>, limits: &Limits) -> Self {
        let by_reason = RemovalSum::by_reason(&plan.planned_removals(analysis));
        Self {
            max_size: limits.max_size,
            max_age_seconds: limits.max_age.map(|age| age.as_secs()),
            paths: by_reason.iter().map(|sum| sum.paths).sum(),
            bytes: plan.size_before - plan.size_after,
            over_limit: plan.over_limit(),
            by_reason,
        }
    }
}

fn largest(inventory: &Inventory, store_dir: &StoreDir) -> Vec<LargePath> {
    let largest = inventory.largest(LARGEST_PATHS).into_iter();
    let large = |place: usize| {
        let path = &inventory.paths[place];
        LargePath {
            store_path: store_dir.join(&path.store_path),
            name: path.store_path.name().to_owned(),
            size: inventory.size_with_shared(place),
            nar_size: path.nar_size,
        }
    };
    largest.map(large).collect()
}

impl StatsOutput {
    fn new(
        stats: &Stats,
        largest: Vec<LargePath>,
        pins: usize,
        free_space: Option<u64>,
        retention: CollectionEstimate,
    ) -> Self {
        let span = |(oldest, newest)| TimeRange { oldest, newest };
        let ratio = stats.unpacked as f64 / stats.packed as f64;
        Self {
            paths: stats.paths,
            mirrored_paths: stats.mirrored,
            own_nar_bytes: stats.own_bytes,
            mirrored_nar_bytes: stats.mirrored_bytes,
            nars: stats.nars,
            other_objects: stats.others,
            bytes: stats.bytes,
            nar_bytes: stats.packed,
            unpacked_bytes: stats.unpacked,
            compression_ratio: (stats.packed > 0).then_some((ratio * 100.0).round() / 100.0),
            orphan_nars: stats.orphans,
            orphan_nar_bytes: stats.orphan_bytes,
            paths_without_nar: stats.without_nar,
            unparsed_narinfos: stats.unparsed,
            unreadable_narinfos: stats.unreadable,
            last_used: stats.used.map(span),
            uploaded: stats.uploaded.map(span),
            largest,
            pins,
            free_space,
            retention,
        }
    }
}

impl fmt::Display for StatsOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}, {} and {}: {}",
            count(self.paths, "path"),
            count(self.nars, "NAR"),
            count(self.other_objects, "other object"),
            size(self.bytes)
        )?;
        if let Some(ratio) = self.compression_ratio {
            let (nars, unpacked) = (size(self.nar_bytes), size(self.unpacked_bytes));
            writeln!(f, "NARs of paths: {nars}, unpacked {unpacked} (ratio {ratio})")?;
        }
        if self.mirrored_paths > 0 {
            let own = count(self.paths - self.mirrored_paths, "path");
            let (own_bytes, bytes) = (size(self.own_nar_bytes), size(self.mirrored_nar_bytes));
            let mirrored = count(self.mirrored_paths, "path");
            writeln!(f, "uploaded here: {own}, {own_bytes}; from upstreams: {mirrored}, {bytes}")?;
        }
        if self.orphan_nars > 0 {
            let (nars, bytes) = (count(self.orphan_nars, "NAR"), size(self.orphan_nar_bytes));
            writeln!(f, "without a path: {nars}, {bytes} (running or abandoned uploads)")?;
        }
        if self.paths_without_nar > 0 {
            let paths = count(self.paths_without_nar, "path");
            writeln!(f, "{paths} without a NAR; run nix-stored verify for details")?;
        }
        if self.unparsed_narinfos > 0 {
            let narinfos = count(self.unparsed_narinfos, "narinfo");
            writeln!(f, "{narinfos} cannot be parsed; run nix-stored verify for details")?;
        }
        if self.unreadable_narinfos > 0 {
            let narinfos = count(self.unreadable_narinfos, "narinfo");
            writeln!(
                f,
                "{narinfos} cannot be read, so collections remove nothing; run nix-stored verify for \
                 details"
            )?;
        }
        for (what, span) in [("last use", &self.last_used), ("upload", &self.uploaded)] {
            if let Some(TimeRange { oldest, newest }) = span {
                writeln!(f, "{what}: from {} to {}", time(*oldest), time(*newest))?;
            }
        }
        writeln!(f, "{}", count(self.pins, "pin"))?;
        if let Some(free) = self.free_space {
            writeln!(f, "free space: {}", size(free))?;
        }
        match &self.retention.by_reason[..] {
            [] => writeln!(f, "a collection now would remove nothing")?,
            sums => {
                writeln!(f, "a collection now would remove:")?;
                sums.iter().try_for_each(|sum| writeln!(f, "  {}", SumLine(sum)))?;
            }
        }
        if !self.largest.is_empty() {
            writeln!(f, "largest paths:")?;
        }
        for LargePath { store_path, size: bytes, .. } in &self.largest {
            let bytes = size(*bytes).to_string();
            writeln!(f, "  {bytes:>12}  {store_path}")?;
        }
        Ok(())
    }
}
