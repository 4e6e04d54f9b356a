//! Sockets and connections: how they are accepted, their timeouts, and how they end.

mod connection_timeouts;
mod bound;
mod bodies;
mod connection;
#[cfg(feature = "tls")]
mod http2;
mod inherited;
mod io;
#[cfg(feature = "tls")]
mod unread_body;
mod listener;
mod sendfile;
mod server;
mod connection_limit;
#[cfg(feature = "tls")]
mod subject;
pub mod systemd;
#[cfg(feature = "tls")]
mod tls;
mod unix;

pub use bound::Bound;
pub use inherited::Inherited;
pub use listener::Listener;
pub use server::{Drained, GRACE, serve};
#[cfg(feature = "tls")]
pub use tls::TlsAcceptorHandle;
