//! Upstream caches: a decorator over [`Cache`](crate::cache::Cache) with the same operations.
//!
//! `pull_through` has the decorator. `upstreams` holds what is known of the configured upstreams;
//! `client` sends requests to one of them, follows `redirects` within limits, and the `breaker` stops
//! requests while the upstream fails. `lookup` finds the upstream that has a path, and remembers the
//! `remote` path in an `expiring` cache.
//!
//! `fetch` fetches a NAR once for all its readers, who read the `partial_nar` while it is hashed by a
//! `notifying_upload`. `requests` requests a NAR from one upstream after the other, and
//! `resuming_body` continues interrupted transfers. A NAR with an unknown file hash has a
//! `provisional` name. `name_locks` keeps concurrent requests from starting the same fetch twice.
//! `side_file` fetches everything else.

mod breaker;
mod client;
mod error;
mod expiring;
mod fetch;
mod lookup;
mod name_locks;
mod notifying_upload;
mod partial_nar;
mod provisional;
mod pull_through;
mod redirects;
mod remote;
mod requests;
mod resuming_body;
mod side_file;
mod upstreams;

pub use error::{GetError, SetUpError, UpstreamError, UpstreamFailure};
pub use pull_through::Mirror;
pub use upstreams::{UpstreamStatus, Upstreams};
