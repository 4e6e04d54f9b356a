//! `nix-stored gc`: collects garbage, or previews or explains a collection.

use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::argument::hash_part;
use super::cache_command::{OpenCache, load_inventory, on_cache};
use super::exit_status::EXIT_NO;
use super::explain::ExplainOutput;
use super::output::{Output, count, serialize_time, size, time};
use super::progress_bar::CommandProgressBar;
use super::signals::stop_on_signals;
use crate::cache::{Cache, GRACE};
use crate::config::{Config, parse_duration, parse_size};
use crate::inventory::{Progress, Unparsed};
use crate::nix::{StoreDir, StorePathHash};
use crate::retention::{
    Analysis, CollectError, Collector, GcReport, Limits, Pins, Plan, PlannedRemoval, Reason,
    RemovalName, RemovalSum,
};

#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Exit status: 0 the cache is within its limits; 1 failed or was stopped; 2 the cache \
                        is still too large and nothing more can be removed, or the path to explain is \
                        not in the cache; 64 the configuration or the arguments are wrong."
)]
pub(super) struct GcArgs {
    /// Preview what would be removed and why
    #[arg(long)]
    dry_run: bool,
    /// Maximum size of the cache, such as 200G, in place of NIX_STORED_MAX_SIZE
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_size: Option<u64>,
    /// Maximum time without use, such as 90d, in place of NIX_STORED_MAX_AGE
    #[arg(long, value_name = "AGE", value_parser = parse_duration)]
    max_age: Option<Duration>,
    /// Print why a path would be kept or removed
    #[arg(long, value_name = "STORE-PATH", conflicts_with = "dry_run")]
    explain: Option<String>,
    /// Take over the collection lock of a bucket, after printing its holder; the lock of a killed
    /// collection expires after five minutes
    #[arg(long, conflicts_with_all = ["dry_run", "explain"])]
    break_lock: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: GcArgs, config: Config) -> anyhow::Result<ExitCode> {
    let mut limits = Limits::new(&config.retention, GRACE);
    limits.max_size = args.max_size.or(limits.max_size);
    limits.max_age = args.max_age.or(limits.max_age);
    let store_dir = config.cache_info.store_dir.clone();
    let explained = args.explain.as_deref().map(|text| hash_part(text, &store_dir)).transpose()?;
    on_cache("gc", config, async move |OpenCache { cache, actor }| match explained {
        Some(path) => explain(&cache, path, &limits, &store_dir, args.output).await,
        None if args.dry_run => preview(&cache, &limits, &store_dir, args.output).await,
        None => {
            let collector = Collector::new(cache, actor);
            if args.break_lock {
                break_lock(&collector).await?;
            }
            collect(&collector, limits, args.output).await
        }
    })
}

/// The limits of a collection.
#[derive(Debug, Serialize)]
struct LimitsOutput {
    max_size: Option<u64>,
    max_age_seconds: Option<u64>,
}

impl From<Limits> for LimitsOutput {
    fn from(limits: Limits) -> Self {
        Self { max_size: limits.max_size, max_age_seconds: limits.max_age.map(|age| age.as_secs()) }
    }
}

impl LimitsOutput {
    fn write_if_unlimited(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.max_size.is_none() && self.max_age_seconds.is_none() {
            f.write_str(
                "no limit is set (NIX_STORED_MAX_SIZE, NIX_STORED_MAX_AGE): only abandoned uploads are \
                 removed\n",
            )?;
        }
        Ok(())
    }

    fn write_excess(&self, f: &mut fmt::Formatter<'_>, over: u64) -> fmt::Result {
        let Some(limit) = self.max_size.filter(|_| over > 0) else {
            return Ok(());
        };
        writeln!(
            f,
            "the cache is {} above its limit of {}, but all its paths are pinned or were used or \
             uploaded within the last 24 hours",
            size(over),
            size(limit)
        )
    }
}

async fn break_lock(collector: &Collector) -> anyhow::Result<()> {
    match collector.lock_holder().await? {
        Some(holder) => {
            eprintln!("nix-stored: took over the collection lock of {holder}");
            collector.break_lock().await?;
        }
        None => eprintln!("nix-stored: there is no collection lock to break"),
    }
    Ok(())
}

async fn collect(
    collector: &Collector,
    limits: Limits,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let stop = stop_on_signals(|name| eprintln!("nix-stored: received {name}; stopping"))?;
    let mut bar = CommandProgressBar::new();
    let show = |progress| match progress {
        Progress::Found(objects) => bar.found(objects),
        Progress::Done { done, total } => bar.done("removing", done, total),
    };
    let collected = collector.collect(&limits, SystemTime::now(), &stop, show).await;
    drop(bar);
    let report = match collected {
        Err(CollectError::Busy) => return Err(busy(collector).await),
        collected => collected?,
    };
    output.print(&CollectionOutput { limits: limits.into(), report })?;
    Ok(match report {
        GcReport { stopped: true, .. } => ExitCode::FAILURE,
        GcReport { over_limit: 1.., .. } => ExitCode::from(EXIT_NO),
        _ => ExitCode::SUCCESS,
    })
}

/// [`CollectError::Busy`], with the holder of the collection lock if it is known.
async fn busy(collector: &Collector) -> anyhow::Error {
    let busy = anyhow::Error::from(CollectError::Busy);
    match collector.lock_holder().await {
        Ok(Some(holder)) => busy.context(format!(
            "{holder} holds the collection lock; if that process was killed, wait five minutes until \
             the lock expires, or use --break-lock"
        )),
        _ => busy,
    }
}

