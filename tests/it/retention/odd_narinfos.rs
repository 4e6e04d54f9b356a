//! Narinfos that the strict parser refuses but Nix accepts, and unusually large ones: the paths they name are kept,
//! and every command reads them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use base64::Engine;
use nix_stored::cache::GRACE;
use nix_stored::nix::{Sha256Hash, StorePathHash, narinfo};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::commands::command_cache::{CommandCache, path};
use crate::support::daemon::Daemon;
use crate::support::nix::{Nix, utf8};
use crate::support::objects::{Sample, sample};
use crate::support::rounds::number;
use crate::support::scratch::Scratch;

const ZEROS: &str =
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";

/// A path with this many additional references, all absent.
fn with_references(sample: &Sample, count: u16) -> String {
    let absent = (0..count).map(|number| {
        let mut bytes = [0xaa; 20];
        bytes[..2].copy_from_slice(&number.to_le_bytes());
        format!(
            "{}-a-reference-with-a-name-of-some-length-that-is-not-here",
            StorePathHash::new(bytes)
        )
    });
    let names = absent.collect::<Vec<_>>().join(" ");
    sample.narinfo.replace("References: ", &format!("References: {names} "))
}

/// Checks every command on path 1, which refers to 2; they are 20 and 40 days old.
#[track_caller]
fn check_every_command(cache: &CommandCache) {
    let (one, two) = (path(1), path(2));
    cache.run(&["gc"]).is(0);
    assert!(cache.holds(&one) && cache.holds(&two), "without a limit");
    cache.run(&["gc", "--max-age", "30d"]).is(0);
    assert!(cache.holds(&one) && cache.holds(&two), "2 is as young as 1");
    cache.run(&["pin", "it", &one.store_path]).is(0);
    cache.run(&["pins"]).is(0).prints("2 paths");
    cache.run(&["gc", "--max-age", "2d"]).is(0);
    assert!(cache.holds(&one) && cache.holds(&two), "pinned");
    cache.run(&["unpin", "it"]).is(0);
    // Pinning counts as a use.
    for (sample, days) in [(&one, 20), (&two, 40)] {
        cache.age(&sample.narinfo_path, days);
        cache.age(&sample.nar_path, days);
    }
    let refused = cache.run(&["delete", &two.store_path]).is(2);
    assert!(refused.err.contains(&one.store_path[11..43]), "{refused:?}");
    cache.run(&["gc", "--max-age", "2d"]).is(0);
    assert!(!cache.holds(&one) && !cache.holds(&two), "both paths are removed");
}

fn cache_with(narinfo: impl Fn(&Sample) -> String) -> CommandCache {
    let cache = CommandCache::new();
    let one = cache.add(1, &[2], 20);
    cache.add(2, &[], 40);
    cache.put(&one.narinfo_path, narinfo(&one), 20);
    cache
}

