//! Sockets and connections.
//!
//! `bound` binds sockets before the process starts threads (`unix` creates unix sockets), or takes
//! `inherited` ones. `server` accepts connections from the `listener`, within the
//! `connection_limit`, and drains them at the end. `connection` serves one connection: the `tls`
//! handshake (`subject` reads the client certificate), then `http1` or `http2` with its
//! `http2_upload`s, which pass `requests` to [`crate::http`]. `connection_timeouts` decides when a
//! connection expires; `io` and `bodies` report transfers to it, and `contention` shortens it while
//! other connections wait. `io` sends files over the `stream` with `sendfile`. `close` ends a
//! connection so that the client gets the last response. `systemd` sends notifications to systemd.

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
