//! The real binary, started on a free port, and its log.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
#[cfg(feature = "s3")]
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

#[cfg(feature = "s3")]
use super::s3_bucket::Bucket;
#[cfg(feature = "s3")]
use super::s3_garage::Garage;
use super::scratch::{KillAtExit, Scratch};

/// Longer than the daemon takes for anything it does on its own. Only failing tests wait this long.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The part of the log line before the address.
const LISTENING: &str = "listening on ";

/// If set, the caches of these tests are in S3 buckets.
#[cfg(feature = "s3")]
const IN_BUCKETS: &str = "NIX_STORED_TEST_IN_BUCKETS";

/// Without the feature there are no buckets.
#[cfg(not(feature = "s3"))]
enum Bucket {}

#[cfg(not(feature = "s3"))]
impl Bucket {
    fn settings(&self) -> Vec<(&'static str, String)> {
        match *self {}
    }

    fn keys(&self) -> Vec<String> {
        match *self {}
    }
}

#[cfg(not(feature = "s3"))]
fn in_a_bucket() -> Option<Bucket> {
    None
}

pub struct Daemon {
    child: Child,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
    url: String,
    dir: PathBuf,
    in_a_bucket: Option<Bucket>,
    _scratch: Option<Scratch>,
    _guard: KillAtExit,
}

/// The settings of a daemon that is not started yet.
#[derive(Default)]
pub struct Builder {
    dir: Option<PathBuf>,
    env: Vec<(String, String)>,
    file_limit: Option<u64>,
    cpus: Option<String>,
    sockets: Vec<OwnedFd>,
    failing: Vec<String>,
}

impl Builder {
    /// Sets an environment variable of the daemon. A later call replaces an earlier one.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Limits the number of open files.
    pub fn file_limit(mut self, files: u64) -> Self {
        self.file_limit = Some(files);
        self
    }

    /// Restricts the daemon to these processors, a list as for `taskset`.
    pub fn cpus(mut self, list: &str) -> Self {
        self.cpus = Some(list.into());
        self
    }

    /// Makes system calls, separated by commas, fail every time with this error, named as for
    /// strace.
    pub fn failing(mut self, calls: &str, error: &str) -> Self {
        self.failing.push(format!("-e trace={calls} -e inject={calls}:error={error}"));
        self
    }

    /// Passes a socket to the daemon, like systemd does; at most two.
    pub fn socket(mut self, socket: impl Into<OwnedFd>) -> Self {
        self.sockets.push(socket.into());
        self
    }

    /// Serves this directory instead of a new empty one.
    pub fn dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Starts the daemon and waits until it listens.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let scratch = self.dir.is_none().then(Scratch::new);
        let dir = match (&self.dir, &scratch) {
            (Some(dir), _) => dir.clone(),
            (None, Some(scratch)) => scratch.join("cache"),
            (None, None) => unreachable!("without a directory there is a scratch directory"),
        };
        std::fs::create_dir_all(&dir).expect("the cache directory is created");
        let in_a_bucket = if self.dir.is_none() { in_a_bucket() } else { None };

        let mut child = limited(self.file_limit, self.cpus.as_deref(), self.sockets, &self.failing)
            .env("NIX_STORED_PATH", &dir)
            .env("NIX_STORED_LISTEN_INTERFACE", "127.0.0.1:0")
            .envs(in_a_bucket.iter().flat_map(Bucket::settings))
            .envs(self.env)
            .spawn()
            .expect("the binary starts");
        let guard = KillAtExit::new(Pid::from_child(&child));
        let log = Arc::new(Log::default());
        let stderr = child.stderr.take().expect("stderr is piped");
        let reader = std::thread::spawn({
            let log = Arc::clone(&log);
            move || log.read(stderr)
        });
        let mut daemon = Daemon {
            child,
            log,
            reader: Some(reader),
            url: String::new(),
            dir,
            in_a_bucket,
            _scratch: scratch,
            _guard: guard,
        };
        let line = daemon.wait_for_log(LISTENING);
        let (_, address) = line.split_once(LISTENING).expect("the line has this prefix");
        let end = address.find(|c: char| c.is_whitespace() || "\",".contains(c));
        daemon.url = address[..end.unwrap_or(address.len())].trim_end_matches('/').into();
        daemon
    }
}

impl Builder {
    /// Starts the daemon, and expects that it exits with an error.
    #[track_caller]
    pub fn start_fails(self) -> Failed {
        let scratch = Scratch::new();
        let output = limited(None, None, self.sockets, &[])
            .env("NIX_STORED_PATH", scratch.join("cache"))
            .env("NIX_STORED_LISTEN_INTERFACE", "127.0.0.1:0")
            .envs(self.env)
            .output()
            .expect("the binary starts");
        let code = output.status.code().expect("not ended by a signal");
        Failed { code, log: String::from_utf8(output.stderr).expect("UTF-8") }
    }
}

