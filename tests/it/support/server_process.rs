//! Other servers on this machine: nginx and two proxies.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::address::free_address;
use super::certificates::CertFiles;
use super::nix::utf8;
use super::scratch::{KillAtExit, Scratch};

/// Only failing tests wait this long.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The source address of connections by a proxy. Direct connections have another.
pub const PROXY_SOURCE_ADDRESS: &str = "127.0.0.3";

/// A server with its own address. Killed on drop.
pub struct ServerProcess {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
    _scratch: Scratch,
    _guard: KillAtExit,
}

impl ServerProcess {
    /// nginx that serves `root`.
    #[track_caller]
    pub fn nginx(root: &Path) -> Self {
        let root = utf8(root);
        Self::nginx_with(|address| format!("server {{ listen {address}; root {root}; }}"))
    }

    /// nginx as a load balancer. It tries another of the addresses if one does not answer.
    #[track_caller]
    pub fn balancer(addresses: &[String]) -> Self {
        let servers: Vec<String> = addresses
            .iter()
            .map(|address| format!("server {address} max_fails=1 fail_timeout=1s;"))
            .collect();
        let all = format!("upstream all {{ {} }}", servers.join(" "));
        // The signature of a request covers the `Host` header.
        const PASS: &str = "client_max_body_size 0; location / { proxy_pass http://all; \
             proxy_http_version 1.1; proxy_set_header Host $http_host; \
             proxy_connect_timeout 1s; proxy_read_timeout 120s; proxy_next_upstream_tries 4; \
             proxy_next_upstream error timeout http_500 http_502 http_503 http_504; }";
        Self::nginx_with(|address| format!("{all} server {{ listen {address}; {PASS} }}"))
    }

    /// nginx with these `server` blocks, which get its address.
    #[track_caller]
    pub fn nginx_with(servers: impl FnOnce(&str) -> String) -> Self {
        Self::start("nginx", |own, address| nginx(own, &servers(&address.to_string())))
    }

    /// nginx that serves `root` over TLS, with a certificate that `issue` creates for its address.
    #[track_caller]
    pub fn nginx_with_tls(root: &Path, issue: impl FnOnce(&str) -> CertFiles) -> Self {
        Self::behind_tls(issue, &format!("root {};", utf8(root)))
    }

    /// nginx as a TLS proxy in front of a server. The signature of a request covers the `Host`
    /// header.
    #[track_caller]
    pub fn tls_in_front_of(server: &str, issue: impl FnOnce(&str) -> CertFiles) -> Self {
        let pass = format!("proxy_pass http://{server}; proxy_set_header Host $http_host;");
        Self::behind_tls(issue, &format!("client_max_body_size 0; location / {{ {pass} }}"))
    }

    #[track_caller]
    fn behind_tls(issue: impl FnOnce(&str) -> CertFiles, what: &str) -> Self {
        Self::start("nginx", |own, address| {
            let CertFiles { cert, key } = issue(&address.ip().to_string());
            let files =
                format!("ssl_certificate {}; ssl_certificate_key {};", utf8(&cert), utf8(&key));
            nginx(own, &format!("server {{ listen {address} ssl; {files} {what} }}"))
        })
    }

    /// An HTTP proxy, with more lines of configuration.
    #[track_caller]
    pub fn tinyproxy(lines: &str) -> Self {
        Self::start("tinyproxy", |own, address| {
            let config = format!(
                "Port {}\nListen {}\nBind {PROXY_SOURCE_ADDRESS}\nTimeout 60\nMaxClients 50\nLogLevel Info\n{lines}\n",
                address.port(),
                address.ip()
            );
            let file = own.join("tinyproxy.conf");
            fs::write(&file, config).expect("written");
            vec!["-d".to_owned(), "-c".to_owned(), utf8(&file).to_owned()]
        })
    }

    /// A SOCKS5 proxy, with more arguments.
    #[track_caller]
    pub fn microsocks(more: &[&str]) -> Self {
        Self::start("microsocks", |_, address| {
            let (ip, port) = (address.ip().to_string(), address.port().to_string());
            let args = ["-i", &ip, "-p", &port, "-b", PROXY_SOURCE_ADDRESS];
            args.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
        })
    }

    fn start(program: &str, args: impl FnOnce(&Path, SocketAddr) -> Vec<String>) -> Self {
        let (scratch, address) = (Scratch::new(), free_address());
        let log = scratch.join("log");
        let file = fs::File::create(&log).expect("the log file is created");
        // Debian installs nginx there, which is often not in `PATH`.
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
        let child = Command::new("/usr/bin/env")
            .env("PATH", path)
            .arg(program)
            .args(args(scratch.path(), address))
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("open"))
            .stderr(file)
            .spawn()
            .expect("env starts");
        let guard = KillAtExit::new(Pid::from_child(&child));
        let mut server = Self { child, address, log, _scratch: scratch, _guard: guard };
        let deadline = Instant::now() + TIMEOUT;
        while TcpStream::connect(address).is_err() {
            let result = server.child.try_wait().expect("a child process").is_some();
            let late = Instant::now() > deadline;
            let log = server.log();
            assert!(
                !result && !late,
                "{program} does not listen: install it, or run tests/run, which does that\n{log}"
            );
            std::thread::yield_now();
        }
        server
    }

    /// `ADDRESS:PORT`
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The output so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).expect("readable")).into_owned()
    }
}

fn nginx(own: &Path, servers: &str) -> Vec<String> {
    let own = utf8(own);
    let config = format!(
        "daemon off; master_process off; pid {own}/pid; error_log stderr;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off; client_body_temp_path {own}/b; proxy_temp_path {own}/p;\n\
         fastcgi_temp_path {own}/f; uwsgi_temp_path {own}/u; scgi_temp_path {own}/s;\n\
         {servers} }}\n"
    );
    let file = format!("{own}/nginx.conf");
    fs::write(&file, config).expect("written");
    ["-e", "stderr", "-c", &file].map(str::to_owned).to_vec()
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
