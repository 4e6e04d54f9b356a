//! `nix-stored verify`: checks every object in the cache.

use std::fmt;
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use super::cache_command::{OpenCache, on_cache};
use super::exit_status::EXIT_NO;
use super::output::{OneLine, Output, count, size};
use super::progress_bar::CommandProgressBar;
use crate::config::{Config, Verify};
use crate::inventory::Progress;
use crate::verify::{Damage, Note, NoteKind, Verifier, VerifyOptions, VerifyReport};

#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Exit status: 0 no damage (there may be notes); 1 failed, or an object could not be \
                        read or quarantined; 2 damage was found, even if all of it was quarantined; 64 \
                        the configuration or the arguments are wrong."
)]
pub(super) struct VerifyArgs {
    /// Quarantine damaged objects in .nix-stored/quarantine/, so that Nix uploads them again
    ///
    /// A damaged NAR is quarantined with every narinfo that names it. Objects that cannot be read stay
    /// in place.
    #[arg(long)]
    repair: bool,
    /// Unpack every NAR, and compare NarHash, NarSize and Compression
    #[arg(long)]
    deep: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: VerifyArgs, config: Config) -> anyhow::Result<ExitCode> {
    let depth = if args.deep { Verify::Nar } else { Verify::File };
    let options = VerifyOptions { depth, repair: args.repair };
    on_cache("verify", config, async move |OpenCache { cache, actor }| {
        let mut bar = CommandProgressBar::new();
        let show = |progress| match progress {
            Progress::Found(objects) => bar.found(objects),
            Progress::Done { done, total } => bar.read("reading", done, total),
        };
        let report = Verifier::new(cache, actor, options).verify(show).await?;
        drop(bar);
        let output = VerifyOutput { report, repair: args.repair };
        args.output.print(&output)?;
        match output.report {
            VerifyReport { not_quarantined: Some(error), .. } => {
                Err(error).context("not all damaged objects could be quarantined")
            }
            VerifyReport { damage, .. } if damage.iter().any(Damage::is_known) => {
                Ok(ExitCode::from(EXIT_NO))
            }
            VerifyReport { damage, .. } if !damage.is_empty() => Ok(ExitCode::FAILURE),
            _ => Ok(ExitCode::SUCCESS),
        }
    })
}

/// A report with the option that changes its text.
#[derive(Debug, Serialize)]
struct VerifyOutput {
    #[serde(flatten)]
    report: VerifyReport,
    #[serde(skip)]
    repair: bool,
}

impl fmt::Display for VerifyOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VerifyReport { checked, damage, notes, .. } = &self.report;
        damage.iter().try_for_each(|damage| writeln!(f, "{}", OneLine(damage)))?;
        let (absent, others): (Vec<_>, Vec<_>) =
            notes.iter().partition(|note| note.kind == NoteKind::Reference);
        for Note { object, text, .. } in others {
            writeln!(f, "note: {}: {}", OneLine(object), OneLine(text))?;
        }
        // Counted, not listed: every path may have missing references.
        if !absent.is_empty() {
            writeln!(
                f,
                "note: {} missing from the cache; a cache may hold incomplete closures (--json lists \
                 them)",
                count(absent.len(), "reference"),
            )?;
        }
        let unreadable = damage.iter().filter(|damage| !damage.is_known()).count();
        write!(
            f,
            "checked {}, {} and {}, {}: {}, {}",
            count(checked.paths, "path"),
            count(checked.nars, "NAR"),
            count(checked.side_files, "other object"),
            size(checked.bytes),
            match damage.len() - unreadable {
                0 if unreadable > 0 => format!("{} unreadable", count(unreadable, "object")),
                0 => "no damage".to_owned(),
                damaged => format!("{} damaged", count(damaged, "object")),
            },
            count(notes.len(), "note"),
        )?;
        let repaired = damage.iter().filter(|damage| damage.repaired).count();
        if repaired > 0 {
            write!(
                f,
                "\nquarantined {} in .nix-stored/quarantine/; Nix will upload missing objects again",
                count(repaired, "object")
            )?;
        } else if !self.repair && damage.len() > unreadable {
            f.write_str(
                "\nrun nix-stored verify --repair to quarantine the damage, so that Nix uploads the \
                 objects again",
            )?;
        }
        if unreadable > 0 {
            write!(
                f,
                "\n{} could not be read and may be intact, so nothing was changed; see the reasons above",
                count(unreadable, "object")
            )?;
        }
        writeln!(f)
    }
}
