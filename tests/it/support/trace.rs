//! The daemon's system calls, in the order in which they really happened.
//!
//! `strace` stops a thread at the beginning and at the end of each call. What one thread does
//! because of what another has done comes later here too, so "before" can be read off the lines.

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
use super::scratch::{Leash, Scratch};

/// Everything that makes, fills, names, syncs or removes a file, and everything that sockets are
/// read and written with. Not every machine has all of them, which the question mark allows.
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

/// One system call. `begin` and `end` are places in the trace: `a.end < b.begin` says that `a` was
/// over when `b` began.
#[derive(Debug, Clone)]
pub struct Call {
    pub name: String,
    pub args: Vec<String>,
    /// What it returned; none if it never did.
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
    /// It came back without an error.
    pub fn worked(&self) -> bool {
        self.result.is_some_and(|result| result >= 0)
    }

    /// What the descriptor in this argument is open on.
    pub fn descriptor(&self, at: usize) -> Option<&str> {
        let arg = self.args.get(at)?;
        arg[arg.find('<')? + 1..].strip_suffix('>')
    }

    /// The path that the descriptor in one argument and the name in the next stand for.
    pub fn path_at(&self, at: usize) -> Option<String> {
        let name = self.path(at + 1)?;
        if name.starts_with('/') {
            return Some(name);
        }
        let folder = self.descriptor(at)?.trim_end_matches('/');
        let name = name.trim_start_matches("./");
        Some(if name == "." { folder.to_owned() } else { format!("{folder}/{name}") })
    }

    /// The path that stands in this argument.
    pub fn path(&self, at: usize) -> Option<String> {
        let name = self.args.get(at)?.strip_prefix('"')?.strip_suffix('"')?;
        Some(name.trim_end_matches('/').to_owned())
    }
}

/// Reads what `strace -f -y` wrote. Calls come in the order in which they began.
pub fn parse(text: &str) -> Result<Vec<Call>, String> {
    let mut calls = Vec::new();
    let mut unfinished: HashMap<&str, (usize, &str)> = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = |what: &str| format!("line {} of the trace {what}: {line}", number + 1);
        let (thread, event) = line.split_once(' ').ok_or_else(|| wrong("has one word"))?;
        let event = event.trim_start();
        // The tracer let go of a thread in the middle of a call that nobody knows the end of.
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
        // The process ended inside of it.
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

/// The arguments: at commas, but not at those in strings, structures and names of descriptors.
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

/// A daemon under `strace`. Killed on drop.
pub struct Traced {
    /// The daemon itself: `-D` makes the tracer a process aside.
    daemon: Child,
    address: String,
    log: Option<JoinHandle<String>>,
    trace: Option<JoinHandle<String>>,
    _scratch: Scratch,
    _leash: Leash,
}

impl Traced {
    /// Starts the daemon on `dir`, which it may have to make, and waits until it listens.
    #[track_caller]
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[])
    }

    /// The same, with these variables in its environment.
    #[track_caller]
    pub fn start_with(dir: &Path, env: &[(&str, &str)]) -> Self {
        Self::start_by(&[], dir, env)
    }

    /// The same, started by another program, which is named with its arguments.
    #[track_caller]
    pub fn start_by(starter: &[&str], dir: &Path, env: &[(&str, &str)]) -> Self {
        let scratch = Scratch::new();
        // A pipe with a name ends when the last process that could still write to it is gone.
        let pipe = scratch.join("trace");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).expect("a pipe can be made");
        let trace = std::thread::spawn({
            let pipe = pipe.clone();
            move || String::from_utf8_lossy(&fs::read(pipe).expect("the trace is read")).into()
        });
        let calls = CALLS.map(|call| format!("?{call}")).join(",");
        let mut daemon = Command::new("strace")
            // the first line of a request or an answer, and the longest name of a file
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
        let leash = Leash::new(Pid::from_child(&daemon));

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
            _leash: leash,
        }
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Ends the daemon; everything that it did, and what it logged.
    #[track_caller]
    pub fn stop(mut self) -> (Vec<Call>, String) {
        kill_process(Pid::from_child(&self.daemon), Signal::TERM).expect("it is still there");
        let status = self.daemon.wait().expect("the daemon is a child of ours");
        let (log, trace) = (self.log.take(), self.trace.take());
        let join = |thread: Option<JoinHandle<String>>| {
            thread.expect("nobody else takes it").join().expect("reading does not panic")
        };
        let (log, trace) = (join(log), join(trace));
        assert!(status.success(), "{status}; the log:\n{log}");
        (parse(&trace).unwrap_or_else(|error| panic!("{error}")), log)
    }
}

impl Drop for Traced {
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
    assert!(!calls[3].worked());
    assert!(parse("8  <... read resumed>) = 0\n").is_err());
}