#[test]
fn a_narinfo_of_more_than_a_megabyte_is_read_by_every_command() {
    let cache = cache_with(|one| with_references(one, 14_000));
    let one = path(1);
    let narinfo = fs::read_to_string(cache.dir().join(&one.narinfo_path[1..])).unwrap();
    assert!(narinfo.len() > 1_200_000, "{}", narinfo.len());

    // Nix accepts this narinfo.
    let nix = Nix::new();
    fs::write(cache.dir().join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
    let url = format!("file://{}", utf8(cache.dir()));
    let info = nix.ok(&["nix", "path-info", "--json", "--store", &url, &one.store_path]);
    assert!(info.contains(&path(2).store_path));

    let daemon = Daemon::builder().dir(cache.dir()).start();
    assert_eq!(daemon.get(&one.narinfo_path), (200, narinfo.clone().into_bytes()));
    drop(daemon);
    cache.run(&["verify", "--deep"]).is(0).prints("checked 2 paths, 2 NARs").prints("no damage");

    let copy = Scratch::new();
    let to = copy.join("cache");
    cache.run(&["migrate", utf8(cache.dir()), utf8(&to)]).is(0).prints("copied 2 paths");
    assert_eq!(fs::read_to_string(to.join(&one.narinfo_path[1..])).unwrap().len(), narinfo.len());
    check_every_command(&cache);
}

#[tokio::test]
async fn a_narinfo_of_more_than_a_megabyte_can_be_uploaded() {
    let cache = crate::support::cache::TestCache::new();
    let one = sample(1, b"one");
    cache.put(&one.nar_path, one.nar.clone()).await.is(201);
    let narinfo = with_references(&one, 14_000);
    cache.put(&one.narinfo_path, narinfo.clone()).await.is(201);
    assert!(cache.get(&one.narinfo_path).await.is(200).text().len() > 1_200_000);
}

#[test]
fn every_command_reads_what_an_odd_narinfo_names() {
    for odd in
        ["Sig: key-1:c2hvcnQ=\n", "Sig: no-colon\n", "Sig: 1;old-style\n", "System:x86_64-linux\n"]
    {
        let cache = cache_with(|one| one.narinfo.clone() + odd);
        let verified = cache.run(&["verify", "--deep", "--repair", "--json"]).is(0);
        let notes = serde_json::from_str::<serde_json::Value>(&verified.out).unwrap();
        let kinds: Vec<_> =
            notes["notes"].as_array().unwrap().iter().map(|it| &it["kind"]).collect();
        assert_eq!(kinds, ["unparsed"], "{odd}");
        assert!(cache.holds(&path(1)), "{odd}");
        check_every_command(&cache);
    }
}

#[test]
fn duplicate_signatures_are_stored_once() {
    let cache =
        cache_with(|one| format!("{0}Sig: key-1:{ZEROS}\nSig: key-1:{ZEROS}\n", one.narinfo));
    cache.run(&["verify", "--deep"]).is(0).prints("no damage, 0 notes");
    check_every_command(&cache);
}

#[test]
fn a_narinfo_that_is_left_out_of_a_migration_is_reported() {
    let cache = cache_with(|one| format!("{}Sig: short:c2hvcnQ=\n", one.narinfo));
    let copy = Scratch::new();
    let result = cache.run(&["migrate", utf8(cache.dir()), utf8(&copy.join("cache"))]).is(2);
    result.prints(&path(1).narinfo_path[1..]).prints("copied 1 path");
}

#[test]
fn files_that_are_no_narinfos_are_reported_and_protect_and_block_nothing() {
    let cache = cache_with(|one| one.narinfo.clone());
    let cut_off = path(3);
    cache.put(&cut_off.narinfo_path, &cut_off.narinfo[..60], 40);
    cache.put(&path(4).narinfo_path, "hello", 40);
    cache.run(&["verify"]).is(2).prints("is not a narinfo").prints(&path(4).narinfo_path[1..]);
    let printed = cache.run(&["gc", "--max-age", "30d", "--json"]).is(0);
    let printed: serde_json::Value = serde_json::from_str(&printed.out).unwrap();
    assert_eq!(printed["unparsed_narinfos"]["garbage"], 1);
    assert_eq!(printed["unparsed_narinfos"]["lenient"], 1);
    assert!(cache.holds(&path(1)) && cache.holds(&path(2)));
    assert!(!cache.has(&cut_off.narinfo_path) && !cache.has(&path(4).narinfo_path));
}

#[test]
fn nothing_is_removed_while_a_narinfo_cannot_be_read() {
    let cache = cache_with(|one| one.narinfo.clone());
    cache.add(3, &[], 60);
    let before = cache.objects();
    let refuses = |what: &str| {
        for args in
            [&["gc", "--max-age", "2d"][..], &["gc", "--dry-run"], &["delete", &path(3).store_path]]
        {
            let refused = cache.run(args).is(1);
            assert!(refused.err.contains("nothing was removed"), "{what}: {refused:?}");
            assert!(refused.err.contains(&path(1).narinfo_path[1..]), "{what}: {refused:?}");
        }
        assert_eq!(cache.objects(), before, "{what}");
        cache.run(&["stats"]).is(0).prints("1 narinfo cannot be read");
        cache.run(&["verify"]).is(1).prints("cannot be read").prints("1 object unreadable");
    };
    let name = cache.dir().join(&path(1).narinfo_path[1..]);
    fs::write(&name, vec![b'x'; narinfo::MAX_SIZE as usize + 1]).unwrap();
    refuses("too large");
    fs::write(&name, &path(1).narinfo).unwrap();
    if rustix::process::geteuid().is_root() {
        // Root may read every file, but not a link to itself.
        fs::remove_file(&name).unwrap();
        std::os::unix::fs::symlink(name.file_name().unwrap(), &name).unwrap();
    } else {
        fs::set_permissions(&name, fs::Permissions::from_mode(0o000)).unwrap();
    }
    refuses("unreadable");
}

#[test]
fn the_daemon_logs_that_it_cannot_collect() {
    let cache = cache_with(|one| one.narinfo.clone());
    let name = cache.dir().join(&path(1).narinfo_path[1..]);
    fs::write(&name, vec![b'x'; narinfo::MAX_SIZE as usize + 1]).unwrap();
    let before = cache.objects();
    let daemon = Daemon::builder()
        .dir(cache.dir())
        .env("NIX_STORED_MAX_AGE", "2d")
        .env("NIX_STORED_GC_INTERVAL", "1s")
        .start();
    daemon.wait_for_log("garbage collection failed");
    daemon.wait_until("the metrics count a failed collection", || {
        let metrics = daemon.get("/metrics").1;
        let metrics = String::from_utf8(metrics).unwrap();
        metrics.lines().any(|line| {
            line.starts_with("nix_stored_collections_total")
                && line.contains("failed")
                && !line.ends_with(" 0")
        })
    });
    let objects = cache.objects();
    assert!(before.iter().all(|key| objects.contains(key)), "{objects:?}");
}

/// One line of a narinfo, in a spelling that some Nix may accept.
fn odd_line(key: &'static str, value: String) -> impl Strategy<Value = String> {
    let (one, two, three) = (value.clone(), value.clone(), value.clone());
    prop_oneof![
        6 => Just(format!("{key}: {value}\n")),
        1 => Just(format!("{key}:\t{one}\n")),
        1 => Just(format!("{key}:x{two}\n")),
        1 => Just(format!("{key}:\n{three}\n")),
        1 => Just(format!("{key}: {value}\r\n")),
        1 => Just(format!("\n{key}: {value}\n")),
    ]
}

/// Lines that some Nix ignores.
fn odd_extra() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just(format!("Sig: key-1:{ZEROS}\n")),
        Just("Sig: key-1:c2hvcnQ=\n".to_owned()),
        Just("Sig: nonsense\n".to_owned()),
        Just("Unknown:value\n".to_owned()),
        Just(": x\n".to_owned()),
        Just("Deriver: unknown-deriver\n".to_owned()),
        Just("System: x86_64-linux\n".to_owned()),
        Just("FileSize: 1\n".to_owned()),
        Just("Compression: none\n".to_owned()),
        Just("Compression: \n".to_owned()),
        Just("CA: nonsense\n".to_owned()),
        Just(format!("CA: fixed:r:sha256:{}\n", "0".repeat(52))),
        Just("References: \n".to_owned()),
        Just("\n".to_owned()),
        Just("hello\n".to_owned()),
    ]
}

