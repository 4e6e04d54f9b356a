//! `/metrics`: correct, well-formed, and complete for the documentation, the alerts and the dashboard.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::closures::last_used;
use crate::support::daemon::{Builder, Daemon};
use crate::support::fixture::fixture;
use crate::support::metrics::{MetricValues, promtool};
use crate::support::nix::Nix;
use crate::support::objects::{nar_of_file, sample};
use crate::support::wire::Wire;

const DAY: Duration = Duration::from_secs(86_400);

/// Reads a file of the project.
fn file(name: &str) -> String {
    let path = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).expect("present")
}

/// The words in a text that look like names of our metrics.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| word.starts_with("nix_stored_") || word.starts_with("process_"));
    let plain = |word: &str| {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
        base.unwrap_or(word).to_owned()
    };
    ours.map(plain).collect()
}

/// A daemon after requests of many kinds, by Nix.
fn with_traffic(builder: Builder) -> Daemon {
    let daemon =
        builder.env("NIX_STORED_MAX_AGE", "30d").env("NIX_STORED_GC_INTERVAL", "1s").start();
    let app = [fixture().output("app")];
    fixture().nix().copy_to(daemon.url(), &app);
    fixture().reader().copy_from(daemon.url(), &app);
    let old = sample(1, b"old");
    put(&daemon, &old.nar_path, &old.nar, 201);
    put(&daemon, &old.narinfo_path, old.narinfo.as_bytes(), 201);
    put(&daemon, &old.narinfo_path, b"nonsense", 400);
    for path in [&old.narinfo_path, &old.nar_path] {
        last_used(daemon.dir(), path.trim_start_matches('/'), 40 * DAY);
    }
    daemon.wait_for_log("collected 1 paths");
    daemon
}

#[track_caller]
fn put(daemon: &Daemon, path: &str, body: &[u8], status: u16) {
    let response = Wire::to(daemon).request("PUT", path, body);
    assert_eq!(response.status, status, "{path}: {}", response.text());
}

#[test]
fn promtool_accepts_the_metrics_after_real_traffic() {
    let daemon = with_traffic(Daemon::builder());
    let (content, printed) = promtool(&["check", "metrics"], &MetricValues::scrape(&daemon).text);
    assert!(content && printed.is_empty(), "{printed}");
    // promtool reports defects.
    let (content, printed) = promtool(&["check", "metrics"], "# TYPE x counter\nx 1\n");
    assert!(!content && !printed.is_empty(), "{printed}");
}

