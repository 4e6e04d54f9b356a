//! The one directory of a run, gone afterwards however the run ends, and so are its processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use rustix::process::Pid;
use tempfile::TempDir;

use crate::support::process::on_path;

/// What is done when this process is gone. A killed process drops nothing, so a shell waits for the
/// end of its standard input, which comes in whatever way this process ends.
const JANITOR: &str = r#"
trap '' HUP INT TERM
cat
cd "$0/processes" && for pid in *; do kill -9 "$pid"; done
cd / && chmod -R u+rwX "$0"
rm -rf "$0"
"#;

/// Removed on drop, with the read-only directories that Nix leaves.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    janitor: Child,
}

impl Scratch {
    /// Makes an empty directory below `parent`.
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

    /// A new directory, with all that lead to it.
    pub fn make(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// Waits until what was written is on the disk, so that nobody pays for what another one wrote.
    pub fn settle(&self) -> anyhow::Result<()> {
        Ok(rustix::fs::syncfs(fs::File::open(&self.dir)?)?)
    }

    /// Sees to it that a process ends with this one, until the leash is dropped.
    pub fn leash(&self, pid: Pid) -> anyhow::Result<Leash> {
        let file = self.dir.join("processes").join(on_path(pid));
        fs::write(&file, "")?;
        Ok(Leash(file))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

/// Dropped when a process has ended, because its number may then be another's.
#[derive(Debug)]
pub struct Leash(PathBuf);

impl Drop for Leash {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
