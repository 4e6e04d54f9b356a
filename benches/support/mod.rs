//! Shared by the benchmarks: options, the cores of server and client, the daemon, clients, generated caches, and tables.

pub mod address;
pub mod bench;
pub mod cache_dir;
pub mod client;
pub mod daemon;
pub mod facts;
pub mod nar;
pub mod options;
pub mod process;
pub mod report;
pub mod sample;
pub mod scratch;

use std::io::Write;

/// Prints a line. A closed standard output does not end the benchmark.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
