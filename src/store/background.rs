//! Background work on threads of the lowest priority.

use std::fs::File;
use std::io;
use std::thread::{Builder, JoinHandle};

use rustix::fs::Advice;
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};
use tokio::sync::oneshot;

use super::StoreError;

/// For when a processor has nothing else to do (`SCHED_IDLE`, sched(7)): what wakes up takes it away
/// at once, where it would have to wait for the end of a turn if this were only a nice thread. It is
/// the lowest priority for the disk too: Linux derives that from it (ioprio_set(2)). Where others
/// leave nothing it still gets 0.3 % of a processor, so nothing waits for it without end.
const IDLE: ThreadSchedulePolicy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);

/// Starts a thread that gives way to all others. Not one of a pool: it would keep its priority
/// there.
pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        // Only advice.
        let _ = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, IDLE);
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
    // The receiver may have been dropped.
    spawn(name, move || drop(done.send(work()))).map_err(failed)?;
    result.await.map_err(|_| failed(io::Error::other("the thread panicked")))
}

/// Tells the kernel that a file will be read once, so that it does not displace frequently read
/// files from the page cache.
pub fn read_once(file: &File) {
    // Only advice.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::NoReuse);
}
