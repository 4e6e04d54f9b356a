//! The rows, in the order of the measurements.
//!
//! Uploads come first: ext4 does not reuse an inode for some minutes after it was freed, and
//! searches for another one at eight times the cost. For the same reason no uploaded file is
//! removed before the end.

mod upload;
mod narinfo;
mod download;
mod shootout;
mod copy;
mod start;
mod mirror;
mod memory;

use crate::side_by_side::comparison::Comparison;
use crate::side_by_side::line::Line;

/// A row: lines that are measured together.
pub struct Row {
    pub name: &'static str,
    pub about: &'static str,
    pub needs_nix: bool,
    pub run: fn(&Comparison) -> anyhow::Result<Vec<Line>>,
}

const fn row(
    name: &'static str,
    about: &'static str,
    run: fn(&Comparison) -> anyhow::Result<Vec<Line>>,
) -> Row {
    Row { name, about, needs_nix: false, run }
}

/// All of them.
pub const ALL: &[Row] = &[
    row("put-small", "PUT 5,000 NARs of 4 KiB over 8 and 64 connections", upload::small),
    row("put-large", "PUT a NAR of 1 GiB", upload::large),
    row("narinfo", "GET narinfos, 10,000 distinct, over 32 connections", narinfo::present),
    row("absent", "GET absent narinfos over 32 connections", narinfo::absent),
    row("nar", "GET a NAR of 1 GiB over 1 and 8 connections", download::large),
    row("shootout", "373 paths: narinfos in sequence, then 520 MiB of NARs", shootout::closure),
    Row {
        needs_nix: true,
        ..row("copy-small", "`nix copy` of 2,000 small paths, to and from", copy::small)
    },
    Row { needs_nix: true, ..row("copy-large", "`nix copy` of 1 GiB, to and from", copy::large) },
    row("mirror", "hits behind an upstream, next to nginx with proxy_cache", mirror::hits),
    row("start", "start over a directory of 100,000 narinfos", start::over_many),
    row("memory", "resident memory: idle, and with many clients", memory::resident),
];
