//! Sockets and connections: how they are accepted, their timeouts, and how they end.

mod bodies;
mod bound;
mod close;
mod connection;
mod connection_limit;
mod connection_timeouts;
mod contention;
mod http1;
#[cfg(feature = "tls")]
mod http2;
#[cfg(feature = "tls")]
mod http2_upload;
mod inherited;
mod io;
mod listener;
mod requests;
mod sendfile;
mod server;
mod stream;
#[cfg(feature = "tls")]
mod subject;
pub mod systemd;
#[cfg(feature = "tls")]
mod tls;
mod unix;

pub use bound::Bound;
pub use inherited::Inherited;
pub use listener::Listener;
pub use server::{DRAIN_TIMEOUT, Drained, serve};
#[cfg(feature = "tls")]
pub use tls::TlsAcceptorHandle;
