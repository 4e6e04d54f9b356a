//! The daemon's own unix sockets: created with their permissions, in place of a dead one, and
//! removed.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::bound::BACKLOG;

/// The file of a socket, removed on drop if it is still that of this socket.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// The file at `path`, which was made just now.
    fn new(path: &Path) -> io::Result<Self> {
        let made = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device: made.dev(), inode: made.ino() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if ours {
            // It may be gone already, and then all is well.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`, with a file that has the permissions `mode`, or those that the umask leaves.
pub fn bind(path: &Path, mode: Option<u32>) -> io::Result<(UnixListener, SocketFile)> {
    make_room(path)?;
    let socket = socket()?;
    if let Some(mode) = mode {
        // Linux makes the file with the permissions of its socket, less the umask. So nobody comes
        // in before it has those that it shall have.
        fchmod(&socket, Mode::from_raw_mode(mode))?;
    }
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let file = SocketFile::new(path)?;
    if let Some(mode) = mode {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((UnixListener::from(socket), file))
}

/// A socket with which nobody waits.
fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Removes the socket that a killed process left there: it would make binding fail for ever.
fn make_room(path: &Path) -> io::Result<()> {
    let in_use = |why| Err(io::Error::new(io::ErrorKind::AddrInUse, why));
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            match rustix::net::connect(socket()?, &SocketAddrUnix::new(path)?) {
                Err(Errno::CONNREFUSED) => fs::remove_file(path),
                // One that may not be asked, or has no time to answer, is not dead.
                _ => in_use("another process listens there"),
            }
        }
        Ok(_) => in_use("the file is not a socket; move it away"),
        Err(_) => Ok(()),
    }
}
