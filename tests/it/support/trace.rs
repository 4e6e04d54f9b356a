//! The daemon's system calls, in their real order.
//!
//! `strace` stops a thread at the beginning and at the end of each call. So if a call of one thread
//! depends on a call of another, it comes later in the trace too.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};

use super::nix::utf8;
use super::scratch::{KillAtExit, Scratch};

/// All calls that create, write, rename, sync or remove files, and all that read and write sockets.
/// A question mark allows calls that do not exist on every architecture.
const CALLS: [&str; 38] = [
    "open",
    "openat",
    "openat2",
    "creat",
    "mkdir",
    "mkdirat",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlinkat",
    "unlink",
    "unlinkat",
    "fsync",
    "fdatasync",
    "sync",
    "syncfs",
    "sync_file_range",
    "write",
    "writev",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "ftruncate",
    "fallocate",
    "copy_file_range",
    "sendfile",
    "splice",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "read",
    "readv",
    "recvfrom",
    "recvmsg",
    "close",
    "io_uring_setup",
];

/// A system call. `begin` and `end` are line numbers of the trace: if `a.end < b.begin`, then `a`
/// had ended when `b` began.
#[derive(Debug, Clone)]
pub struct Call {
    pub name: String,
    pub args: Vec<String>,
    /// The return value, or none if the call did not return.
    pub result: Option<i64>,
    pub begin: usize,
    pub end: usize,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({}) in line {}", self.name, self.args.join(", "), self.begin + 1)
    }
}

impl Call {
    /// Whether it returned without an error.
    pub fn succeeded(&self) -> bool {
        self.result.is_some_and(|result| result >= 0)
    }

    /// The file or socket of the descriptor in this argument.
    pub fn descriptor(&self, at: usize) -> Option<&str> {
        let arg = self.args.get(at)?;
        arg[arg.find('<')? + 1..].strip_suffix('>')
    }

    /// The path given by the descriptor in one argument and the name in the next.
    pub fn path_at(&self, at: usize) -> Option<String> {
        let name = self.path(at + 1)?;
        if name.starts_with('/') {
            return Some(name);
        }
        let folder = self.descriptor(at)?.trim_end_matches('/');
        let name = name.trim_start_matches("./");
        Some(if name == "." { folder.to_owned() } else { format!("{folder}/{name}") })
    }

    /// The path in this argument.
    pub fn path(&self, at: usize) -> Option<String> {
        let name = self.args.get(at)?.strip_prefix('"')?.strip_suffix('"')?;
        Some(name.trim_end_matches('/').to_owned())
    }
}

/// Parses the output of `strace -f -y`. Calls are in the order of their beginnings.
pub fn parse(text: &str) -> Result<Vec<Call>, String> {
    let mut calls = Vec::new();
    let mut unfinished: HashMap<&str, (usize, &str)> = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = |what: &str| format!("line {} of the trace {what}: {line}", number + 1);
        let (thread, event) = line.split_once(' ').ok_or_else(|| wrong("has one word"))?;
        let event = event.trim_start();
        // The tracer detached during the call.
        let is_cut_off = event.ends_with("<detached ...>");
        if event.starts_with("+++") || event.starts_with("---") || is_cut_off {
            continue;
        }
        let (begin, whole) = if let Some(resumed) = event.strip_prefix("<... ") {
            let (_, rest) = resumed.split_once(" resumed>").ok_or_else(|| wrong("is cut off"))?;
            let (begin, start) =
                unfinished.remove(thread).ok_or_else(|| wrong("resumes what never began"))?;
            (begin, format!("{start}{rest}"))
        } else if let Some(start) = event.strip_suffix("<unfinished ...>") {
            unfinished.insert(thread, (number, start));
            continue;
        } else {
            (number, event.to_owned())
        };
        calls.push(call(&whole, begin, number).ok_or_else(|| wrong("is no call"))?);
    }
    for (begin, start) in unfinished.into_values() {
        // The process ended during the call.
        let whole = format!("{start}) = ?");
        calls.push(call(&whole, begin, usize::MAX).ok_or_else(|| format!("no call: {start}"))?);
    }
    calls.sort_by_key(|call| call.begin);
    Ok(calls)
}

fn call(text: &str, begin: usize, end: usize) -> Option<Call> {
    let (call, result) = text.rsplit_once(" = ")?;
    let (name, args) = call.trim_end().strip_suffix(')')?.split_once('(')?;
    let number = result.split([' ', '<']).next()?;
    let result = match number {
        "?" => None,
        _ => Some(number.parse().ok()?),
    };
    Some(Call { name: name.to_owned(), args: split(args), result, begin, end })
}

/// Splits the arguments at commas, except in strings, structures and descriptor names.
fn split(args: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let (mut depth, mut quoted, mut escaped) = (0_u32, false, false);
    for c in args.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' | '<' => depth += 1,
            ')' | ']' | '}' | '>' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts.into_iter().map(|part| part.trim().to_owned()).collect()
}

pub struct TracedDaemon {
    /// The daemon itself: with `-D` the tracer is not its parent.
    daemon: Child,
    address: String,
    log: Option<JoinHandle<String>>,
    trace: Option<JoinHandle<String>>,
    _scratch: Scratch,
    _guard: KillAtExit,
}

