//! Responses of a proxy, portal or load balancer between the daemon and its server are not taken for the server's.

use std::time::Duration;

use nix_stored::nix::Compression;

use super::commands::run;
use super::place::{
    Place, Site, assert_nothing_is_false, get, head, on_every_server, over, put, upload,
};
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::s3::S3Server;
use crate::support::s3_faults::Fate;
use crate::support::wire::Wire;

const NOT_FOUND: Fate =
    Fate::Page("404 Not Found", "Content-Type: text/plain", "404 page not found");
const EMPTY_NOT_FOUND: Fate = Fate::Page("404 Not Found", "X-Empty: yes", "");
const HTML: Fate =
    Fate::Page("200 OK", "Content-Type: text/html; charset=utf-8", "<html>welcome</html>");
const TEXT: Fate = Fate::Page(
    "200 OK",
    "ETag: \"1\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT",
    "welcome\n",
);
const SEE_OTHER: Fate = Fate::Page("303 See Other", "Location: http://127.0.0.1:1/elsewhere", "");

on_every_server! {
    a_client_that_pauses_longer_than_the_retry_limit_gets_the_rest
    a_broken_read_of_a_nar_does_not_count_as_damage
    a_nar_that_fails_verification_is_read_again
}

#[test]
fn a_404_of_another_server_does_not_mean_absent() {
    let site = Site::new();
    let (one, new) = (sample(1, &[1; 100_000]), sample(2, b"new"));
    upload(&site.daemon, &one);
    for fate in [NOT_FOUND, EMPTY_NOT_FOUND] {
        let second = over(&site.bucket.through(site.faults.address())).start();
        site.faults.all(fate);
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
        site.faults.all(Fate::Passes);
        assert_eq!(get(&second, &one.narinfo_path).status, 200);
        // What the server itself says is absent is absent.
        assert_eq!(get(&second, &new.narinfo_path).status, 404);
        assert_eq!(head(&second, &new.nar_path).status, 404);
    }
}

#[test]
fn a_response_of_another_server_is_not_served_and_not_stored() {
    let site = Site::new();
    let (one, new) = (sample(1, &[1; 100_000]), sample(2, b"new"));
    upload(&site.daemon, &one);
    for fate in [HTML, TEXT, SEE_OTHER] {
        let second = over(&site.bucket.through(site.faults.address())).start();
        site.faults.all(fate);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let answer = get(&second, &one.narinfo_path);
                assert_eq!(answer.status, 502, "{fate:?}: {}", answer.text());
            });
            if fate != TEXT {
                scope.spawn(|| {
                    let refused = put(&second, &new.nar_path, &new.nar);
                    assert_eq!(refused.status, 502, "{fate:?}: {}", refused.text());
                });
            }
        });
        site.faults.all(Fate::Passes);
        assert_eq!(get(&second, &new.nar_path).status, 404, "{fate:?}");
    }
    assert_eq!(assert_nothing_is_false(&site.bucket), 1);
}

#[test]
fn a_listed_narinfo_that_is_not_found_blocks_a_collection() {
    let site = Site::new();
    let (one, two) = (sample(1, b"one"), sample(2, b"two"));
    let name = two.store_path.trim_start_matches("/nix/store/");
    let narinfo = one.narinfo.replace("References: ", &format!("References: {name}"));
    upload(&site.daemon, &two);
    put(&site.daemon, &one.nar_path, &one.nar);
    assert_eq!(put(&site.daemon, &one.narinfo_path, narinfo.as_bytes()).status, 201);
    let lost = one.narinfo_path.clone();
    site.faults.on(move |head| {
        let gets_it = head.starts_with("GET ") && head.contains(&lost);
        if gets_it { Fate::Error(404, "NoSuchKey") } else { Fate::Passes }
    });
    let through = site.bucket.through(site.faults.address());
    let refused = run(&through, &["gc", "--max-age", "1s"]).is(1);
    assert!(refused.err.contains("nothing was removed"), "{refused:?}");
    run(&through, &["verify"]).is(1).says("cannot be read");
    site.faults.all(Fate::Passes);
    assert_eq!(assert_nothing_is_false(&site.bucket), 2);
}

#[test]
fn a_foreign_key_is_reported_and_stops_nothing() {
    let site = Site::new();
    let one = sample(1, b"one");
    upload(&site.daemon, &one);
    // s3s keeps objects in files, and has no such names: a listing with them is made up.
    let listing = "<?xml version=\"1.0\"?><ListBucketResult><Name>cache</Name><IsTruncated>false</IsTruncated>\
        <Contents><Key>a//b</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>1</Size></Contents>\
        <Contents><Key>nar/.</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>1</Size></Contents>\
        </ListBucketResult>";
    site.faults.on(move |head| {
        let lists =
            head.starts_with("GET ") && head.contains("list-type=2") && !head.contains("prefix=");
        if lists {
            Fate::Page("200 OK", "Content-Type: application/xml", listing)
        } else {
            Fate::Passes
        }
    });
    let through = site.bucket.through(site.faults.address());
    run(&through, &["verify"]).is(0).says("a//b").says("nar/.");
    run(&through, &["gc"]).is(0);
}

