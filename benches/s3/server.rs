//! The object store alone: Garage, or s3s-fs on a folder.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hyper_util::rt::TokioIo;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::signer::Signer;
use object_store::{ObjectStoreExt, PutPayload};
use rustix::process::Pid;
use tokio::runtime::Runtime;

use crate::support::address::free_address;
use crate::support::bench::{Bench, Place};
use crate::support::cache_dir::Stored;
use crate::support::process::cpu_seconds;
use crate::support::say;
use crate::support::scratch::KillAtExit;

/// A key in the only format that Garage accepts.
const KEY: &str = "GK0123456789abcdef01234567";
const SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

const BUCKET: &str = "cache";

/// A second name of the bucket, under which Garage publishes it as a web site.
pub const WEB_NAME: &str = "localhost";
const REGION: &str = "garage";

/// The limit for the start of a server.
const TO_START: Duration = Duration::from_secs(20);

/// The validity of presigned URLs, which are used within a round.
const VALID: Duration = Duration::from_secs(3600);

/// A running server with an empty bucket. Killed on drop.
pub struct Server {
    child: Child,
    address: SocketAddr,
    /// The address of the public web site, if there is one.
    pub web: Option<SocketAddr>,
    pub name: String,
    runtime: Runtime,
    _guard: KillAtExit,
}

impl Server {
    pub fn start(bench: &Bench, garage: Option<&Path>) -> anyhow::Result<Self> {
        let folder = bench.fresh_dir("server")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let Some(program) = garage else {
            let (child, address) = serve_files(bench, &folder)?;
            let guard = bench.scratch.guard(Pid::from_child(&child))?;
            let name = "s3s-fs".to_owned();
            return Ok(Self { child, address, web: None, name, runtime, _guard: guard });
        };
        let (address, web) = (free_address()?, free_address()?);
        let config = write_config(&folder, address, web)?;
        let mut command = Command::new(program);
        command.arg("-c").arg(&config).arg("server").stdin(Stdio::null());
        let log = File::create(folder.join("log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        let child = bench.spawn(&mut command, Place::Anywhere)?;
        let guard = bench.scratch.guard(Pid::from_child(&child))?;
        let ask = |words: &[&str]| ask(program, &config, words);
        let id = ask(&["node", "id", "-q"])?;
        let id = id.split('@').next().unwrap_or_default();
        ask(&["layout", "assign", "-z", "here", "-c", "100G", id])?;
        ask(&["layout", "apply", "--version", "1"])?;
        ask(&["key", "import", "--yes", "-n", "bench", KEY, SECRET])?;
        ask(&["bucket", "create", BUCKET])?;
        ask(&["bucket", "allow", "--read", "--write", BUCKET, "--key", KEY])?;
        ask(&["bucket", "alias", BUCKET, WEB_NAME])?;
        ask(&["bucket", "website", "--allow", BUCKET])?;
        wait_for(address)?;
        let output = Command::new(program).arg("--version").output()?;
        let version = String::from_utf8_lossy(&output.stdout);
        let name = version.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        Ok(Self { child, address, web: Some(web), name, runtime, _guard: guard })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of the bucket or a prefix in it.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}{prefix}?endpoint=http://{}&region={REGION}", self.address)
    }

    /// The settings of a daemon with its cache in the bucket.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("NIX_STORED_PATH", self.url("")),
            ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
        ]
    }

    fn client(&self, endpoint: String) -> anyhow::Result<AmazonS3> {
        // Fails if a provider is already installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = AmazonS3Builder::new()
            .with_bucket_name(BUCKET)
            .with_region(REGION)
            .with_access_key_id(KEY)
            .with_secret_access_key(SECRET)
            .with_endpoint(endpoint)
            .with_allow_http(true);
        Ok(builder.build()?)
    }

    /// Stores the files of a directory in the bucket.
    pub fn fill(&self, dir: &Path, keys: &[Stored]) -> anyhow::Result<()> {
        let client = self.client(format!("http://{}", self.address))?;
        self.runtime.block_on(async {
            for Stored { path, .. } in keys {
                let bytes = fs::read(dir.join(path))?;
                client.put(&Key::parse(path)?, PutPayload::from(bytes)).await?;
            }
            Ok(())
        })
    }

    /// Objects with presigned URLs as their names, for requests to the server itself.
    pub fn links(&self, method: &http::Method, keys: &[Stored]) -> anyhow::Result<Vec<Stored>> {
        // The benchmark's client sends this `Host` without a port, and the signature covers it.
        let client = self.client("http://127.0.0.1".to_owned())?;
        self.runtime.block_on(async {
            let mut links = Vec::new();
            for Stored { path, size } in keys {
                let url = client.signed_url(method.clone(), &Key::parse(path)?, VALID).await?;
                let query = url.query().context("a link is signed in its query")?;
                let path = format!("{}?{query}", url.path().trim_start_matches('/'));
                links.push(Stored { path, size: *size });
            }
            Ok(links)
        })
    }

    /// User and system CPU seconds so far.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        cpu_seconds(&[Pid::from_child(&self.child)])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write_config(folder: &Path, s3: SocketAddr, web: SocketAddr) -> anyhow::Result<PathBuf> {
    let (rpc, own, secret) = (free_address()?, folder.display(), "ab".repeat(32));
    let text = format!(
        "metadata_dir = \"{own}/meta\"\ndata_dir = \"{own}/data\"\ndb_engine = \"sqlite\"\n\
         replication_factor = 1\nmetadata_fsync = false\ndata_fsync = false\n\
         compression_level = \"none\"\nrpc_bind_addr = \"{rpc}\"\nrpc_public_addr = \"{rpc}\"\n\
         rpc_secret = \"{secret}\"\n[s3_api]\ns3_region = \"{REGION}\"\napi_bind_addr = \"{s3}\"\n\
         [s3_web]\nbind_addr = \"{web}\"\nroot_domain = \".web.test\"\n"
    );
    let config = folder.join("garage.toml");
    fs::write(&config, text)?;
    Ok(config)
}

