//! Counters that change with each request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::proto::MetricFamily;

use super::families::{HistogramSample, Sample, counter, histogram};
use super::shards::Shards;
use crate::nix::ObjectKind;

/// Method of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// GET
    Get,
    /// HEAD
    Head,
    /// PUT
    Put,
    /// Any other method.
    Other,
}

const METHODS: [&str; 4] = ["GET", "HEAD", "PUT", "other"];

/// Number of kinds; the last one is for requests that name no object.
const KINDS: usize = ObjectKind::ALL.len() + 1;

/// The status codes with labels of their own; all others have the label `other`.
pub const STATUSES: [u16; 26] = [
    200, 201, 206, 303, 304, 307, 308, 400, 401, 403, 404, 405, 408, 409, 411, 413, 415, 416, 417,
    422, 431, 500, 502, 503, 504, 507,
];

const OTHER_STATUS: usize = STATUSES.len();

/// The index of each status code up to 511 in [`STATUSES`].
const STATUS_INDEX: [u8; 512] = {
    let mut index = [OTHER_STATUS as u8; 512];
    let mut at = 0;
    while at < STATUSES.len() {
        index[STATUSES[at] as usize] = at as u8;
        at += 1;
    }
    index
};

/// Buckets for the duration of requests, in seconds. A narinfo takes a few microseconds; a NAR of many
/// gigabytes over a slow connection takes an hour.
const DURATION_BUCKETS: [f64; 16] = [
    0.0001, 0.00025, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0, 300.0, 900.0,
    3600.0,
];

/// [`DURATION_BUCKETS`] in nanoseconds.
const DURATION_BUCKETS_NANOS: [u64; DURATION_BUCKETS.len()] = {
    let mut nanos = [0; DURATION_BUCKETS.len()];
    let mut at = 0;
    while at < DURATION_BUCKETS.len() {
        // Rounded, because the floating point number 0.0001 is a little less than 0.0001.
        nanos[at] = (DURATION_BUCKETS[at] * 1e9 + 0.5) as u64;
        at += 1;
    }
    nanos
};

/// Counters of requests and bytes.
#[derive(Debug)]
pub struct Traffic(Shards<RequestCounts>);

#[derive(Debug)]
struct RequestCounts {
    answered: [[[AtomicU64; OTHER_STATUS + 1]; METHODS.len()]; KINDS],
    durations: [[Durations; METHODS.len()]; KINDS],
    hits: [AtomicU64; ObjectKind::ALL.len()],
    misses: [AtomicU64; ObjectKind::ALL.len()],
    received: AtomicU64,
    sent: AtomicU64,
}

/// Histogram of the duration of requests.
#[derive(Debug)]
struct Durations {
    /// Number of requests in each bucket; the last number is for those above all bounds.
    counts: [AtomicU64; DURATION_BUCKETS_NANOS.len() + 1],
    /// Sum of all durations.
    nanos: AtomicU64,
}

impl Default for RequestCounts {
    fn default() -> Self {
        use std::array::from_fn;
        let durations = || Durations { counts: from_fn(|_| zero()), nanos: zero() };
        Self {
            answered: from_fn(|_| from_fn(|_| from_fn(|_| zero()))),
            durations: from_fn(|_| from_fn(|_| durations())),
            hits: from_fn(|_| zero()),
            misses: from_fn(|_| zero()),
            received: zero(),
            sent: zero(),
        }
    }
}

fn zero() -> AtomicU64 {
    AtomicU64::new(0)
}

fn add(number: &AtomicU64, more: u64) {
    number.fetch_add(more, Ordering::Relaxed);
}

fn read(number: &AtomicU64) -> u64 {
    number.load(Ordering::Relaxed)
}

impl Traffic {
    pub(super) fn new() -> Self {
        Self(Shards::new())
    }

    /// Counts a request whose response was sent, or was aborted.
    pub fn answered(&self, kind: Option<ObjectKind>, method: Method, status: u16, took: Duration) {
        let counts = self.0.own();
        let (kind, method) = (kind_index(kind), method as usize);
        let status =
            STATUS_INDEX.get(usize::from(status)).map_or(OTHER_STATUS, |&at| usize::from(at));
        add(&counts.answered[kind][method][status], 1);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let durations = &counts.durations[kind][method];
        let bucket = DURATION_BUCKETS_NANOS
            .iter()
            .position(|&bound| nanos <= bound)
            .unwrap_or(DURATION_BUCKETS_NANOS.len());
        add(&durations.counts[bucket], 1);
        add(&durations.nanos, nanos);
    }

    /// Counts a read of an object that is in this cache.
    pub fn hit(&self, kind: ObjectKind) {
        add(&self.0.own().hits[kind as usize], 1);
    }

    /// Counts a read of an object that is not in this cache, even if an upstream has it.
    pub fn missed(&self, kind: ObjectKind) {
        add(&self.0.own().misses[kind as usize], 1);
    }

    /// Counts bytes that were received on a connection.
    pub fn received(&self, bytes: usize) {
        add(&self.0.own().received, bytes as u64);
    }

    /// Counts bytes that were sent on a connection.
    pub fn sent(&self, bytes: usize) {
        add(&self.0.own().sent, bytes as u64);
    }

    /// The number of reads of this kind that were in this cache.
    pub fn hits(&self, kind: ObjectKind) -> u64 {
        self.0.sum(|counts| read(&counts.hits[kind as usize]))
    }

