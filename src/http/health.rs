//! `/health`: whether the daemon can serve requests, for monitoring.

use axum::body::Body;
use http::Response;
use http::header::{self, HeaderValue};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use super::backend::reads_store_objects;
use super::call::Answer;
use super::error::{ERROR_LINE_LIMIT, HttpError};
use super::state::AppState;
use crate::config::Requirement;
use crate::logging::{printable, with_causes};
use crate::store::{Availability, StoreError};

/// The limitation of a bucket without write permission.
const UNRECORDED_USES: &str =
    "uses cannot be recorded, so served objects are not protected from collection";

#[derive(Serialize)]
struct HealthReport<'a> {
    status: &'a str,
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    store: StoreReport,
}

#[derive(Serialize)]
struct StoreReport {
    writable: bool,
    /// The limitation of a cache that is available.
    #[serde(skip_serializing_if = "Option::is_none")]
    limitation: Option<&'static str>,
    free_bytes: Option<u64>,
}

/// Returns an error if the process can open no more files, so that only cached objects can be
/// served.
fn file_limit_error() -> Option<String> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match rustix::fs::open("/", flags, Mode::empty()) {
        Err(error @ (Errno::MFILE | Errno::NFILE)) => Some(format!(
            "no more files can be opened: {}; raise LimitNOFILE",
            std::io::Error::from(error)
        )),
        _ => None,
    }
}

pub(super) async fn answer(state: &AppState) -> Answer {
    let health = state.health.health().await;
    let uploads = !matches!(state.policy.access().write, Requirement::Nobody);
    // A cache need not be writable if it has no uploads, and reading stores nothing.
    let reason = match &*health.condition {
        Availability::Unusable(error) => Some(with_causes(error)),
        Availability::ReadOnly(error) if uploads || reads_store_objects(&state.backend) => {
            Some(with_causes(error))
        }
        Availability::ReadWrite | Availability::ReadOnly(_) => None,
    };
    let reason = reason.or_else(file_limit_error);
    let reason = reason.map(|reason| printable(&reason, ERROR_LINE_LIMIT).into_owned());
    let report = HealthReport {
        status: if reason.is_none() { "ok" } else { "unavailable" },
        version: env!("CARGO_PKG_VERSION"),
        reason: reason.as_deref(),
        store: StoreReport {
            writable: matches!(*health.condition, Availability::ReadWrite),
            limitation: match &*health.condition {
                Availability::ReadOnly(StoreError::Remote { .. }) => Some(UNRECORDED_USES),
                _ => None,
            },
            free_bytes: health.free_space,
        },
    };
    let mut text = serde_json::to_string(&report).expect("numbers and texts are JSON");
    text.push('\n');
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let error = reason.map(HttpError::Unhealthy);
    if let Some(error) = &error {
        *response.status_mut() = error.status();
    }
    Answer { error: error.map(Box::new), ..response.into() }
}
