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
mod origin;
#[cfg(feature = "pages")]
mod pages;
mod route;
mod router;

pub use authorize::Gate;
pub use body::OnDemand;
pub use budget::{AnswerBudget, ConnectionBudget};
pub use origin::{LendFile, Origin, Peer};
pub use router::{App, app};
