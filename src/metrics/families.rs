//! Metric families in the types of the encoder of `prometheus`.

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

/// A value of a counter or gauge, with labels.
pub(super) struct Sample {
    labels: Vec<LabelPair>,
    value: f64,
}

impl Sample {
    pub(super) fn new<const N: usize>(labels: [(&str, &str); N], value: u64) -> Self {
        Self { labels: pairs(labels), value: value as f64 }
    }

    /// Creates a sample without labels.
    pub(super) fn plain(value: u64) -> Self {
        Self::new([], value)
    }

    /// Creates a sample without labels, for a value with a fraction.
    pub(super) fn exact(value: f64) -> Self {
        Self { labels: Vec::new(), value }
    }
}

/// The values of a histogram, with labels.
pub(super) struct HistogramSample {
    labels: Vec<LabelPair>,
    cumulative: Vec<u64>,
    sum: f64,
}

impl HistogramSample {
    /// `counts` has a number for each bucket, and one more for values above all bounds.
    pub(super) fn new<const N: usize>(labels: [(&str, &str); N], counts: &[u64], sum: f64) -> Self {
        let mut so_far = 0;
        let cumulative = counts.iter().map(|count| {
            so_far += count;
            so_far
        });
        Self { labels: pairs(labels), cumulative: cumulative.collect(), sum }
    }
}

fn pairs<const N: usize>(labels: [(&str, &str); N]) -> Vec<LabelPair> {
    let pair = |(name, value): (&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    };
    labels.map(pair).into()
}

pub(super) fn counter(name: &str, help: &str, samples: Vec<Sample>) -> MetricFamily {
    let metric = |sample: Sample| {
        let mut counter = Counter::default();
        counter.set_value(sample.value);
        let mut metric = Metric::from_label(sample.labels);
        metric.set_counter(counter);
        metric
    };
    family(name, help, MetricType::COUNTER, samples.into_iter().map(metric).collect())
}

pub(super) fn gauge(name: &str, help: &str, samples: Vec<Sample>) -> MetricFamily {
    let metric = |sample: Sample| {
        let mut gauge = Gauge::default();
        gauge.set_value(sample.value);
        let mut metric = Metric::from_label(sample.labels);
        metric.set_gauge(gauge);
        metric
    };
    family(name, help, MetricType::GAUGE, samples.into_iter().map(metric).collect())
}

pub(super) fn histogram(
    name: &str,
    help: &str,
    bounds: &[f64],
    samples: Vec<HistogramSample>,
) -> MetricFamily {
    let metric = |sample: HistogramSample| {
        let bucket = |(bound, count): (&f64, &u64)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(*count);
            bucket
        };
        let mut histogram = Histogram::default();
        histogram.set_bucket(bounds.iter().zip(&sample.cumulative).map(bucket).collect());
        histogram.set_sample_count(sample.cumulative.last().copied().unwrap_or_default());
        histogram.set_sample_sum(sample.sum);
        let mut metric = Metric::from_label(sample.labels);
        metric.set_histogram(histogram);
        metric
    };
    family(name, help, MetricType::HISTOGRAM, samples.into_iter().map(metric).collect())
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}
