//! The data for the web pages: an index of all names, the facts about one path, and its files.
//!
//! Scanning a cache with many paths takes seconds and much memory, so no request waits for a scan.
//! The first request starts building the index; requests in the meantime get the progress; later
//! requests get the last complete index while the next one is built. Nothing here counts as use,
//! and nothing is requested from upstreams.
//!
//! `browser` is what the pages use. `index` has the names, referrers and upload times of all paths,
//! `details` reads one path, and `files` and `listing` list its files, as many as `file_collector` allows.
//! `workers` limits the work of all pages together.

mod browser;
mod details;
mod file_collector;
mod files;
mod index;
mod listing;

mod workers;

pub use browser::{About, Browser, Overview, Served};
pub use details::{DetailsError, PathDetails};
pub use file_collector::{File, FileKind, Files, NoFiles};
pub use index::{DAYS, Days, Index, Row};
pub use workers::TooManyPages;
