//! Sockets: where connections come from, how long they may take, and how they end.

mod activity;
mod connection;
mod io;
mod listener;
mod sendfile;
mod server;

pub use listener::Listener;
pub use server::{Drained, GRACE, serve};
