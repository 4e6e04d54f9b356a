//! Garage, a distributed S3 server: one node, or three with three replicas.
//!
//! `tests/run --garage` installs it. The tests that need it are ignored otherwise.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::address::free_address;
use super::nix::utf8;
use super::s3_bucket::{Bucket, Keys};
use super::scratch::{KillAtExit, Scratch};

/// The variable with the path of the program.
const VARIABLE: &str = "NIX_STORED_TEST_GARAGE";

/// Only failing tests wait this long.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A key in the only format that Garage accepts.
pub const KEYS: Keys = Keys {
    id: "GK0123456789abcdef01234567",
    secret: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
};

const REGION: &str = "garage";

/// A cluster. Killed on drop.
pub struct Garage {
    nodes: Vec<Node>,
}

struct Node {
    program: PathBuf,
    folder: Scratch,
    s3: SocketAddr,
    process: Option<Process>,
}

struct Process {
    child: Child,
    _guard: KillAtExit,
}

fn program() -> PathBuf {
    let program = std::env::var_os(VARIABLE).filter(|path| !path.is_empty());
    program.unwrap_or_else(|| panic!("{VARIABLE} does not say where Garage is")).into()
}

impl Garage {
    /// One node, shared by all tests. Each test has its own bucket.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Garage> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(1))
    }

    /// Starts a cluster of this many nodes.
    pub fn start(nodes: usize) -> Self {
        let program = program();
        let nodes: Vec<Node> = (0..nodes).map(|_| Node::start(&program, nodes)).collect();
        let (first, others) = nodes.split_first().expect("at least one");
        for other in others {
            first.ask(&["node", "connect", &other.id()]);
        }
        for node in &nodes {
            let id = node.id();
            let id = id.split('@').next().unwrap_or_default();
            first.ask(&["layout", "assign", "-z", "here", "-c", "1G", id]);
        }
        first.ask(&["layout", "apply", "--version", "1"]);
        first.ask(&["key", "import", "--yes", "-n", "test", KEYS.id, KEYS.secret]);
        Self { nodes }
    }

    /// Creates a bucket at the first node.
    pub fn bucket(&self, name: &str) -> Bucket {
        let first = &self.nodes[0];
        first.ask(&["bucket", "create", name]);
        first.ask(&["bucket", "allow", "--read", "--write", "--owner", name, "--key", KEYS.id]);
        self.bucket_at(0, name)
    }

    /// The address of a bucket at a node.
    pub fn bucket_at(&self, node: usize, name: &str) -> Bucket {
        Bucket::new(self.nodes[node].s3, name, REGION, Some(KEYS))
    }

    /// Sends SIGKILL to a node.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].process = None;
    }

    /// Sends SIGSTOP to a node: its connections stay open, and requests are not answered.
    pub fn pause(&self, node: usize) {
        self.signal(node, Signal::STOP);
    }

    /// Sends SIGCONT to a paused node.
    pub fn resume(&self, node: usize) {
        self.signal(node, Signal::CONT);
    }

    fn signal(&self, node: usize, signal: Signal) {
        let process = self.nodes[node].process.as_ref().expect("the node runs");
        kill_process(Pid::from_child(&process.child), signal).expect("the node is there");
    }

    /// Starts a node again, and waits until all nodes are connected to each other.
    pub fn restart(&mut self, node: usize) {
        self.nodes[node].run();
        let deadline = Instant::now() + TIMEOUT;
        for node in &self.nodes {
            while !node.is_healthy() {
                assert!(Instant::now() < deadline, "nodes are missing:\n{}", node.log());
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// The S3 addresses of the nodes.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.s3).collect()
    }
}

impl Node {
    fn start(program: &Path, replicas: usize) -> Self {
        let (folder, s3) = (Scratch::new(), free_address());
        let (rpc, admin, own) = (free_address(), free_address(), utf8(folder.path()));
        let secret = "ab".repeat(32);
        let config = format!(
            "metadata_dir = \"{own}/meta\"\ndata_dir = \"{own}/data\"\ndb_engine = \"sqlite\"\n\
             replication_factor = {replicas}\nconsistency_mode = \"consistent\"\n\
             metadata_fsync = false\ndata_fsync = false\ncompression_level = \"none\"\n\
             rpc_bind_addr = \"{rpc}\"\nrpc_public_addr = \"{rpc}\"\nrpc_secret = \"{secret}\"\n\
             [s3_api]\ns3_region = \"{REGION}\"\napi_bind_addr = \"{s3}\"\n\
             [admin]\napi_bind_addr = \"{admin}\"\nadmin_token = \"test\"\n"
        );
        fs::write(folder.join("garage.toml"), config).expect("a configuration is written");
        let mut node = Self { program: program.to_owned(), folder, s3, process: None };
        node.run();
        node
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(self.folder.join("garage.toml")).stdin(Stdio::null());
        // Garage refuses a world-readable configuration otherwise.
        command.env("GARAGE_ALLOW_WORLD_READABLE_SECRETS", "true");
        command
    }

    fn run(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.folder.join("log"));
        let log = log.expect("the log file is created");
        let child = self
            .command()
            .arg("server")
            .env("RUST_LOG", "garage=info")
            .stdout(log.try_clone().expect("open"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", self.program.display()));
        let guard = KillAtExit::new(Pid::from_child(&child));
        self.process = Some(Process { child, _guard: guard });
        self.ask(&["status"]);
        let deadline = Instant::now() + TIMEOUT;
        while std::net::TcpStream::connect(self.s3).is_err() {
            assert!(Instant::now() < deadline, "it does not listen:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The node ID, `<key>@<address>`.
    fn id(&self) -> String {
        self.ask(&["node", "id", "-q"]).trim().to_owned()
    }

    /// Whether the node reports that the cluster is healthy.
    fn is_healthy(&self) -> bool {
        let health = self.ask(&["json-api", "GetClusterHealth"]);
        let health: serde_json::Value = serde_json::from_str(&health).expect("JSON");
        health["status"] == "healthy"
    }

    /// Runs a command until it succeeds, and returns its output. It fails while the nodes are not
    /// connected yet.
    fn ask(&self, words: &[&str]) -> String {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let output = self.command().args(words).output().expect("the process starts");
            if output.status.success() {
                return String::from_utf8_lossy(&output.stdout).into_owned();
            }
            let printed = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(Instant::now() < deadline, "garage {words:?}: {printed}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
