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

/// The scheduling policy for CPUs that are otherwise idle (`SCHED_IDLE`, sched(7)). A thread with a
/// normal policy preempts such a thread immediately, while it would have to wait for the end of the
/// time slice of a thread with a high nice value. Linux derives the lowest I/O priority from this
/// policy (ioprio_set(2)). On a busy CPU the thread still gets 0.3 % of the time, so it makes
/// progress.
const IDLE: ThreadSchedulePolicy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);

/// Starts a thread with the lowest priority. A thread of a pool would keep the priority for its
/// next task.
pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        // The call is only advice, so errors are ignored.
        let _ = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, IDLE);
        work()
    })
}

/// Runs `work` on a thread with the lowest priority, and waits for the result.
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
    // The call is only advice, so errors are ignored.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::NoReuse);
}
