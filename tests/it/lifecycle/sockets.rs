//! Listening sockets, and notifications of systemd.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::support::daemon::{Builder, Daemon};
use crate::support::nix::utf8;
use crate::support::scratch::Scratch;
use crate::support::wire::Wire;

fn on(listen: &str) -> Builder {
    Daemon::builder().env("NIX_STORED_LISTEN_INTERFACE", listen)
}

/// Requests `nix-cache-info` over a Unix socket.
fn ask(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).expect("connected");
    stream
        .write_all(b"GET /nix-cache-info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("the daemon reads");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("a response arrives");
    response
}

#[test]
fn a_unix_socket_has_the_configured_mode_whatever_the_umask() {
    let scratch = Scratch::new();
    // None of these modes results from a usual umask, and the last one has more bits than the umask
    // allows.
    for mode in [0o600, 0o660, 0o707, 0o777] {
        let socket = scratch.join(&format!("{mode:o}"));
        let daemon = on(&format!("unix:{}?mode={mode:04o}", socket.display())).start();
        let found = std::fs::metadata(&socket).expect("present").permissions().mode();
        assert_eq!(found & 0o7777, mode, "{found:o}");
        assert!(ask(&socket).starts_with("HTTP/1.1 200"));
        assert_eq!(daemon.stop().0.code(), Some(0));
        assert!(!socket.exists());
    }
}

#[test]
fn a_file_that_is_no_socket_is_not_replaced_by_a_socket() {
    let scratch = Scratch::new();
    let file = scratch.join("precious");
    std::fs::write(&file, "data").expect("written");
    let failed = on(&format!("unix:{}", file.display())).start_fails();
    assert_eq!(failed.code, 1);
    assert!(failed.log.contains("the file is not a socket"), "{}", failed.log);
    assert_eq!(std::fs::read(&file).expect("still running"), b"data");
}

#[test]
fn a_unix_socket_of_another_process_at_the_same_path_is_not_removed_at_exit() {
    let scratch = Scratch::new();
    let socket = scratch.join("socket");
    let daemon = on(&format!("unix:{}", socket.display())).start();
    std::fs::remove_file(&socket).expect("present");
    let _other = UnixListener::bind(&socket).expect("the name is free");
    assert_eq!(daemon.stop().0.code(), Some(0));
    assert!(socket.exists());
}

#[test]
fn all_passed_sockets_are_served_and_the_listen_variable_is_ignored() {
    let scratch = Scratch::new();
    let (socket, not_this) = (scratch.join("socket"), scratch.join("not-this"));
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = tcp.local_addr().expect("bound").to_string();
    let unix = UnixListener::bind(&socket).expect("the name is free");
    let daemon = on(&format!("unix:{}", not_this.display()))
        .socket(tcp.try_clone().expect("open"))
        .socket(unix.try_clone().expect("open"))
        .start();
    assert_eq!(daemon.url(), format!("http://{address}"));
    daemon.wait_for_log(&format!("listening on unix:{}", socket.display()));
    for _ in 0..3 {
        assert_eq!(Wire::to(&daemon).request("GET", "/nix-cache-info", b"").status, 200);
        assert!(ask(&socket).starts_with("HTTP/1.1 200"));
    }
    assert!(!not_this.exists());
    assert_eq!(daemon.stop().0.code(), Some(0));
    // The file belongs to the process that bound the socket. The next daemon finds both unchanged.
    assert!(socket.exists());
    let next = Daemon::builder().socket(unix).socket(tcp).start();
    assert!(ask(&socket).starts_with("HTTP/1.1 200"));
    assert_eq!(Wire::to_address(&address).request("GET", "/nix-cache-info", b"").status, 200);
    drop(next);
}

#[test]
fn anyone_may_upload_only_where_every_socket_is_local() {
    let local = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let daemon = Daemon::builder().socket(local).start();
    assert!(daemon.log().contains("anyone on this machine may upload"), "{}", daemon.log());
    drop(daemon);
    let local = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let open = TcpListener::bind("0.0.0.0:0").expect("a port is free");
    let daemon = Daemon::builder().socket(local).socket(open).start();
    assert!(daemon.log().contains("uploads are refused"), "{}", daemon.log());
}

#[test]
fn a_passed_descriptor_that_is_no_listening_socket_is_an_error() {
    let scratch = Scratch::new();
    let datagrams = UnixDatagram::bind(scratch.join("datagrams")).expect("the name is free");
    let (connected, _other) = UnixStream::pair().expect("a socket pair is created");
    let file = std::fs::File::open(scratch.path()).expect("present");
    for wrong in [datagrams.into(), connected.into(), std::os::fd::OwnedFd::from(file)] {
        let failed = Daemon::builder().socket(wrong).start_fails();
        assert_eq!(failed.code, 1);
        let sentence = "inherited socket 1 is not a listening socket";
        assert!(failed.log.contains(sentence), "{}", failed.log);
    }
}

/// A service manager that receives notifications.
struct Manager {
    scratch: Scratch,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let scratch = Scratch::new();
        let socket = UnixDatagram::bind(scratch.join("notify")).expect("the name is free");
        // Only failing tests wait this long.
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("the timeout is set");
        Self { scratch, socket }
    }

    fn builder(&self) -> Builder {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let builder = Daemon::builder().socket(listener);
        builder.env("NOTIFY_SOCKET", utf8(&self.scratch.join("notify")))
    }

    #[track_caller]
    fn notification(&self) -> String {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("a notification arrives");
        String::from_utf8(message[..length].to_vec()).expect("text").trim_end().to_owned()
    }
}

#[test]
fn systemd_is_notified_of_start_reload_and_stop() {
    let manager = Manager::new();
    let daemon = manager.builder().start();
    assert_eq!(manager.notification(), "READY=1");
    kill_process(daemon.pid(), Signal::HUP).expect("present");
    let notifications = manager.notification();
    let (reloading, since) = notifications.split_once('\n').expect("two lines");
    assert_eq!(reloading, "RELOADING=1");
    let since = since.strip_prefix("MONOTONIC_USEC=").expect("the time of the start");
    let uptime = std::fs::read_to_string("/proc/uptime").expect("Linux has it");
    let uptime: f64 = uptime.split(' ').next().and_then(|it| it.parse().ok()).expect("seconds");
    let since = since.parse::<f64>().expect("microseconds") / 1e6;
    assert!((uptime - since).abs() < 60.0, "{since} is not about {uptime}");
    assert_eq!(manager.notification(), "READY=1");
    daemon.terminate();
    assert_eq!(manager.notification(), "STOPPING=1");
    assert_eq!(daemon.stop().0.code(), Some(0));
}

#[test]
fn the_systemd_watchdog_is_notified_while_the_daemon_runs() {
    let manager = Manager::new();
    let daemon = manager.builder().env("WATCHDOG_USEC", "200000").start();
    let notifications: Vec<String> = (0..5).map(|_| manager.notification()).collect();
    assert_eq!(
        notifications.iter().filter(|notifications| *notifications == "WATCHDOG=1").count(),
        4,
        "{notifications:?}"
    );
    // Without `WATCHDOG_USEC` there are no watchdog notifications.
    let silent = Manager::new();
    let other = silent.builder().start();
    assert_eq!(silent.notification(), "READY=1");
    for _ in 0..5 {
        manager.notification();
    }
    silent.socket.set_nonblocking(true).expect("the option is set");
    assert!(silent.socket.recv(&mut [0; 64]).is_err());
    drop((daemon, other));
}
