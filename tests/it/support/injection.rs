//! System calls of a running process that fail or are recorded for a while.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::nix::utf8;
use super::scratch::{KillAtExit, Scratch};
use super::trace::{Call, parse};

/// `strace`, attached to a process. It detaches on drop.
pub struct Injection {
    strace: Child,
    scratch: Scratch,
    _guard: KillAtExit,
}

impl Injection {
    /// Makes these calls, separated by commas, fail with this error if they concern one of these
    /// files or directories.
    #[track_caller]
    pub fn failing(process: Pid, calls: &str, error: &str, paths: &[&Path]) -> Self {
        let inject = format!("inject={calls}:error={error}");
        Self::start(process, calls, &["-e", &inject], paths)
    }

    /// Records these calls if they concern one of these files or directories.
    #[track_caller]
    pub fn watching(process: Pid, calls: &str, paths: &[&Path]) -> Self {
        Self::start(process, calls, &[], paths)
    }

    fn start(process: Pid, calls: &str, options: &[&str], paths: &[&Path]) -> Self {
        let scratch = Scratch::new();
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-s", "200", "-e", "signal=none"]).args(options);
        command.args(["-e", &format!("trace={calls}"), "-o", utf8(&scratch.join("trace"))]);
        for path in paths {
            command.args(["-P", utf8(path)]);
        }
        let mut strace = command
            .args(["-p", &process.as_raw_nonzero().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace starts: install it, or run tests/run, which does that");
        let guard = KillAtExit::new(Pid::from_child(&strace));
        let mut lines = BufReader::new(strace.stderr.take().expect("piped")).lines();
        let mut printed = String::new();
        loop {
            let line = lines.next().and_then(Result::ok);
            let line =
                line.unwrap_or_else(|| panic!("strace does not attach (may it?): {printed}"));
            if line.contains("attached") {
                break;
            }
            printed += &line;
        }
        // The pipe must be read, or strace could block on it.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { strace, scratch, _guard: guard }
    }

    /// Detaches, and returns the recorded calls.
    pub fn stop(mut self) -> Vec<Call> {
        self.end();
        let trace = fs::read_to_string(self.scratch.join("trace")).expect("written");
        parse(&trace).unwrap_or_else(|error| panic!("{error}"))
    }

    fn end(&mut self) {
        // strace ends when the process does. Its process ID may have been reused since.
        if matches!(self.strace.try_wait(), Ok(Some(_))) {
            return;
        }
        let _ = kill_process(Pid::from_child(&self.strace), Signal::INT);
        self.strace.wait().expect("a child process");
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        self.end();
    }
}
