//! The order of system calls that a power cut requires, and a proof that each violation is detected.

use std::collections::HashMap;

use crate::support::trace::Call;

/// The findings in a trace.
#[derive(Debug, Default)]
pub struct Verdict {
    /// The keys of the uploads with a 2xx response, in the order of the responses.
    pub acknowledged: Vec<String>,
    /// The number of files renamed into the cache.
    pub published: usize,
    /// The violations of the promise, a sentence each.
    pub broken: Vec<String>,
}

/// The calls on the files in the cache's directory.
#[derive(Default)]
struct Files<'a> {
    root: &'a str,
    /// The first open of each file, and all changes.
    changes: Vec<(String, &'a Call)>,
    syncs: Vec<&'a Call>,
    renames: Vec<(String, String, &'a Call)>,
    /// Created directories.
    made: Vec<(String, &'a Call)>,
}

/// Judges the daemon's calls on the cache in `root`.
pub fn judge(trace: &[Call], root: &str) -> Verdict {
    let mut files = Files { root, ..Files::default() };
    let mut verdict = Verdict::default();
    for call in trace {
        files.note(call, &mut verdict.broken);
    }
    for (from, to, rename) in &files.renames {
        verdict.published += 1;
        if let Err(why) = files.whole_before(from, rename) {
            verdict.broken.push(format!("{to}: {why}"));
        }
    }
    // By connection: the upload that waits for its response, and the position of its request.
    let mut asked: HashMap<&str, (String, usize)> = HashMap::new();
    for call in trace {
        let Some(connection) = call.descriptor(0).filter(|name| name.starts_with("socket:")) else {
            continue;
        };
        let text = call.args[1..].concat();
        if let Some(path) = upload_request(call, &text) {
            asked.insert(connection, (path, call.end));
        } else if let Some(status) = response_status(call, &text)
            && status >= 200
            && let Some((key, since)) = asked.remove(connection)
            && status < 300
        {
            if let Err(why) = files.durable_before(&key, since, call) {
                verdict.broken.push(format!("{key}: {why}"));
            }
            verdict.acknowledged.push(key);
        }
    }
    verdict
}

fn upload_request(call: &Call, text: &str) -> Option<String> {
    let reads = ["read", "readv", "recvfrom", "recvmsg"].contains(&call.name.as_str());
    let (_, request) = text.split_once("\"PUT /").filter(|_| reads && call.succeeded())?;
    Some(request.split(' ').next()?.to_owned())
}

fn response_status(call: &Call, text: &str) -> Option<u16> {
    let writes = ["write", "writev", "sendto", "sendmsg", "sendmmsg"].contains(&call.name.as_str());
    let (_, response) = text.split_once("\"HTTP/1.1 ").filter(|_| writes)?;
    response.get(..3)?.parse().ok()
}

/// The folder of a path.
fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

impl<'a> Files<'a> {
    fn note(&mut self, call: &'a Call, broken: &mut Vec<String>) {
        match call.name.as_str() {
            "openat" | "openat2" => {
                let created = call.args.iter().any(|arg| arg.contains("O_CREAT"));
                if let Some(path) = call.path_at(0).filter(|_| created && call.succeeded()) {
                    self.changed(path, call, broken);
                }
            }
            "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2" | "ftruncate"
            | "fallocate" | "sendfile" => {
                if let Some(path) = call.descriptor(0) {
                    self.changed(path.to_owned(), call, broken);
                }
            }
            "copy_file_range" | "splice" => {
                if let Some(path) = call.descriptor(2) {
                    self.changed(path.to_owned(), call, broken);
                }
            }
            "fsync" | "fdatasync" | "syncfs" | "sync" if call.succeeded() => self.syncs.push(call),
            "mkdir" if call.succeeded() => self.made.extend(call.path(0).map(|path| (path, call))),
            "mkdirat" if call.succeeded() => {
                self.made.extend(call.path_at(0).map(|path| (path, call)));
            }
            "rename" => self.renamed(call.path(0), call.path(1), call),
            "renameat" | "renameat2" => self.renamed(call.path_at(0), call.path_at(2), call),
            "io_uring_setup" if call.succeeded() => {
                broken.push(format!("{call}: I/O through it is not in the trace"));
            }
            _ => {}
        }
    }

    /// Whether a path is that of an object, and not one of the daemon's own files.
    fn is_object(&self, path: &str) -> bool {
        let below = path.strip_prefix(self.root).and_then(|rest| rest.strip_prefix('/'));
        below.is_some_and(|below| !below.starts_with(".nix-stored"))
    }

    fn changed(&mut self, path: String, call: &'a Call, broken: &mut Vec<String>) {
        if self.is_object(&path) {
            broken.push(format!("{path}: changed after publication, by {call}"));
        } else if path.starts_with(self.root) {
            self.changes.push((path, call));
        }
    }

    fn renamed(&mut self, from: Option<String>, to: Option<String>, call: &'a Call) {
        if let (Some(from), Some(to)) = (from, to)
            && call.succeeded()
            && self.is_object(&to)
        {
            self.renames.push((from, to, call));
        }
    }

    /// Whether `path` was synced by a call that began after `since` and ended before `until`.
    fn synced(&self, path: &str, since: usize, until: &Call) -> bool {
        self.syncs.iter().any(|sync| {
            let covers = match sync.name.as_str() {
                "sync" => true,
                // Only a syncfs on the cache's own file system certainly includes the cache.
                "syncfs" => sync.descriptor(0).is_some_and(|name| name.starts_with(self.root)),
                _ => sync.descriptor(0) == Some(path),
            };
            covers && sync.begin > since && sync.end < until.begin
        })
    }

    /// Checks that everything written to `from` was synced before the rename.
    fn whole_before(&self, from: &str, rename: &Call) -> Result<(), String> {
        let changes =
            self.changes.iter().filter(|(path, call)| path == from && call.begin < rename.begin);
        let Some(last) = changes.map(|(_, call)| call).max_by_key(|call| call.end) else {
            return Err(format!("no write to {from} is in the trace"));
        };
        if self.synced(from, last.end, rename) {
            Ok(())
        } else {
            Err(format!("{from} was not synced between {last} and {rename}"))
        }
    }

    /// Checks that the object was renamed durably before `response` began.
    fn durable_before(&self, key: &str, since: usize, response: &Call) -> Result<(), String> {
        let path = format!("{}/{key}", self.root);
        let before =
            self.renames.iter().filter(|(_, to, call)| *to == path && call.end < response.begin);
        let before: Vec<_> = before.collect();
        // An upload of an existing object may be acknowledged without being stored again.
        let own = before.iter().filter(|(_, _, call)| call.begin > since).count();
        let candidates = if own > 0 { &before[before.len() - own..] } else { &before[..] };
        let results = candidates.iter().map(|(from, _, rename)| {
            self.whole_before(from, rename)?;
            self.named_for_good(&path, rename, response)
        });
        let nothing = Err(format!("acknowledged by {response} without being published"));
        results.reduce(Result::or).unwrap_or(nothing)
    }

    fn named_for_good(&self, path: &str, rename: &Call, response: &Call) -> Result<(), String> {
        let folder = folder_of(path);
        if !self.synced(folder, rename.end, response) {
            return Err(format!("{folder} was not synced between {rename} and {response}"));
        }
        for (made, call) in &self.made {
            let above = path.strip_prefix(made.as_str()).is_some_and(|rest| rest.starts_with('/'));
            let parent = folder_of(made);
            if above && !self.synced(parent, call.end, response) {
                return Err(format!(
                    "{made} was made, and {parent} not synced between {call} and {response}"
                ));
            }
        }
        Ok(())
    }
}

mod proof {
    //! A short trace that keeps the promise, and each possible violation.

    use super::judge;
    use crate::support::trace::parse;

    /// One upload, into a new folder.
    const GOOD: [&str; 13] = [
        r#"1 recvfrom(8<socket:[5]>, "PUT /log/x HTTP/1.1\r\nHost"..., 8192, 0, NULL, NULL) = 99"#,
        r#"2 openat(6</c/.nix-stored/staging/1-0>, "0", O_RDWR|O_CREAT|O_EXCL, 0644) = 9</c/.nix-stored/staging/1-0/0>"#,
        r#"2 write(9</c/.nix-stored/staging/1-0/0>, "some"..., 400) = 400"#,
        r#"2 write(9</c/.nix-stored/staging/1-0/0>, "more"..., 400) = 400"#,
        r#"3 fsync(9</c/.nix-stored/staging/1-0/0>) = 0"#,
        r#"3 mkdirat(4</c>, "log", 0755)           = 0"#,
        r#"3 fsync(4</c>)                          = 0"#,
        r#"3 openat(4</c>, "log", O_RDONLY|O_DIRECTORY|O_CLOEXEC) = 10</c/log>"#,
        r#"3 renameat(6</c/.nix-stored/staging/1-0>, "0", 10</c/log>, "x") = 0"#,
        r#"3 fsync(10</c/log>)                     = 0"#,
        r#"2 writev(8<socket:[5]>, [{iov_base="HTTP/1.1 201 Created\r\n"..., iov_len=80}], 1) = 80"#,
        r#"3 close(9</c/log/x>)                    = 0"#,
        r#"1 +++ exited with 0 +++"#,
    ];
    const LAST_WRITE: usize = 3;
    const SYNC_OF_FILE: usize = 4;
    const MKDIR: usize = 5;
    const SYNC_OF_PARENT: usize = 6;
    const RENAME: usize = 8;
    const SYNC_OF_FOLDER: usize = 9;
    const ANSWER: usize = 10;

    fn broken(lines: &[&str]) -> Vec<String> {
        let verdict = judge(&parse(&lines.join("\n")).unwrap(), "/c");
        assert_eq!(verdict.acknowledged, ["log/x"], "{lines:#?}");
        assert!(verdict.published <= 1, "{lines:#?}");
        verdict.broken
    }

    fn without(line: usize) -> Vec<&'static str> {
        let mut lines = GOOD.to_vec();
        lines.remove(line);
        lines
    }

    fn with(line: usize, text: &'static str) -> Vec<&'static str> {
        let mut lines = GOOD.to_vec();
        lines[line] = text;
        lines
    }

    /// The trace with one line moved to the position of another.
    fn moved(line: usize, to: usize) -> Vec<&'static str> {
        let mut lines = GOOD.to_vec();
        let moved = lines.remove(line);
        lines.insert(to, moved);
        lines
    }

    /// The trace with a call that begins in its own line and ends only at another.
    fn ending_at(line: usize, end: usize) -> Vec<String> {
        let mut lines: Vec<String> = GOOD.iter().map(|line| (*line).to_owned()).collect();
        let (start, result) = GOOD[line].rsplit_once(')').unwrap();
        let name = start.split([' ', '(']).nth(1).unwrap();
        // On another thread, so that other calls can follow meanwhile.
        lines[line] = format!("7{} <unfinished ...>", &start[1..]);
        lines.insert(end + 1, format!("7 <... {name} resumed>){result}"));
        lines
    }

    #[track_caller]
    fn assert_detected(lines: &[&str], reason: &str) {
        let broken = broken(lines);
        assert!(broken.iter().any(|why| why.contains(reason)), "{broken:#?} for {lines:#?}");
    }

    #[test]
    fn a_trace_that_keeps_the_order_passes() {
        assert!(broken(&GOOD).is_empty(), "{:#?}", broken(&GOOD));
        for line in [SYNC_OF_FILE, SYNC_OF_PARENT, SYNC_OF_FOLDER] {
            let lines = with(line, "3 syncfs(4</c>) = 0");
            assert!(broken(&lines).is_empty(), "{:#?}", broken(&lines));
        }
        let lines = with(SYNC_OF_FILE, "3 fdatasync(11</c/.nix-stored/staging/1-0/0>) = 0");
        assert!(broken(&lines).is_empty(), "{:#?}", broken(&lines));
        let lines = ending_at(SYNC_OF_FILE, SYNC_OF_PARENT);
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert!(broken(&lines).is_empty(), "{:#?}", broken(&lines));
    }

    #[test]
    fn a_missing_sync_is_detected() {
        assert_detected(&without(SYNC_OF_FILE), "staging/1-0/0 was not synced");
        assert_detected(&without(SYNC_OF_PARENT), "/c/log was made, and /c not synced");
        assert_detected(&without(SYNC_OF_FOLDER), "/c/log was not synced");
    }

    #[test]
    fn a_failed_or_ineffective_sync_is_detected() {
        let failed = "3 fsync(9</c/.nix-stored/staging/1-0/0>) = -1 EIO (Input/output error)";
        let weak = "3 sync_file_range(9</c/.nix-stored/staging/1-0/0>, 0, 0, 7) = 0";
        let elsewhere = "3 syncfs(4</other>) = 0";
        for line in [failed, weak, elsewhere] {
            assert_detected(&with(SYNC_OF_FILE, line), "staging/1-0/0 was not synced");
        }
        assert_detected(
            &with(SYNC_OF_FOLDER, "3 fsync(10</c/log>) = -1 EIO (…)"),
            "/c/log was not synced",
        );
    }

    #[test]
    fn a_sync_before_the_last_write_is_detected() {
        assert_detected(&moved(SYNC_OF_FILE, LAST_WRITE), "staging/1-0/0 was not synced");
        let overlapping = ending_at(LAST_WRITE, SYNC_OF_FILE);
        let overlapping: Vec<&str> = overlapping.iter().map(String::as_str).collect();
        assert_detected(&overlapping, "staging/1-0/0 was not synced");
    }

    #[test]
    fn a_sync_of_the_file_after_its_rename_is_detected() {
        assert_detected(&moved(SYNC_OF_FILE, RENAME), "staging/1-0/0 was not synced");
        let overlapping = ending_at(SYNC_OF_FILE, RENAME);
        let overlapping: Vec<&str> = overlapping.iter().map(String::as_str).collect();
        assert_detected(&overlapping, "staging/1-0/0 was not synced");
    }

    #[test]
    fn a_directory_synced_too_early_or_too_late_is_detected() {
        assert_detected(&moved(SYNC_OF_FOLDER, RENAME), "/c/log was not synced");
        assert_detected(&moved(SYNC_OF_FOLDER, ANSWER), "/c/log was not synced");
        let overlapping = ending_at(SYNC_OF_FOLDER, ANSWER);
        let overlapping: Vec<&str> = overlapping.iter().map(String::as_str).collect();
        assert_detected(&overlapping, "/c/log was not synced");
        assert_detected(&moved(SYNC_OF_PARENT, MKDIR), "/c/log was made, and /c not synced");
        assert_detected(&moved(SYNC_OF_PARENT, ANSWER), "/c/log was made, and /c not synced");
    }

    #[test]
    fn a_response_before_the_rename_is_detected() {
        assert_detected(&moved(ANSWER, RENAME), "without being published");
        assert_detected(&without(RENAME), "without being published");
        assert_detected(
            &with(
                RENAME,
                "3 renameat(6</c/.nix-stored/staging/1-0>, \"0\", 10</c/log>, \"x\") = -1 ENOSPC (…)",
            ),
            "without being published",
        );
    }

    #[test]
    fn a_write_to_a_published_file_is_detected() {
        assert_detected(
            &with(ANSWER + 1, r#"3 pwrite64(9</c/log/x>, "x", 1, 0) = 1"#),
            "changed after publication",
        );
        let in_place = r#"3 openat(4</c>, "log/x", O_WRONLY|O_CREAT|O_TRUNC, 0644) = 9</c/log/x>"#;
        assert_detected(&with(ANSWER + 1, in_place), "changed after publication");
    }

    #[test]
    fn a_second_upload_depends_on_its_own_rename_or_on_none() {
        let again = GOOD[0].replace("1 recvfrom", "4 recvfrom").replace("[5]", "[6]");
        let acknowledged = GOOD[ANSWER].replace("[5]", "[6]");
        let mut lines = GOOD.to_vec();
        lines.extend([again.as_str(), acknowledged.as_str()]);
        let judged = |lines: &[&str]| judge(&parse(&lines.join("\n")).unwrap(), "/c");
        let verdict = judged(&lines);
        assert_eq!(verdict.acknowledged.len(), 2);
        assert!(verdict.broken.is_empty(), "{:#?}", verdict.broken);

        // Another upload, acknowledged while the first is renamed and its folder is not synced yet.
        let mut lines = GOOD.to_vec();
        lines.splice(SYNC_OF_FOLDER..SYNC_OF_FOLDER, [again.as_str(), acknowledged.as_str()]);
        let verdict = judged(&lines);
        assert_eq!(verdict.broken.len(), 1, "{:#?}", verdict.broken);
        assert!(verdict.broken[0].contains("/c/log was not synced"), "{:#?}", verdict.broken);
    }
}
