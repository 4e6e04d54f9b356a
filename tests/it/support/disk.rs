//! A small private file system.
//!
//! It is mounted in the mount namespace of a shell, and accessed through that shell's
//! `/proc/<pid>/root`. There is nothing to unmount: the file system ends with the shell, and the
//! shell ends when its standard input is closed, which happens however the tests end. This requires
//! root, or permission to create a user namespace.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::{Pid, geteuid};

use super::nix::utf8;
use super::scratch::{KillAtExit, Scratch};

/// Mounts the file system, and remounts it with the options on each line of its input.
const SHELL: &str = r#"
mount -t tmpfs -o "$1" small "$0" && echo ready || exit
while read -r options; do
    mount -o "remount,bind,$options" "$0" && echo ready || echo failed
done
"#;

/// A small file system, removed on drop.
pub struct Disk {
    shell: Child,
    input: Option<ChildStdin>,
    responses: Lines<BufReader<ChildStdout>>,
    path: PathBuf,
    _guard: KillAtExit,
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
        let guard = KillAtExit::new(pid);
        let input = shell.stdin.take();
        let mut responses = BufReader::new(shell.stdout.take().expect("stdout is piped")).lines();
        if !matches!(responses.next(), Some(Ok(ready)) if ready == "ready") {
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
        Self { shell, input, responses, path, _guard: guard, _scratch: scratch }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    #[track_caller]
    pub fn remount(&mut self, options: &str) {
        let input = self.input.as_mut().expect("taken only on drop");
        writeln!(input, "{options}").expect("the shell reads");
        let response = self.responses.next().and_then(Result::ok);
        assert_eq!(response.as_deref(), Some("ready"), "remount with {options}");
    }

    /// The free space, in bytes.
    pub fn free(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.path).expect("the disk is there");
        disk.f_bavail * disk.f_frsize
    }

    /// The number of free inodes.
    pub fn free_files(&self) -> u64 {
        rustix::fs::statvfs(&self.path).expect("the disk is there").f_favail
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.shell.wait();
    }
}

#[test]
fn a_test_disk_is_small_and_not_visible_to_other_processes() {
    let disk = Disk::new("size=1m");
    std::fs::write(disk.path().join("file"), vec![1; 300_000]).expect("the number fits");
    assert!(disk.free() < 800_000, "{}", disk.free());
    assert!(std::fs::write(disk.path().join("more"), vec![1; 900_000]).is_err());
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("readable");
    let outside = utf8(disk.path()).split_once("/root").expect("the path is below the root").1;
    assert!(Path::new(outside).is_dir() && !mounts.contains(outside), "{mounts}");
}
