//! `nix-stored verify`: whether everything in the cache is what it claims to be.

use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use serde::Serialize;

use super::EXIT_NO;
use super::offline::on_cache;
use super::output::{OneLine, Output, count, size};
use super::progress_bar::CommandProgressBar;
use crate::cache::Progress;
use crate::cache::verify::{Damage, Note, NoteKind, Options, Report};
use crate::config::{Config, Verify};

#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Exit status: 0 nothing is wrong (there may be notes); 1 failed, or an object could \
                        not be read or quarantined; 2 damage was found, even if all of it was \
                        quarantined; 64 the configuration or the arguments are wrong."
)]
pub(super) struct Args {
    /// Moves what is false to .nix-stored/quarantine/, so that Nix uploads it again
    ///
    /// A damaged NAR goes with every narinfo that names it. What cannot be read stays where it is.
    #[arg(long)]
    repair: bool,
    /// Unpacks every NAR, and compares NarHash, NarSize and Compression too
    #[arg(long)]
    deep: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    let depth = if args.deep { Verify::Nar } else { Verify::File };
    let options = Options { depth, repair: args.repair };
    on_cache("verify", config, async move |cache| {
        let mut bar = CommandProgressBar::new();
        let show = |progress| match progress {
            Progress::Found(objects) => bar.found(objects),
            Progress::Done { done, of } => bar.read("reading", done, of),
        };
        let report = Arc::new(cache).verify(options, show).await?;
        drop(bar);
        let told = Told { report, repair: args.repair };
        args.output.print(&told)?;
        match told.report {
            Report { not_put_aside: Some(error), .. } => {
                Err(error).context("not everything could be put aside")
            }
            Report { damage, .. } if damage.iter().any(Damage::is_known) => {
                Ok(ExitCode::from(EXIT_NO))
            }
            Report { damage, .. } if !damage.is_empty() => Ok(ExitCode::FAILURE),
            _ => Ok(ExitCode::SUCCESS),
        }
    })
}

/// A report, and what was asked for.
#[derive(Debug, Serialize)]
struct Told {
    #[serde(flatten)]
    report: Report,
    #[serde(skip)]
    repair: bool,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { checked, damage, notes, .. } = &self.report;
        damage.iter().try_for_each(|damage| writeln!(f, "{}", OneLine(damage)))?;
        let (absent, others): (Vec<_>, Vec<_>) =
            notes.iter().partition(|note| note.kind == NoteKind::Reference);
        for Note { object, text, .. } in others {
            writeln!(f, "note: {}: {}", OneLine(object), OneLine(text))?;
        }
        // There can be as many of them as there are paths.
        if !absent.is_empty() {
            writeln!(
                f,
                "note: {} that paths here refer to are not here: a cache may hold less than a \
                 closure (--json names them)",
                count(absent.len(), "path"),
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
                0 => "nothing is wrong".to_owned(),
                damaged => format!("{} damaged", count(damaged, "object")),
            },
            count(notes.len(), "note"),
        )?;
        let repaired = damage.iter().filter(|damage| damage.repaired).count();
        if repaired > 0 {
            write!(
                f,
                "\nput aside {} in .nix-stored/quarantine/; Nix uploads again what is missing",
                count(repaired, "object")
            )?;
        } else if !self.repair && damage.len() > unreadable {
            f.write_str(
                "\nnix-stored verify --repair puts it aside, so that Nix uploads it again",
            )?;
        }
        if unreadable > 0 {
            write!(
                f,
                "\n{} could not be read and may be right: the reasons are above; nothing was done to \
                 them",
                count(unreadable, "object")
            )?;
        }
        writeln!(f)
    }
}
