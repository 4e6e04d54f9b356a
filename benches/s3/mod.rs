//! The daemon with its cache in a bucket, beside the S3 server alone.
//!
//! - `lookups`: the narinfos of a closure.
//! - `nix`: the same requests by Nix.
//! - `downloads`: a NAR from the server, through the daemon, and by a redirect.
//! - `uploads`: a NAR to the server, and through the daemon.
//!
//! Server, daemon and client share the machine, so more processes in a path leave less time for
//! each.

mod lookups;
mod nix;
mod server;
mod stream;
mod table;
mod transfers;

use std::path::PathBuf;

use server::Server;
pub use server::serve;

use crate::support::bench::Bench;
use crate::support::options::Options;
use crate::support::report::{Report, Spot};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The program `garage`; the default is s3s-fs, which checks that everything works and measures nothing
    #[arg(long, value_name = "PROGRAM")]
    garage: Option<PathBuf>,

    /// A folder with the commands of a Nix that reads `s3://` without keys, such as 2.34; measures Nix too
    #[arg(long, value_name = "FOLDER", requires = "garage")]
    nix: Option<PathBuf>,

    #[command(flatten)]
    options: Options,
}

const SPOT: Spot = Spot { name: "s3", heading: "## A cache in a bucket" };

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let bench = Bench::new(&arguments.options)?;
    let mut report = Report::begin(&bench)?;
    let server = Server::start(&bench, arguments.garage.as_deref())?;
    report.facts.add("server", server.name.clone());
    report.add(lookups::measure(&bench, &server)?);
    if let (Some(programs), Some(web)) = (&arguments.nix, server.web) {
        report.add(nix::measure(&bench, &server, web, programs)?);
    }
    report.add(transfers::downloads(&bench, &server)?);
    report.add(transfers::uploads(&bench, &server)?);
    drop(server);
    report.end(&arguments.options, SPOT)
}