/// If [`IN_BUCKETS`] is set, a new bucket of Garage for a cache without a directory, so that the
/// same tests run on both kinds of stores.
#[cfg(feature = "s3")]
fn in_a_bucket() -> Option<Bucket> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    std::env::var_os(IN_BUCKETS)?;
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    Some(Garage::shared().bucket(&format!("daemon-{}-{count}", std::process::id())))
}

/// A daemon that did not start.
#[derive(Debug)]
pub struct Failed {
    pub code: i32,
    pub log: String,
}

const BINARY: &str = env!("CARGO_BIN_EXE_nix-stored");

/// The command that runs the binary with these arguments on the cache in `dir`, with captured
/// output.
pub fn on_cache(dir: &Path, args: &[&str]) -> Command {
    let mut command = command(BINARY, args);
    command.env("NIX_STORED_PATH", dir).stdout(Stdio::piped());
    command
}

/// The command that runs the binary with at most this many open files, on these processors, with
/// these sockets from descriptor 3 on, and with failing system calls.
fn limited(
    files: Option<u64>,
    cpus: Option<&str>,
    sockets: Vec<OwnedFd>,
    failing: &[String],
) -> Command {
    let files = files.map(|files| format!("ulimit -n {files};")).unwrap_or_default();
    let cpus = cpus.map(|cpus| format!("taskset -c {cpus}")).unwrap_or_default();
    if files.is_empty() && cpus.is_empty() && sockets.is_empty() && failing.is_empty() {
        return command(BINARY, &[]);
    }
    let (announce, pass) = match sockets.len() {
        0 => (String::new(), ""),
        // The service manager sets `LISTEN_PID` to the process it starts, so the shell sets it.
        count => (
            format!("export LISTEN_FDS={count} LISTEN_PID=$$ WATCHDOG_PID=$$;"),
            ["3<&0", "3<&0 4<&1"][count - 1],
        ),
    };
    // strace runs as a separate process (`-D`), so that the daemon keeps the known process ID.
    let strace = match failing {
        [] => String::new(),
        failing => format!(
            "strace -D -f -qq --seccomp-bpf -o /dev/null -e signal=none {}",
            failing.join(" ")
        ),
    };
    let script =
        format!("{files} {announce} exec {cpus} {strace} {BINARY} {pass} </dev/null >/dev/null");
    let mut command = command("/bin/sh", &["-c", &script]);
    let mut sockets = sockets.into_iter();
    if let Some(first) = sockets.next() {
        command.stdin(first);
    }
    if let Some(second) = sockets.next() {
        command.stdout(second);
    }
    command
}

/// A command without the caller's settings and without the variables of a service manager.
pub fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    for (name, _) in std::env::vars_os() {
        let own = name.to_string_lossy().starts_with("NIX_STORED_");
        let others =
            ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC"];
        if own || others.iter().any(|other| name == *other) {
            command.env_remove(name);
        }
    }
    command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

impl Daemon {
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A daemon without settings, on an empty directory.
    #[track_caller]
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// The daemon's URL, `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The daemon's URL with credentials.
    pub fn url_with(&self, user: &str, pass: &str) -> String {
        self.url.replacen("://", &format!("://{user}:{pass}@"), 1)
    }

