//! Invalid narinfos, and unusual valid ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix_stored::nix::Compression;

use super::{ResponseChecks, assert_kept, assert_unharmed, changed, get, large, narinfo};
use crate::mirror::mirror_of;
use crate::support::objects::sample;
use crate::support::packing::pack;
use crate::support::scripted_upstream::ScriptedUpstream;

#[test]
fn a_url_that_leads_out_of_the_cache_is_not_followed() {
    let (upstream, victim) = (ScriptedUpstream::start(), ScriptedUpstream::start());
    let host = victim.url().replace("http://", "");
    let urls = [
        &format!("http://{host}/x"),
        &format!("//{host}/x"),
        &format!(" //{host}/x"),
        &format!(" /\t/{host}/x"),
        &format!("http:{host}/x"),
        "/abs",
        " /abs",
        "../x",
        "nar/../../x",
        "nar/%2e%2e/%2e%2e/x",
        "nar/.\t./.\t./x",
        "nar\\..\\..\\x",
        "file:///etc/passwd",
        "data:,x",
    ];
    // A directory in the URL, so that a path can leave it.
    let base = format!("{}/a/b", upstream.url());
    let mirror = mirror_of(&[&base]).start();
    for (number, url) in (1..).zip(urls) {
        let sample = sample(number, b"x");
        let narinfo = changed(&sample.narinfo, &[("URL", url)]);
        let path = format!("/a/b{}", sample.narinfo_path);
        upstream.has(&path, narinfo.as_bytes());
        assert_eq!(get(&mirror, &sample.narinfo_path).status, 502, "{url:?}");
        assert_eq!(get(&mirror, &sample.nar_path).status, 404, "{url:?}");
    }
    assert!(victim.requests().is_empty(), "{:?}", victim.requests());
    let outside: Vec<_> = upstream
        .requests()
        .into_iter()
        .filter(|asked| !asked.target.starts_with("/a/b/"))
        .collect();
    assert!(outside.is_empty(), "{outside:?}");
    assert_unharmed(mirror);
}

#[test]
fn the_upstream_line_of_an_upstreams_narinfo_is_not_passed_on() {
    let (upstream, sample) = (ScriptedUpstream::start(), large());
    let theirs = format!("{}Upstream: http://inside.example.org\n", sample.narinfo);
    upstream.has(&sample.narinfo_path, theirs.as_bytes());
    upstream.has(&sample.nar_path, &sample.nar);
    let mirror = mirror_of(&[&upstream.url()]).start();
    let printed = || get(&mirror, &sample.narinfo_path).text();
    assert!(!printed().contains("inside.example.org"), "{}", printed());
    get(&mirror, &sample.nar_path).is(&sample.nar);
    let line = format!("Upstream: {}", upstream.url());
    mirror.wait_until("the narinfo has the line of its upstream", || printed().contains(&line));
    assert!(!printed().contains("inside.example.org"), "{}", printed());
}

#[test]
fn an_endless_narinfo_is_not_read_to_its_end() {
    const MIB: usize = 1024 * 1024;
    let upstream = ScriptedUpstream::start();
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    upstream.on(&narinfo(1), move |exchange| {
        exchange.chunked();
        let part = vec![b'a'; MIB];
        while counted.fetch_add(1, Ordering::SeqCst) < 1024 && exchange.chunk(&part) {}
        exchange.close();
    });
    upstream.on(&narinfo(2), |exchange| {
        exchange.head(0, 1024 * MIB);
        exchange.hang();
    });
    let mirror = mirror_of(&[&upstream.url()]).start();
    assert_eq!(get(&mirror, &narinfo(1)).status, 502);
    assert_eq!(get(&mirror, &narinfo(2)).status, 502);
    let sent = sent.load(Ordering::SeqCst);
    assert!(sent < 100, "{sent} MiB were accepted");
    let peak = mirror.peak_memory() / MIB;
    assert!(peak < 64, "{peak} MiB");
    assert_unharmed(mirror);
}

#[test]
fn an_invalid_narinfo_is_a_bad_gateway() {
    let sample = large();
    let packed = large().packed(Compression::Xz);
    let upstream = ScriptedUpstream::start();
    let mirror = mirror_of(&[&upstream.url()]).start();
    for (number, text) in (2..).zip([
        // of another path
        sample.narinfo.clone(),
        String::new(),
        "<html>Sign in to this network</html>\n".to_owned(),
        // of another store
        sample.narinfo.replace("/nix/store", "/other/store"),
        // truncated
        sample.narinfo[..sample.narinfo.len() - 20].to_owned(),
    ]) {
        upstream.has(&narinfo(number), text.as_bytes());
        assert_eq!(get(&mirror, &narinfo(number)).status, 502, "{text}");
    }
    for changes in [
        &[("Compression", "unheard-of")][..],
        // Without a hash, the file could not be verified.
        &[("FileHash", ""), ("Compression", "lzop")],
    ] {
        upstream.has(&packed.narinfo_path, changed(&packed.narinfo, changes).as_bytes());
        let mirror = mirror_of(&[&upstream.url()]).start();
        assert_eq!(get(&mirror, &packed.narinfo_path).status, 502, "{changes:?}");
    }
    assert_unharmed(mirror);
}

#[test]
fn a_server_that_makes_nars_on_the_fly_is_an_upstream() {
    let sample = large();
    let upstream = ScriptedUpstream::start();
    let target = "/nar/made-up.nar?hash=abc&x=/..";
    let changes = [("FileHash", ""), ("FileSize", ""), ("URL", &target[1..])];
    upstream.has(&sample.narinfo_path, changed(&sample.narinfo, &changes).as_bytes());
    let nar = sample.nar.clone();
    upstream.on(target, move |exchange| {
        exchange.chunked();
        exchange.chunk(&nar);
        exchange.chunk(b"");
    });
    let mirror = mirror_of(&[&upstream.url()]).start();
    let printed = get(&mirror, &sample.narinfo_path);
    assert!(
        printed.text().contains(&format!("URL: {}\n", &sample.nar_path[1..])),
        "{}",
        printed.text()
    );
    get(&mirror, &sample.nar_path).is(&sample.nar);
    assert_kept(&mirror);
}

#[test]
fn a_narinfo_with_a_content_encoding_is_decoded() {
    let sample = large();
    let upstream = ScriptedUpstream::with(&[&sample]);
    let packed =
        pack(Compression::Xz, sample.narinfo.as_bytes()).expect("the tests have an encoder");
    upstream.on(&sample.narinfo_path, move |exchange| {
        let length = packed.len();
        let head = format!("Content-Encoding: xz\r\nContent-Length: {length}\r\n\r\n");
        exchange.raw(format!("HTTP/1.1 200 OK\r\n{head}").as_bytes());
        exchange.raw(&packed);
    });
    let mirror = mirror_of(&[&upstream.url()]).start();
    get(&mirror, &sample.narinfo_path).is(sample.narinfo.as_bytes());
    get(&mirror, &sample.nar_path).is(&sample.nar);
    assert_kept(&mirror);
}
