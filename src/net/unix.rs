//! Creates a unix socket with its permissions, in place of the socket file of a killed process, and
//! removes the file at the end.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The file of a socket, removed on drop unless it was replaced.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// Identifies the file at `path`, which was just created.
    fn new(path: &Path) -> io::Result<Self> {
        let made = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device: made.dev(), inode: made.ino() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if ours {
            // The file may have been removed already.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`, with a file that has the permissions `mode`, or those that the umask leaves.
/// Up to `backlog` connections may wait to be accepted.
pub(super) fn bind(
    path: &Path,
    mode: Option<u32>,
    backlog: i32,
) -> io::Result<(UnixListener, SocketFile)> {
    remove_stale(path)?;
    let socket = socket()?;
    if let Some(mode) = mode {
        // Linux creates the file with the permissions of the socket, less the umask. So the permissions
        // are never wider than `mode`.
        fchmod(&socket, Mode::from_raw_mode(mode))?;
    }
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let file = SocketFile::new(path)?;
    if let Some(mode) = mode {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    rustix::net::listen(&socket, backlog)?;
    Ok((UnixListener::from(socket), file))
}

/// Creates a non-blocking socket.
fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Removes the socket file of a killed process, which would make binding fail.
fn remove_stale(path: &Path) -> io::Result<()> {
    let in_use = |why| Err(io::Error::new(io::ErrorKind::AddrInUse, why));
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            match rustix::net::connect(socket()?, &SocketAddrUnix::new(path)?) {
                Err(Errno::CONNREFUSED) => fs::remove_file(path),
                // The process may be busy, or forbid the connection.
                _ => in_use("another process listens there"),
            }
        }
        Ok(_) => in_use("the file is not a socket; move it away"),
        Err(_) => Ok(()),
    }
}
