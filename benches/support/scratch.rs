//! The directory of a run. It is removed, and its processes are killed, however the run ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use rustix::process::Pid;
use tempfile::TempDir;

use crate::support::process::on_path;

/// The cleanup after this process has ended. A killed process drops nothing, so a shell waits for
/// the end of its standard input, which is closed however this process ends.
const JANITOR: &str = r#"
trap '' HUP INT TERM
cat
cd "$0/processes" && for pid in *; do kill -9 "$pid"; done
cd / && chmod -R u+rwX "$0"
rm -rf "$0"
"#;

/// A directory that is removed on drop, with the read-only directories that Nix leaves.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    janitor: Child,
}

impl Scratch {
    /// Creates an empty directory below `parent`.
    pub fn new(parent: &Path) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix_in("side-by-side-", parent)
            .with_context(|| format!("cannot make a directory in {}", parent.display()))?
            .keep();
        fs::create_dir(dir.join("processes"))?;
        let janitor = Command::new("/bin/sh")
            .args(["-c", JANITOR])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("/bin/sh does not start")?;
        Ok(Self { dir, janitor })
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Creates a directory and its parents.
    pub fn make(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// Waits until written data is on the disk, so that no server pays for the writes of another.
    pub fn settle(&self) -> anyhow::Result<()> {
        Ok(rustix::fs::syncfs(fs::File::open(&self.dir)?)?)
    }

    /// Registers a process that is killed if it still runs when this one ends.
    pub fn guard(&self, pid: Pid) -> anyhow::Result<KillAtExit> {
        let file = self.dir.join("processes").join(on_path(pid));
        fs::write(&file, "")?;
        Ok(KillAtExit(file))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

/// Must be dropped when the process has ended, because its process ID may be reused.
#[derive(Debug)]
pub struct KillAtExit(PathBuf);

impl Drop for KillAtExit {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
