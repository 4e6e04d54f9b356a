//! Content and refusals over HTTP/1.1 and HTTP/2.

use super::{CurlResult, curl, curl_command, parse_output, signed_by};
use crate::support::certificates::Authority;
use crate::support::daemon::{Builder, Daemon};
use crate::support::nix::utf8;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::scratch::Scratch;

const VERSIONS: [(&str, &str); 2] = [("--http1.1", "1.1"), ("--http2", "2")];

struct TlsSetup {
    authority: Authority,
    scratch: Scratch,
}

impl TlsSetup {
    fn new() -> Self {
        Self { authority: Authority::new(), scratch: Scratch::new() }
    }

    fn daemon(&self) -> Builder {
        signed_by(&self.authority)
    }

    #[track_caller]
    fn ask(&self, daemon: &Daemon, path: &str, args: &[&str]) -> CurlResult {
        curl(&self.authority, &format!("{}{path}", daemon.url()), args)
    }

    #[track_caller]
    fn put(&self, daemon: &Daemon, path: &str, body: &[u8], args: &[&str]) -> CurlResult {
        let file = self.scratch.join("upload");
        std::fs::write(&file, body).expect("written");
        self.ask(daemon, path, &[&["-T", utf8(&file)], args].concat())
    }

    #[track_caller]
    fn store(&self, daemon: &Daemon, sample: &Sample) {
        self.put(daemon, &sample.nar_path, &sample.nar, &[]).is(201);
        self.put(daemon, &sample.narinfo_path, sample.narinfo.as_bytes(), &[]).is(201);
    }
}

fn large(number: u8) -> Sample {
    sample(number, &Noise::new(number.into()).bytes(40 << 20))
}

#[test]
fn objects_of_every_size_are_served_completely_and_in_ranges() {
    let setup = TlsSetup::new();
    let daemon = setup.daemon().start();
    // Sizes for memory, at the limits of a read and of a TLS record, and far above.
    let sizes = [1, 16_000, 40_000, 262_144, 300_000, 5_000_000];
    for (size, number) in sizes.iter().zip(1..) {
        let sample = sample(number, &Noise::new(number.into()).bytes(*size));
        setup.store(&daemon, &sample);
        for (version, name) in VERSIONS {
            let whole = setup.ask(&daemon, &sample.nar_path, &[version]).is(200);
            assert!(whole.body == sample.nar, "{size} over {name}");
            assert_eq!(whole.version, name);
            let (from, to) = (sample.nar.len() / 3, sample.nar.len() / 2);
            let range = format!("{from}-{to}");
            let part = setup.ask(&daemon, &sample.nar_path, &[version, "-r", &range]).is(206);
            assert!(part.body == sample.nar[from..=to], "{range} of {size} over {name}");
            let narinfo = setup.ask(&daemon, &sample.narinfo_path, &[version]).is(200);
            assert_eq!(narinfo.text(), sample.narinfo);
            let head = setup.ask(&daemon, &sample.nar_path, &[version, "-I"]).is(200).text();
            let length = format!("content-length: {}", sample.nar.len());
            assert!(head.to_ascii_lowercase().contains(&length), "{head}");
            let tag = head.lines().find_map(|line| line.split_once(": ")).expect("headers");
            assert!(!tag.0.is_empty());
        }
    }
    let missing = sample(100, b"x");
    for (version, _) in VERSIONS {
        setup.ask(&daemon, &missing.narinfo_path, &[version]).is(404);
        setup.ask(&daemon, "/nix-cache-info", &[version, "-X", "DELETE"]).is(405);
    }
}

