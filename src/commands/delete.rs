//! `nix-stored delete`: removes the given store paths, whatever the limits are.

use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use serde::Serialize;

use super::argument::hash_part;
use super::cache_command::{OpenCache, on_cache};
use super::exit_status::EXIT_NO;
use super::output::{Output, count, size};
use super::progress_bar::CommandProgressBar;
use super::signals::stop_on_signals;
use crate::config::Config;
use crate::nix::{StoreDir, StorePathHash};
use crate::retention::{
    Analysis, CollectError, Collector, Pin, Pins, Plan, PlanOutcome, Referrers, Refusal,
    RemovalName, plan_removal,
};

/// Maximum number of referrers printed for each refused path.
const MAX_EXAMPLES: usize = 5;

#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Removes all given paths or none. Refuses paths that are not in the cache, pinned \
                        paths with their dependencies, and paths that other paths depend on. Nix \
                        clients remember positive lookups for up to 30 days, and do not upload removed \
                        paths again within this time.\n\nExit status: 0 done; 1 failed or was stopped; \
                        2 refused; 64 the configuration or the arguments are wrong."
)]
pub(super) struct DeleteArgs {
    /// Store path to remove: complete, base name, hash part, or a symlink such as ./result
    #[arg(value_name = "STORE-PATH", required = true)]
    store_paths: Vec<String>,
    /// Also remove the paths that depend on the given paths
    #[arg(long)]
    with_referrers: bool,
    /// Preview what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: DeleteArgs, config: Config) -> anyhow::Result<ExitCode> {
    let store_dir = config.cache_info.store_dir.clone();
    let wanted = args.store_paths.iter().map(|text| hash_part(text, &store_dir));
    let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
    on_cache("delete", config, async move |open| delete(open, &wanted, &args, &store_dir).await)
}

