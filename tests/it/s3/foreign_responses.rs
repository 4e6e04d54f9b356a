//! Responses of a proxy, portal or load balancer between the daemon and its server are not taken for the server's.

use std::time::Duration;

use nix_stored::nix::Compression;

use super::commands::run;
use super::server::{
    FaultySetup, TestServer, assert_consistent, get, head, on_every_server, over, put, upload,
};
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::s3::S3Server;
use crate::support::s3_faults::Action;
use crate::support::wire::Wire;

const NOT_FOUND: Action =
    Action::Page("404 Not Found", "Content-Type: text/plain", "404 page not found");
const EMPTY_NOT_FOUND: Action = Action::Page("404 Not Found", "X-Empty: yes", "");
const HTML: Action =
    Action::Page("200 OK", "Content-Type: text/html; charset=utf-8", "<html>welcome</html>");
const TEXT: Action = Action::Page(
    "200 OK",
    "ETag: \"1\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT",
    "welcome\n",
);
const SEE_OTHER: Action =
    Action::Page("303 See Other", "Location: http://127.0.0.1:1/elsewhere", "");

on_every_server! {
    a_client_that_pauses_longer_than_the_retry_limit_gets_the_rest
    a_broken_read_of_a_nar_does_not_count_as_damage
    a_nar_that_fails_verification_is_read_again
}

#[test]
fn a_404_of_another_server_does_not_mean_absent() {
    let setup = FaultySetup::new();
    let (one, new) = (sample(1, &[1; 100_000]), sample(2, b"new"));
    upload(&setup.daemon, &one);
    for fate in [NOT_FOUND, EMPTY_NOT_FOUND] {
        let second = over(&setup.bucket.through(setup.faults.address())).start();
        setup.faults.all(fate);
        std::thread::scope(|scope| {
            let second = &second;
            for path in [&one.narinfo_path, &one.nar_path] {
                scope.spawn(move || assert_eq!(get(second, path).status, 502, "{fate:?} {path}"));
                scope.spawn(move || assert_eq!(head(second, path).status, 502, "{fate:?} {path}"));
            }
            scope.spawn(|| {
                let refused = put(second, &new.narinfo_path, new.narinfo.as_bytes());
                assert_eq!(refused.status, 502, "{}", refused.text());
            });
        });
        setup.faults.all(Action::Pass);
        assert_eq!(get(&second, &one.narinfo_path).status, 200);
        // A 404 of the S3 server itself means absent.
        assert_eq!(get(&second, &new.narinfo_path).status, 404);
        assert_eq!(head(&second, &new.nar_path).status, 404);
    }
}

#[test]
fn a_response_of_another_server_is_not_served_and_not_stored() {
    let setup = FaultySetup::new();
    let (one, new) = (sample(1, &[1; 100_000]), sample(2, b"new"));
    upload(&setup.daemon, &one);
    for fate in [HTML, TEXT, SEE_OTHER] {
        let second = over(&setup.bucket.through(setup.faults.address())).start();
        setup.faults.all(fate);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let response = get(&second, &one.narinfo_path);
                assert_eq!(response.status, 502, "{fate:?}: {}", response.text());
            });
            if fate != TEXT {
                scope.spawn(|| {
                    let refused = put(&second, &new.nar_path, &new.nar);
                    assert_eq!(refused.status, 502, "{fate:?}: {}", refused.text());
                });
            }
        });
        setup.faults.all(Action::Pass);
        assert_eq!(get(&second, &new.nar_path).status, 404, "{fate:?}");
    }
    assert_eq!(assert_consistent(&setup.bucket), 1);
}