/// The output of a Garage command, which is repeated until the server can answer it.
fn ask(program: &Path, config: &Path, words: &[&str]) -> anyhow::Result<String> {
    let begin = Instant::now();
    loop {
        let mut command = Command::new(program);
        command
            .arg("-c")
            .arg(config)
            .args(words)
            .env("GARAGE_ALLOW_WORLD_READABLE_SECRETS", "true");
        let output = command.output().with_context(|| program.display().to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        if begin.elapsed() > TO_START {
            bail!("garage {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn wait_for(address: SocketAddr) -> anyhow::Result<()> {
    let begin = Instant::now();
    while TcpStream::connect(address).is_err() {
        ensure!(begin.elapsed() < TO_START, "the server does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Starts this program again, as a server.
fn serve_files(bench: &Bench, folder: &Path) -> anyhow::Result<(Child, SocketAddr)> {
    fs::create_dir(folder.join(BUCKET))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("serve-buckets").arg(folder).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = bench.spawn(&mut command, Place::Anywhere)?;
    let mut line = String::new();
    let stdout = child.stdout.take().context("it is piped")?;
    BufReader::new(stdout).read_line(&mut line)?;
    Ok((child, line.trim().parse().context("the server prints its address")?))
}

/// Serves a folder until the process is killed, and prints the address.
pub fn serve(folder: &Path) -> anyhow::Result<()> {
    let files = s3s_fs::FileSystem::new(folder).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let mut builder = s3s::service::S3ServiceBuilder::new(files);
    builder.set_auth(s3s::auth::SimpleAuth::from_single(KEY, SECRET));
    let service = builder.build();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        say(&listener.local_addr()?.to_string());
        loop {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            let http = hyper::server::conn::http1::Builder::new();
            let connection = http.serve_connection(TokioIo::new(socket), service.clone());
            tokio::spawn(async move { drop(connection.await) });
        }
    })
}
