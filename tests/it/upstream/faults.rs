//! Every kind of trouble that an upstream can make: what the client is told, that nothing false is
//! kept, and that the daemon goes on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use nix_stored::nix::{Compression, Sha256Hash, StorePathHash};

use super::mirror_of;
use crate::support::audit::{assert_nothing_is_false, objects, staging};
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, nar_of_file, sample};
use crate::support::packing::pack;
use crate::support::scripted::{Asked, Exchange, Gate, Scripted};
use crate::support::wire::{Received, Wire};

/// A path with a NAR of some size.
fn large() -> Sample {
    sample(1, &Noise::new(7).bytes(1_000_000))
}

/// The name of a narinfo.
fn narinfo(number: u8) -> String {
    format!("/{}.narinfo", StorePathHash::new([number; 20]))
}

fn get(mirror: &Daemon, path: &str) -> Received {
    Wire::to(mirror).request("GET", path, b"")
}

/// A narinfo with some lines changed; those that are changed to nothing are left out.
fn changed(narinfo: &str, changes: &[(&str, &str)]) -> String {
    let line = |line: &str| {
        let (key, _) = line.split_once(": ").expect("a narinfo's line");
        match changes.iter().find(|(changed, _)| *changed == key) {
            Some((_, "")) => String::new(),
            Some((_, value)) => format!("{key}: {value}\n"),
            None => format!("{line}\n"),
        }
    };
    narinfo.lines().map(line).collect()
}

trait Told {
    /// A body that ended before its time.
    fn is_broken_off(&self);
    /// The whole of it.
    fn is(&self, bytes: &[u8]);
}

impl Told for Received {
    #[track_caller]
    fn is_broken_off(&self) {
        assert_eq!(self.status, 200);
        let length: usize = self.header("content-length").parse().expect("it has a length");
        assert!(self.body.len() < length, "{} of {length} bytes came", self.body.len());
    }

    #[track_caller]
    fn is(&self, bytes: &[u8]) {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.header("content-length"), bytes.len().to_string());
        assert!(self.body == bytes, "{} of {} bytes came", self.body.len(), bytes.len());
    }
}

/// Nothing of an upstream was kept, nothing is left on the way, and the daemon does its work.
#[track_caller]
fn assert_unharmed(mirror: Daemon) {
    mirror.wait_until("nothing is staged", || staging(mirror.dir()).len() <= 1);
    assert_eq!(objects(mirror.dir()), [""; 0], "{}", mirror.log());
    let own = sample(200, b"uploaded");
    let mut wire = Wire::to(&mirror);
    assert_eq!(wire.request("PUT", &own.nar_path, &own.nar).status, 201);
    assert_eq!(wire.request("PUT", &own.narinfo_path, own.narinfo.as_bytes()).status, 201);
    wire.request("GET", &own.nar_path, b"").is(&own.nar);
    wire.request("GET", &own.narinfo_path, b"").is(own.narinfo.as_bytes());
    assert_eq!(assert_nothing_is_false(mirror.dir()), 1);
    drop(wire);
    let (status, log) = mirror.stop();
    assert!(status.success() && !log.contains("panic"), "{status}\n{log}");
}

/// The path was kept, and nothing but the truth.
#[track_caller]
fn assert_kept(mirror: &Daemon) {
    assert_eq!(assert_nothing_is_false(mirror.dir()), 1);
    mirror.wait_until("nothing is staged", || staging(mirror.dir()).len() == 1);
}

#[test]
fn one_that_refuses_connections_is_a_bad_gateway() {
    let upstream = Scripted::start();
    let url = upstream.impatient();
    upstream.stop();
    let sample = large();
    for path in
        [&sample.narinfo_path, &sample.nar_path, &sample.narinfo_path.replace("narinfo", "ls")]
    {
        let mirror = mirror_of(&[&url]).start();
        let answer = get(&mirror, path);
        assert_eq!(answer.status, 502, "{path}");
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(Wire::to(&mirror).request("HEAD", path, b"").status, 502, "{path}");
        assert_unharmed(mirror);
    }
}

