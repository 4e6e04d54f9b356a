//! `contrib/`: scripts, Docker, the Debian package, proxies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix_stored::config::{Config, PREFIX};
use nix_stored::nix::Sha256Hash;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::daemon::Daemon;
use crate::support::nix::utf8;
use crate::support::noise::Noise;
use crate::support::objects::{nar_of_file, sample};
use crate::support::scratch::Scratch;
use crate::support::server_process::ServerProcess;
use crate::support::wire::Wire;

fn repository(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

fn read(file: &str) -> String {
    fs::read_to_string(repository(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Runs a program that must succeed, and returns its standard output.
#[track_caller]
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}: run tests/run, which installs it"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let printed = [text(&output.stdout), text(&output.stderr)].concat();
    assert!(output.status.success(), "{program} {}: {printed}", args.join(" "));
    text(&output.stdout)
}

#[test]
fn shellcheck_finds_nothing() {
    run("shellcheck", &["contrib/push/nix-stored-push", "contrib/push/nix-stored-push-hook"]);
}

fn yaml(file: &str) -> Value {
    serde_json::from_str(&run("yq", &[".", file])).expect("JSON")
}

#[test]
fn the_daemon_accepts_the_settings_of_compose_and_the_dockerfile() {
    let compose = yaml("contrib/docker/compose.yaml");
    let service = &compose["services"]["nix-stored"];
    let dir = Scratch::new();
    let password = dir.join("write-pass");
    fs::write(&password, "long\n").expect("writable");
    let printed = service["environment"].as_object().expect("a map").iter().map(|(name, value)| {
        let value = value.as_str().expect("a text");
        // The folder of Docker's secrets.
        (name.clone(), value.replace("/run/secrets/write-pass", utf8(&password)))
    });
    let image = read("contrib/docker/Dockerfile");
    let image = image.lines().filter_map(|line| {
        let at = line.find(PREFIX)?;
        let (name, value) = line[at..].trim_end_matches(" \\").split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    let all: Vec<_> = printed.chain(image).collect();
    assert!(all.len() >= 7, "{all:?}");
    Config::from_vars(all).expect("the daemon accepts the uploads");

    // The proxy for the upstream is one of the services.
    let upstreams = service["environment"]["NIX_STORED_UPSTREAMS"].as_str().expect("a text");
    let (_, proxy) = upstreams.split_once("proxy=http://").expect("the URL has a proxy");
    let proxy = proxy.split(':').next().expect("a host");
    assert!(compose["services"][proxy].is_object(), "{proxy}");
    let dockerfile = service["build"]["dockerfile"].as_str().expect("a text");
    let context = service["build"]["context"].as_str().expect("a text");
    assert!(repository("contrib/docker").join(context).join(dockerfile).is_file());
}

#[test]
fn the_image_is_built_from_existing_files_and_has_one_binary() {
    let file = read("contrib/docker/Dockerfile");
    let (build, image) = file.split_once("FROM scratch\n").expect("the image starts from scratch");
    let ignored = read("contrib/docker/Dockerfile.dockerignore");
    let copied = build.lines().filter_map(|line| line.strip_prefix("COPY "));
    for source in copied.flat_map(|line| line.rsplit_once(' ').expect("a target").0.split(' ')) {
        assert!(repository(source).exists(), "{source}");
        assert!(ignored.contains(&format!("!{source}\n")), "{source} is ignored");
    }
    for line in ["USER 65532:65532", "ENTRYPOINT [\"/usr/bin/nix-stored\"]", "VOLUME /cache"] {
        assert!(image.lines().any(|other| other == line), "{line}");
    }
    assert!(image.contains("HEALTHCHECK "), "{image}");
}

#[test]
fn every_file_of_the_debian_package_exists() {
    let expression = "(builtins.fromTOML (builtins.readFile ./Cargo.toml)).package.metadata.deb";
    let args = ["--eval", "--strict", "--json", "--expr", expression];
    let home = Scratch::new();
    let output = Command::new("nix-instantiate")
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .envs([("HOME", utf8(home.path())), ("NIX_REMOTE", "dummy://")])
        .output()
        .expect("nix-instantiate is installed");
    let deb: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let assets = deb["assets"].as_array().expect("a list");
    let sources = assets.iter().map(|asset| asset[0].as_str().expect("a text"));
    for source in sources.filter(|source| !source.starts_with("target/release/")) {
        assert!(repository(source).is_file(), "{source}");
    }
    let units = deb["systemd-units"]["unit-scripts"].as_str().expect("a text");
    assert!(repository(units).join("nix-stored.service").is_file(), "{units}");
    for wanted in ["usr/bin/", "man1/", "bash-completion", "zsh", "fish", "nix-stored-push.path"] {
        let targets = assets.iter().map(|asset| format!("{} {}", asset[0], asset[1]));
        assert!(targets.into_iter().any(|target| target.contains(wanted)), "{wanted}");
    }
    // Configuration files, which are not overwritten by updates.
    for file in deb["conf-files"].as_array().expect("a list") {
        let file = file.as_str().expect("a text").trim_start_matches('/');
        let name = file.rsplit('/').next().expect("a name");
        assert!(
            assets.iter().any(|asset| asset[0].as_str().expect("a text").ends_with(name)),
            "{file}"
        );
    }
}

#[test]
fn caddy_accepts_its_configuration() {
    let home = Scratch::new();
    let file = repository("contrib/proxies/Caddyfile");
    let arguments = ["validate", "--adapter", "caddyfile", "--config", utf8(&file)];
    let output = Command::new("caddy")
        .args(arguments)
        .envs([("HOME", utf8(home.path())), ("XDG_DATA_HOME", utf8(home.path()))])
        .output()
        .expect("caddy is installed: tests/run does that");
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !printed.contains("not formatted"), "{printed}");
}

#[test]
fn the_traefik_configuration_routes_to_the_daemon() {
    let http = &yaml("contrib/proxies/traefik.yaml")["http"];
    let service = http["routers"]["nix-stored"]["service"].as_str().expect("a text");
    let balancer = &http["services"][service]["loadBalancer"];
    assert_eq!(balancer["servers"][0]["url"], "http://127.0.0.1:8100");
    let transport = balancer["serversTransport"].as_str().expect("a text");
    assert!(http["serversTransports"][transport].is_object());
}

/// nginx with the committed configuration, in front of this daemon.
fn nginx(upstream: &str) -> ServerProcess {
    let config = read("contrib/proxies/nginx.conf");
    let (listen, server) = ("listen 80;", "server 127.0.0.1:8100;");
    assert!(config.contains(listen) && config.contains(server), "{config}");
    ServerProcess::nginx_with(|address| {
        config
            .replace(listen, &format!("listen {address};"))
            .replace(server, &format!("server {upstream};"))
    })
}

const CHUNK: usize = 4 * 1024 * 1024;

/// 2 GiB.
const CHUNKS: usize = 512;

#[test]
fn an_upload_of_two_gigabytes_through_nginx_is_not_buffered() {
    let daemon = Daemon::builder().env("NIX_STORED_ANONYMOUS_WRITE", "1").start();
    let proxy = nginx(daemon.url().trim_start_matches("http://"));
    let chunk = Noise::new(7).bytes(CHUNK);
    let empty = nar_of_file(b"");
    // The NAR of an empty file ends with the length of the contents (8 bytes) and a closing parenthesis
    // (16 bytes).
    let head = [&empty[..empty.len() - 24], &((CHUNK * CHUNKS) as u64).to_le_bytes()].concat();
    let tail = &empty[empty.len() - 16..];
    let mut hasher = Sha256::new();
    hasher.update(&head);
    (0..CHUNKS).for_each(|_| hasher.update(&chunk));
    hasher.update(tail);
    let name = Sha256Hash::new(hasher.finalize().into()).to_nix32();
    let length = head.len() + CHUNK * CHUNKS + tail.len();

    let before = daemon.peak_memory();
    let mut wire = Wire::to_address(&proxy.address());
    wire.send(&format!(
        "PUT /nar/{name}.nar HTTP/1.1\r\nHost: cache.example.org\r\nContent-Length: {length}\r\n\r\n"
    ));
    wire.send_bytes(&head);
    (0..CHUNKS / 8).for_each(|_| wire.send_bytes(&chunk));
    // nginx passes the body on as it arrives.
    daemon.wait_until("an eighth of the body has arrived", || {
        staged(&daemon) >= (CHUNK * CHUNKS / 16) as u64
    });
    (CHUNKS / 8..CHUNKS).for_each(|_| wire.send_bytes(&chunk));
    wire.send_bytes(tail);
    let response = wire.response();
    assert_eq!(response.status, 201, "{}", response.text());

    let grown = daemon.peak_memory() - before;
    assert!(grown < 16 * 1024 * 1024, "{grown} bytes more");
    let head = wire.request("HEAD", &format!("/nar/{name}.nar"), b"");
    assert_eq!((head.status, head.header("content-length")), (200, &*length.to_string()));
    let stored = fs::metadata(daemon.dir().join(format!("nar/{name}.nar"))).expect("present");
    assert_eq!(stored.len(), length as u64);
}

/// The size of the files of unfinished uploads, in bytes.
fn staged(daemon: &Daemon) -> u64 {
    fn below(dir: &Path) -> u64 {
        let Ok(entries) = fs::read_dir(dir) else { return 0 };
        let sizes = entries.flatten().map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => below(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        });
        sizes.sum()
    }
    below(&daemon.dir().join(".nix-stored/staging"))
}

#[test]
fn the_response_to_an_upload_passes_nginx() {
    let daemon = Daemon::builder()
        .env("NIX_STORED_ANONYMOUS_WRITE", "1")
        .env("NIX_STORED_MAX_UPLOAD_SIZE", "1K")
        .env("NIX_STORED_LOG_LEVEL", "debug")
        .start();
    let proxy = nginx(daemon.url().trim_start_matches("http://"));
    let mut wire = Wire::to_address(&proxy.address());
    let small = sample(1, b"small");
    assert_eq!(wire.request("PUT", &small.nar_path, &small.nar).status, 201);
    let response = wire.request("GET", &small.nar_path, b"");
    assert_eq!((response.status, &response.body), (200, &small.nar));
    let large = sample(2, &[0; 4096]);
    let response = wire.request("PUT", &large.nar_path, &large.nar);
    assert_eq!(response.status, 413);
    assert!(response.text().contains("larger than the limit of 1024 bytes"), "{}", response.text());
}

#[test]
fn nginx_connects_to_a_unix_socket() {
    let dir = Scratch::new();
    let socket = format!("unix:{}", utf8(&dir.join("http")));
    let daemon = Daemon::builder()
        .env("NIX_STORED_LISTEN_INTERFACE", &socket)
        .env("NIX_STORED_ANONYMOUS_WRITE", "1")
        .start();
    let proxy = nginx(&socket);
    let mut wire = Wire::to_address(&proxy.address());
    let small = sample(1, b"small");
    assert_eq!(wire.request("PUT", &small.nar_path, &small.nar).status, 201, "{}", daemon.log());
    assert_eq!(wire.request("GET", &small.nar_path, b"").status, 200);
}

#[test]
fn without_users_uploads_through_nginx_are_refused() {
    let daemon = Daemon::start();
    let proxy = nginx(daemon.url().trim_start_matches("http://"));
    let small = sample(1, b"small");
    let mut wire = Wire::to_address(&proxy.address());
    let refused = wire.request("PUT", &small.nar_path, &small.nar);
    assert_eq!(refused.status, 401, "{}", refused.text());
    assert!(refused.text().contains("set NIX_STORED_USER_WRITE"), "{}", refused.text());
    // Without nginx, on the same machine.
    assert_eq!(Wire::to(&daemon).request("PUT", &small.nar_path, &small.nar).status, 201);
    let got = Wire::to_address(&proxy.address()).request("GET", &small.nar_path, b"");
    assert_eq!((got.status, got.body), (200, small.nar));
}