/// Result of a collection.
#[derive(Debug, Serialize)]
struct CollectionOutput {
    #[serde(flatten)]
    limits: LimitsOutput,
    #[serde(flatten)]
    report: GcReport,
}

impl fmt::Display for CollectionOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.report;
        self.limits.write_if_unlimited(f)?;
        if report.stopped {
            f.write_str("stopped before the end; ")?;
        }
        writeln!(
            f,
            "removed {} and {}: {}; {} remain",
            count(report.paths, "path"),
            count(report.shared + report.unowned, "other object"),
            size(report.size_before - report.size_after),
            size(report.size_after)
        )?;
        write_unparsed(f, report.unparsed_narinfos)?;
        if report.kept_in_use > 0 {
            writeln!(f, "kept {} used during the collection", count(report.kept_in_use, "path"))?;
        }
        self.limits.write_excess(f, if report.stopped { 0 } else { report.over_limit })
    }
}

fn write_unparsed(f: &mut fmt::Formatter<'_>, unparsed: Unparsed) -> fmt::Result {
    match unparsed.lenient + unparsed.garbage {
        0 => Ok(()),
        number => writeln!(
            f,
            "{} cannot be parsed; the objects that they name are kept; run nix-stored verify for \
             details",
            count(number, "narinfo")
        ),
    }
}

async fn preview(
    cache: &Cache,
    limits: &Limits,
    store_dir: &StoreDir,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let inventory = load_inventory(cache).await?.complete()?;
    let pins = Pins::of(cache).list().await?;
    let analysis = Analysis::new(&inventory, &pins);
    let plan = analysis.plan(limits, SystemTime::now());
    output.print(&CollectionPreview::new(&plan, &analysis, limits, store_dir))?;
    Ok(ExitCode::from(if plan.over_limit() > 0 { EXIT_NO } else { 0 }))
}

/// Preview of a collection.
#[derive(Debug, Serialize)]
struct CollectionPreview {
    dry_run: bool,
    #[serde(flatten)]
    limits: LimitsOutput,
    size_before: u64,
    size_after: u64,
    over_limit: u64,
    unparsed_narinfos: Unparsed,
    by_reason: Vec<RemovalSum>,
    removals: Vec<PreviewLine>,
}

/// A store path or an object that would be removed.
#[derive(Debug, Serialize)]
struct PreviewLine {
    store_path: Option<String>,
    /// Key of an object that belongs to none of the removed paths.
    object: Option<String>,
    size: u64,
    reason: Reason,
    #[serde(serialize_with = "serialize_time")]
    last_used: SystemTime,
}

impl CollectionPreview {
    fn new(plan: &Plan, analysis: &Analysis<'_>, limits: &Limits, store_dir: &StoreDir) -> Self {
        let planned = plan.planned_removals(analysis);
        Self {
            dry_run: true,
            limits: (*limits).into(),
            size_before: plan.size_before,
            size_after: plan.size_after,
            over_limit: plan.over_limit(),
            unparsed_narinfos: analysis.inventory().unparsed,
            by_reason: RemovalSum::by_reason(&planned),
            removals: planned.iter().map(|one| PreviewLine::new(one, store_dir)).collect(),
        }
    }
}

impl PreviewLine {
    fn new(planned: &PlannedRemoval<'_>, store_dir: &StoreDir) -> Self {
        let (store_path, object) = match planned.name {
            RemovalName::Path(path) => (Some(store_dir.join(path)), None),
            RemovalName::Object(path) => (None, Some(path.key())),
        };
        Self {
            store_path,
            object,
            size: planned.size,
            reason: planned.reason,
            last_used: planned.used,
        }
    }
}

impl fmt::Display for CollectionPreview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.limits.write_if_unlimited(f)?;
        if self.removals.is_empty() {
            writeln!(f, "nothing would be removed; {} remain", size(self.size_after))?;
        } else {
            let freed = size(self.size_before - self.size_after);
            writeln!(f, "{freed} would be removed, {} would remain", size(self.size_after))?;
        }
        for sum in &self.by_reason {
            writeln!(f, "  {}", SumLine(sum))?;
        }
        for PreviewLine { store_path, object, size: bytes, reason, last_used } in &self.removals {
            let name = store_path.as_ref().or(object.as_ref()).map_or("", String::as_str);
            let (bytes, last_used) = (size(*bytes).to_string(), time(*last_used));
            writeln!(f, "{name}  {bytes}  {}  {last_used}", reason.as_str())?;
        }
        write_unparsed(f, self.unparsed_narinfos)?;
        self.limits.write_excess(f, self.over_limit)
    }
}

/// Human-readable form of a [`RemovalSum`].
pub(super) struct SumLine<'a>(pub &'a RemovalSum);

impl fmt::Display for SumLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RemovalSum { reason, paths, objects, bytes } = *self.0;
        write!(
            f,
            "{}: {} and {}, {}",
            reason.as_str(),
            count(paths, "path"),
            count(objects, "other object"),
            size(bytes)
        )
    }
}

async fn explain(
    cache: &Cache,
    path: StorePathHash,
    limits: &Limits,
    store_dir: &StoreDir,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let inventory = load_inventory(cache).await?.complete()?;
    let pins = Pins::of(cache).list().await?;
    let analysis = Analysis::new(&inventory, &pins);
    let now = SystemTime::now();
    let plan = analysis.plan(limits, now);
    let verdict = analysis.explain(path, &plan, limits, now);
    let explained = ExplainOutput::new(path, verdict, &analysis, &pins, limits, store_dir);
    output.print(&explained)?;
    Ok(ExitCode::from(if verdict.is_none() { EXIT_NO } else { 0 }))
}