/// The URL of a NAR, in a form that clients resolve to it.
fn odd_url(nar: &str) -> impl Strategy<Value = String> + use<> {
    let name = nar.trim_start_matches('/').to_owned();
    let base = name.trim_start_matches("nar/").to_owned();
    prop_oneof![
        6 => Just(name.clone()),
        1 => Just(format!("./{name}")),
        1 => Just(format!("nar/../{name}")),
        1 => Just(format!("nar//{base}")),
        1 => Just(format!("{name}?narsize=1")),
        1 => Just(name.replace('/', "%2F")),
    ]
}

/// A hash in every form that some Nix parses.
fn odd_hash(hash: &str) -> impl Strategy<Value = String> + use<> {
    let parsed = Sha256Hash::parse(hash).unwrap();
    let base64 = base64::engine::general_purpose::STANDARD.encode(parsed.as_bytes());
    let base16 = data_encoding::HEXLOWER.encode(parsed.as_bytes());
    prop_oneof![
        6 => Just(hash.to_owned()),
        1 => Just(format!("sha256:{base16}")),
        1 => Just(format!("sha256:{base64}")),
        1 => Just(format!("sha256-{base64}")),
        1 => Just(hash.to_uppercase()),
    ]
}

fn odd_size(size: &str) -> impl Strategy<Value = String> + use<> {
    prop_oneof![
        6 => Just(size.to_owned()),
        1 => Just(format!("+{size}")),
        1 => Just(format!("0{size}")),
        1 => Just(format!("{size} ")),
        1 => Just(format!("{size}.0")),
    ]
}

/// Forms of references to one path.
fn odd_references(name: &str) -> impl Strategy<Value = String> + use<> {
    prop_oneof![
        6 => Just(name.to_owned()),
        1 => Just(format!(" {name}  ")),
        1 => Just(format!("{name} {name}")),
        1 => Just(format!("{name}\t{name}")),
        1 => Just(format!("/nix/store/{name}")),
        1 => Just(format!("./{name}")),
        1 => Just(name[..StorePathHash::LEN].to_owned()),
        1 => Just(format!("{}-", &name[..StorePathHash::LEN])),
        1 => Just(format!("{}{}", &name[..StorePathHash::LEN], "x".repeat(300))),
        1 => Just(format!("{name},")),
    ]
}

