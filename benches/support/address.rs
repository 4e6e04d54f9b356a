//! Addresses for servers that cannot choose a free port themselves.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// An address on the loopback interface with a port that was free just now.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
