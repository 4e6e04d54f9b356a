//! A power cut during a collection must not bring back a narinfo whose NAR is removed. A trace of system calls
//! shows what was synced.

use std::process::{Command, Stdio};

use crate::commands::command_cache::CommandCache;
use crate::support::nix::utf8;
use crate::support::scratch::Scratch;
use crate::support::trace::{Call, TracedDaemon, parse};

use super::dir::{self, DAY};

/// The folder that objects are moved to before they are removed, and from which they are restored
/// after a crash.
const TRASH: &str = ".nix-stored/trash";

/// The violations of the promise for these pairs of a narinfo and its NAR, a sentence each.
fn broken(trace: &[Call], root: &str, pairs: &[(String, String)]) -> Vec<String> {
    pairs.iter().filter_map(|(narinfo, nar)| judge(trace, root, narinfo, nar).err()).collect()
}

fn judge(trace: &[Call], root: &str, narinfo: &str, nar: &str) -> Result<(), String> {
    let of = |key: &str| format!("{root}/{key}");
    let leaves = |key: &str| {
        let path = of(key);
        let mut calls = trace.iter().filter(|call| call.succeeded());
        calls.find(|call| removes_name(call, &path)).ok_or(format!("{path} was not removed"))
    };
    let nar = leaves(nar)?;
    // First its name is removed, then other links to it.
    let gone = leaves(narinfo)?;
    let trashed = leaves(&format!("{TRASH}/{narinfo}"));
    let steps = [(Ok(gone), root.to_owned()), (trashed, of(TRASH))];
    for (step, folder) in steps {
        let Ok(step) = step else {
            continue;
        };
        let synced = trace.iter().any(|sync| {
            let covers = match sync.name.as_str() {
                "fsync" | "fdatasync" => sync.descriptor(0) == Some(folder.as_str()),
                "syncfs" => sync.descriptor(0).is_some_and(|name| name.starts_with(root)),
                _ => false,
            };
            covers && sync.succeeded() && sync.begin > step.end && sync.end < nar.begin
        });
        if !synced {
            return Err(format!("{folder} was not synced between {step} and {nar}"));
        }
    }
    Ok(())
}

/// Whether a call removes this name.
fn removes_name(call: &Call, path: &str) -> bool {
    let from = match call.name.as_str() {
        "rename" | "unlink" => call.path(0),
        "renameat" | "renameat2" | "unlinkat" => call.path_at(0),
        _ => None,
    };
    from.is_some_and(|from| from == path)
}