/// A narinfo of path 1 with a reference to path 2.
fn odd_narinfo() -> impl Strategy<Value = String> {
    let (one, two) = (path(1), path(2));
    let field = |key: &str| {
        let line = one.narinfo.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_once(": ").unwrap().1.to_owned()
    };
    let (nar_hash, nar_size) = (field("NarHash"), field("NarSize"));
    let reference = two.store_path.trim_start_matches("/nix/store/").to_owned();
    let url = odd_url(&one.nar_path).prop_flat_map(|url| odd_line("URL", url));
    (
        odd_line("StorePath", one.store_path.clone()),
        url,
        odd_hash(&nar_hash).prop_flat_map(|hash| odd_line("NarHash", hash)),
        odd_size(&nar_size).prop_flat_map(|size| odd_line("NarSize", size)),
        odd_references(&reference).prop_flat_map(|names| odd_line("References", names)),
        proptest::collection::vec(odd_extra(), 0..4),
        any::<proptest::sample::Index>(),
    )
        .prop_map(|(path, url, hash, size, references, extra, at)| {
            let mut lines =
                vec![path, url, "Compression: none\n".to_owned(), hash, size, references];
            for line in extra {
                let at = at.index(lines.len() + 1);
                lines.insert(at, line);
            }
            lines.concat()
        })
}

/// The default of `NIX_STORED_TEST_NARINFOS`, the number of random narinfos. Nix needs about
/// 30 ms for each.
const DRAWN: u64 = 150;

/// Additional Nix programs, separated by colons. Versions differ in the narinfos that they accept.
const PROGRAMS: &str = "NIX_STORED_TEST_NIX_PROGRAMS";

/// The `nix` on PATH, and the programs in [`PROGRAMS`].
fn programs() -> Vec<String> {
    let more = std::env::var(PROGRAMS).unwrap_or_default();
    let more = more.split(':').filter(|program| !program.is_empty()).map(str::to_owned);
    std::iter::once("nix".to_owned()).chain(more).collect()
}

/// The JSON output of a Nix for the narinfo of a path, or nothing if it does not accept the
/// narinfo.
fn accepted_by(nix: &Nix, program: &str, url: &str, sample: &Sample) -> Option<String> {
    nix.forget_caches();
    let info = nix.run(&[program, "path-info", "--json", "--store", url, &sample.store_path]);
    let out = String::from_utf8_lossy(&info.stdout).into_owned();
    // Some versions print an invalid path as `null`, and succeed.
    (info.status.success() && out.contains("narHash")).then_some(out)
}

/// Each narinfo has its own cache, because they all describe the same path.
#[test]
fn what_some_nix_accepts_is_served_and_protected() {
    let drawn = number("NIX_STORED_TEST_NARINFOS").unwrap_or(DRAWN);
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    // A home for each version, because an earlier version may not read the files of a later one.
    let nixes: Vec<_> = programs().into_iter().map(|program| (program, Nix::new())).collect();
    let (one, two) = (path(1), path(2));
    let mut accepted = vec![BTreeSet::new(); nixes.len()];
    for _ in 0..drawn {
        let text = odd_narinfo().new_tree(&mut runner).unwrap().current();
        let cache = cache_with(|_| text.clone());
        fs::write(cache.dir().join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
        let url = format!("file://{}", utf8(cache.dir()));
        let (mut is_accepted, mut refers) = (false, false);
        for ((program, nix), accepted) in nixes.iter().zip(&mut accepted) {
            if let Some(info) = accepted_by(nix, program, &url, &one) {
                let hash = &two.narinfo_path[1..=StorePathHash::LEN];
                refers |= info.contains(hash);
                is_accepted = true;
                accepted.insert(text.clone());
            }
        }
        if !is_accepted {
            continue;
        }
        cache.run(&["gc"]).is(0);
        assert!(cache.has(&one.nar_path), "its NAR was removed: {text:?}");
        cache.run(&["gc", "--max-age", "30d"]).is(0);
        assert!(!refers || cache.holds(&two), "its reference was removed: {text:?}");
        // The daemon serves what Nix accepts.
        let daemon = crate::support::cache::TestCache::over(cache.dir(), GRACE);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let served = daemon.get(&one.narinfo_path).await;
            assert_eq!((served.status.as_u16(), served.text()), (200, text.clone()));
        });
    }
    // The test proves nothing if a Nix accepts none of the narinfos.
    for ((program, _), accepted) in nixes.iter().zip(&accepted) {
        let odd = accepted.iter().filter(|text| **text != one.narinfo).count();
        eprintln!("{program} accepted {odd} of {drawn}");
        assert!(odd as u64 >= drawn / 10, "{program} accepted {odd} of {drawn}");
    }
}
