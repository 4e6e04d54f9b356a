//! `nix-stored migrate`: copies one cache into another.

use std::fmt;
use std::num::NonZeroU8;
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde::Serialize;

use super::argument::UsageError;
use super::exit_status::EXIT_NO;
use super::open_store::{open, open_existing};
use super::output::{OneLine, Output, count, size};
use super::owner::become_owner;
use super::progress_bar::CommandProgressBar;
use super::signals::stop_on_signals;
use crate::cache::Cache;
use crate::config::{Config, Location};
use crate::inventory::Progress;
use crate::logging;
use crate::migrate::{MigrateReport, migrate};
use crate::verify::Damage;

#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "FROM and TO are directories, or s3:// URLs as in NIX_STORED_PATH; the variable \
                        itself is ignored. Objects that are already in TO are skipped, so a stopped \
                        migration can be continued.\n\nExit status: 0 everything in FROM is in TO; 1 \
                        failed, was stopped, or could not read an object in FROM; 2 damaged objects in \
                        FROM were not copied; 64 the configuration or the arguments are wrong."
)]
pub(super) struct MigrateArgs {
    /// Cache to copy; it is not changed
    from: String,
    /// Target cache; a missing directory is created
    to: String,
    /// Number of objects copied at a time
    #[arg(long, value_name = "COUNT", default_value = "8")]
    jobs: NonZeroU8,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: MigrateArgs, mut config: Config) -> anyhow::Result<ExitCode> {
    logging::init(config.log_level, config.log_format);
    let (from, mut to) = (location("FROM", &args.from)?, location("TO", &args.to)?);
    if from == to {
        return Err(UsageError(format!("FROM and TO are both {from}; pass another cache")).into());
    }
    if let Location::Directory(path) = &from
        && !path.is_dir()
    {
        bail!("there is no cache in {from}");
    }
    if let Location::Directory(path) = &mut to
        && path.exists()
    {
        become_owner(path)?;
    }
    // FROM may contain objects that were accepted before the limit was set.
    config.admission.max_upload_size = None;
    let source = Config { location: from, min_free_space: 0, ..config.clone() };
    let target = Config { location: to, ..config };
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?
        .block_on(async {
            let from = open_existing(&source).await?;
            let from = Cache::new(from, source.cache_info, source.admission);
            let to = open(&target).await?;
            let to = Cache::new(to, target.cache_info, target.admission);
            to.keep_info().await?;
            copy(&from, &to, args.jobs, args.output).await
        })
}

/// Parses an argument as a location. The error does not quote the text, which may contain
/// credentials.
fn location(argument: &str, text: &str) -> anyhow::Result<Location> {
    let location = text.parse().map_err(|why| UsageError(format!("{argument} {why}")))?;
    absolute(location)
}

/// Makes a directory absolute, so that FROM and TO can be compared.
fn absolute(location: Location) -> anyhow::Result<Location> {
    match location {
        Location::Directory(path) => {
            let absolute = path.canonicalize().or_else(|_| std::path::absolute(&path));
            let absolute =
                absolute.with_context(|| format!("{} is not a valid path", path.display()))?;
            Ok(Location::Directory(absolute))
        }
        #[cfg(feature = "s3")]
        bucket => Ok(bucket),
    }
}

async fn copy(
    from: &Cache,
    to: &Cache,
    jobs: NonZeroU8,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let stop = stop_on_signals(|name| eprintln!("nix-stored: received {name}; stopping"))?;
    let mut bar = CommandProgressBar::new();
    let show = |progress| match progress {
        Progress::Found(objects) => bar.found(objects),
        Progress::Done { done, total } => bar.read("copying", done, total),
    };
    let report = migrate(from, to, jobs.get().into(), &stop, show).await?;
    drop(bar);
    let printed = MigrationOutput(report);
    output.print(&printed)?;
    Ok(match printed.0 {
        MigrateReport { stopped: true, .. } => ExitCode::FAILURE,
        MigrateReport { damage, .. } if damage.iter().any(Damage::is_known) => {
            ExitCode::from(EXIT_NO)
        }
        MigrateReport { damage, .. } if !damage.is_empty() => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

/// Result of a migration.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct MigrationOutput(MigrateReport);

impl fmt::Display for MigrationOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MigrateReport {
            paths,
            present,
            objects,
            bytes,
            pins,
            orphans,
            differing,
            damage,
            stopped,
        } = &self.0;
        damage.iter().try_for_each(|damage| writeln!(f, "{}", OneLine(damage)))?;
        for path in differing {
            writeln!(f, "{path}: FROM and TO have different contents; kept the object in TO")?;
        }
        if *orphans > 0 {
            let nars = count(*orphans, "NAR");
            writeln!(f, "note: skipped {nars} without a narinfo (abandoned uploads)")?;
        }
        if *stopped {
            f.write_str("stopped before the end; ")?;
        }
        writeln!(
            f,
            "copied {} and {}, {}; {} already in TO, {}",
            count(*paths, "path"),
            count(*objects, "other object"),
            size(*bytes),
            count(*present, "path"),
            count(*pins, "pin"),
        )?;
        let (damaged, unreadable): (Vec<_>, Vec<_>) =
            damage.iter().partition(|damage| damage.is_known());
        match damaged.len() {
            0 => {}
            1 => writeln!(f, "1 object is damaged and was not copied")?,
            more => writeln!(f, "{} are damaged and were not copied", count(more, "object"))?,
        }
        match unreadable.len() {
            0 => Ok(()),
            number => writeln!(
                f,
                "{} could not be read and may be intact; fix the causes above and migrate again",
                count(number, "object")
            ),
        }
    }
}
