//! Copies by Nix.

use crate::side_by_side::comparison::{Comparison, Meter};
use crate::side_by_side::line::{Goal, Line, Unit};
use crate::side_by_side::nix::Nix;
use crate::side_by_side::server::Server;
use crate::support::cache_dir::write_cache_info;
use crate::support::nar::Large;
use crate::support::sample::Sample;

/// Many small paths.
pub fn small(comparison: &Comparison) -> anyhow::Result<Vec<Line>> {
    let source = Nix::new(comparison)?;
    let paths = source.add_tiny_files(comparison.sizes.copied_paths)?;
    copy(comparison, &source, &paths, &format!("{} small paths", paths.len()))
}

/// One large path.
pub fn large(comparison: &Comparison) -> anyhow::Result<Vec<Line>> {
    let source = Nix::new(comparison)?;
    let paths = source.add_large_file(&Large::new(comparison.sizes.large))?;
    copy(comparison, &source, &paths, "1 GiB")
}

/// Copies to an empty cache, and from it to an empty store.
fn copy(
    comparison: &Comparison,
    source: &Nix<'_>,
    paths: &[String],
    what: &str,
) -> anyhow::Result<Vec<Line>> {
    let samples = comparison.take_turns(|kind| {
        let dir = comparison.fresh_dir("copy")?;
        // Only the daemon generates `nix-cache-info`, so all servers get the file.
        write_cache_info(&dir)?;
        let server = Server::start(comparison, kind, &dir)?;
        let meter = Meter::start(&server)?;
        source.copy_to(&server.url(), paths)?;
        let (wall, cpu) = meter.read()?;
        let to = Sample { value: wall, wall, cpu };

        let target = Nix::new(comparison)?;
        comparison.settle()?;
        let meter = Meter::start(&server)?;
        target.copy_from(&server.url(), paths)?;
        let (wall, cpu) = meter.read()?;
        let from = Sample { value: wall, wall, cpu };
        drop(server);
        // Large files are removed because they would fill the disk. Small ones are kept; see the
        // order of the rows.
        if paths.len() == 1 {
            target.remove()?;
            std::fs::remove_dir_all(&dir)?;
        }
        Ok(vec![to, from])
    })?;
    let line = |index, how: &str| {
        let label = format!("{how}, {what}");
        Line::new(label, Unit::Seconds, Goal::TimesNginx(1.05), &samples, index)
    };
    Ok(vec![line(0, "`nix copy --to`"), line(1, "`nix copy --from`")])
}
