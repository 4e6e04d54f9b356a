//! HTTP's own wing: names, headers and status codes. The only status codes of the program are here.

mod authorize;
mod body;
mod budget;
mod call;
pub mod conditional;
mod error;
mod health;
mod metrics;
mod objects;
mod observe;
mod conn_info;
#[cfg(feature = "pages")]
mod pages;
mod route;
mod router;

pub use authorize::AccessPolicy;
pub use body::OnDemand;
pub use budget::{AnswerBudget, ConnectionBudget};
pub use conn_info::{ConnInfo, MapFile, Peer};
pub use router::{App, app};