#[test]
fn an_endless_listing_is_aborted() {
    let site = Site::new();
    let listing = "<?xml version=\"1.0\"?><ListBucketResult><Name>cache</Name><IsTruncated>true</IsTruncated>\
        <NextContinuationToken>again</NextContinuationToken>\
        <Contents><Key>README</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>1</Size></Contents>\
        </ListBucketResult>";
    site.faults.on(move |head| {
        let lists =
            head.starts_with("GET ") && head.contains("list-type=2") && !head.contains("prefix=");
        if lists {
            Fate::Page("200 OK", "Content-Type: application/xml", listing)
        } else {
            Fate::Passes
        }
    });
    let through = site.bucket.through(site.faults.address());
    run(&through, &["stats"]).is(1).complains("the same list repeatedly");
}

/// A page of a list: keys with the sizes of their objects, and the number of the next page.
fn list_page(objects: &[(String, usize)], next: Option<u32>) -> Fate {
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
    Fate::Page("200 OK", "Content-Type: application/xml", text.leak())
}

/// The number of the page that is requested of a list of the whole bucket.
fn requested_page(head: &str) -> Option<u32> {
    let is_list =
        head.starts_with("GET ") && head.contains("list-type=2") && !head.contains("prefix=");
    let token = head.split("continuation-token=page-").nth(1);
    let number = token.and_then(|token| token.split(|it: char| !it.is_ascii_digit()).next());
    is_list.then(|| number.map_or(0, |number| number.parse().expect("it is one of ours")))
}

/// The number of pages without keys that are accepted in a row.
const EMPTY_PAGES: u32 = 1000;

#[test]
fn empty_pages_of_a_listing_are_skipped() {
    let site = Site::new();
    let ones = [sample(1, b"one"), sample(2, b"two")];
    let mut objects = Vec::new();
    for one in &ones {
        upload(&site.daemon, one);
        objects.push((one.nar_path[1..].to_owned(), one.nar.len()));
        objects.push((one.narinfo_path[1..].to_owned(), one.narinfo.len()));
    }
    objects.sort();
    // As many as are accepted in a row, both before the first keys and after them.
    site.faults.on(move |head| match requested_page(head) {
        None => Fate::Passes,
        Some(EMPTY_PAGES) => list_page(&objects[..2], Some(EMPTY_PAGES + 1)),
        Some(page) if page > 2 * EMPTY_PAGES => list_page(&objects[2..], None),
        Some(page) => list_page(&[], Some(page + 1)),
    });
    let through = site.bucket.through(site.faults.address());
    let stats = run(&through, &["stats", "--json"]).is(0).json();
    assert_eq!(stats["paths"], ones.len());
}

#[test]
fn a_listing_with_only_empty_pages_is_aborted() {
    let site = Site::new();
    let through = site.bucket.through(site.faults.address());
    let is_given_up = |next: fn(u32) -> u32, error: &str| {
        site.faults.on(move |head| match requested_page(head) {
            None => Fate::Passes,
            Some(page) => list_page(&[], Some(next(page))),
        });
        site.faults.forget();
        run(&through, &["stats"]).is(1).complains(error);
        // The daemon can list at the same time.
        let requests = site.faults.asked();
        let pages = requests.iter().filter_map(|line| requested_page(line)).count();
        assert!(pages <= 2 * (EMPTY_PAGES as usize + 1), "{pages} pages");
    };
    is_given_up(|page| page + 1, "1000 pages of a list without keys");
    // In a circle.
    is_given_up(|page| (page + 1) % 7, "1000 pages of a list without keys");
    // The page itself is the next one.
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

fn a_client_that_pauses_longer_than_the_retry_limit_gets_the_rest(place: &Place) {
    let site = Site::at(place);
    let one = sample(1, &Noise::new(1).bytes(9 << 20));
    upload(&site.daemon, &one);
    // The first answer breaks off, and so does the second, after the pause.
    site.faults.next(2, Fate::Cut(3 << 20));
    let mut wire = Wire::to(&site.daemon);
    wire.send(&format!("GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", one.nar_path));
    assert_eq!(wire.head().status, 200);
    // Longer than a request to the server is tried again.
    std::thread::sleep(Duration::from_secs(22));
    let received = wire.rest();
    assert!(received == one.nar, "{} bytes", received.len());
}

#[test]
fn credentials_in_the_bucket_url_are_refused_and_not_printed() {
    for place in [
        "s3://KEY:S3CRET@bucket",
        "s3://bucket?endpoint=http://user:S3CRET@host",
        "s3://bucket?endpoint=http://user:S3CRET%40host",
        "s3://bucket?nonsense=S3CRET@",
    ] {
        let failed = Daemon::builder().env("NIX_STORED_PATH", place).start_fails();
        assert_eq!(failed.code, 64, "{}", failed.log);
        assert!(!failed.log.contains("S3CRET"), "{}", failed.log);
        assert!(failed.log.contains("AWS_ACCESS_KEY_ID"), "{}", failed.log);
        for args in
            [&["check-config"][..], &["migrate", place, "/tmp/x"], &["migrate", "/tmp", place]]
        {
            let path = if args.len() == 1 { place } else { "/nonexistent" };
            let command =
                crate::support::daemon::on_cache(std::path::Path::new(path), args).output();
            let output = command.expect("it starts");
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            assert_eq!(output.status.code(), Some(64), "{args:?} {said}");
            assert!(!said.contains("S3CRET"), "{args:?} {said}");
        }
    }
}

/// The answer with a NAR breaks off, and nothing more comes of it.
fn cut_nar(path: &str) -> impl FnMut(&str) -> Fate + Send + 'static {
    let key = path.to_owned();
    let mut count = 0;
    move |head| {
        if !is_get_of(head, &key) {
            return Fate::Passes;
        }
        count += 1;
        if count == 1 { Fate::Cut(100_000) } else { Fate::Error(403, "AccessDenied") }
    }
}