#[test]
fn removals_of_narinfos_are_synced_before_their_nars_are_removed() {
    let scratch = Scratch::new();
    let root = scratch.join("cache");
    let old = dir::now() - DAY * 40;
    let mut pairs = Vec::new();
    // The trash exists already, as after an earlier collection. Otherwise the collection would create it
    // and sync its parent.
    std::fs::create_dir_all(root.join(TRASH).join("nar")).expect("created");
    for path in 0..20 {
        let references: Vec<usize> = (0..path).collect();
        // Two paths share a NAR.
        let nar = path / 2;
        let text = dir::narinfo_text(path, nar, &references, None, 0);
        dir::put(&root, &dir::narinfo(path), text, old);
        dir::put(&root, &dir::nar(nar), "NAR", old);
        pairs.push((dir::narinfo(path), dir::nar(nar)));
    }
    let env = [("NIX_STORED_MAX_AGE", "30d"), ("NIX_STORED_GC_INTERVAL", "1s")];
    let daemon = TracedDaemon::start_with(&root, &env);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !dir::sizes(&root).is_empty() {
        assert!(std::time::Instant::now() < deadline, "the collection did not remove everything");
        std::thread::yield_now();
    }
    let (trace, _) = daemon.stop();
    let root = root.canonicalize().expect("present");
    let broken = broken(&trace, root.to_str().expect("UTF-8"), &pairs);
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn a_collection_syncs_earlier_removals_that_could_not_be_synced() {
    let cache = CommandCache::new();
    cache.add(1, &[], 90);
    cache.add(2, &[], 90);
    // The trash exists already, as after an earlier collection. Otherwise the collection would try to
    // create it, and fail before it removes anything.
    std::fs::create_dir_all(cache.dir().join(TRASH).join("nar")).expect("created");
    let (dir, trace) = (cache.dir().canonicalize().expect("present"), Scratch::new());
    let traced = |options: &[&str]| {
        let file = trace.join("trace");
        let status = Command::new("strace")
            .args(["-f", "-y", "-qq", "-e", "signal=none", "-o", utf8(&file)])
            .args(["-e", "trace=fsync,renameat,renameat2,unlinkat"])
            .args(options)
            .args([env!("CARGO_BIN_EXE_nix-stored"), "gc", "--max-age", "30d"])
            .env("NIX_STORED_PATH", &dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let text = std::fs::read_to_string(file).expect("written");
        (status.expect("strace starts").code(), parse(&text).expect("a trace"))
    };
    let broken = ["-P", utf8(&dir), "-e", "inject=fsync:error=EIO"];
    let (code, _) = traced(&broken);
    assert_eq!(code, Some(1));
    let left = cache.objects();
    assert!(left.iter().all(|key| key.starts_with("nar/")) && left.len() == 2, "{left:?}");
    // The next collection finds no narinfo, and must sync the directory nevertheless.
    let (code, calls) = traced(&[]);
    assert_eq!(code, Some(0));
    let removal = calls.iter().find(|call| {
        removes_name(call, &format!("{}/{}", utf8(&dir), left[0])) && call.succeeded()
    });
    let removal = removal.expect("removed");
    let synced = calls.iter().any(|call| {
        call.name == "fsync"
            && call.descriptor(0) == Some(utf8(&dir))
            && call.succeeded()
            && call.end < removal.begin
    });
    assert!(synced, "{calls:?}");
    assert!(cache.objects().is_empty());
}

mod proof {
    //! A trace that keeps the promise, and each possible violation.

    use super::broken;
    use crate::support::trace::parse;

    const GOOD: [&str; 6] = [
        r#"1 renameat(4</c>, "x.narinfo", AT_FDCWD</>, "/c/.nix-stored/trash/x.narinfo") = 0"#,
        r#"1 unlink("/c/.nix-stored/trash/x.narinfo") = 0"#,
        r#"2 fsync(9</c/.nix-stored/trash>) = 0"#,
        r#"2 fsync(9</c>) = 0"#,
        r#"3 renameat(4</c>, "nar/y.nar", AT_FDCWD</>, "/c/.nix-stored/trash/nar/y.nar") = 0"#,
        r#"3 unlink("/c/.nix-stored/trash/nar/y.nar") = 0"#,
    ];

    fn judged(lines: &[&str]) -> Vec<String> {
        let pair = ("x.narinfo".to_owned(), "nar/y.nar".to_owned());
        broken(&parse(&lines.join("\n")).unwrap(), "/c", &[pair])
    }

    fn moved(line: usize, to: usize) -> Vec<&'static str> {
        let mut lines = GOOD.to_vec();
        let moved = lines.remove(line);
        lines.insert(to, moved);
        lines
    }

    #[test]
    fn a_trace_that_keeps_the_order_passes() {
        assert!(judged(&GOOD).is_empty(), "{:?}", judged(&GOOD));
        let direct = [
            r#"1 unlinkat(4</c>, "x.narinfo", 0) = 0"#,
            "2 syncfs(4</c>) = 0",
            r#"3 unlinkat(4</c>, "nar/y.nar", 0) = 0"#,
        ];
        assert!(judged(&direct).is_empty(), "{:?}", judged(&direct));
    }

    #[test]
    fn every_violation_of_the_order_is_detected() {
        // A sync that is missing, too early, too late, or failed.
        for (line, folder) in [(2, "/c/.nix-stored/trash"), (3, "/c")] {
            let mut lines = GOOD.to_vec();
            lines.remove(line);
            let mut failed = GOOD.to_vec();
            let error = GOOD[line].replace("= 0", "= -1 EIO (Input/output error)");
            failed[line] = &error;
            for lines in [lines, moved(line, 0), moved(line, 4), failed] {
                let broken = judged(&lines);
                let reason = format!("{folder} was not synced");
                assert!(broken.iter().any(|why| why.contains(&reason)), "{broken:?} {lines:#?}");
            }
        }
        // The NAR is removed first, or nothing was traced.
        assert!(!judged(&moved(4, 0)).is_empty());
        assert!(!judged(&[]).is_empty());
    }
}