impl TracedDaemon {
    /// Starts the daemon on `dir` and waits until it listens.
    #[track_caller]
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[])
    }

    /// Like [`start`](Self::start), with these environment variables.
    #[track_caller]
    pub fn start_with(dir: &Path, env: &[(&str, &str)]) -> Self {
        Self::start_by(&[], dir, env)
    }

    /// Like [`start_with`](Self::start_with), started by another program with these arguments.
    #[track_caller]
    pub fn start_by(starter: &[&str], dir: &Path, env: &[(&str, &str)]) -> Self {
        let scratch = Scratch::new();
        // Reading from a named pipe ends when no process has it open for writing any more.
        let pipe = scratch.join("trace");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).expect("the pipe is created");
        let trace = std::thread::spawn({
            let pipe = pipe.clone();
            move || String::from_utf8_lossy(&fs::read(pipe).expect("readable")).into()
        });
        let calls = CALLS.map(|call| format!("?{call}")).join(",");
        let mut daemon = Command::new("strace")
            // enough for the first line of a request or response, and for the longest file name
            .args(["-D", "-f", "-y", "-qq", "-s", "200", "-e", "signal=none"])
            .args(["-e", &format!("trace={calls}"), "-o", utf8(&pipe)])
            .args(starter)
            .arg(env!("CARGO_BIN_EXE_nix-stored"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("NO_COLOR", "1")
            .env("NIX_STORED_PATH", dir)
            .env("NIX_STORED_LISTEN_INTERFACE", "127.0.0.1:0")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace starts: install it, or run tests/run, which does that");
        let guard = KillAtExit::new(Pid::from_child(&daemon));

        let mut lines = BufReader::new(daemon.stderr.take().expect("stderr is piped")).lines();
        let mut log = String::new();
        let address = loop {
            let Some(Ok(line)) = lines.next() else {
                let _ = daemon.kill();
                let _ = daemon.wait();
                panic!("the daemon does not start under strace (may it trace here?):\n{log}");
            };
            log.push_str(&line);
            log.push('\n');
            if let Some((_, url)) = line.split_once("listening on http://") {
                let end = url.find(|c: char| !(c.is_ascii_digit() || ".:".contains(c)));
                break url[..end.unwrap_or(url.len())].to_owned();
            }
        };
        let log = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                log.push_str(&line);
                log.push('\n');
            }
            log
        });
        Self {
            daemon,
            address,
            log: Some(log),
            trace: Some(trace),
            _scratch: scratch,
            _guard: guard,
        }
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Stops the daemon. Returns its system calls and its log.
    #[track_caller]
    pub fn stop(mut self) -> (Vec<Call>, String) {
        kill_process(Pid::from_child(&self.daemon), Signal::TERM).expect("still running");
        let status = self.daemon.wait().expect("a child process");
        let (log, trace) = (self.log.take(), self.trace.take());
        let join = |thread: Option<JoinHandle<String>>| {
            thread.expect("taken once").join().expect("reading does not panic")
        };
        let (log, trace) = (join(log), join(trace));
        assert!(status.success(), "{status}; the log:\n{log}");
        (parse(&trace).unwrap_or_else(|error| panic!("{error}")), log)
    }
}

impl Drop for TracedDaemon {
    fn drop(&mut self) {
        if self.trace.is_some() {
            let _ = self.daemon.kill();
            let _ = self.daemon.wait();
        }
    }
}

#[test]
fn overlapping_calls_in_a_trace_are_joined() {
    let calls = parse(
        "\
7  openat(5</c/a, b>, \"0\", O_RDWR|O_CREAT, 0644) = 9</c/a, b/0>
7  write(9</c/a, b/0>, \"a, \\\") = 3\"..., 30 <unfinished ...>
8  recvfrom(4<socket:[77]>,  <unfinished ...>
7  <... write resumed>) = 30
7  fsync(9</c/a, b/0>)               = -1 EIO (Input/output error)
8  <... recvfrom resumed>\"PUT /x HTTP/1.1\\r\\n\"..., 8192, 0, NULL, NULL) = 99
8  --- SIGTERM {si_signo=SIGTERM} ---
8  writev(4<socket:[77]>, [{iov_base=\"HTTP/1.1 201\", iov_len=12}], 1 <unfinished ...>
7  +++ exited with 0 +++
",
    )
    .unwrap();
    let spans: Vec<_> =
        calls.iter().map(|call| (call.name.as_str(), call.begin, call.end, call.result)).collect();
    assert_eq!(
        spans,
        [
            ("openat", 0, 0, Some(9)),
            ("write", 1, 3, Some(30)),
            ("recvfrom", 2, 5, Some(99)),
            ("fsync", 4, 4, Some(-1)),
            ("writev", 7, usize::MAX, None),
        ]
    );
    assert_eq!(calls[0].path_at(0).as_deref(), Some("/c/a, b/0"));
    assert_eq!(calls[1].descriptor(0), Some("/c/a, b/0"));
    assert_eq!(calls[1].args[2], "30");
    assert_eq!(calls[2].args[1], "\"PUT /x HTTP/1.1\\r\\n\"...");
    assert!(!calls[3].succeeded());
    assert!(parse("8  <... read resumed>) = 0\n").is_err());
}
