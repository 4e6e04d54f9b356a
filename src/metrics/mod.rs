//! The metrics of the daemon, and their text format.
//!
//! There are no globals: all metrics are in one [`Metrics`], which is passed to its users. Counters that
//! change with each request are in `traffic`; each thread has its own copy (`shards`), because a narinfo
//! request takes only a few microseconds. Rare events are counted with the `prometheus` crate.
//! `docs/metrics.md` lists all names, and a test compares the two.

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

/// The content type of the text from [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics.
pub struct Metrics {
    /// Counters of requests and bytes.
    pub traffic: Traffic,
    /// Size of the store.
    pub store: StoreNumbers,
    /// Refused uploads, by reason.
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

/// Result of a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectionResult {
    /// The collection was completed.
    Done,
    /// The daemon stopped during the collection.
    Stopped,
    /// Another process holds the collection lock.
    Busy,
    /// The collection failed.
    Failed,
}

impl CollectionResult {
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

/// An open connection: it is counted until this is dropped.
#[derive(Debug)]
pub struct OpenConnection(IntGauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The metrics of one upstream.
#[derive(Debug)]
pub struct UpstreamCounters {
    up: IntGauge,
    found: IntCounter,
    absent: IntCounter,
    failed: IntCounter,
    circuit_open: IntCounter,
    received: IntCounter,
}

impl UpstreamCounters {
    /// Records whether the circuit breaker is closed.
    pub fn set_up(&self, up: bool) {
        self.up.set(up.into());
    }

    /// Counts a response: the upstream has the object or not.
    pub fn answered(&self, found: bool) {
        if found { self.found.inc() } else { self.absent.inc() }
    }

    /// Counts a request that failed.
    pub fn failed(&self) {
        self.failed.inc();
    }

    /// Counts a request that was not sent, because the circuit breaker is open.
    pub fn circuit_open(&self) {
        self.circuit_open.inc();
    }

    /// The counter for received bytes of objects.
    pub fn received(&self) -> IntCounter {
        self.received.clone()
    }
}

/// Buckets for the time to unpack, hash or write a NAR, in seconds.
const NAR_BUCKETS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0];

/// Buckets for the duration of a collection, in seconds.
const COLLECTION_BUCKETS: [f64; 8] = [0.01, 0.1, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0];

impl Metrics {
    /// Creates metrics with all counters at zero.
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        let upstream = ["upstream"];
        let collections = counters(
            &registry,
            "nix_stored_collections_total",
            "Garbage collections by the daemon.",
            &["result"],
        );
        for result in CollectionResult::ALL {
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
                &NAR_BUCKETS,
            ),
            commit: histogram(
                &registry,
                "nix_stored_commit_duration_seconds",
                "Time from the last byte of an object until the object was durable and visible.",
                &NAR_BUCKETS,
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
                &COLLECTION_BUCKETS,
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

    /// Counts an accepted connection, which is open until the result is dropped.
    pub fn open(&self) -> OpenConnection {
        self.connections.inc();
        self.open_connections.inc();
        OpenConnection(self.open_connections.clone())
    }

    /// Records the time to hash, unpack and write a NAR.
    pub fn verified(&self, took: Duration) {
        self.verification.observe(took.as_secs_f64());
    }

    /// Records that an object is durable and visible; its last byte arrived at `started`.
    pub fn committed(&self, started: Instant) {
        self.commit.observe(started.elapsed().as_secs_f64());
    }

    /// Records the result of a collection that began at `started`.
    pub fn collected(&self, started: Instant, how: CollectionResult) {
        self.collections.with_label_values(&[how.as_str()]).inc();
        self.collection.observe(started.elapsed().as_secs_f64());
    }

    /// Records what a collection of the daemon has removed.
    pub fn freed(&self, bytes: u64, paths: u64) {
        self.collected_bytes.inc_by(bytes);
        self.collected_paths.inc_by(paths);
    }

    /// The metrics of the upstream with this name. The name must not contain credentials.
    pub fn upstream(&self, name: &str) -> UpstreamCounters {
        let result = |result: &str| self.upstream_requests.with_label_values(&[name, result]);
        let up = self.upstream_up.with_label_values(&[name]);
        up.set(1);
        UpstreamCounters {
            up,
            found: result("found"),
            absent: result("absent"),
            failed: result("failed"),
            circuit_open: result("left-alone"),
            received: self.upstream_received.with_label_values(&[name]),
        }
    }

    /// All metrics in the text format of Prometheus. Blocking: reads files in `/proc`.
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
    let metric = metric.expect("names, labels and buckets are constants, which each start checks");
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
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
