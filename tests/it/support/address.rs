//! Unused addresses of this machine.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// An address that no other process uses: all of 127/8 is this machine, so every test process has a
/// network of its own, and a port that was free there a moment ago still is.
pub fn free_address() -> SocketAddr {
    static COUNT: AtomicU16 = AtomicU16::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let count = COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes()[1];
    let ip = Ipv4Addr::new(127, 128 | (count & 0x7f), high, low);
    let listener = TcpListener::bind(SocketAddrV4::new(ip, 0)).expect("a loopback address");
    listener.local_addr().expect("bound")
}
