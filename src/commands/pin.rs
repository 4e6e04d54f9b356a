//! `nix-stored pin`, `unpin` and `pins`: closures that collections never remove.

use std::fmt;
use std::process::ExitCode;

use serde::Serialize;

use super::argument::{UsageError, store_path};
use super::cache_command::{OpenCache, load_inventory, on_cache};
use super::exit_status::EXIT_NO;
use super::output::{Output, count, size};
use crate::cache::Cache;
use crate::config::Config;
use crate::inventory::Inventory;
use crate::nix::{CachePath, StoreDir};
use crate::retention::{Pin, PinError, Pins};

#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Pinned paths and their closures are never removed. A path that is not in the cache \
                        yet is kept as soon as it is uploaded.\n\nExit status: 0 done; 1 failed; 64 the \
                        configuration or the arguments are wrong."
)]
pub(super) struct PinArgs {
    /// Name of the pin; the new paths replace its previous paths
    name: String,
    /// Store path to keep: complete, base name, or a symlink such as ./result
    #[arg(value_name = "STORE-PATH", required = true)]
    store_paths: Vec<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Exit status: 0 done; 1 failed; 2 there is no such pin; 64 the configuration \
                        or the arguments are wrong."
)]
pub(super) struct UnpinArgs {
    /// Name of the pin
    name: String,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Exit status: 0 done; 1 failed; 64 the configuration or the arguments are wrong."
)]
pub(super) struct PinsArgs {
    #[command(flatten)]
    output: Output,
}

pub(super) fn pin(args: PinArgs, config: Config) -> anyhow::Result<ExitCode> {
    let store_dir = config.cache_info.store_dir.clone();
    let paths = args.store_paths.iter().map(|text| store_path(text, &store_dir));
    let paths = paths.collect::<Result<Vec<_>, _>>()?;
    on_cache("pin", config, async move |OpenCache { cache, .. }| {
        let replaced =
            Pins::of(&cache).set(&args.name, &paths).await.map_err(usage_error_if_name)?;
        let mut store_paths = Vec::new();
        for path in &paths {
            let present = cache.head(&CachePath::NarInfo(path.hash())).await?.is_some();
            store_paths.push(PinnedPath { store_path: store_dir.join(path), present });
        }
        args.output.print(&PinOutput { name: args.name, replaced, store_paths })?;
        Ok(ExitCode::SUCCESS)
    })
}

pub(super) fn unpin(args: UnpinArgs, config: Config) -> anyhow::Result<ExitCode> {
    on_cache("unpin", config, async move |OpenCache { cache, .. }| {
        let removed = Pins::of(&cache).remove(&args.name).await.map_err(usage_error_if_name)?;
        let output = UnpinOutput { name: args.name, removed };
        if removed {
            args.output.print(&output)?;
            return Ok(ExitCode::SUCCESS);
        }
        args.output.refuse(&output)?;
        Ok(ExitCode::from(EXIT_NO))
    })
}

pub(super) fn pins(args: PinsArgs, config: Config) -> anyhow::Result<ExitCode> {
    let store_dir = config.cache_info.store_dir.clone();
    on_cache("pins", config, async move |OpenCache { cache, .. }| {
        args.output.print(&list(&cache, &store_dir).await?)?;
        Ok(ExitCode::SUCCESS)
    })
}

async fn list(cache: &Cache, store_dir: &StoreDir) -> anyhow::Result<PinsOutput> {
    let pins = Pins::of(cache).list().await?;
    if pins.is_empty() {
        return Ok(PinsOutput { pins: Vec::new() });
    }
    let inventory = load_inventory(cache).await?;
    Ok(PinsOutput {
        pins: pins.iter().map(|pin| PinWithClosure::new(pin, &inventory, store_dir)).collect(),
    })
}

/// Makes an invalid name a usage error.
fn usage_error_if_name(error: PinError) -> anyhow::Error {
    match error {
        PinError::Name(_) => UsageError(error.to_string()).into(),
        error => error.into(),
    }
}

/// A path that a pin names.
#[derive(Debug, Serialize)]
struct PinnedPath {
    store_path: String,
    present: bool,
}

#[derive(Debug, Serialize)]
struct PinOutput {
    name: String,
    replaced: bool,
    store_paths: Vec<PinnedPath>,
}

impl fmt::Display for PinOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, paths) = (&self.name, count(self.store_paths.len(), "path"));
        let instead = if self.replaced { ", in place of its previous paths" } else { "" };
        writeln!(f, "the pin {name} keeps {paths} and all dependencies{instead}")?;
        for PinnedPath { store_path, .. } in self.store_paths.iter().filter(|held| !held.present) {
            writeln!(
                f,
                "{store_path} is not in the cache yet; it is kept as soon as it is uploaded"
            )?;
        }
        Ok(())
    }
}

#[derive(Debug, Serialize)]
struct UnpinOutput {
    name: String,
    removed: bool,
}

impl fmt::Display for UnpinOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.removed {
            true => writeln!(f, "removed the pin {}", self.name),
            false => writeln!(f, "there is no pin {}; run nix-stored pins to list them", self.name),
        }
    }
}

#[derive(Debug, Serialize)]
struct PinsOutput {
    pins: Vec<PinWithClosure>,
}

/// A pin with the size of its closure.
#[derive(Debug, Serialize)]
struct PinWithClosure {
    name: String,
    store_paths: Vec<PinnedPath>,
    closure_paths: usize,
    closure_bytes: u64,
}

impl PinWithClosure {
    fn new(pin: &Pin, inventory: &Inventory, store_dir: &StoreDir) -> Self {
        let closure = inventory.closure_of(&pin.paths);
        let held = pin.paths.iter().zip(closure.present);
        let held =
            held.map(|(path, present)| PinnedPath { store_path: store_dir.join(path), present });
        Self {
            name: pin.name.clone(),
            store_paths: held.collect(),
            closure_paths: closure.paths,
            closure_bytes: closure.bytes,
        }
    }
}

impl fmt::Display for PinsOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pins.is_empty() {
            writeln!(f, "there are no pins")?;
        }
        for PinWithClosure { name, store_paths, closure_paths, closure_bytes } in &self.pins {
            let paths = count(*closure_paths, "path");
            writeln!(f, "{name}: keeps {paths}, {}", size(*closure_bytes))?;
            for PinnedPath { store_path, present } in store_paths {
                let absent = if *present { "" } else { "  (not in the cache)" };
                writeln!(f, "  {store_path}{absent}")?;
            }
        }
        Ok(())
    }
}