#[test]
fn the_documentation_lists_exactly_the_existing_metrics() {
    #[cfg(feature = "upstream")]
    let builder = Daemon::builder().env("NIX_STORED_UPSTREAMS", "http://127.0.0.1:1?timeout=1s");
    #[cfg(not(feature = "upstream"))]
    let builder = Daemon::builder();
    let daemon = builder.start();
    put(&daemon, "/nonsense", b"", 400);
    // The response arrives before it is counted.
    daemon.wait_until("the store is scanned and the response is counted", || {
        let text = MetricValues::scrape(&daemon).text;
        text.contains("store_bytes") && text.contains("uploads_refused_total")
    });
    let numbers = MetricValues::scrape(&daemon);
    let served: BTreeSet<String> = numbers.names().into_iter().map(str::to_owned).collect();

    let page = file("docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let is_name = |name: &str| name.starts_with("nix_stored_") || name.starts_with("process_");
    let printed: Vec<(&str, &str)> = rows.filter(|(name, _)| is_name(name)).collect();
    for (name, rest) in &printed {
        let kind = rest.split(' ').next().expect("a column");
        let there = numbers.text.contains(&format!("# TYPE {name} {kind}\n"));
        assert!(
            there || (cfg!(not(feature = "upstream")) && name.contains("upstream")),
            "{name} is no {kind} here"
        );
    }
    let printed: BTreeSet<String> = printed.into_iter().map(|(name, _)| name.to_owned()).collect();
    let missing: Vec<&String> = served.difference(&printed).collect();
    assert!(missing.is_empty(), "docs/metrics.md does not tell of {missing:?}");

    // The dashboard and the alerts use only documented metrics.
    for name in ["contrib/grafana-dashboard.json", "contrib/prometheus-rules.yml"] {
        let used = named(&file(name));
        assert!(used.len() > 8, "{name}: {used:?}");
        let unknown: Vec<&String> = used.difference(&printed).collect();
        assert!(unknown.is_empty(), "{name} uses {unknown:?}");
    }
}

#[test]
fn the_alerts_are_rules_and_the_dashboard_is_json() {
    let rules = format!("{}/contrib/prometheus-rules.yml", env!("CARGO_MANIFEST_DIR"));
    let (content, printed) = promtool(&["check", "rules", &rules], "");
    assert!(content && printed.contains("8 rules found"), "{printed}");

    let dashboard: serde_json::Value =
        serde_json::from_str(&file("contrib/grafana-dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let expressions = panels.iter().flat_map(|panel| panel["targets"].as_array());
    let expressions: Vec<&str> =
        expressions.flatten().filter_map(|target| target["expr"].as_str()).collect();
    assert!(expressions.len() >= 20);
    // promtool parses the expressions of the dashboard as rules.
    let mut text = String::from("groups:\n- name: dashboard\n  rules:\n");
    for (number, expression) in expressions.iter().enumerate() {
        let expression = expression.replace("$__rate_interval", "5m").replace("$instance", ".*");
        let expression = serde_json::to_string(&expression).expect("JSON is YAML");
        text.push_str(&format!("  - record: dashboard:{number}\n    expr: {expression}\n"));
    }
    let scratch = crate::support::scratch::Scratch::new();
    let name = scratch.join("dashboard.yml");
    std::fs::write(&name, text).expect("written");
    let (content, printed) = promtool(&["check", "rules", name.to_str().expect("UTF-8")], "");
    assert!(content, "{printed}");
}

#[test]
fn the_counters_match_the_traffic() {
    let daemon = Daemon::start();
    daemon.wait_until("the store is scanned", || {
        MetricValues::scrape(&daemon).get("nix_stored_store_seen_timestamp_seconds") > 0.0
    });
    let (sample, large) = (sample(1, &[1; 100]), sample(2, &[2; 300_000]));
    let mut wire = Wire::to(&daemon);
    let mut ask = |method: &str, path: &str, body: &[u8], status: u16| {
        assert_eq!(wire.request(method, path, body).status, status, "{method} {path}");
    };
    ask("GET", &sample.narinfo_path, b"", 404);
    ask("HEAD", &sample.nar_path, b"", 404);
    for sample in [&sample, &large] {
        ask("PUT", &sample.nar_path, &sample.nar, 201);
        ask("PUT", &sample.narinfo_path, sample.narinfo.as_bytes(), 201);
    }
    ask("PUT", &sample.narinfo_path, sample.narinfo.as_bytes(), 200);
    for _ in 0..3 {
        ask("GET", &sample.narinfo_path, b"", 200);
    }
    ask("GET", &large.nar_path, b"", 200);
    ask("HEAD", &large.nar_path, b"", 200);
    ask("PUT", &large.narinfo_path, b"x", 400);
    ask("PUT", "/nonsense", b"", 400);
    ask("GET", "/nix-cache-info", b"", 200);
    // The responses arrive before they are counted.
    daemon.wait_until("all responses are counted", || {
        let numbers = MetricValues::scrape(&daemon);
        let requests =
            |kind: &str| numbers.sum(&format!("nix_stored_http_requests_total{{kind=\"{kind}\""));
        ["narinfo", "nar", "cache-info"].map(requests) == [8.0, 5.0, 1.0]
            && numbers.sum("nix_stored_uploads_refused_total") == 2.0
    });

    let numbers = MetricValues::scrape(&daemon);
    let bytes = sample.nar.len() + sample.narinfo.len() + large.nar.len() + large.narinfo.len();
    let request = |kind: &str, method: &str, status: u16| {
        format!("http_requests_total{{kind=\"{kind}\",method=\"{method}\",status=\"{status}\"}}")
    };
    let expected = [
        (request("narinfo", "GET", 404), 1),
        (request("narinfo", "GET", 200), 3),
        (request("narinfo", "PUT", 201), 2),
        (request("narinfo", "PUT", 200), 1),
        (request("narinfo", "PUT", 400), 1),
        (request("nar", "HEAD", 404), 1),
        (request("nar", "HEAD", 200), 1),
        (request("nar", "PUT", 201), 2),
        (request("nar", "GET", 200), 1),
        (request("cache-info", "GET", 200), 1),
        (request("other", "PUT", 400), 1),
        ("http_request_duration_seconds_count{kind=\"narinfo\",method=\"GET\"}".into(), 4),
        ("http_request_duration_seconds_count{kind=\"nar\",method=\"GET\"}".into(), 1),
        ("hits_total{kind=\"narinfo\"}".into(), 3),
        ("misses_total{kind=\"narinfo\"}".into(), 1),
        ("hits_total{kind=\"nar\"}".into(), 2),
        ("misses_total{kind=\"nar\"}".into(), 1),
        ("uploads_refused_total{reason=\"narinfo\"}".into(), 1),
        ("uploads_refused_total{reason=\"name\"}".into(), 1),
        ("verification_duration_seconds_count".into(), 2),
        ("commit_duration_seconds_count".into(), 4),
        ("store_paths".into(), 2),
        ("store_bytes".into(), bytes),
        // The test's connection, and the connection of the metrics request.
        ("open_connections".into(), 2),
    ];
    for (name, count) in expected {
        assert_eq!(numbers.get(&format!("nix_stored_{name}")), count as f64, "{name}");
    }
    let received = numbers.get("nix_stored_received_bytes_total");
    let uploaded = bytes + sample.narinfo.len() + 1;
    assert!((uploaded..uploaded + 10_000).contains(&(received as usize)), "{received}");
    let sent = numbers.get("nix_stored_sent_bytes_total") as usize;
    let (least, scrapes) = (large.nar.len() + 3 * sample.narinfo.len(), 3 * numbers.text.len());
    assert!(sent >= least && sent < least + 20 * scrapes, "{sent}");
    let free = numbers.get("nix_stored_store_free_bytes");
    let disk = rustix::fs::statvfs(daemon.dir()).expect("present");
    let expected = (disk.f_bavail * disk.f_frsize) as f64;
    assert!((free - expected).abs() < 1e9, "{free} {expected}");
    let files = numbers.get("process_open_fds") as usize;
    assert!(files.abs_diff(daemon.open_files()) < 5, "{files}");
    let memory = numbers.get("process_resident_memory_bytes") as usize;
    assert!(memory > 1 << 20 && memory <= daemon.peak_memory(), "{memory}");
}

#[test]
fn a_download_is_counted_when_the_client_has_received_it() {
    let daemon = Daemon::builder().env("NIX_STORED_VERIFY", "file").start();
    // More than the socket buffers hold.
    let nar = nar_of_file(&vec![7; 64 << 20]);
    let hash = nix_stored::nix::Sha256Hash::of(&nar).to_nix32();
    let path = format!("/nar/{hash}.nar");
    put(&daemon, &path, &nar, 201);
    let counted = || {
        let numbers = MetricValues::scrape(&daemon);
        numbers.get("nix_stored_http_requests_total{kind=\"nar\",method=\"GET\",status=\"200\"}")
    };
    let mut wire = Wire::to(&daemon);
    wire.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    assert_eq!(wire.head().status, 200);
    assert_eq!(counted(), 0.0);
    assert!(wire.rest().len() == nar.len());
    daemon.wait_until("the response is counted", || counted() == 1.0);
}

#[test]
fn collections_are_counted_and_the_size_of_the_cache_is_known_after_a_restart() {
    let daemon = with_traffic(Daemon::builder());
    let done = "nix_stored_collections_total{result=\"done\"}";
    daemon.wait_until("the response is counted", || MetricValues::scrape(&daemon).get(done) >= 1.0);
    let numbers = MetricValues::scrape(&daemon);
    assert_eq!(numbers.get("nix_stored_collected_paths_total"), 1.0);
    let old = sample(1, b"old");
    let size = old.nar.len() + old.narinfo.len();
    assert_eq!(numbers.get("nix_stored_collected_bytes_total"), size as f64);
    let left = ["nix_stored_store_bytes", "nix_stored_store_paths"].map(|name| numbers.get(name));
    assert!(left[1] > 1.0, "{left:?}");

    let again = Daemon::builder().dir(daemon.dir()).start();
    again.wait_until("the store is scanned", || {
        let numbers = MetricValues::scrape(&again);
        ["nix_stored_store_bytes", "nix_stored_store_paths"].map(|name| numbers.get(name)) == left
    });
}

#[test]
fn metrics_require_the_same_credentials_as_reads() {
    let daemon = Daemon::builder()
        .env("NIX_STORED_USER_READ", "reader")
        .env("NIX_STORED_USER_READ_PASS", "secret")
        .start();
    for (path, status) in [("/metrics", 401), ("/health", 200), ("/nix-cache-info", 401)] {
        for method in ["GET", "HEAD"] {
            assert_eq!(Wire::to(&daemon).request(method, path, b"").status, status, "{path}");
        }
    }
    let mut wire = Wire::to(&daemon);
    // reader:secret
    let login = "Authorization: Basic cmVhZGVyOnNlY3JldA==";
    wire.send(&format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{login}\r\n\r\n"));
    let response = wire.response();
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert!(response.text().contains("nix_stored_build_info"));
    // Neither path accepts uploads.
    for path in ["/metrics", "/health"] {
        assert_eq!(Wire::to(&daemon).request("PUT", path, b"x").status, 403, "{path}");
    }
}

#[cfg(feature = "upstream")]
#[test]
fn upstreams_are_counted_separately_and_without_credentials() {
    let upstream = Daemon::start();
    let sample = sample(1, &[1; 100_000]);
    put(&upstream, &sample.nar_path, &sample.nar, 201);
    put(&upstream, &sample.narinfo_path, sample.narinfo.as_bytes(), 201);
    let daemon = Daemon::builder()
        .env("NIX_STORED_UPSTREAMS", &upstream.url_with("me", "secret"))
        .env("NIX_STORED_UPSTREAM_ABSENT_TTL", "1s")
        .start();
    let name = upstream.url().to_owned();
    let number = |rest: &str| {
        MetricValues::scrape(&daemon)
            .get(&format!("nix_stored_upstream_{rest}").replace('@', &name))
    };
    assert_eq!(number("up{upstream=\"@\"}"), 1.0);
    for path in [&sample.narinfo_path, &sample.nar_path] {
        assert_eq!(Wire::to(&daemon).request("GET", path, b"").status, 200);
    }
    let absent = |number: u8| crate::support::objects::sample(number, b"").narinfo_path;
    assert_eq!(Wire::to(&daemon).request("GET", &absent(2), b"").status, 404);
    assert_eq!(number("requests_total{result=\"found\",upstream=\"@\"}"), 2.0);
    assert_eq!(number("requests_total{result=\"absent\",upstream=\"@\"}"), 1.0);
    let bytes = number("received_bytes_total{upstream=\"@\"}");
    assert_eq!(bytes as usize, sample.nar.len() + sample.narinfo.len());
    assert!(!MetricValues::scrape(&daemon).text.contains("secret"));

    upstream.kill();
    for number in 3..7 {
        assert_eq!(Wire::to(&daemon).request("GET", &absent(number), b"").status, 502);
    }
    assert_eq!(number("up{upstream=\"@\"}"), 0.0);
    assert_eq!(number("requests_total{result=\"failed\",upstream=\"@\"}"), 3.0);
    assert_eq!(number("requests_total{result=\"left-alone\",upstream=\"@\"}"), 1.0);
}

#[test]
fn names_like_those_of_metrics_and_health_are_absent() {
    // A path whose hash part spells one of these names does not collide, because object names have
    // an extension.
    let daemon = Daemon::start();
    let nix = Nix::new();
    let paths = nix.add_tiny_files("metrics", 2);
    nix.copy_to(daemon.url(), &paths);
    assert_eq!(daemon.get("/metrics.narinfo").0, 404);
    assert_eq!(daemon.get("/health/").0, 404);
    assert_eq!(daemon.get("/metrics/").0, 404);
}
