//! Reserves disk space for uploads before their bytes arrive, so that a full disk refuses an upload
//! before the client sends the body.
//!
//! Slow uploads with large announced sizes could take the space of all others. So an upload keeps
//! its reservation only while it arrives at a minimum rate. A slower upload continues without one,
//! and takes space as it writes. The rates are checked every few seconds, and before another upload
//! is refused.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// The minimum rate of an upload that keeps its reservation.
#[derive(Debug, Clone, Copy)]
pub struct MinimumRate {
    /// Bytes per second.
    pub bytes: u64,
    /// The time over which the rate is measured.
    pub over: Duration,
}

impl Default for MinimumRate {
    /// Half a megabit per second, over half the idle timeout of a request body.
    fn default() -> Self {
        Self { bytes: 64 * 1024, over: Duration::from_secs(30) }
    }
}

/// The reserved space of all uploads.
#[derive(Debug)]
pub(super) struct Reservations {
    rate: MinimumRate,
    reserved_uploads: Mutex<ReservedUploads>,
}

#[derive(Debug, Default)]
struct ReservedUploads {
    bodies: Vec<Weak<Mutex<UploadFile>>>,
    /// Whether a thread is running that checks the rates every few seconds.
    is_watched: bool,
}

/// The file of an upload that is being written.
#[derive(Debug)]
pub(super) struct UploadFile {
    /// `None` when the upload has ended.
    pub file: Option<File>,
    /// The number of written bytes.
    pub written: u64,
    /// If space is reserved: the progress at the last check.
    reserved: Option<RateMeasurement>,
}

#[derive(Debug)]
struct RateMeasurement {
    at: Instant,
    written: u64,
}

impl Reservations {
    pub(super) fn new(rate: MinimumRate) -> Self {
        Self { rate, reserved_uploads: Mutex::default() }
    }

    /// Reserves `size` bytes for a new file. If the file system does not support it, the writes
    /// take the space.
    pub(super) fn reserve(
        self: &Arc<Self>,
        file: File,
        size: u64,
    ) -> io::Result<Arc<Mutex<UploadFile>>> {
        let is_reserved = match allocate(&file, size) {
            Err(Errno::NOSPC) if self.release_slow() => allocate(&file, size)?,
            reserved => reserved?,
        };
        let reserved = is_reserved.then(|| RateMeasurement { at: Instant::now(), written: 0 });
        let body = Arc::new(Mutex::new(UploadFile { file: Some(file), written: 0, reserved }));
        if is_reserved {
            self.watch(&body);
        }
        Ok(body)
    }

    fn watch(self: &Arc<Self>, body: &Arc<Mutex<UploadFile>>) {
        let mut reserved_uploads = lock(&self.reserved_uploads);
        reserved_uploads.bodies.push(Arc::downgrade(body));
        if reserved_uploads.is_watched {
            return;
        }
        let (reservations, period) = (Arc::downgrade(self), self.rate.over / 6);
        let watch = move || {
            loop {
                std::thread::sleep(period);
                match reservations.upgrade() {
                    Some(reservations) if reservations.check_all() => {}
                    _ => return,
                }
            }
        };
        let thread = std::thread::Builder::new().name("reservations".to_owned()).spawn(watch);
        // Without the thread, the rates are checked only before another upload is refused.
        reserved_uploads.is_watched = thread.is_ok();
    }

    /// Checks all reservations. Returns false if none are left.
    fn check_all(&self) -> bool {
        self.release_slow_at(Instant::now());
        let mut reserved_uploads = lock(&self.reserved_uploads);
        reserved_uploads.is_watched = !reserved_uploads.bodies.is_empty();
        reserved_uploads.is_watched
    }

    /// Releases the reservations of uploads that are too slow. Returns true if there were any.
    pub(super) fn release_slow(&self) -> bool {
        self.release_slow_at(Instant::now())
    }

    fn release_slow_at(&self, now: Instant) -> bool {
        let mut is_any = false;
        lock(&self.reserved_uploads).bodies.retain(|body| {
            let Some(body) = body.upgrade() else {
                return false;
            };
            let mut body = match body.try_lock() {
                Ok(body) => body,
                Err(TryLockError::Poisoned(body)) => body.into_inner(),
                // The upload is writing.
                Err(TryLockError::WouldBlock) => return true,
            };
            is_any |= body.release_if_slow(now, self.rate);
            body.reserved.is_some()
        });
        is_any
    }
}