#[test]
fn a_listed_narinfo_that_is_not_found_blocks_a_collection() {
    let setup = FaultySetup::new();
    let (one, two) = (sample(1, b"one"), sample(2, b"two"));
    let name = two.store_path.trim_start_matches("/nix/store/");
    let narinfo = one.narinfo.replace("References: ", &format!("References: {name}"));
    upload(&setup.daemon, &two);
    put(&setup.daemon, &one.nar_path, &one.nar);
    assert_eq!(put(&setup.daemon, &one.narinfo_path, narinfo.as_bytes()).status, 201);
    let lost = one.narinfo_path.clone();
    setup.faults.on(move |head| {
        let gets_it = head.starts_with("GET ") && head.contains(&lost);
        if gets_it { Action::Error(404, "NoSuchKey") } else { Action::Pass }
    });
    let through = setup.bucket.through(setup.faults.address());
    let refused = run(&through, &["gc", "--max-age", "1s"]).is(1);
    assert!(refused.err.contains("nothing was removed"), "{refused:?}");
    run(&through, &["verify"]).is(1).prints("cannot be read");
    setup.faults.all(Action::Pass);
    assert_eq!(assert_consistent(&setup.bucket), 2);
}

#[test]
fn a_foreign_key_is_reported_and_stops_nothing() {
    let setup = FaultySetup::new();
    let one = sample(1, b"one");
    upload(&setup.daemon, &one);
    // s3s stores objects in files, and cannot have such names, so the listing is synthetic.
    let listing = "<?xml version=\"1.0\"?><ListBucketResult><Name>cache</Name><IsTruncated>false</IsTruncated>\
        <Contents><Key>a//b</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>1</Size></Contents>\
        <Contents><Key>nar/.</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>1</Size></Contents>\
        </ListBucketResult>";
    setup.faults.on(move |head| {
        let lists =
            head.starts_with("GET ") && head.contains("list-type=2") && !head.contains("prefix=");
        if lists {
            Action::Page("200 OK", "Content-Type: application/xml", listing)
        } else {
            Action::Pass
        }
    });
    let through = setup.bucket.through(setup.faults.address());
    run(&through, &["verify"]).is(0).prints("a//b").prints("nar/.");
    run(&through, &["gc"]).is(0);
}

#[test]
fn an_endless_listing_is_aborted() {
    let setup = FaultySetup::new();
    let listing = "<?xml version=\"1.0\"?><ListBucketResult><Name>cache</Name><IsTruncated>true</IsTruncated>\
        <NextContinuationToken>again</NextContinuationToken>\
        <Contents><Key>README</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>1</Size></Contents>\
        </ListBucketResult>";
    setup.faults.on(move |head| {
        let lists =
            head.starts_with("GET ") && head.contains("list-type=2") && !head.contains("prefix=");
        if lists {
            Action::Page("200 OK", "Content-Type: application/xml", listing)
        } else {
            Action::Pass
        }
    });
    let through = setup.bucket.through(setup.faults.address());
    run(&through, &["stats"]).is(1).prints_error("the same list repeatedly");
}

/// A page of a list: keys with the sizes of their objects, and the number of the next page.
fn list_page(objects: &[(String, usize)], next: Option<u32>) -> Action {
    let objects = objects.iter().map(|(key, size)| {
        format!(
            "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
             <Size>{size}</Size></Contents>"
        )
    });
    let next = next.map(|page| {
        format!(
            "<IsTruncated>true</IsTruncated>\
             <NextContinuationToken>page-{page}</NextContinuationToken>"
        )
    });
    let text = format!(
        "<?xml version=\"1.0\"?><ListBucketResult><Name>cache</Name>{}{}</ListBucketResult>",
        next.unwrap_or_default(),
        objects.collect::<String>()
    );
    Action::Page("200 OK", "Content-Type: application/xml", text.leak())
}

/// The number of the requested page of a list of the whole bucket.
fn requested_page(head: &str) -> Option<u32> {
    let is_list =
        head.starts_with("GET ") && head.contains("list-type=2") && !head.contains("prefix=");
    let token = head.split("continuation-token=page-").nth(1);
    let number = token.and_then(|token| token.split(|it: char| !it.is_ascii_digit()).next());
    is_list.then(|| number.map_or(0, |number| number.parse().expect("an owner with a known kind")))
}

/// The maximum number of consecutive pages without keys.
const EMPTY_PAGES: u32 = 1000;

