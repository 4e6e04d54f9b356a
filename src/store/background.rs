//! Work that nobody waits for, out of everybody's way.

use std::fs::File;
use std::io;
use std::thread::{Builder, JoinHandle};

use rustix::fs::Advice;
use tokio::sync::oneshot;

use super::StoreError;

/// The lowest priority for the processor. It is one for the disk too: Linux derives the latter from
/// it (`ioprio_set(2)`).
const NICE: i32 = 19;

/// Starts a thread that gives way to all others. Not one of a pool: it would keep its priority
/// there.
pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        // Only advice.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
        work()
    })
}

/// Does work on such a thread, and waits for what comes of it.
pub async fn run<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    let failed = |error| StoreError::new("running the thread", name, error);
    let (done, result) = oneshot::channel();
    // Who does not wait any more does not want to know.
    spawn(name, move || drop(done.send(work()))).map_err(failed)?;
    result.await.map_err(|_| failed(io::Error::other("it panicked")))
}

/// Says that a file will be read once, so that it does not push out of memory what is read often.
pub fn read_once(file: &File) {
    // Only advice.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::NoReuse);
}