#[track_caller]
fn nothing_is_quarantined<S>(site: &Site<S>, sample: &Sample) {
    let keys = site.bucket.all_keys();
    assert!(keys.contains(&sample.nar_path[1..].to_owned()), "{keys:?}");
    assert!(!keys.iter().any(|key| key.contains("quarantine")), "{keys:?}");
}

fn a_broken_read_of_a_nar_does_not_count_as_damage(place: &Place) {
    let site = Site::at(place);
    // One is compressed: a decoder meets the end of what came.
    let ones = [
        sample(1, &Noise::new(1).bytes(300_000)),
        sample(2, &Noise::new(2).bytes(3 << 20)).packed(Compression::Xz),
    ];
    for one in &ones {
        site.bucket.put(&one.nar_path[1..], &one.nar);
        site.faults.on(cut_nar(&one.nar_path));
        let answer = put(&site.daemon, &one.narinfo_path, one.narinfo.as_bytes());
        assert!((500..600).contains(&answer.status), "{} {}", answer.head, answer.text());
        nothing_is_quarantined(&site, one);
    }
    for one in &ones {
        site.bucket.put(&one.narinfo_path[1..], one.narinfo.as_bytes());
    }
    let through = site.bucket.through(site.faults.address());
    for one in &ones {
        site.faults.on(cut_nar(&one.nar_path));
        run(&through, &["verify", "--deep", "--repair"]).is(1).says("could not be read");
        nothing_is_quarantined(&site, one);
    }
    site.faults.all(Fate::Passes);
    run(&through, &["verify", "--deep"]).is(0);
}

fn a_nar_that_fails_verification_is_read_again(place: &Place) {
    let site = Site::at(place);
    let one = sample(1, &Noise::new(1).bytes(200_000));
    let wrong = vec![b'x'; one.nar.len()];
    // Replaced under its name, it is read twice, and quarantined.
    site.bucket.put(&one.nar_path[1..], &wrong);
    site.faults.forget();
    let answer = put(&site.daemon, &one.narinfo_path, one.narinfo.as_bytes());
    assert_eq!(answer.status, 422, "{}", answer.text());
    let reads = site.faults.asked().iter().filter(|line| is_get_of(line, &one.nar_path)).count();
    assert!(reads >= 2, "{reads}");
    assert_eq!(site.bucket.get(&one.nar_path[1..]), None);
}

fn is_get_of(line: &str, path: &str) -> bool {
    line.starts_with("GET ") && line.contains(path)
}

#[test]
fn facts_of_a_nar_are_dropped_when_it_is_replaced() {
    let site = Site::new();
    let one = sample(1, &Noise::new(1).bytes(200_000));
    assert_eq!(put(&site.daemon, &one.nar_path, &one.nar).status, 201);
    let wrong = vec![b'x'; one.nar.len()];
    site.bucket.put(&one.nar_path[1..], &wrong);
    let answer = put(&site.daemon, &one.narinfo_path, one.narinfo.as_bytes());
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert_eq!(get(&site.daemon, &one.narinfo_path).status, 404);
    // The client uploads both again, as it is told.
    upload(&site.daemon, &one);
    assert!(get(&site.daemon, &one.nar_path).body == one.nar, "other bytes");
}
