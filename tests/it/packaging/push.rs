//! The upload queue of a builder (`contrib/push`), with real builds, Nix and the daemon.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::support::address::free_address;
use crate::support::daemon::Daemon;
use crate::support::fixture::closure_nix;
use crate::support::nix::{Nix, lines, utf8};
use crate::support::paths::SigningKey;
use crate::support::scratch::{KillAtExit, Scratch};

/// Only failing tests wait this long.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A list of builds; each prints its number a few thousand times.
const BUILDS: &str = r#"{ from, to }: builtins.genList (i: let n = toString (from + i); in derivation {
  name = "build-${n}";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  PATH = "/usr/bin:/bin";
  args = [ "-c" "seq ${n} 1 $((${n} + 3000)) > $out" ];
}) (to - from)"#;

/// A build with incompressible output.
const LARGE: &str = r#"derivation {
  name = "large";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  PATH = "/usr/bin:/bin";
  args = [ "-c" "head -c 3000000 /dev/urandom > $out" ];
}"#;

fn script(name: &str) -> String {
    format!("{}/contrib/push/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A builder with the hook in its nix.conf.
struct Builder {
    nix: Nix,
    key: SigningKey,
    dir: Scratch,
    roots: String,
}

impl Builder {
    fn new() -> Self {
        let nix = Nix::new().with("download-attempts", "1");
        let roots = utf8(&nix.real("/nix/var/nix/gcroots/nix-stored-push")).to_owned();
        Self::with_roots(nix, roots)
    }

    fn with_roots(nix: Nix, roots: String) -> Self {
        let dir = Scratch::new();
        let hook = nix.file("hook");
        let (queue, real) = (utf8(dir.path()), script("nix-stored-push-hook"));
        let text =
            format!("#!/bin/sh\nNIX_PUSH_DIR='{queue}' NIX_PUSH_ROOTS='{roots}' exec {real}\n");
        fs::write(&hook, text).expect("the hook is written");
        fs::set_permissions(&hook, Permissions::from_mode(0o755)).expect("the owner may change it");
        fs::write(nix.file("builds.nix"), BUILDS).expect("written");
        fs::write(nix.file("large.nix"), LARGE).expect("written");
        let hook = utf8(&hook).to_owned();
        let nix = nix.with("post-build-hook", &hook);
        let key = nix.signing_key("builder-1");
        Self { nix, key, dir, roots }
    }

    /// Builds these numbers of [`BUILDS`] concurrently.
    #[track_caller]
    fn build(&self, from: usize, to: usize) -> Vec<String> {
        let file = self.nix.file("builds.nix");
        let (from, to) = (from.to_string(), to.to_string());
        let range = ["--arg", "from", &from, "--arg", "to", &to];
        let command = ["nix-build", "--no-out-link", "--max-jobs", "4", utf8(&file)];
        lines(&self.nix.ok(&[&command[..], &range].concat()))
    }

    #[track_caller]
    fn build_large(&self) -> String {
        let file = self.nix.file("large.nix");
        self.nix.ok(&["nix-build", "--no-out-link", utf8(&file)])
    }

    /// The names in a folder of the queue.
    fn names(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.dir.join(folder)) else { return Vec::new() };
        let names = entries.map(|entry| entry.expect("readable").file_name());
        let mut names: Vec<String> =
            names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The entries that failed, with the reasons.
    fn failed(&self) -> String {
        let files = self.names("failed").into_iter().map(|name| self.dir.join("failed").join(name));
        files.map(|file| fs::read_to_string(file).expect("readable")).collect()
    }

    fn words(&self, to: &str, env: &[&str]) -> Vec<String> {
        let own = [
            "/usr/bin/env".to_owned(),
            format!("NIX_PUSH_DIR={}", utf8(self.dir.path())),
            format!("NIX_PUSH_ROOTS={}", self.roots),
            format!("NIX_PUSH_KEY={}", utf8(&self.key.secret)),
            format!("NIX_PUSH_TO={to}"),
            "NIX_PUSH_RETRY=1".to_owned(),
        ];
        own.into_iter()
            .chain(env.iter().map(|one| (*one).to_owned()))
            .chain([script("nix-stored-push")])
            .collect()
    }

    /// Runs `nix-stored-push` until it exits. Returns its exit status and output.
    #[track_caller]
    fn push(&self, to: &str, env: &[&str]) -> (Option<i32>, String) {
        let words = self.words(to, env);
        let output = self.nix.run(&words.iter().map(String::as_str).collect::<Vec<_>>());
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Starts the uploader.
    fn start(&self, to: &str, env: &[&str]) -> Uploader {
        let words = self.words(to, env);
        let log = self.dir.join("log");
        let child = self
            .nix
            .command(&words[0])
            .args(&words[1..])
            .stderr(File::create(&log).expect("the log file is created"))
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("env starts");
        let guard = KillAtExit::new(Pid::from_child(&child));
        Uploader { child, log, result: None, _guard: guard }
    }

    /// Checks that a cache has these paths, complete and signed, and that the queue is empty.
    #[track_caller]
    fn assert_all_uploaded(&self, daemon: &Daemon, paths: &[String]) {
        assert_eq!(self.names("queue"), [""; 0]);
        assert_eq!(self.failed(), "");
        let reader = Nix::new().with("trusted-public-keys", &self.key.public);
        reader.copy_from(daemon.url(), paths);
        reader.assert_has_the_same(&self.nix, paths);
        for folder in ["new", "tries"] {
            assert_eq!(self.names(folder), [""; 0], "{folder}");
        }
    }
}

/// A running uploader. Killed on drop, with its child processes.
struct Uploader {
    child: Child,
    log: PathBuf,
    result: Option<ExitStatus>,
    _guard: KillAtExit,
}

impl Uploader {
    fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("readable")
    }

    #[track_caller]
    fn wait_until(&mut self, what: &str, mut state: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !state(self) {
            assert!(
                Instant::now() < deadline,
                "timeout while waiting until {what}\n{}",
                self.log()
            );
            std::thread::yield_now();
        }
    }

    fn has_ended(&mut self) -> bool {
        if self.result.is_none() {
            self.result = self.child.try_wait().expect("a child process");
        }
        self.result.is_some()
    }

    #[track_caller]
    fn end(mut self) -> (Option<i32>, String) {
        self.wait_until("the uploader ends", Self::has_ended);
        (self.result.and_then(|status| status.code()), self.log())
    }

    fn kill(&mut self) {
        if self.result.is_none() {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            self.result = self.child.wait().ok();
        }
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The status of a request for the narinfo of a store path.
fn narinfo(daemon: &Daemon, path: &str) -> u16 {
    let hash = path.trim_start_matches("/nix/store/").split('-').next().expect("a hash part");
    daemon.get(&format!("/{hash}.narinfo")).0
}

#[test]
fn builds_do_not_wait_for_the_cache_and_are_uploaded_later() {
    let builder = Builder::new();
    let address = free_address().to_string();
    let url = format!("http://{address}");
    let mut paths = builder.nix.build(&closure_nix(), "app");
    paths.extend(builder.nix.build(&closure_nix(), "split"));
    assert_eq!(builder.names("queue").len(), 5, "app with its three references, and split");
    let mut uploader = builder.start(&url, &[]);
    uploader
        .wait_until("the uploader waits", |uploader| uploader.log().contains("retrying in 2 s"));
    assert_eq!(builder.names("queue").len(), 5);
    let daemon = Daemon::builder().env("NIX_STORED_LISTEN_INTERFACE", &address).start();
    let (code, log) = uploader.end();
    assert_eq!(code, Some(0), "{log}");
    // All three outputs of `split` are in one entry.
    builder.assert_all_uploaded(&daemon, &paths);
}

#[test]
fn the_hook_queues_the_paths_and_ends_at_once() {
    let builder = Builder::new();
    let outputs = "/nix/store/00000000000000000000000000000000-one /nix/store/11111111111111111111111111111111-two";
    let started = Instant::now();
    builder.nix.ok(&[
        "/usr/bin/env",
        &format!("NIX_PUSH_DIR={}", utf8(builder.dir.path())),
        "NIX_PUSH_ROOTS=",
        "DRV_PATH=/nix/store/22222222222222222222222222222222-x.drv",
        &format!("OUT_PATHS={outputs}"),
        &script("nix-stored-push-hook"),
    ]);
    // A hook that queries the cache or the store would take longer.
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let [entry] = &builder.names("queue")[..] else { panic!("one entry") };
    let entry = fs::read_to_string(builder.dir.join("queue").join(entry)).expect("readable");
    let drv = "drv /nix/store/22222222222222222222222222222222-x.drv\n";
    assert_eq!(entry, format!("{drv}out {}\n", outputs.replace(' ', "\nout ")));
}

#[test]
fn a_hook_that_cannot_write_to_the_queue_fails_no_build() {
    let builder = Builder::new();
    fs::write(builder.dir.join("queue"), "a file, where a folder should be").expect("writable");
    let output =
        builder.nix.run(&["nix-store", "-r", &builder.nix.instantiate(&closure_nix(), "base")]);
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && printed.contains("cannot queue for upload"), "{printed}");
}

#[test]
fn an_uploader_that_is_killed_again_and_again_loses_nothing() {
    let builder = Builder::new();
    let daemon = Daemon::start();
    let paths = builder.build(0, 12);
    let count = builder.names("queue").len();
    assert_eq!(count, 12);
    for left in [10, 7, 4] {
        let mut uploader = builder.start(daemon.url(), &["NIX_PUSH_BATCH=1"]);
        uploader.wait_until("the uploader uploads", |_| builder.names("queue").len() <= left);
        // During the next upload.
        uploader.kill();
        assert!(!builder.names("queue").is_empty());
    }
    let (code, printed) = builder.push(daemon.url(), &[]);
    assert_eq!(code, Some(0), "{printed}");
    builder.assert_all_uploaded(&daemon, &paths);
}

#[test]
fn builds_that_end_together_are_all_queued_and_uploaded() {
    let builder = Builder::new();
    let daemon = Daemon::start();
    let mut paths = Vec::new();
    std::thread::scope(|scope| {
        let builds: Vec<_> = (0..3)
            .map(|number| {
                scope.spawn({
                    let builder = &builder;
                    move || builder.build(number * 8, number * 8 + 8)
                })
            })
            .collect();
        // The uploader is running meanwhile.
        while builds.iter().any(|build| !build.is_finished()) {
            let (code, printed) = builder.push(daemon.url(), &["NIX_PUSH_BATCH=3"]);
            assert_eq!(code, Some(0), "{printed}");
        }
        for build in builds {
            paths.extend(build.join().expect("the builds succeed"));
        }
    });
    let (code, printed) = builder.push(daemon.url(), &[]);
    assert_eq!((code, paths.len()), (Some(0), 24), "{printed}");
    builder.assert_all_uploaded(&daemon, &paths);
}

#[test]
fn refused_paths_are_moved_out_of_the_queue_and_the_others_are_uploaded() {
    let builder = Builder::new();
    let daemon = Daemon::builder().env("NIX_STORED_MAX_UPLOAD_SIZE", "1M").start();
    let before = builder.build(0, 2);
    let large = builder.build_large();
    let after = builder.build(2, 4);
    let (code, printed) = builder.push(daemon.url(), &[]);
    assert_eq!(code, Some(2), "{printed}");
    assert!(printed.contains(&large) && printed.contains("413"), "{printed}");
    assert_eq!(builder.names("queue"), [""; 0]);
    let failed = builder.failed();
    assert!(failed.contains(&format!("out {large}\nwhy ")), "{failed}");
    assert!(failed.contains("larger than the limit of 1048576 bytes"), "{failed}");
    for path in before.iter().chain(&after) {
        assert_eq!(narinfo(&daemon, path), 200, "{path}");
        assert!(!failed.contains(path), "{failed}");
    }

    // A failed entry is uploaded after it was moved back unchanged.
    let dir = daemon.dir().to_owned();
    let larger = Daemon::builder().dir(&dir).start();
    for name in builder.names("failed") {
        fs::rename(builder.dir.join("failed").join(&name), builder.dir.join("queue").join(&name))
            .expect("renamed");
    }
    let (code, printed) = builder.push(larger.url(), &[]);
    assert_eq!(code, Some(0), "{printed}");
    builder.assert_all_uploaded(&larger, &[large]);
}

#[test]
fn a_wrong_password_keeps_the_queue() {
    let builder = Builder::new();
    let daemon = Daemon::builder()
        .env("NIX_STORED_USER_WRITE", "builder")
        .env("NIX_STORED_USER_WRITE_PASS", "right")
        .start();
    let paths = builder.build(0, 3);
    let netrc = builder.dir.join("netrc");
    let login = |password: &str| {
        let text = format!("machine 127.0.0.1 login builder password {password}\n");
        fs::write(builder.dir.join("netrc.new"), text).expect("writable");
        fs::rename(builder.dir.join("netrc.new"), &netrc).expect("renamed");
    };
    login("wrong");
    let setting = format!("NIX_PUSH_NETRC={}", utf8(&netrc));
    // One attempt is enough for the entry to fail.
    let mut uploader = builder.start(daemon.url(), &[&setting, "NIX_PUSH_TRIES=1"]);
    uploader
        .wait_until("the uploader waits", |uploader| uploader.log().contains("retrying in 2 s"));
    assert!(uploader.log().contains("401"), "{}", uploader.log());
    assert_eq!((builder.names("queue").len(), builder.failed()), (3, String::new()));
    login("right");
    let (code, log) = uploader.end();
    assert_eq!(code, Some(0), "{log}");
    builder.assert_all_uploaded(&daemon, &paths);
}

#[test]
fn a_path_that_fails_does_not_delay_the_others() {
    let builder = Builder::new();
    let daemon = Daemon::start();
    let [first, second] = &builder.build(0, 2)[..] else { panic!("two builds") };
    // A directory in the place of its narinfo makes the upload fail.
    let hash = first.trim_start_matches("/nix/store/").split('-').next().expect("a hash part");
    let blocked = daemon.dir().join(format!("{hash}.narinfo"));
    fs::create_dir(&blocked).expect("created");
    let (code, printed) = builder.push(daemon.url(), &["NIX_PUSH_TRIES=2"]);
    assert_eq!(code, Some(2), "{printed}");
    assert!(printed.contains("will retry") && printed.contains("retrying in 1 s"), "{printed}");
    assert_eq!(narinfo(&daemon, second), 200);
    let failed = builder.failed();
    assert!(failed.contains(&format!("out {first}\nwhy after 2 tries: ")), "{failed}");
    assert!(!failed.contains(second), "{failed}");
}

#[test]
fn queued_paths_are_protected_from_the_garbage_collector_until_they_are_uploaded() {
    let builder = Builder::new();
    let daemon = Daemon::start();
    let paths = builder.build(0, 2);
    builder.nix.ok(&["nix-store", "--gc"]);
    let (code, printed) = builder.push(daemon.url(), &[]);
    assert_eq!(code, Some(0), "{printed}");
    for path in &paths {
        assert_eq!(narinfo(&daemon, path), 200, "{path}");
    }
    builder.nix.ok(&["nix-store", "--gc"]);
    assert!(paths.iter().all(|path| !builder.nix.real(path).exists()), "the path can be deleted");
    assert_eq!(fs::read_dir(Path::new(&builder.roots)).expect("present").count(), 0);
}

#[test]
fn collected_paths_are_moved_out_of_the_queue_and_the_others_are_uploaded() {
    let builder = Builder::with_roots(Nix::new(), String::new());
    let daemon = Daemon::start();
    let gone = builder.build(0, 1);
    builder.nix.ok(&["nix-store", "--delete", &gone[0]]);
    let kept = builder.build(1, 3);
    let (code, printed) = builder.push(daemon.url(), &[]);
    assert_eq!(code, Some(2), "{printed}");
    let failed = builder.failed();
    assert!(
        failed.contains(&format!("out {}\nwhy the path is no longer in the Nix store", gone[0])),
        "{failed}"
    );
    for path in &kept {
        assert_eq!(narinfo(&daemon, path), 200, "{path}");
    }
}

#[test]
fn wrong_settings_are_status_64() {
    let builder = Builder::new();
    let (code, printed) = builder.push("", &[]);
    assert!(code == Some(64) && printed.contains("set NIX_PUSH_TO"), "{printed}");
    let (code, printed) = builder.push("http://127.0.0.1:1", &["NIX_PUSH_KEY=/nowhere"]);
    assert!(code == Some(64) && printed.contains("cannot read /nowhere"), "{printed}");
}

/// A content-addressed derivation that depends on another one.
const ADDRESSED: &str = r#"let
  addressed = name: script: derivation {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    PATH = "/usr/bin:/bin";
    args = [ "-c" script ];
    __contentAddressed = true;
    outputHashMode = "recursive";
    outputHashAlgo = "sha256";
  };
in addressed "top" "echo ${addressed "dependency" "echo it > $out"} > $out""#;

#[test]
fn outputs_of_content_addressed_derivations_come_with_their_realisations() {
    let builder = Builder::new();
    let daemon = Daemon::start();
    let file = builder.nix.file("addressed.nix");
    fs::write(&file, ADDRESSED).expect("writable");
    let top = builder.nix.ok(&["nix-build", "--no-out-link", utf8(&file)]);
    let (code, printed) = builder.push(daemon.url(), &[]);
    assert_eq!(code, Some(0), "{printed}");
    assert_eq!((builder.names("queue"), builder.failed()), (Vec::new(), String::new()));

    // Another machine that cannot build, with only the expression.
    let consumer = Nix::new().substituting_from(daemon.url(), &builder.key.public);
    let file = consumer.file("addressed.nix");
    fs::write(&file, ADDRESSED).expect("writable");
    assert_eq!(consumer.ok(&["nix-build", "--no-out-link", utf8(&file)]), top);
    consumer.assert_has_the_same(&builder.nix, &[top]);
}

#[test]
fn a_long_queue_with_some_vanished_paths_drains_in_one_pass() {
    const ENTRIES: usize = 1000;
    let builder = Builder::new();
    let daemon = Daemon::start();
    let paths = builder.nix.add_tiny_files("queued", ENTRIES);
    fs::create_dir_all(builder.dir.join("queue")).expect("created");
    let (mut gone, mut kept) = (Vec::new(), Vec::new());
    for (number, path) in paths.into_iter().enumerate() {
        let text = format!("drv \nout {path}\n");
        fs::write(builder.dir.join("queue").join(format!("{number:06}-1")), text).expect("written");
        if number % 100 == 50 { gone.push(path) } else { kept.push(path) }
    }
    builder.nix.ok(&crate::support::nix::with_paths(&["nix-store", "--delete"], &gone));
    let (code, printed) = builder.push(daemon.url(), &[]);
    assert_eq!(code, Some(2), "{printed}");
    assert!(!printed.contains("retrying") && !printed.contains("will retry"), "{printed}");
    let failed = builder.failed();
    for path in &gone {
        assert!(
            failed.contains(&format!("out {path}\nwhy the path is no longer in the Nix store")),
            "{path}"
        );
    }
    assert_eq!((builder.names("queue").len(), builder.names("failed").len()), (0, gone.len()));
    // The other paths of a batch were uploaded together.
    assert_eq!(printed.matches("uploaded 99 paths").count(), ENTRIES / 100, "{printed}");
    assert!(kept.iter().all(|path| narinfo(&daemon, path) == 200));
}
