//! With `NIX_STORED_S3_REDIRECT=1`, clients download NARs from the server itself.

use std::process::Command;

use super::server::{TestServer, get, head, on_every_server, over, upload};
use crate::support::daemon::requests;
use crate::support::fixture::fixture;
use crate::support::nix::Nix;
use crate::support::noise::Noise;
use crate::support::objects::sample;
use crate::support::wire::Wire;

on_every_server! {
    only_downloads_of_nars_are_redirected_to_the_server
    nix_follows_redirects
    curl_follows_redirects_of_range_requests
    without_the_setting_nothing_is_redirected
}

fn only_downloads_of_nars_are_redirected_to_the_server(server: &TestServer) {
    let bucket = server.bucket();
    let daemon = over(&bucket).env("NIX_STORED_S3_REDIRECT", "1").start();
    let (one, absent) = (sample(1, &Noise::new(1).bytes(500_000)), sample(2, b"absent"));
    upload(&daemon, &one);

    let response = get(&daemon, &one.nar_path);
    assert_eq!(response.status, 307, "{}", response.head);
    assert_eq!(response.header("cache-control"), "no-store");
    assert_eq!(response.header("accept-ranges"), "bytes");
    let link = response.header("location").to_owned();
    let rest = link.strip_prefix("http://").expect("a URL");
    let (address, path) = rest.split_once('/').expect("a URL with a path");
    assert!(bucket.url().contains(address), "{link} is not at {}", bucket.url());
    // The URL is complete: the client has no keys.
    let fetch = |path: &str| {
        let mut wire = Wire::to_address(address);
        wire.send(&format!("GET /{path} HTTP/1.1\r\nHost: {address}\r\n\r\n"));
        wire.response()
    };
    let followed = fetch(path);
    assert_eq!(followed.status, 200, "{}", followed.text());
    assert!(followed.body == one.nar, "other bytes");
    let forged = path.replace("X-Amz-Signature=", "X-Amz-Signature=0");
    let refused = fetch(&forged);
    assert!(matches!(refused.status, 400 | 403), "{}", refused.head);

    let known = head(&daemon, &one.nar_path);
    assert_eq!((known.status, known.header("content-length")), (200, &*one.nar.len().to_string()));
    let counted = get(&daemon, "/metrics").text();
    let label = r#"kind="nar",method="GET",status="307""#;
    assert!(counted.contains(&format!("nix_stored_http_requests_total{{{label}}} 1")), "{counted}");
    // The other one is the HEAD request.
    assert!(counted.contains(r#"nix_stored_hits_total{kind="nar"} 2"#), "{counted}");
    for method in ["GET", "HEAD"] {
        assert_eq!(Wire::to(&daemon).request(method, &one.narinfo_path, b"").status, 200);
        assert_eq!(Wire::to(&daemon).request(method, "/nix-cache-info", b"").status, 200);
        assert_eq!(Wire::to(&daemon).request(method, &absent.nar_path, b"").status, 404);
    }
}

fn nix_follows_redirects(server: &TestServer) {
    let (bucket, fixture) = (server.bucket(), fixture());
    let daemon = over(&bucket)
        .env("NIX_STORED_S3_REDIRECT", "1")
        .env("NIX_STORED_LOG_LEVEL", "debug")
        .start();
    let app = fixture.outputs("app");
    fixture.nix().copy_to(daemon.url(), &app);
    let substituted = Nix::new().substituting_from(daemon.url(), fixture.public_key());
    substituted.realise(&app);
    substituted.assert_has_the_same(&fixture.nix(), &app);
    let copied = fixture.reader();
    copied.copy_from(daemon.url(), &app);
    copied.assert_has_the_same(&fixture.nix(), &app);
    let (_, log) = daemon.stop();
    let downloads =
        requests(&log).into_iter().filter(|it| it.method == "GET" && it.path.contains("nar/"));
    let statuses: Vec<String> = downloads.map(|request| request.status).collect();
    assert!(statuses.len() >= 8 && statuses.iter().all(|status| status == "307"), "{statuses:?}");
}

fn curl_follows_redirects_of_range_requests(server: &TestServer) {
    let bucket = server.bucket();
    let daemon = over(&bucket).env("NIX_STORED_S3_REDIRECT", "1").start();
    let one = sample(1, &Noise::new(2).bytes(400_000));
    upload(&daemon, &one);
    let curl = |more: &[&str]| {
        let url = format!("{}{}", daemon.url(), one.nar_path);
        let output = Command::new("curl").args(["-sS", "-f", "-L"]).args(more).arg(url).output();
        let output = output.expect("curl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    assert!(curl(&[]) == one.nar, "other bytes");
    assert!(curl(&["-r", "1000-1999"]) == one.nar[1000..2000], "other bytes");
    assert!(curl(&["-C", "300000"]) == one.nar[300_000..], "other bytes");
}

fn without_the_setting_nothing_is_redirected(server: &TestServer) {
    let bucket = server.bucket();
    let daemon = over(&bucket).start();
    let one = sample(1, &Noise::new(3).bytes(400_000));
    upload(&daemon, &one);
    let response = get(&daemon, &one.nar_path);
    assert_eq!(response.status, 200);
    assert!(response.body == one.nar, "other bytes");
}