    /// The number of reads of this kind that were not in this cache.
    pub fn misses(&self, kind: ObjectKind) -> u64 {
        self.0.sum(|counts| read(&counts.misses[kind as usize]))
    }

    /// The number of bytes received on all connections.
    pub fn received_bytes(&self) -> u64 {
        self.0.sum(|counts| read(&counts.received))
    }

    /// The number of bytes sent on all connections.
    pub fn sent_bytes(&self) -> u64 {
        self.0.sum(|counts| read(&counts.sent))
    }

    pub(super) fn families(&self) -> Vec<MetricFamily> {
        let by_kind = |count: fn(&Self, ObjectKind) -> u64| {
            let sample =
                |kind: ObjectKind| Sample::new([("kind", kind.as_str())], count(self, kind));
            ObjectKind::ALL.map(sample).into()
        };
        vec![
            counter(
                "nix_stored_http_requests_total",
                "Completed requests, by kind of object, method and status.",
                self.requests(),
            ),
            histogram(
                "nix_stored_http_request_duration_seconds",
                "Time from the request head until the last byte of the response was passed to \
                 the kernel.",
                &DURATION_BUCKETS,
                self.histogram_samples(),
            ),
            counter(
                "nix_stored_hits_total",
                "Reads of objects that were in this cache.",
                by_kind(Self::hits),
            ),
            counter(
                "nix_stored_misses_total",
                "Reads of objects that were not in this cache, even if an upstream had them.",
                by_kind(Self::misses),
            ),
            counter(
                "nix_stored_received_bytes_total",
                "Bytes received on connections, including request heads.",
                vec![Sample::plain(self.received_bytes())],
            ),
            counter(
                "nix_stored_sent_bytes_total",
                "Bytes sent on connections, including response heads.",
                vec![Sample::plain(self.sent_bytes())],
            ),
        ]
    }

    fn requests(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        for (kind, method) in pairs() {
            for status in 0..=OTHER_STATUS {
                let count = self.0.sum(|counts| read(&counts.answered[kind][method][status]));
                // Series of common requests exist before the first request, so that Prometheus sees
                // their first increase.
                if count > 0 || is_common(kind, method, status) {
                    let status = STATUSES.get(status);
                    let status = status.map_or_else(|| "other".to_owned(), ToString::to_string);
                    let [kind, method] = labels(kind, method);
                    samples.push(Sample::new([kind, method, ("status", &status)], count));
                }
            }
        }
        samples
    }

    fn histogram_samples(&self) -> Vec<HistogramSample> {
        let sample = |(kind, method): (usize, usize)| {
            let counts: Vec<u64> = (0..=DURATION_BUCKETS_NANOS.len())
                .map(|at| self.0.sum(|counts| read(&counts.durations[kind][method].counts[at])))
                .collect();
            let nanos = self.0.sum(|counts| read(&counts.durations[kind][method].nanos));
            let any = counts.iter().any(|&count| count > 0);
            any.then(|| HistogramSample::new(labels(kind, method), &counts, nanos as f64 / 1e9))
        };
        pairs().filter_map(sample).collect()
    }
}

fn kind_index(kind: Option<ObjectKind>) -> usize {
    kind.map_or(KINDS - 1, |kind| kind as usize)
}

fn pairs() -> impl Iterator<Item = (usize, usize)> {
    (0..KINDS).flat_map(|kind| (0..METHODS.len()).map(move |method| (kind, method)))
}

fn labels(kind: usize, method: usize) -> [(&'static str, &'static str); 2] {
    let kind = ObjectKind::ALL.get(kind).map_or("other", |kind| kind.as_str());
    [("kind", kind), ("method", METHODS[method])]
}

fn is_common(kind: usize, method: usize, status: usize) -> bool {
    let object = [ObjectKind::NarInfo as usize, ObjectKind::Nar as usize].contains(&kind);
    let statuses: &[u16] = match METHODS[method] {
        "GET" => &[200, 404],
        "PUT" => &[201],
        _ => &[],
    };
    object && STATUSES.get(status).is_some_and(|status| statuses.contains(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_counted_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let traffic = Traffic::new();
        for nanos in [1, 100_000, 100_001, 3_600_000_000_000, 3_600_000_000_001] {
            let took = Duration::from_nanos(nanos);
            traffic.answered(Some(ObjectKind::Nar), Method::Get, 200, took);
        }
        let nar = kind_index(Some(ObjectKind::Nar));
        let in_bucket = |at: usize| traffic.0.sum(|c| read(&c.durations[nar][0].counts[at]));
        assert_eq!([0, 1, 15, 16].map(in_bucket), [2, 1, 1, 1]);
        assert_eq!(traffic.histogram_samples().len(), 1);
    }

    #[test]
    fn every_status_is_counted_once() {
        let traffic = Traffic::new();
        let odd = [299, 511, 512, 599, 65535];
        for status in STATUSES.into_iter().chain(odd) {
            traffic.answered(None, Method::Other, status, Duration::ZERO);
        }
        let of = |status: usize| {
            traffic
                .0
                .sum(|counts| read(&counts.answered[KINDS - 1][Method::Other as usize][status]))
        };
        assert!((0..STATUSES.len()).all(|status| of(status) == 1));
        assert_eq!(of(OTHER_STATUS), odd.len() as u64);
    }
}
