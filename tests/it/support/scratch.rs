//! Temporary directories that are removed however the tests end.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use rustix::process::Pid;
use tempfile::TempDir;

/// A directory of one test. It is removed on drop, with the read-only directories that Nix leaves.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Creates an empty directory.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("t")
            .tempdir_in(&base().0)
            .expect("a directory can be made under the base directory");
        Self(dir.keep())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let removed = unlock(&self.0).and_then(|()| fs::remove_dir_all(&self.0));
        if let Err(err) = removed
            && !std::thread::panicking()
        {
            panic!("{} cannot be removed: {err}", self.0.display());
        }
    }
}

/// Makes `dir` and the directories in it writable, so that they can be removed.
fn unlock(dir: &Path) -> io::Result<()> {
    match fs::set_permissions(dir, Permissions::from_mode(0o700)) {
        // A dropped store removes its staging folder on another thread.
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        unlocked => unlocked?,
    }
    let entries = match fs::read_dir(dir) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            unlock(&entry.path())?;
        }
    }
    Ok(())
}

/// Registers a child process that is killed if it still runs when the test process ends.
pub struct KillAtExit(PathBuf);

impl KillAtExit {
    /// The guard must be dropped when the process has ended, because its process ID may be reused.
    pub fn new(pid: Pid) -> Self {
        let file = base().0.join(PROCESSES).join(pid.as_raw_nonzero().to_string());
        fs::write(&file, "").expect("a file can be made under the base directory");
        Self(file)
    }
}

impl Drop for KillAtExit {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A folder with a file for each registered process.
const PROCESSES: &str = "processes";

/// The cleanup after the test process has ended.
const JANITOR: &str = r#"
trap '' HUP INT TERM
cat
cd "$0/processes" && for pid in *; do kill -9 "$pid"; done
cd / && chmod -R u+rwX "$0"
rm -rf "$0"
"#;

/// The base directory of this test process, and the shell that removes it.
///
/// A static is never dropped, and a killed process drops nothing. So a shell waits for the end of
/// its standard input, which is closed however this process ends.
fn base() -> &'static (PathBuf, Child) {
    static BASE: OnceLock<(PathBuf, Child)> = OnceLock::new();
    BASE.get_or_init(|| {
        let dir = TempDir::with_prefix_in("it-", env!("CARGO_TARGET_TMPDIR"))
            .expect("a directory can be made under the target directory")
            .keep();
        fs::create_dir(dir.join(PROCESSES))
            .expect("a directory can be created in the base directory");
        let janitor = Command::new("/bin/sh")
            .args(["-c", JANITOR])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("/bin/sh starts");
        (dir, janitor)
    })
}