#[test]
fn many_requests_share_one_connection_of_http_2() {
    let setup = TlsSetup::new();
    let daemon = setup.daemon().env("NIX_STORED_LOG_LEVEL", "debug").start();
    let samples: Vec<Sample> =
        (1..30).map(|number| sample(number, &Noise::new(number.into()).bytes(150_000))).collect();
    samples.iter().for_each(|sample| setup.store(&daemon, sample));
    let started = |daemon: &Daemon| daemon.log().matches("TLS connection established").count();
    let before = started(&daemon);
    let mut arguments = vec!["--parallel".to_owned(), "--http2".to_owned()];
    for (at, sample) in samples.iter().enumerate() {
        let file = setup.scratch.join(&format!("nar-{at}"));
        arguments.extend(["-o".to_owned(), utf8(&file).to_owned()]);
        arguments.push(format!("{}{}", daemon.url(), sample.nar_path));
    }
    let file = setup.scratch.join("info");
    arguments.extend(["-o".to_owned(), utf8(&file).to_owned()]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let url = format!("{}/nix-cache-info", daemon.url());
    let all = curl_command(&setup.authority, &url, &arguments).output().expect("curl is installed");
    assert!(all.status.success(), "{}", String::from_utf8_lossy(&all.stderr));
    for (at, sample) in samples.iter().enumerate() {
        let parse_output =
            std::fs::read(setup.scratch.join(&format!("nar-{at}"))).expect("written");
        assert!(parse_output == sample.nar, "{}", sample.nar_path);
    }
    // On a busy machine curl opens another connection before it knows that the first supports
    // HTTP/2.
    assert!((1..4).contains(&(started(&daemon) - before)), "{}", daemon.log());
}

#[test]
fn a_client_that_uploads_a_large_body_receives_the_refusal() {
    let setup = TlsSetup::new();
    let daemon = setup
        .daemon()
        .env("NIX_STORED_USER_WRITE", "writer")
        .env("NIX_STORED_USER_WRITE_PASS", "w")
        .env("NIX_STORED_MAX_UPLOAD_SIZE", "1M")
        .start();
    let sample = large(1);
    for (version, _) in VERSIONS {
        // Without waiting for `100 Continue`, so that much of the body is sent before the refusal.
        let plain = [version, "-H", "Expect:"];
        let refused = setup.put(&daemon, &sample.nar_path, &sample.nar, &plain).is(401);
        assert!(refused.text().contains("needs a user and a password"), "{}", refused.text());
        let known = [&plain[..], &["-u", "writer:w"]].concat();
        let refused = setup.put(&daemon, &sample.nar_path, &sample.nar, &known).is(413);
        assert!(!refused.text().is_empty());
        let cut = setup.put(&daemon, &sample.nar_path, &sample.nar[..5000], &known).is(422);
        assert!(!cut.text().is_empty());
    }
}

#[test]
fn a_slow_reader_costs_little_memory_and_delays_no_other_client() {
    let setup = TlsSetup::new();
    let daemon = setup.daemon().start();
    let sample = large(1);
    setup.store(&daemon, &sample);
    let url = format!("{}{}", daemon.url(), sample.nar_path);
    let before = daemon.peak_memory();
    let slow: Vec<_> = ["--http1.1", "--http2"]
        .into_iter()
        .cycle()
        .take(10)
        .map(|version| {
            let args = [version, "--limit-rate", "8M"];
            curl_command(&setup.authority, &url, &args).spawn().expect("curl is installed")
        })
        .collect();
    for (version, _) in VERSIONS {
        assert!(setup.ask(&daemon, &sample.nar_path, &[version]).is(200).body == sample.nar);
    }
    for slow in slow {
        let whole = parse_output(&slow.wait_with_output().expect("the process ends")).is(200);
        assert!(whole.body == sample.nar);
    }
    // An upload costs its buffers, not the size of its NAR.
    let cost = daemon.peak_memory() - before;
    assert!(cost < 40 << 20, "{cost} bytes for a dozen transfers");
}

#[test]
fn a_connection_without_tls_is_refused() {
    let setup = TlsSetup::new();
    let daemon = setup.daemon().start();
    let plain = daemon.url().replace("https://", "http://");
    assert_eq!(curl(&setup.authority, &format!("{plain}/nix-cache-info"), &[]).status, 0);
    daemon.wait_for_log("a TLS handshake failed");
    setup.ask(&daemon, "/nix-cache-info", &[]).is(200);
    let (status, log) = daemon.stop();
    assert_eq!(status.code(), Some(0));
    assert!(log.contains("all transfers were finished"), "{log}");
}

#[test]
fn running_transfers_are_finished_at_sigterm() {
    let setup = TlsSetup::new();
    for (version, _) in VERSIONS {
        let daemon = setup.daemon().start();
        let sample = large(1);
        setup.store(&daemon, &sample);
        let url = format!("{}{}", daemon.url(), sample.nar_path);
        let output = setup.scratch.join("download");
        let arguments = [version, "--limit-rate", "10M", "-o", utf8(&output)];
        let slow = curl_command(&setup.authority, &url, &arguments).spawn();
        let slow = slow.expect("curl is installed");
        daemon.wait_until("the transfer has begun", || {
            std::fs::metadata(&output).is_ok_and(|file| file.len() > 0)
        });
        let (status, log) = daemon.stop();
        assert_eq!(status.code(), Some(0));
        assert!(log.contains("all transfers were finished"), "{log}");
        parse_output(&slow.wait_with_output().expect("the process ends")).is(200);
        assert!(std::fs::read(&output).expect("written") == sample.nar);
        std::fs::remove_file(&output).expect("present");
    }
}

#[cfg(feature = "pages")]
#[test]
fn a_page_shows_the_address_that_the_browser_requested() {
    let setup = TlsSetup::new();
    let daemon = setup.daemon().start();
    assert!(daemon.url().starts_with("https://"), "{}", daemon.url());
    for (arg, version) in VERSIONS {
        let page = setup.ask(&daemon, "/", &[arg, "-H", "accept: text/html"]).is(200);
        assert_eq!(page.version, version);
        let text = page.text();
        assert!(text.contains(daemon.url()) && !text.contains("http://127"), "{version}: {text}");
    }
}
