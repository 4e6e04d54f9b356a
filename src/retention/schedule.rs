//! The background collections of the daemon.

use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::collector::{CollectError, Collector, GcReport, POSITIVE_LOOKUP_TTL};
use super::plan::Limits;
use crate::config::Retention;
use crate::inventory::StoreSize;
use crate::logging::with_causes;
use crate::metrics::CollectionResult;

/// The time between the start of the daemon and the first collection. It is shorter than the usual
/// interval, so that a daemon that is restarted often collects garbage, too.
const FIRST_COLLECTION_DELAY: Duration = Duration::from_secs(60);

impl Collector {
    /// Measures the cache at regular intervals until `stop`, and collects garbage if a limit is
    /// set.
    pub async fn run(self, retention: Retention, stop: CancellationToken) {
        // Taking the lock cleans up after a killed collection.
        if let Err(error) = self.lock().await {
            warn!(error = %with_causes(&error), "cannot clean up after an interrupted collection");
        }
        self.measure_unless(&stop).await;
        let limits = Limits::new(&retention, self.cache.grace());
        let has_limits = limits.max_size.is_some() || limits.max_age.is_some();
        if limits.max_age.is_some_and(|age| age < POSITIVE_LOOKUP_TTL) {
            warn!(
                "NIX_STORED_MAX_AGE is shorter than 30 days: Nix caches positive lookups for 30 \
                 days, and will neither re-upload nor rebuild a path that was removed within these 30 \
                 days"
            );
        }
        let metrics = self.cache.metrics();
        let first = if has_limits { FIRST_COLLECTION_DELAY } else { Duration::MAX };
        let mut next = first.min(retention.gc_interval);
        loop {
            tokio::select! {
                () = tokio::time::sleep(next) => {}
                () = stop.cancelled() => return,
            }
            next = retention.gc_interval;
            if !has_limits {
                self.measure_unless(&stop).await;
                continue;
            }
            let started = Instant::now();
            let collected = self.collect(&limits, SystemTime::now(), &stop, |_| {}).await;
            metrics.collected(started, outcome_label(&collected));
            match collected {
                Ok(report) => {
                    metrics.freed(report.size_before - report.size_after, report.paths as u64);
                    log(&report);
                }
                Err(CollectError::Busy) => {
                    info!("collection skipped: another process holds the collection lock");
                }
                Err(CollectError::Stopped) => return,
                Err(error) => {
                    warn!(error = %with_causes(&error), "garbage collection failed");
                }
            }
        }
    }

    async fn measure_unless(&self, stop: &CancellationToken) {
        let measured = tokio::select! {
            () = stop.cancelled() => return,
            measured = StoreSize::measure(self.cache.store()) => measured,
        };
        match measured {
            Ok(StoreSize { bytes, paths }) => self.cache.metrics().store.set_totals(bytes, paths),
            Err(error) => {
                warn!(error = %with_causes(&error), "cannot measure the size of the cache");
            }
        }
    }
}

fn outcome_label(collected: &Result<GcReport, CollectError>) -> CollectionResult {
    match collected {
        Ok(report) if report.stopped => CollectionResult::Stopped,
        Ok(_) => CollectionResult::Done,
        Err(CollectError::Busy) => CollectionResult::Busy,
        Err(CollectError::Stopped) => CollectionResult::Stopped,
        Err(_) => CollectionResult::Failed,
    }
}

fn log(report: &GcReport) {
    let GcReport { paths, shared, unowned, size_before, size_after, kept_in_use, .. } = *report;
    if paths + shared + unowned > 0 {
        info!(
            size_before,
            size_after,
            given_way = kept_in_use,
            "collected {paths} paths and {} other objects",
            shared + unowned
        );
    }
    if report.over_limit > 0 && !report.stopped {
        warn!(
            "the cache is {} bytes above NIX_STORED_MAX_SIZE, and all its paths were used \
             within the last 24 hours or are pinned",
            report.over_limit
        );
    }
}
