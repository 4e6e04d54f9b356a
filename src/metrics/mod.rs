//! The metrics of the daemon, and their text format.
//!
//! All metrics are in one [`Metrics`], which is passed down: there are no globals. Counters of
//! every request are in `traffic`, in numbers of each thread's own (`shards`), because a narinfo
//! request takes only some microseconds; rare events are counted by the `prometheus` crate.
//! `docs/metrics.md` has a line for each name, and a test compares the two.

mod families;
mod process;
mod shards;
mod store;
mod traffic;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

pub use store::StoreNumbers;
pub use traffic::{Method, STATUSES, Traffic};

use families::{Sample, gauge};

/// The content type of what [`Metrics::render`] makes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Everything that is counted.
pub struct Metrics {
    /// What is counted for every request.
    pub traffic: Traffic,
    /// How much is in the store.
    pub store: StoreNumbers,
    /// Uploads that were refused.
    pub refused: IntCounterVec,
    verification: Histogram,
    commit: Histogram,
    open_connections: IntGauge,
    connections: IntCounter,
    collections: IntCounterVec,
    collection: Histogram,
    collected_bytes: IntCounter,
    collected_paths: IntCounter,
    upstream_up: IntGaugeVec,
    upstream_requests: IntCounterVec,
    upstream_received: IntCounterVec,
    registry: Registry,
    started: SystemTime,
}

/// How a collection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collected {
    /// It came to its end.
    Done,
    /// It was told to stop before.
    Stopped,
    /// Another one was at work.
    Busy,
    /// It failed.
    Failed,
}

impl Collected {
    const ALL: [Self; 4] = [Self::Done, Self::Stopped, Self::Busy, Self::Failed];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Busy => "busy",
            Self::Failed => "failed",
        }
    }
}

/// A connection, from when it is accepted until this is dropped.
#[derive(Debug)]
pub struct Open(IntGauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What is counted of one upstream.
#[derive(Debug)]
pub struct UpstreamCounters {
    up: IntGauge,
    found: IntCounter,
    absent: IntCounter,
    failed: IntCounter,
    left_alone: IntCounter,
    received: IntCounter,
}

impl UpstreamCounters {
    /// It works, or is left alone from now on.
    pub fn is_up(&self, up: bool) {
        self.up.set(up.into());
    }

    /// It has what it was asked for, or has not.
    pub fn answered(&self, found: bool) {
        if found { self.found.inc() } else { self.absent.inc() }
    }

    /// It could not say.
    pub fn failed(&self) {
        self.failed.inc();
    }

    /// It was not asked, because of its trouble before.
    pub fn left_alone(&self) {
        self.left_alone.inc();
    }

    /// A counter for bytes of objects that come from there.
    pub fn received(&self) -> IntCounter {
        self.received.clone()
    }
}

/// How long it takes to unpack, hash or write a NAR: up to ten minutes.
const WORK: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0];

/// How long a collection takes: up to an hour.
const COLLECTION: [f64; 8] = [0.01, 0.1, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0];