    /// The directory that it serves.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.lock().lines.join("\n")
    }

    /// Waits for a log line that contains `part`, and returns it. Earlier lines count.
    #[track_caller]
    pub fn wait_for_log(&self, part: &str) -> String {
        let deadline = Instant::now() + TIMEOUT;
        let mut seen = 0;
        let mut state = self.log.lock();
        loop {
            if let Some(line) = state.lines[seen..].iter().find(|line| line.contains(part)) {
                return line.clone();
            }
            seen = state.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                let why = if state.closed { "the daemon ended" } else { "time ran out" };
                let log = state.lines.join("\n");
                drop(state);
                panic!("{why} before a log line with {part:?}; the log:\n{log}");
            }
            state = self.log.wait(state, left);
        }
    }

    /// Sends a GET request over a new connection. Returns the status and the body.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, Vec<u8>) {
        let host = self.url.strip_prefix("http://").expect("plain HTTP");
        let mut stream = TcpStream::connect(host).expect("the daemon accepts connections");
        stream.set_read_timeout(Some(TIMEOUT)).expect("the timeout is set");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
            .expect("the request is sent");
        let mut response = Vec::new();
        stream.read_to_end(&mut response).expect("the response ends");
        let head = response
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .expect("the response has a head");
        let status = response.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
        let status =
            status.and_then(|digits| digits.parse().ok()).expect("the response has a status");
        (status, response[head + 4..].to_vec())
    }

    /// Sends SIGHUP, and waits until the daemon has reloaded its files.
    #[track_caller]
    pub fn reload(&self) {
        let before = self.log.lock().lines.len();
        kill_process(self.pid(), Signal::HUP).expect("the daemon is still there");
        self.wait_until("the files are reloaded", || {
            self.log.lock().lines[before..].iter().any(|line| line.contains("received SIGHUP"))
        });
    }

    /// Sends SIGTERM without waiting for the end.
    pub fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).expect("the daemon is still there");
    }

    /// Waits until `state` returns true.
    #[track_caller]
    pub fn wait_until(&self, what: &str, state: impl Fn() -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !state() {
            assert!(
                Instant::now() < deadline,
                "timeout while waiting until {what}; the log:\n{}",
                self.log()
            );
            std::thread::yield_now();
        }
    }

    /// The peak of the resident memory, in bytes.
    pub fn peak_memory(&self) -> usize {
        self.status("VmHWM:")
    }

    /// The resident memory, in bytes.
    pub fn memory(&self) -> usize {
        self.status("VmRSS:")
    }

    fn status(&self, name: &str) -> usize {
        let file = format!("/proc/{}/status", self.pid().as_raw_nonzero());
        let status = std::fs::read_to_string(file).expect("the daemon is still there");
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.expect("Linux has it").trim().trim_end_matches(" kB");
        kib.parse::<usize>().expect("digits") * 1024
    }

    /// The names of the objects in a folder of the directory or bucket.
    pub fn names_in(&self, folder: &str) -> Vec<String> {
        if let Some(bucket) = &self.in_a_bucket {
            let below = format!("{folder}/");
            let keys = bucket.keys().into_iter();
            return keys.filter_map(|key| key.strip_prefix(&below).map(str::to_owned)).collect();
        }
        let entries = std::fs::read_dir(self.dir.join(folder)).into_iter().flatten();
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("read").file_name();
        entries
            .map(|entry| name(entry).into_string().expect("names in a cache are ASCII"))
            .collect()
    }

    /// The number of open files and sockets.
    pub fn open_files(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.pid().as_raw_nonzero());
        std::fs::read_dir(folder).expect("the daemon is still there").count()
    }

    /// Sends SIGTERM. Returns the exit status and the log.
    #[track_caller]
    pub fn stop(mut self) -> (ExitStatus, String) {
        // The daemon may have ended already, after an earlier signal.
        let _ = kill_process(self.pid(), Signal::TERM);
        let deadline = Instant::now() + TIMEOUT;
        let mut state = self.log.lock();
        while !state.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let log = state.lines.join("\n");
                drop(state);
                panic!("the daemon does not end on SIGTERM; the log:\n{log}");
            }
            state = self.log.wait(state, left);
        }
        drop(state);
        let status = self.end();
        (status, self.log())
    }

    /// Sends SIGKILL. Unlike in a power cut, the page cache is kept.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        self.end();
    }

    /// Waits for the end of the process.
    fn end(&mut self) -> ExitStatus {
        let status = self.child.wait().expect("a child process");
        if let Some(reader) = self.reader.take() {
            reader.join().expect("reading the log does not panic");
        }
        status
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.reader.is_some() {
            let _ = self.child.kill();
            self.end();
        }
    }
}

/// A logged request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedRequest {
    pub method: String,
    pub path: String,
    pub status: String,
}

/// The requests in a log of level `debug`, in the order of their responses.
pub fn requests(log: &str) -> Vec<LoggedRequest> {
    log.lines()
        .filter_map(|line| {
            Some(LoggedRequest {
                method: field(line, "method")?,
                path: field(line, "path")?,
                status: field(line, "status")?,
            })
        })
        .collect()
}

/// The value of `name=value` or `name="value"` in a log line.
fn field(line: &str, name: &str) -> Option<String> {
    line.match_indices(name).find_map(|(at, _)| {
        let starts = line[..at].chars().next_back().is_none_or(|c| " {".contains(c));
        let value = line[at + name.len()..].strip_prefix('=').filter(|_| starts)?;
        match value.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next(),
            None => value.split([' ', '}', ',']).next(),
        }
        .map(str::to_owned)
    })
}

/// The lines of a growing log.
#[derive(Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Default)]
struct LogState {
    lines: Vec<String>,
    closed: bool,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().expect("the lock is not poisoned")
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, LogState>,
        at_most: Duration,
    ) -> MutexGuard<'a, LogState> {
        let waited = self.changed.wait_timeout(state, at_most);
        waited.expect("the lock is not poisoned").0
    }

    /// Collects lines until the process ends, which closes the pipe.
    fn read(&self, from: impl Read) {
        for line in BufReader::new(from).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line).into_owned();
            self.lock().lines.push(line);
            self.changed.notify_all();
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }
}
