//! HTTP: routes, access control, headers and status codes. No other module has status codes of
//! responses.
//!
//! `router` has the service. `observe` is its outermost layer: it turns a request into a `call`,
//! which `route` classifies, and counts and logs the response. `authorize` is the next layer, and
//! the innermost service dispatches the call. `objects` handles GET, HEAD and PUT of objects with
//! the `backend` (the cache with its upstreams): `conditional` selects what is sent, `body` sends
//! and receives bodies, and `budget` limits what responses may hold. `health`, `metrics` and
//! `pages` handle the other names. `error` has the errors and their status codes, `state` what all
//! requests share, and `conn_info` what `net` knows about the connection.

mod authorize;
mod backend;
mod body;
mod budget;
mod call;
pub mod conditional;
mod conn_info;
mod error;
mod health;
mod metrics;
mod objects;
mod observe;
#[cfg(feature = "pages")]
mod pages;
mod route;
mod router;
mod state;

pub use authorize::AccessPolicy;
pub use backend::Backend;
pub use body::OnDemandBody;
pub use budget::{ConnectionBudget, ResponseBudget};
pub use conn_info::{ConnInfo, MapFile, Peer};
pub use router::{App, app};
pub use state::AppState;