#[test]
fn empty_pages_of_a_listing_are_skipped() {
    let setup = FaultySetup::new();
    let ones = [sample(1, b"one"), sample(2, b"two")];
    let mut objects = Vec::new();
    for one in &ones {
        upload(&setup.daemon, one);
        objects.push((one.nar_path[1..].to_owned(), one.nar.len()));
        objects.push((one.narinfo_path[1..].to_owned(), one.narinfo.len()));
    }
    objects.sort();
    // The maximum number of empty pages, both before the first keys and after them.
    setup.faults.on(move |head| match requested_page(head) {
        None => Action::Pass,
        Some(EMPTY_PAGES) => list_page(&objects[..2], Some(EMPTY_PAGES + 1)),
        Some(page) if page > 2 * EMPTY_PAGES => list_page(&objects[2..], None),
        Some(page) => list_page(&[], Some(page + 1)),
    });
    let through = setup.bucket.through(setup.faults.address());
    let stats = run(&through, &["stats", "--json"]).is(0).json();
    assert_eq!(stats["paths"], ones.len());
}

#[test]
fn a_listing_with_only_empty_pages_is_aborted() {
    let setup = FaultySetup::new();
    let through = setup.bucket.through(setup.faults.address());
    let is_given_up = |next: fn(u32) -> u32, error: &str| {
        setup.faults.on(move |head| match requested_page(head) {
            None => Action::Pass,
            Some(page) => list_page(&[], Some(next(page))),
        });
        setup.faults.clear_requests();
        run(&through, &["stats"]).is(1).prints_error(error);
        // The daemon may list concurrently.
        let requests = setup.faults.requests();
        let pages = requests.iter().filter_map(|line| requested_page(line)).count();
        assert!(pages <= 2 * (EMPTY_PAGES as usize + 1), "{pages} pages");
    };
    is_given_up(|page| page + 1, "1000 pages of a list without keys");
    // Pages in a circle.
    is_given_up(|page| (page + 1) % 7, "1000 pages of a list without keys");
    // A page that names itself as the next one.
    is_given_up(|_| 1, "the same list repeatedly");
}

#[test]
fn an_invalid_line_of_recorded_uses_is_ignored() {
    let server = S3Server::start();
    let bucket = server.bucket("cache");
    let one = sample(1, b"one");
    let uses = format!("18446744073709551615 {}\nnonsense\n", &one.narinfo_path[1..]);
    bucket.put(".nix-stored/uses/0-garbage", uses.as_bytes());
    let daemon = over(&bucket).start();
    upload(&daemon, &one);
    assert_eq!(get(&daemon, &one.narinfo_path).status, 200);
    daemon.wait_for_log("ignored an invalid line");
}

fn a_client_that_pauses_longer_than_the_retry_limit_gets_the_rest(server: &TestServer) {
    let setup = FaultySetup::at(server);
    let one = sample(1, &Noise::new(1).bytes(9 << 20));
    upload(&setup.daemon, &one);
    // The first response is cut, and so is the second, after the pause.
    setup.faults.next(2, Action::Cut(3 << 20));
    let mut wire = Wire::to(&setup.daemon);
    wire.send(&format!("GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", one.nar_path));
    assert_eq!(wire.head().status, 200);
    // Longer than the time for retries of a request.
    std::thread::sleep(Duration::from_secs(22));
    let received = wire.rest();
    assert!(received == one.nar, "{} bytes", received.len());
}

#[test]
fn credentials_in_the_bucket_url_are_refused_and_not_printed() {
    for server in [
        "s3://KEY:S3CRET@bucket",
        "s3://bucket?endpoint=http://user:S3CRET@host",
        "s3://bucket?endpoint=http://user:S3CRET%40host",
        "s3://bucket?nonsense=S3CRET@",
    ] {
        let failed = Daemon::builder().env("NIX_STORED_PATH", server).start_fails();
        assert_eq!(failed.code, 64, "{}", failed.log);
        assert!(!failed.log.contains("S3CRET"), "{}", failed.log);
        assert!(failed.log.contains("AWS_ACCESS_KEY_ID"), "{}", failed.log);
        for args in
            [&["check-config"][..], &["migrate", server, "/tmp/x"], &["migrate", "/tmp", server]]
        {
            let path = if args.len() == 1 { server } else { "/nonexistent" };
            let command =
                crate::support::daemon::on_cache(std::path::Path::new(path), args).output();
            let output = command.expect("the process starts");
            let printed = [output.stdout, output.stderr].concat();
            let printed = String::from_utf8_lossy(&printed).into_owned();
            assert_eq!(output.status.code(), Some(64), "{args:?} {printed}");
            assert!(!printed.contains("S3CRET"), "{args:?} {printed}");
        }
    }
}