impl Metrics {
    /// Nothing was counted yet.
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        let upstream = ["upstream"];
        let collections = counters(
            &registry,
            "nix_stored_collections_total",
            "Garbage collections by the daemon.",
            &["result"],
        );
        for result in Collected::ALL {
            collections.with_label_values(&[result.as_str()]);
        }
        Arc::new(Self {
            traffic: Traffic::new(),
            store: StoreNumbers::default(),
            refused: counters(
                &registry,
                "nix_stored_uploads_refused_total",
                "Refused uploads.",
                &["reason"],
            ),
            verification: histogram(
                &registry,
                "nix_stored_verification_duration_seconds",
                "Time to hash, unpack and write a NAR, without waiting for the sender.",
                &WORK,
            ),
            commit: histogram(
                &registry,
                "nix_stored_commit_duration_seconds",
                "Time from the last byte of an object until the object was durable and visible.",
                &WORK,
            ),
            open_connections: registered(
                &registry,
                IntGauge::new("nix_stored_open_connections", "Open connections."),
            ),
            connections: plain(&registry, "nix_stored_connections_total", "Accepted connections."),
            collections,
            collection: histogram(
                &registry,
                "nix_stored_collection_duration_seconds",
                "Duration of garbage collections by the daemon.",
                &COLLECTION,
            ),
            collected_bytes: plain(
                &registry,
                "nix_stored_collected_bytes_total",
                "Bytes freed by garbage collections of the daemon.",
            ),
            collected_paths: plain(
                &registry,
                "nix_stored_collected_paths_total",
                "Store paths removed by garbage collections of the daemon.",
            ),
            upstream_up: registered(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "nix_stored_upstream_up",
                        "1, or 0 while the circuit breaker of the upstream is open.",
                    ),
                    &upstream,
                ),
            ),
            upstream_requests: counters(
                &registry,
                "nix_stored_upstream_requests_total",
                "Requests to an upstream for an object, by result.",
                &["upstream", "result"],
            ),
            upstream_received: counters(
                &registry,
                "nix_stored_upstream_received_bytes_total",
                "Bytes of objects received from an upstream.",
                &upstream,
            ),
            registry,
            started: SystemTime::now(),
        })
    }

    /// A connection was accepted.
    pub fn open(&self) -> Open {
        self.connections.inc();
        self.open_connections.inc();
        Open(self.open_connections.clone())
    }

    /// A NAR took so long to be hashed, unpacked and written.
    pub fn verified(&self, took: Duration) {
        self.verification.observe(took.as_secs_f64());
    }

    /// An object whose last byte came at `begun` is durable and visible.
    pub fn committed(&self, begun: Instant) {
        self.commit.observe(begun.elapsed().as_secs_f64());
    }

    /// A collection that began at `begun` ended so.
    pub fn collected(&self, begun: Instant, how: Collected) {
        self.collections.with_label_values(&[how.as_str()]).inc();
        self.collection.observe(begun.elapsed().as_secs_f64());
    }

    /// The daemon has removed so much by itself.
    pub fn freed(&self, bytes: u64, paths: u64) {
        self.collected_bytes.inc_by(bytes);
        self.collected_paths.inc_by(paths);
    }

    /// What is counted of the upstream of this name, which has no credentials in it.
    pub fn upstream(&self, name: &str) -> UpstreamCounters {
        let result = |result: &str| self.upstream_requests.with_label_values(&[name, result]);
        let up = self.upstream_up.with_label_values(&[name]);
        up.set(1);
        UpstreamCounters {
            up,
            found: result("found"),
            absent: result("absent"),
            failed: result("failed"),
            left_alone: result("left-alone"),
            received: self.upstream_received.with_label_values(&[name]),
        }
    }

    /// Everything, as Prometheus reads it. Looks into `/proc`.
    pub fn render(&self, free_space: Option<u64>) -> String {
        let features = [
            ("pages", cfg!(feature = "pages")),
            ("s3", cfg!(feature = "s3")),
            ("tls", cfg!(feature = "tls")),
            ("upstream", cfg!(feature = "upstream")),
        ];
        let features = features.into_iter().filter_map(|(name, is_in)| is_in.then_some(name));
        let features = features.collect::<Vec<_>>().join(",");
        let build = [("version", env!("CARGO_PKG_VERSION")), ("features", features.as_str())];
        let help = "Version and build features of nix-stored; always 1.";
        let mut families = self.registry.gather();
        families.push(gauge("nix_stored_build_info", help, vec![Sample::new(build, 1)]));
        families.extend(self.traffic.families());
        families.extend(self.store.families(free_space));
        families.extend(process::families(self.started));
        families.retain(|family| !family.get_metric().is_empty());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        TextEncoder::new().encode_to_string(&families).expect("a string takes everything")
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("started", &self.started).finish_non_exhaustive()
    }
}

fn registered<M: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> M {
    let metric = metric.expect("names, labels and buckets are right: each start makes them");
    registry.register(Box::new(metric.clone())).expect("each name is given once");
    metric
}

fn plain(registry: &Registry, name: &str, help: &str) -> IntCounter {
    registered(registry, IntCounter::new(name, help))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    registered(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn histogram(registry: &Registry, name: &str, help: &str, bounds: &[f64]) -> Histogram {
    let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
    registered(registry, Histogram::with_opts(options))
}