async fn delete(
    OpenCache { cache, actor }: OpenCache,
    wanted: &[StorePathHash],
    args: &DeleteArgs,
    store_dir: &StoreDir,
) -> anyhow::Result<ExitCode> {
    let collector = Collector::new(Arc::clone(&cache), actor);
    let lock = if args.dry_run { None } else { collector.lock().await? };
    if lock.is_none() && !args.dry_run {
        bail!(CollectError::Busy);
    }
    let stop = stop_on_signals(|name| eprintln!("nix-stored: received {name}; stopping"))?;
    let mut bar = CommandProgressBar::new();
    let inventory = tokio::select! {
        biased;
        () = stop.cancelled() => bail!(CollectError::Stopped),
        inventory = cache.inventory(|objects| bar.found(objects)) => inventory?.complete()?,
    };
    let pins = Pins::of(&cache).list().await?;
    let analysis = Analysis::new(&inventory, &pins);
    let referrers = if args.with_referrers { Referrers::Remove } else { Referrers::Refuse };
    let plan = match plan_removal(&analysis, wanted, referrers) {
        Ok(plan) => plan,
        Err(refusals) => {
            drop(bar);
            let refused = DeleteRefusal::new(&refusals, &analysis, &pins, store_dir);
            args.output.refuse(&refused)?;
            return Ok(ExitCode::from(EXIT_NO));
        }
    };
    let mut outcome = None;
    if !args.dry_run {
        let of = plan.removals.len() as u64;
        let show = |done| bar.done("removing", done, of);
        outcome = Some(collector.delete(&inventory, &plan, &stop, show).await?);
    }
    drop(bar);
    args.output.print(&DeleteOutput::new(&plan, &analysis, outcome, store_dir))?;
    let stopped = outcome.is_some_and(|outcome| outcome.stopped);
    Ok(if stopped { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Result of a removal, or of its preview.
#[derive(Debug, Serialize)]
struct DeleteOutput {
    dry_run: bool,
    stopped: bool,
    /// The store paths to remove.
    store_paths: Vec<String>,
    /// Number of removed store paths; 0 in a preview.
    paths: usize,
    /// Bytes freed, or to be freed in a preview.
    freed: u64,
}

impl DeleteOutput {
    fn new(
        plan: &Plan,
        analysis: &Analysis<'_>,
        outcome: Option<PlanOutcome>,
        store_dir: &StoreDir,
    ) -> Self {
        let planned = plan.planned_removals(analysis);
        let names = planned.iter().filter_map(|one| match one.name {
            RemovalName::Path(path) => Some(store_dir.join(path)),
            RemovalName::Object(_) => None,
        });
        Self {
            dry_run: outcome.is_none(),
            stopped: outcome.is_some_and(|outcome| outcome.stopped),
            store_paths: names.collect(),
            paths: outcome.map_or(0, |outcome| outcome.paths),
            freed: outcome.map_or(plan.size_before - plan.size_after, |outcome| outcome.freed),
        }
    }
}

impl fmt::Display for DeleteOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (named, freed) = (count(self.store_paths.len(), "path"), size(self.freed));
        match self {
            Self { dry_run: true, .. } => writeln!(f, "would remove {named}: {freed}")?,
            Self { stopped: true, .. } => writeln!(
                f,
                "stopped before the end: removed {} of {named}, {freed}; the cache is consistent, and \
                 the next collection removes NARs that no path uses",
                self.paths
            )?,
            _ => writeln!(f, "removed {named}: {freed}")?,
        }
        self.store_paths.iter().try_for_each(|path| writeln!(f, "{path}"))
    }
}

/// Reasons why nothing was removed.
#[derive(Debug, Default, Serialize)]
struct DeleteRefusal {
    refused: bool,
    absent: Vec<String>,
    pinned: Vec<PinnedRefusal>,
    needed: Vec<NeededRefusal>,
}

#[derive(Debug, Serialize)]
struct PinnedRefusal {
    store_path: String,
    pin: String,
    /// The path that the pin names: the path itself, or one that depends on it.
    through: String,
}

#[derive(Debug, Serialize)]
struct NeededRefusal {
    store_path: String,
    referrers: usize,
    /// At most [`MAX_EXAMPLES`] referrers.
    examples: Vec<String>,
}

impl DeleteRefusal {
    fn new(
        refusals: &[Refusal],
        analysis: &Analysis<'_>,
        pins: &[Pin],
        store_dir: &StoreDir,
    ) -> Self {
        let paths = &analysis.inventory().paths;
        let name = |place: usize| store_dir.join(&paths[place].store_path);
        let mut refused = Self { refused: true, ..Self::default() };
        for refusal in refusals {
            match refusal {
                Refusal::Absent(hash) => refused.absent.push(format!("{store_dir}/{hash}")),
                Refusal::Pinned { path, pin, by } => refused.pinned.push(PinnedRefusal {
                    store_path: name(*path),
                    pin: pins[*pin].name.clone(),
                    through: name(*by),
                }),
                Refusal::Needed { path, by } => refused.needed.push(NeededRefusal {
                    store_path: name(*path),
                    referrers: by.len(),
                    examples: by.iter().take(MAX_EXAMPLES).map(|&place| name(place)).collect(),
                }),
            }
        }
        refused
    }
}

impl fmt::Display for DeleteRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for path in &self.absent {
            writeln!(f, "{path} is not in the cache")?;
        }
        for PinnedRefusal { store_path, pin, through } in &self.pinned {
            match through == store_path {
                true => writeln!(f, "{store_path} is pinned; run nix-stored unpin {pin} first")?,
                false => writeln!(
                    f,
                    "{store_path} is a dependency of {through}, which is pinned; run nix-stored unpin \
                     {pin} first"
                )?,
            }
        }
        for NeededRefusal { store_path, referrers, examples } in &self.needed {
            let examples = examples.join(" ");
            writeln!(
                f,
                "{store_path} is a dependency of {}, such as {examples}; --with-referrers also \
                 removes the paths that depend on it",
                count(*referrers, "path")
            )?;
        }
        writeln!(f, "nothing was removed")
    }
}
