//! HTTP: names, headers and status codes. No other module has status codes of responses.

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
pub use body::OnDemand;
pub use budget::{AnswerBudget, ConnectionBudget};
pub use conn_info::{ConnInfo, MapFile, Peer};
pub use router::{App, app};
pub use state::AppState;