#[test]
fn one_that_never_answers_is_a_gateway_timeout() {
    let upstream = Scripted::start();
    upstream.otherwise(Exchange::hang);
    let sample = large();
    let mirror = mirror_of(&[&upstream.impatient()]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 504);
    assert_eq!(get(&mirror, &sample.nar_path).status, 504);
    assert_unharmed(mirror);
}

#[test]
fn a_status_that_says_nothing_of_the_object_is_a_bad_gateway() {
    for status in [401, 500, 503, 418, 204, 206, 304] {
        let upstream = Scripted::start();
        upstream.says(status);
        let mirror = mirror_of(&[&upstream.url()]).start();
        let sample = large();
        assert_eq!(get(&mirror, &sample.narinfo_path).status, 502, "{status}");
        assert_eq!(get(&mirror, &sample.nar_path).status, 502, "{status}");
        assert_unharmed(mirror);
    }
}

#[test]
fn absent_everywhere_is_absent_and_trouble_anywhere_is_trouble() {
    let (empty, gone, broken) = (Scripted::start(), Scripted::start(), Scripted::start());
    gone.says(410);
    broken.says(500);
    let mirror = mirror_of(&[&empty.url(), &gone.url()]).start();
    for path in [narinfo(1), large().nar_path, "/log/x.drv".to_owned()] {
        assert_eq!(get(&mirror, &path).status, 404, "{path}");
    }
    for order in [[&empty, &broken], [&broken, &empty]] {
        let mirror = mirror_of(&order.map(Scripted::url).each_ref().map(String::as_str)).start();
        assert_eq!(get(&mirror, &narinfo(1)).status, 502);
        assert_eq!(get(&mirror, &large().nar_path).status, 502);
    }
    let sample = large();
    let full = Scripted::with(&[&sample]);
    let mirror = mirror_of(&[&broken.url(), &full.url()]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    get(&mirror, &sample.nar_path).is(&sample.nar);
    assert_kept(&mirror);
}

#[test]
fn forbidden_is_absent_where_the_cache_can_be_read() {
    let upstream = Scripted::start();
    upstream.says(403);
    upstream.has("/nix-cache-info", b"StoreDir: /nix/store\n");
    let mirror = mirror_of(&[&upstream.url()]).start();
    assert_eq!(get(&mirror, &narinfo(1)).status, 404);
    assert_eq!(get(&mirror, &large().nar_path).status, 404);
    assert_eq!(upstream.count("/nix-cache-info"), 1);
    assert_unharmed(mirror);
}

#[test]
fn forbidden_is_trouble_where_nothing_can_be_read() {
    let upstream = Scripted::start();
    upstream.says(403);
    let mirror = mirror_of(&[&upstream.url()]).start();
    assert_eq!(get(&mirror, &narinfo(1)).status, 502);
    assert_unharmed(mirror);
}

#[test]
fn one_that_asks_for_rest_is_left_alone() {
    for status in [429, 503] {
        let upstream = Scripted::start();
        upstream.otherwise(move |exchange| exchange.status(status, "Retry-After: 120\n"));
        let sample = large();
        let other = Scripted::with(&[&sample]);
        let mirror = mirror_of(&[&upstream.url(), &other.url()]).start();
        assert_eq!(get(&mirror, &narinfo(2)).status, 502);
        mirror.wait_for_log("left alone for 120s");
        assert_eq!(get(&mirror, &narinfo(3)).status, 502);
        assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
        get(&mirror, &sample.nar_path).is(&sample.nar);
        assert_eq!(upstream.asked().len(), 1, "it was asked again");
    }
}

#[test]
fn one_that_closes_connections_without_saying_so_is_asked_again() {
    let upstream = Scripted::start();
    upstream.otherwise(|exchange| match exchange.before {
        0 => exchange.status(404, ""),
        _ => exchange.close(),
    });
    let mirror = mirror_of(&[&upstream.url()]).start();
    let mut wire = Wire::to(&mirror);
    for number in 0..10 {
        assert_eq!(wire.request("GET", &narinfo(number), b"").status, 404, "{}", mirror.log());
    }
    assert!(upstream.asked().len() > 10, "no connection was used twice");
}

#[test]
fn a_nar_that_breaks_off_is_taken_up_again_where_it_broke() {
    let sample = large();
    let upstream = Scripted::with(&[&sample]);
    let (nar, half) = (sample.nar.clone(), sample.nar.len() / 2);
    upstream.on(&sample.nar_path, move |exchange| match exchange.asked.from() {
        0 => {
            exchange.head(0, nar.len());
            exchange.raw(&nar[..half]);
            exchange.close();
        }
        _ => exchange.send(&nar),
    });
    let mirror = mirror_of(&[&upstream.impatient()]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    get(&mirror, &sample.nar_path).is(&sample.nar);
    let from: Vec<usize> = upstream
        .asked()
        .iter()
        .filter(|asked| asked.target == sample.nar_path)
        .map(Asked::from)
        .collect();
    assert_eq!(from, [0, half]);
    assert_kept(&mirror);
}

#[test]
fn one_that_knows_no_ranges_is_read_again_from_the_beginning() {
    let sample = large();
    let upstream = Scripted::with(&[&sample]);
    let (nar, count) = (sample.nar.clone(), AtomicUsize::new(0));
    upstream.on(&sample.nar_path, move |exchange| {
        exchange.head(0, nar.len());
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => {
                exchange.raw(&nar[..nar.len() / 2]);
                exchange.close();
            }
            _ => {
                exchange.raw(&nar);
            }
        }
    });
    let mirror = mirror_of(&[&upstream.impatient()]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    get(&mirror, &sample.nar_path).is(&sample.nar);
    assert_kept(&mirror);
}

#[test]
fn a_nar_that_always_breaks_off_comes_from_the_next_upstream() {
    let sample = large();
    let half = sample.nar.len() / 2;
    // The first closes, or stands still, each time after half of it.
    for hangs in [false, true] {
        let (one, other) = (Scripted::with(&[&sample]), Scripted::with(&[&sample]));
        let nar = sample.nar.clone();
        one.on(&sample.nar_path, move |exchange| {
            let from = exchange.asked.from();
            exchange.head(from, nar.len());
            exchange.raw(&nar[from..half.max(from)]);
            if hangs {
                exchange.hang();
            }
            exchange.close();
        });
        let mirror = mirror_of(&[&one.impatient(), &other.url()]).start();
        assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
        get(&mirror, &sample.nar_path).is(&sample.nar);
        let asked = other.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert_eq!(asked[0].from(), half);
        assert_kept(&mirror);
    }
}

#[test]
fn a_nar_that_never_comes_whole_is_broken_off() {
    let sample = large();
    for hangs in [false, true] {
        let upstream = Scripted::with(&[&sample]);
        let nar = sample.nar.clone();
        upstream.on(&sample.nar_path, move |exchange| {
            let from = exchange.asked.from();
            exchange.head(from, nar.len());
            exchange.raw(&nar[from..from.max(nar.len() / 2)]);
            if hangs {
                exchange.hang();
            }
            exchange.close();
        });
        let mirror = mirror_of(&[&upstream.impatient()]).start();
        assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
        get(&mirror, &sample.nar_path).is_broken_off();
        assert_unharmed(mirror);
    }
}

#[test]
fn a_nar_with_another_hash_is_broken_off_and_not_asked_for_again() {
    let sample = large();
    let upstream = Scripted::with(&[&sample]);
    let mut nar = sample.nar.clone();
    nar[500] ^= 1;
    upstream.has(&sample.nar_path, &nar);
    let mirror = mirror_of(&[&upstream.url()]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    get(&mirror, &sample.nar_path).is_broken_off();
    mirror.wait_for_log("is not taken");
    mirror.wait_until("it is not believed any more", || {
        get(&mirror, &sample.narinfo_path).status == 502
    });
    assert_eq!(get(&mirror, &sample.nar_path).status, 502);
    assert_eq!(upstream.count(&sample.nar_path), 1);
    assert_unharmed(mirror);
}

#[test]
fn after_a_nar_with_another_hash_the_next_upstream_has_it() {
    let sample = large();
    let (one, other) = (Scripted::with(&[&sample]), Scripted::with(&[&sample]));
    let mut nar = sample.nar.clone();
    nar[500] ^= 1;
    one.has(&sample.nar_path, &nar);
    let mirror = mirror_of(&[&one.url(), &other.url()]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    get(&mirror, &sample.nar_path).is_broken_off();
    mirror.wait_until("the other is believed", || {
        other.count(&sample.narinfo_path) > 0 || get(&mirror, &sample.narinfo_path).status == 502
    });
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    get(&mirror, &sample.nar_path).is(&sample.nar);
    assert_kept(&mirror);
}

#[test]
fn a_nar_with_another_size_is_not_taken() {
    let sample = large();
    let upstream = Scripted::with(&[&sample]);
    for size in ["1", "1000", "99999999"] {
        let narinfo = changed(&sample.narinfo, &[("FileSize", size)]);
        upstream.has(&sample.narinfo_path, narinfo.as_bytes());
        // Its head says so.
        let nar = sample.nar.clone();
        upstream.has(&sample.nar_path, &nar);
        let mirror = mirror_of(&[&upstream.impatient()]).start();
        assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
        assert_eq!(get(&mirror, &sample.nar_path).status, 502);
        assert_unharmed(mirror);
        // Only its end does.
        upstream.on(&sample.nar_path, move |exchange| {
            exchange.chunked();
            exchange.chunk(&nar);
            exchange.chunk(b"");
        });
        let mirror = mirror_of(&[&upstream.impatient()]).start();
        assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
        get(&mirror, &sample.nar_path).is_broken_off();
        assert_unharmed(mirror);
    }
}

#[test]
fn a_false_content_length_is_found_out() {
    let sample = large();
    let upstream = Scripted::with(&[&sample]);
    for claimed in [sample.nar.len() - 10, sample.nar.len() + 10] {
        let nar = sample.nar.clone();
        upstream.on(&sample.nar_path, move |exchange| {
            exchange.head(0, claimed);
            exchange.raw(&nar);
            exchange.close();
        });
        let mirror = mirror_of(&[&upstream.impatient()]).start();
        assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
        assert_eq!(get(&mirror, &sample.nar_path).status, 502);
        assert_unharmed(mirror);

        // Without a FileSize there is nothing to compare it with.
        let narinfo = changed(&sample.narinfo, &[("FileSize", "")]);
        upstream.has(&sample.narinfo_path, narinfo.as_bytes());
        let mirror = mirror_of(&[&upstream.impatient()]).start();
        assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
        get(&mirror, &sample.nar_path).is_broken_off();
        assert_unharmed(mirror);
        upstream.has(&sample.narinfo_path, sample.narinfo.as_bytes());
    }
}

#[test]
fn redirects_are_followed_but_not_in_circles() {
    let sample = large();
    let (upstream, other) = (Scripted::start(), Scripted::with(&[&sample]));
    for path in [&sample.narinfo_path, &sample.nar_path] {
        let to = format!("Location: {}{path}\n", other.url());
        upstream.on(path, move |exchange| exchange.status(302, &to));
    }
    let round = narinfo(2);
    let to = format!("Location: {round}\n");
    upstream.on(&round, move |exchange| exchange.status(302, &to));
    let mirror = mirror_of(&[&upstream.url()]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    get(&mirror, &sample.nar_path).is(&sample.nar);
    assert_eq!(get(&mirror, &round).status, 502);
    assert!(upstream.count(&round) < 10);
    assert_kept(&mirror);
}

#[test]
fn a_redirect_elsewhere_takes_no_password_with_it() {
    let sample = large();
    let (upstream, other) = (Scripted::start(), Scripted::with(&[&sample]));
    let to = format!("Location: http://localhost:{}{}\n", other.port(), sample.narinfo_path);
    upstream.on(&sample.narinfo_path, move |exchange| exchange.status(302, &to));
    let mirror = mirror_of(&[&upstream.url().replace("://", "://me:secret@")]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    assert!(upstream.asked()[0].header("authorization").is_some());
    assert!(other.asked()[0].header("authorization").is_none());
}

#[test]
fn a_url_that_leads_out_of_the_cache_is_not_followed() {
    let (upstream, victim) = (Scripted::start(), Scripted::start());
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
    // A directory in the URL, so that there is something above it.
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
    assert!(victim.asked().is_empty(), "{:?}", victim.asked());
    let outside: Vec<_> =
        upstream.asked().into_iter().filter(|asked| !asked.target.starts_with("/a/b/")).collect();
    assert!(outside.is_empty(), "{outside:?}");
    assert_unharmed(mirror);
}

#[test]
fn an_endless_narinfo_is_not_read_to_its_end() {
    const MIB: usize = 1024 * 1024;
    let upstream = Scripted::start();
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
    assert!(sent < 100, "{sent} MiB were taken");
    assert_unharmed(mirror);
}

#[test]
fn a_narinfo_that_stands_still_is_trouble_and_counted_as_such() {
    let sample = large();
    let (upstream, other) = (Scripted::start(), Scripted::with(&[&sample]));
    upstream.otherwise(|exchange| {
        exchange.head(0, 100);
        exchange.hang();
    });
    let mirror = mirror_of(&[&upstream.impatient(), &other.url()]).start();
    for number in 2..5 {
        assert!([502, 504].contains(&get(&mirror, &narinfo(number)).status));
    }
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    assert_eq!(upstream.asked().len(), 3, "it was asked again");
}

#[test]
fn a_narinfo_that_cannot_be_is_a_bad_gateway() {
    let sample = large();
    let packed = large().packed(Compression::Xz);
    let upstream = Scripted::start();
    let mirror = mirror_of(&[&upstream.url()]).start();
    for (number, text) in (2..).zip([
        // of another path
        sample.narinfo.clone(),
        String::new(),
        "<html>Sign in to this network</html>\n".to_owned(),
        // of another store
        sample.narinfo.replace("/nix/store", "/other/store"),
        // cut short
        sample.narinfo[..sample.narinfo.len() - 20].to_owned(),
    ]) {
        upstream.has(&narinfo(number), text.as_bytes());
        assert_eq!(get(&mirror, &narinfo(number)).status, 502, "{text}");
    }
    for change in [("FileHash", ""), ("Compression", "unheard-of")] {
        upstream.has(&packed.narinfo_path, changed(&packed.narinfo, &[change]).as_bytes());
        let mirror = mirror_of(&[&upstream.url()]).start();
        assert_eq!(get(&mirror, &packed.narinfo_path).status, 502, "{change:?}");
    }
    assert_unharmed(mirror);
}

#[test]
fn a_server_that_makes_nars_on_the_fly_is_an_upstream() {
    let sample = large();
    let upstream = Scripted::start();
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
    let told = get(&mirror, &sample.narinfo_path);
    assert!(told.text().contains(&format!("URL: {}\n", &sample.nar_path[1..])), "{}", told.text());
    get(&mirror, &sample.nar_path).is(&sample.nar);
    assert_kept(&mirror);
}

#[test]
fn a_narinfo_can_be_encoded() {
    let sample = large();
    let upstream = Scripted::with(&[&sample]);
    let packed = pack(Compression::Xz, sample.narinfo.as_bytes()).expect("it can be written here");
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

#[test]
fn a_nar_that_is_not_what_its_narinfo_says_is_not_kept() {
    let (right, wrong) = (large(), Noise::new(8).bytes(1_000_000));
    let no_nar = right.with_file(Compression::None, wrong.clone());
    let other_nar = right.with_file(Compression::None, nar_of_file(&wrong));
    let packed = pack(Compression::Xz, &other_nar.nar).expect("it can be written here");
    let other_packed = right.with_file(Compression::Xz, packed);
    let cut = pack(Compression::Xz, &right.nar).expect("it can be written here");
    let cut = right.with_file(Compression::Xz, cut[..cut.len() / 2].to_vec());
    let size = (right.nar.len() + 8).to_string();
    let size = Sample { narinfo: changed(&right.narinfo, &[("NarSize", &size)]), ..right.clone() };
    for sample in [no_nar, other_nar, other_packed, cut, size] {
        // The file itself is what it is said to be.
        assert!(sample.narinfo.contains(&Sha256Hash::of(&sample.nar).to_string()));
        for store in ["", "?store=0"] {
            let upstream = Scripted::with(&[&sample]);
            let mirror = mirror_of(&[&format!("{}{store}", upstream.url())]).start();
            assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
            get(&mirror, &sample.nar_path).is_broken_off();
            mirror.wait_until("it is not believed any more", || {
                get(&mirror, &sample.narinfo_path).status == 502
            });
            assert_eq!(get(&mirror, &sample.nar_path).status, 502);
            assert_unharmed(mirror);
        }
    }
}

#[test]
fn a_nar_that_has_gone_takes_its_narinfo_with_it() {
    let sample = large();
    let upstream = Scripted::with(&[&sample]);
    let mirror = mirror_of(&[&upstream.url()]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    for path in [&sample.nar_path, &sample.narinfo_path] {
        upstream.on(path, |exchange| exchange.status(404, ""));
    }
    assert_eq!(get(&mirror, &sample.nar_path).status, 404);
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 404);
    assert_unharmed(mirror);
}

#[test]
fn what_is_here_does_not_wait_for_an_upstream() {
    let (own, absent) = (sample(3, b"own"), narinfo(4));
    let (upstream, let_go) = (Scripted::start(), Gate::default());
    let gate = let_go.clone();
    upstream.on(&absent, move |exchange| {
        gate.wait(1);
        exchange.status(404, "");
    });
    let mirror = mirror_of(&[&format!("{}?timeout=1h", upstream.url())]).start();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| get(&mirror, &absent).status);
        upstream.wait_for(&absent, 1);
        let mut wire = Wire::to(&mirror);
        assert_eq!(wire.request("PUT", &own.nar_path, &own.nar).status, 201);
        assert_eq!(wire.request("PUT", &own.narinfo_path, own.narinfo.as_bytes()).status, 201);
        wire.request("GET", &own.narinfo_path, b"").is(own.narinfo.as_bytes());
        wire.request("GET", &own.nar_path, b"").is(&own.nar);
        let_go.open();
        assert_eq!(waiting.join().expect("it gets an answer"), 404);
    });
}

#[test]
fn after_three_failures_the_next_upstream_is_asked_at_once() {
    let sample = large();
    let (dead, alive) = (Scripted::start(), Scripted::with(&[&sample]));
    dead.otherwise(Exchange::hang);
    let mirror = mirror_of(&[&dead.impatient(), &alive.url()]).start();
    for number in 2..5 {
        assert_eq!(get(&mirror, &narinfo(number)).status, 504);
    }
    mirror.wait_for_log("it is left alone");
    assert_eq!(get(&mirror, &narinfo(5)).status, 502);
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    get(&mirror, &sample.nar_path).is(&sample.nar);
    assert_eq!(dead.asked().len(), 3, "it was asked again");
    assert_kept(&mirror);
}

#[test]
fn who_waits_for_a_turn_at_a_dead_upstream_hears_of_it_from_the_others() {
    const CLIENTS: u8 = 200;
    let dead = Scripted::start();
    dead.otherwise(Exchange::hang);
    let mirror = mirror_of(&[&dead.impatient()]).start();
    let together = Barrier::new(usize::from(CLIENTS));
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (mirror, together) = (&mirror, &together);
            scope.spawn(move || {
                together.wait();
                let status = get(mirror, &narinfo(number)).status;
                assert!([502, 504].contains(&status), "{status}");
            });
        }
    });
    let asked = dead.asked().len();
    // The first 64 at the same time; each of them that gives up makes room, and three are enough.
    assert!(asked < 100, "it was asked {asked} times");
    assert_unharmed(mirror);
}