/// Cuts the response with a NAR, and all later ones.
fn cut_nar(path: &str) -> impl FnMut(&str) -> Action + Send + 'static {
    let key = path.to_owned();
    let mut count = 0;
    move |head| {
        if !is_get_of(head, &key) {
            return Action::Pass;
        }
        count += 1;
        if count == 1 { Action::Cut(100_000) } else { Action::Error(403, "AccessDenied") }
    }
}

#[track_caller]
fn nothing_is_quarantined<S>(setup: &FaultySetup<S>, sample: &Sample) {
    let keys = setup.bucket.all_keys();
    assert!(keys.contains(&sample.nar_path[1..].to_owned()), "{keys:?}");
    assert!(!keys.iter().any(|key| key.contains("quarantine")), "{keys:?}");
}

fn a_broken_read_of_a_nar_does_not_count_as_damage(server: &TestServer) {
    let setup = FaultySetup::at(server);
    // One is compressed, so that a decoder reads the truncated response.
    let ones = [
        sample(1, &Noise::new(1).bytes(300_000)),
        sample(2, &Noise::new(2).bytes(3 << 20)).packed(Compression::Xz),
    ];
    for one in &ones {
        setup.bucket.put(&one.nar_path[1..], &one.nar);
        setup.faults.on(cut_nar(&one.nar_path));
        let response = put(&setup.daemon, &one.narinfo_path, one.narinfo.as_bytes());
        assert!((500..600).contains(&response.status), "{} {}", response.head, response.text());
        nothing_is_quarantined(&setup, one);
    }
    for one in &ones {
        setup.bucket.put(&one.narinfo_path[1..], one.narinfo.as_bytes());
    }
    let through = setup.bucket.through(setup.faults.address());
    for one in &ones {
        setup.faults.on(cut_nar(&one.nar_path));
        run(&through, &["verify", "--deep", "--repair"]).is(1).prints("could not be read");
        nothing_is_quarantined(&setup, one);
    }
    setup.faults.all(Action::Pass);
    run(&through, &["verify", "--deep"]).is(0);
}

fn a_nar_that_fails_verification_is_read_again(server: &TestServer) {
    let setup = FaultySetup::at(server);
    let one = sample(1, &Noise::new(1).bytes(200_000));
    let wrong = vec![b'x'; one.nar.len()];
    // An object that was replaced is read twice, and quarantined.
    setup.bucket.put(&one.nar_path[1..], &wrong);
    setup.faults.clear_requests();
    let response = put(&setup.daemon, &one.narinfo_path, one.narinfo.as_bytes());
    assert_eq!(response.status, 422, "{}", response.text());
    let reads =
        setup.faults.requests().iter().filter(|line| is_get_of(line, &one.nar_path)).count();
    assert!(reads >= 2, "{reads}");
    assert_eq!(setup.bucket.get(&one.nar_path[1..]), None);
}

fn is_get_of(line: &str, path: &str) -> bool {
    line.starts_with("GET ") && line.contains(path)
}

#[test]
fn facts_of_a_nar_are_dropped_when_it_is_replaced() {
    let setup = FaultySetup::new();
    let one = sample(1, &Noise::new(1).bytes(200_000));
    assert_eq!(put(&setup.daemon, &one.nar_path, &one.nar).status, 201);
    let wrong = vec![b'x'; one.nar.len()];
    setup.bucket.put(&one.nar_path[1..], &wrong);
    let response = put(&setup.daemon, &one.narinfo_path, one.narinfo.as_bytes());
    assert_eq!(response.status, 422, "{}", response.text());
    assert_eq!(get(&setup.daemon, &one.narinfo_path).status, 404);
    // The client uploads both again.
    upload(&setup.daemon, &one);
    assert!(get(&setup.daemon, &one.nar_path).body == one.nar, "other bytes");
}
