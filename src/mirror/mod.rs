//! Upstream caches: a decorator over [`Cache`](crate::cache::Cache) with the same operations.
//!
//! `pull_through` has the decorator. `upstreams` has the state of all configured upstreams.
//! `client` sends requests to one of them and follows `redirects` within limits; the `breaker`
//! stops requests while the upstream fails. `lookup` finds the upstream that has a path, and
//! remembers the `remote` path in an `expiring` cache.
//!
//! `fetch` fetches a NAR once for all its readers. They read the `partial_nar` while a
//! `notifying_upload` writes it. `requests` requests a NAR from one upstream after the other, and
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
