//! Large objects over a few connections, a thread for each.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::connection::Connection;
use crate::support::cache_dir::Stored;

/// Large enough that reads cost the client little.
pub const BUFFER: usize = 1024 * 1024;

/// Downloads all objects once over `connections`, each taking the next object.
pub fn get_all(address: SocketAddr, objects: &[Stored], connections: usize) -> anyhow::Result<()> {
    let next = AtomicUsize::new(0);
    let one = || {
        let mut connection = Connection::open(address)?;
        let mut buffer = vec![0; BUFFER];
        while let Some(object) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
            connection.get(object, &mut buffer)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(one)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a client does not panic"))
    })
}
