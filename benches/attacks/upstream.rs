//! An upstream that sends some of its NARs slowly. It runs until this process ends.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::attacks::object::Object;

/// The number of bytes of a slow NAR that are sent at once, and the interval before each further
/// one.
const AT_ONCE: usize = 100_000;
const EVERY: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    files: Arc<Files>,
}

type Files = Mutex<HashMap<String, File>>;

#[derive(Debug, Clone)]
struct File {
    bytes: Arc<[u8]>,
    is_slow: bool,
}

impl Upstream {
    pub fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let upstream = Self { address: listener.local_addr()?, files: Arc::default() };
        let files = Arc::clone(&upstream.files);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let files = Arc::clone(&files);
                // A connection ends when the daemon closes it.
                std::thread::spawn(move || drop(serve(&stream, &files)));
            }
        });
        Ok(upstream)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a path to the upstream.
    pub fn add(&self, object: &Object, is_slow: bool) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, bytes, is_slow) in [
            (&object.narinfo_path, object.narinfo.as_bytes(), false),
            (&object.nar_path, &object.nar[..], is_slow),
        ] {
            files.insert(format!("/{path}"), File { bytes: bytes.into(), is_slow });
        }
    }
}

fn serve(mut stream: &TcpStream, files: &Files) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let path = head.split(' ').nth(1).unwrap_or_default();
        let file = files.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        let Some(File { bytes, is_slow }) = file else {
            stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        let length = bytes.len();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")?;
        let at_once = if is_slow { AT_ONCE } else { length };
        stream.write_all(&bytes[..at_once])?;
        for byte in &bytes[at_once..] {
            std::thread::sleep(EVERY);
            stream.write_all(std::slice::from_ref(byte))?;
        }
    }
}
