//! An S3 server over real HTTP in this process: `s3s-fs` on a folder.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use hyper_util::rt::TokioIo;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio_util::sync::CancellationToken;

use super::s3_bucket::{Bucket, Keys};
use super::scratch::Scratch;

/// The key of a user with all rights.
pub const OWNER: Keys = Keys { id: "AKIAOWNER", secret: "the-owners-secret" };

/// The key of a user who may read and list.
pub const READER: Keys = Keys { id: "AKIAREADER", secret: "the-readers-secret" };

/// The key of a user without rights.
pub const NO_RIGHTS: Keys = Keys { id: "AKIANOBODY", secret: "nobodys-secret" };

/// A server. Stopped on drop, with all its connections.
pub struct S3Server {
    address: SocketAddr,
    keys: Option<Keys>,
    root: Arc<Scratch>,
    running: Option<Running>,
}

struct Running {
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

impl S3Server {
    /// A server with the users [`OWNER`], [`READER`] and [`NO_RIGHTS`].
    pub fn start() -> Self {
        Self::with_keys(Some(OWNER))
    }

    /// A server that accepts only unsigned requests, from anyone.
    pub fn unauthenticated() -> Self {
        Self::with_keys(None)
    }

    fn with_keys(keys: Option<Keys>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("bound");
        let mut server = Self { address, keys, root: Arc::new(Scratch::new()), running: None };
        server.run(listener);
        server
    }

    fn run(&mut self, listener: TcpListener) {
        let stop = CancellationToken::new();
        let service = service(self.root.path(), self.keys.is_some());
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .expect("the runtime starts");
                runtime.block_on(serve(listener, service, stop));
                // Does not wait for the connections.
                runtime.shutdown_background();
            }
        });
        self.running = Some(Running { stop, thread });
    }

    /// Creates a bucket.
    pub fn bucket(&self, name: &str) -> Bucket {
        std::fs::create_dir(self.root.join(name)).expect("the name is unused");
        self.missing_bucket(name)
    }

    /// The address of a bucket that does not exist.
    pub fn missing_bucket(&self, name: &str) -> Bucket {
        Bucket::new(self.address, name, "us-east-1", self.keys)
    }

    /// The folder with the objects of a bucket as files.
    pub fn folder(&self, bucket: &Bucket) -> PathBuf {
        self.root.join(bucket.name())
    }

    /// The number of files of unfinished multipart uploads, which this server cannot list.
    pub fn unfinished(&self) -> usize {
        let entries = std::fs::read_dir(self.root.path()).expect("the folder is there");
        let names = entries.map(|entry| entry.expect("readable").file_name());
        names.filter(|name| name.to_string_lossy().starts_with(".upload")).count()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops the server: its connections break, and new ones are refused.
    pub fn stop(&mut self) {
        if let Some(Running { stop, thread }) = self.running.take() {
            stop.cancel();
            let _ = thread.join();
        }
    }

    /// Starts the server again at the same address.
    pub fn restart(&mut self) {
        self.stop();
        let listener = TcpListener::bind(self.address).expect("the port is free again");
        self.run(listener);
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn service(root: &Path, signed: bool) -> S3Service {
    let files = FileSystem::new(root).expect("the folder is there");
    let mut builder = S3ServiceBuilder::new(files);
    if signed {
        let mut users = SimpleAuth::new();
        for Keys { id, secret } in [OWNER, READER, NO_RIGHTS] {
            users.register(id.to_owned(), secret.to_owned().into());
        }
        builder.set_auth(users);
        builder.set_access(Rights);
    }
    builder.build()
}

/// The rights of each user.
struct Rights;

#[async_trait::async_trait]
impl S3Access for Rights {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let user = context.credentials().map(|credentials| credentials.access_key.clone());
        let reads =
            ["Get", "List", "Head"].iter().any(|verb| context.s3_op().name().starts_with(verb));
        match user.as_deref() {
            Some(id) if id == OWNER.id || (id == READER.id && reads) => Ok(()),
            _ => Err(s3_error!(AccessDenied, "Access Denied")),
        }
    }
}

async fn serve(listener: TcpListener, service: S3Service, stop: CancellationToken) {
    listener.set_nonblocking(true).expect("the option is set");
    let listener = tokio::net::TcpListener::from_std(listener).expect("the listener accepts");
    loop {
        let connection = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = connection else { continue };
        // Without this, Nagle's algorithm delays responses that are written in several pieces.
        let _ = socket.set_nodelay(true);
        let http = hyper::server::conn::http1::Builder::new();
        let connection = http.serve_connection(TokioIo::new(socket), service.clone());
        tokio::spawn(async move { drop(connection.await) });
    }
}
