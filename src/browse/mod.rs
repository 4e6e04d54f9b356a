//! The data for the web pages: an index of all names, the facts about one path, and its files.
//!
//! Scanning a cache with many paths takes seconds and much memory, so no request waits for a scan.
//! The first request starts building the index; requests in the meantime get the progress; later
//! requests get the last complete index while the next one is built. Nothing here counts as use,
//! and nothing is requested from upstreams.
//!
//! `browser` is the interface for the pages. `index` has the names, referrers and upload times of
//! all paths, `details` reads one path, and `files` and `listing` list its files, up to the limits
//! of `file_collector`. `workers` limits the work of all pages together.

mod browser;
mod details;
mod file_collector;
mod files;
mod index;
mod listing;
mod workers;

pub use browser::{Browser, CacheProperties, NarInfoRequests, Overview};
pub use details::{DetailsError, PathDetails};
pub use file_collector::{FileKind, FileList, ListFilesError, ListedFile};
pub use index::{DailyCounts, HISTORY_DAYS, Index, Row};
pub use workers::TooManyPages;