impl UploadFile {
    /// Whether the disk has space for the remaining bytes.
    pub(super) fn has_space(&self) -> bool {
        self.reserved.is_some()
    }

    /// Ends the upload and returns its file.
    pub(super) fn finish(&mut self) -> Option<File> {
        self.reserved = None;
        self.file.take()
    }

    fn release_if_slow(&mut self, now: Instant, rate: MinimumRate) -> bool {
        let (Some(file), Some(progress)) = (&self.file, &self.reserved) else {
            return false;
        };
        let passed = now.saturating_duration_since(progress.at);
        if passed < rate.over {
            return false;
        }
        let least = u128::from(rate.bytes) * passed.as_millis() / 1000;
        if u128::from(self.written - progress.written) >= least {
            self.reserved = Some(RateMeasurement { at: now, written: self.written });
            return false;
        }
        // The reserved space is behind the end of the file, and is released by truncating the file
        // to its length. A lock prevents writes meanwhile.
        let released = file.set_len(self.written);
        self.reserved = None;
        released.is_ok()
    }
}

/// Locks a mutex whose value is valid even after a panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Allocates space after the end of the file. Returns false if the file system, the kernel or a
/// sandbox does not support it.
fn allocate(file: &File, size: u64) -> Result<bool, Errno> {
    if size == 0 {
        return Ok(false);
    }
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, size) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const RATE: MinimumRate = MinimumRate { bytes: 1000, over: Duration::from_secs(30) };
    const SIZE: u64 = 1024 * 1024;

    struct TestUpload(Arc<Mutex<UploadFile>>);

    impl TestUpload {
        fn new(reservations: &Arc<Reservations>) -> Self {
            Self(reservations.reserve(tempfile::tempfile().unwrap(), SIZE).unwrap())
        }

        fn write(&self, count: usize) {
            let mut body = lock(&self.0);
            body.file.as_mut().unwrap().write_all(&vec![1; count]).unwrap();
            body.written += count as u64;
        }

        /// Returns the number of allocated bytes.
        fn allocated(&self) -> u64 {
            lock(&self.0).file.as_ref().unwrap().metadata().unwrap().blocks() * 512
        }

        fn length(&self) -> u64 {
            lock(&self.0).file.as_ref().unwrap().metadata().unwrap().len()
        }
    }

    #[test]
    fn only_a_fast_upload_keeps_its_reservation() {
        let reservations = Arc::new(Reservations::new(RATE));
        let (slow, fast) = (TestUpload::new(&reservations), TestUpload::new(&reservations));
        let started = Instant::now();
        let after = |seconds| reservations.release_slow_at(started + Duration::from_secs(seconds));
        assert!(slow.allocated() >= SIZE && fast.allocated() >= SIZE);
        slow.write(20_000);
        fast.write(40_000);
        assert!(!after(29));
        assert!(slow.allocated() >= SIZE);
        // Up to a second may have passed before the first check.
        assert!(after(32));
        assert!(slow.allocated() < 100_000 && fast.allocated() >= SIZE);
        assert_eq!((slow.length(), fast.length()), (20_000, 40_000));
        // The upload continues without a reservation.
        slow.write(30_000);
        assert_eq!(slow.length(), 50_000);
        // A stalled upload is slow, however fast it was before.
        assert!(!after(60));
        assert!(after(70));
        assert!(fast.allocated() < 100_000);
        assert!(!after(1000));
        assert!(lock(&reservations.reserved_uploads).bodies.is_empty());
    }

    #[test]
    fn the_reservation_of_an_upload_that_is_writing_or_has_ended_is_not_released() {
        let reservations = Arc::new(Reservations::new(RATE));
        let (writing, ended) = (TestUpload::new(&reservations), TestUpload::new(&reservations));
        let later = Instant::now() + 2 * RATE.over;
        let held = lock(&writing.0);
        lock(&ended.0).finish();
        assert!(!reservations.release_slow_at(later));
        drop(held);
        assert!(reservations.release_slow_at(later));
    }
}
