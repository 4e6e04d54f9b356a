//! A small private file system.
//!
//! It is mounted where only one shell sees it, and reached through that shell's `/proc/<pid>/root`.
//! So there is nothing to unmount: the disk is gone when the shell is, and the shell ends when its
//! standard input does, which happens however the tests end. Root can do this, and so can whoever
//! may make a user namespace.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::{Pid, geteuid};

use super::nix::utf8;
use super::scratch::{Leash, Scratch};

/// Mounts, then does as it is told: each line has the options of a remount.
const SHELL: &str = r#"
mount -t tmpfs -o "$1" small "$0" && echo ready || exit
while read -r options; do
    mount -o "remount,bind,$options" "$0" && echo ready || echo failed
done
"#;

/// A small file system. Gone when it is dropped.
pub struct Disk {
    shell: Child,
    orders: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
    path: PathBuf,
    _leash: Leash,
    _scratch: Scratch,
}

impl Disk {
    /// A `tmpfs` with these mount options.
    #[track_caller]
    pub fn new(options: &str) -> Self {
        let scratch = Scratch::new();
        let mut command = Command::new("unshare");
        if !geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        let mut shell = command
            .args(["--mount", "--", "/bin/sh", "-c", SHELL])
            .arg(scratch.path())
            .arg(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("unshare starts: it is a part of util-linux");
        let pid = Pid::from_child(&shell);
        let leash = Leash::new(pid);
        let orders = shell.stdin.take();
        let mut answers = BufReader::new(shell.stdout.take().expect("stdout is piped")).lines();
        if !matches!(answers.next(), Some(Ok(ready)) if ready == "ready") {
            let mut why = String::new();
            let mut stderr = shell.stderr.take().expect("stderr is piped");
            let _ = stderr.read_to_string(&mut why);
            let _ = shell.wait();
            panic!(
                "this test needs a disk that it can fill, and may not mount one: {why}run it as \
                 root, or where `unshare --user --map-root-user --mount` works"
            );
        }
        let path = format!("/proc/{}/root{}", pid.as_raw_nonzero(), utf8(scratch.path()));
        let path = PathBuf::from(path);
        Self { shell, orders, answers, path, _leash: leash, _scratch: scratch }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Changes its mount options.
    #[track_caller]
    pub fn remount(&mut self, options: &str) {
        let orders = self.orders.as_mut().expect("taken on drop only");
        writeln!(orders, "{options}").expect("the shell reads");
        let answer = self.answers.next().and_then(Result::ok);
        assert_eq!(answer.as_deref(), Some("ready"), "remount with {options}");
    }

    /// How many bytes a file could still have.
    pub fn free(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.path).expect("the disk is there");
        disk.f_bavail * disk.f_frsize
    }

    /// How many files could still be made.
    pub fn free_files(&self) -> u64 {
        rustix::fs::statvfs(&self.path).expect("the disk is there").f_favail
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.shell.wait();
    }
}

#[test]
fn a_test_disk_is_small_and_not_visible_to_other_processes() {
    let disk = Disk::new("size=1m");
    std::fs::write(disk.path().join("file"), vec![1; 300_000]).expect("it fits");
    assert!(disk.free() < 800_000, "{}", disk.free());
    assert!(std::fs::write(disk.path().join("more"), vec![1; 900_000]).is_err());
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("readable");
    let outside = utf8(disk.path()).split_once("/root").expect("it is in there").1;
    assert!(Path::new(outside).is_dir() && !mounts.contains(outside), "{mounts}");
}
