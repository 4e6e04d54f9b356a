//! What a user sees: the real Nix.

use crate::bench::{Bench, Meter};
use crate::cache_dir::write_cache_info;
use crate::line::{Goal, Line, Unit};
use crate::nar::Large;
use crate::nix::Nix;
use crate::sample::Sample;
use crate::server::Server;

/// Many small paths.
pub fn small(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let source = Nix::new(bench)?;
    let paths = source.add_tiny_files(bench.sizes.copied_paths)?;
    copy(bench, &source, &paths, &format!("{} small paths", paths.len()))
}

/// One large path.
pub fn large(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let source = Nix::new(bench)?;
    let paths = source.add_large_file(&Large::new(bench.sizes.large))?;
    copy(bench, &source, &paths, "1 GiB")
}

/// To an empty cache, and from it to an empty store.
fn copy(
    bench: &Bench,
    source: &Nix<'_>,
    paths: &[String],
    what: &str,
) -> anyhow::Result<Vec<Line>> {
    let samples = bench.take_turns(|kind| {
        let dir = bench.fresh_dir("copy")?;
        // Only the daemon knows by itself what to answer, so all get the file.
        write_cache_info(&dir)?;
        let server = Server::start(bench, kind, &dir)?;
        let meter = Meter::start(&server)?;
        source.copy_to(&server.url(), paths)?;
        let (wall, cpu) = meter.read()?;
        let to = Sample { value: wall, wall, cpu };

        let target = Nix::new(bench)?;
        bench.scratch.settle()?;
        let meter = Meter::start(&server)?;
        target.copy_from(&server.url(), paths)?;
        let (wall, cpu) = meter.read()?;
        let from = Sample { value: wall, wall, cpu };
        drop(server);
        // Large files fill the disk, small ones stay for the reason that the order of rows has.
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
