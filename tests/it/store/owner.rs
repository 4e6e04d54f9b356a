//! Root serves the directory of another user: as that user, and with no rights beyond theirs.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::process::geteuid;

use crate::commands::command_cache::{self, CommandCache};
use crate::support::cache_dir::{assert_consistent, staging};
use crate::support::daemon::{Builder, Daemon};
use crate::support::nix::utf8;
use crate::support::objects::sample;
use crate::support::scratch::Scratch;
use crate::support::wire::Wire;

/// `nobody` if the tests run as root. Otherwise the user who runs them, and then nothing changes.
fn owner() -> u32 {
    if geteuid().is_root() { 65_534 } else { geteuid().as_raw() }
}

fn change_owner(path: &Path) {
    chown(path, Some(owner()), Some(owner())).expect("root may change it");
}

/// A directory of that user, in a parent that the user can enter.
fn directory(scratch: &Scratch) -> std::path::PathBuf {
    for above in [scratch.path(), scratch.path().parent().expect("the path has a parent")] {
        fs::set_permissions(above, Permissions::from_mode(0o711)).expect("the owner may change it");
    }
    let dir = scratch.join("cache");
    fs::create_dir(&dir).expect("created");
    change_owner(&dir);
    dir
}

/// The user and group IDs of all threads of a process.
fn identities(daemon: &Daemon) -> Vec<String> {
    let tasks = format!("/proc/{}/task", daemon.pid().as_raw_nonzero());
    let mut found: Vec<String> = fs::read_dir(tasks)
        .expect("present")
        .map(|task| fs::read_to_string(task.expect("readable").path().join("status")))
        .flat_map(|status| {
            let status = status.unwrap_or_default();
            let lines = status.lines().filter(|line| {
                ["Uid:", "Gid:", "Groups:", "CapEff:"].iter().any(|name| line.starts_with(name))
            });
            lines
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>()
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Sets a password in a file that only root may read.
fn with_password(builder: Builder, file: &Path) -> Builder {
    fs::write(file, "secret").expect("written");
    fs::set_permissions(file, Permissions::from_mode(0o600)).expect("the owner may change it");
    builder
        .env("NIX_STORED_USER_WRITE", "builder")
        .env("NIX_STORED_USER_WRITE_PASSFILE", utf8(file))
}

#[test]
fn root_serves_as_the_owner_of_the_directory() {
    if !geteuid().is_root() {
        return;
    }
    let scratch = Scratch::new();
    let dir = directory(&scratch);
    // The file is owned by root.
    let passwords = scratch.join("password");
    let daemon = with_password(Daemon::builder().dir(&dir), &passwords).start();
    let user = owner();
    let ids =
        [format!("Gid: {user} {user} {user} {user}"), format!("Uid: {user} {user} {user} {user}")];
    let expected = ["CapEff: 0000000000000000", &ids[0], "Groups:", &ids[1]];
    let sample = sample(1, &[1; 100_000]);
    let put = |path: &str, body: &[u8]| {
        let mut wire = Wire::to(&daemon);
        wire.send(&format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YnVpbGRlcjpzZWNyZXQ=\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        ));
        wire.send_bytes(body);
        assert_eq!(wire.response().status, 201);
    };
    put(&sample.nar_path, &sample.nar);
    put(&sample.narinfo_path, sample.narinfo.as_bytes());
    assert_eq!(identities(&daemon), expected);
    for key in
        [".nix-stored", "nar", "nix-cache-info", &sample.nar_path[1..], &sample.narinfo_path[1..]]
    {
        let made = fs::metadata(dir.join(key)).expect("created");
        assert_eq!((made.uid(), made.gid()), (user, user), "{key}");
    }
    assert!(daemon.log().contains("switched to user 65534"), "{}", daemon.log());
    // The file cannot be read again after the change of the user. This is logged, and the password
    // stays in use.
    daemon.reload();
    assert!(daemon.log().contains("the previous value stays in use"), "{}", daemon.log());
    put("/log/7b42idxwrsfbjmqz2d4h92x2w6z2lrkg-hello-2.12.2.drv", b"text");
    assert_eq!(assert_consistent(&dir), 1);
    assert_eq!(daemon.stop().0.code(), Some(0));
}

#[test]
fn no_start_follows_a_link_in_the_daemons_own_folder() {
    let scratch = Scratch::new();
    let dir = directory(&scratch);
    let precious = scratch.join("precious");
    fs::create_dir_all(precious.join("4711-0")).expect("created");
    fs::write(precious.join("file"), "data").expect("written");
    fs::write(precious.join("4711-0/file"), "data").expect("written");
    // Paths whose owner or mode would let another user change the directory.
    for (at, mode) in [("", 0o777), ("4711-0", 0o777), ("file", 0o666), ("4711-0/file", 0o666)] {
        fs::set_permissions(precious.join(at), Permissions::from_mode(mode))
            .expect("the owner may change it");
    }
    fs::create_dir(dir.join(".nix-stored")).expect("created");
    change_owner(&dir.join(".nix-stored"));
    for link in [".nix-stored/staging", ".nix-stored"] {
        if link == ".nix-stored" {
            fs::remove_dir_all(dir.join(link)).expect("present");
        }
        symlink(&precious, dir.join(link)).expect("created");
        let failed = Daemon::builder().env("NIX_STORED_PATH", utf8(&dir)).start_fails();
        assert_eq!(failed.code, 1);
        assert!(failed.log.contains("is a symbolic link"), "{}", failed.log);
        fs::remove_file(dir.join(link)).expect("present");
        fs::create_dir_all(dir.join(".nix-stored")).expect("created");
        change_owner(&dir.join(".nix-stored"));
        for file in ["file", "4711-0/file"] {
            assert_eq!(fs::read(precious.join(file)).expect("present"), b"data");
        }
        assert_eq!(fs::read_dir(&precious).expect("readable").count(), 2);
    }
    // A file in the staging folder is not the folder of a process.
    fs::create_dir(dir.join(".nix-stored/staging")).expect("created");
    change_owner(&dir.join(".nix-stored/staging"));
    symlink(&precious, dir.join(".nix-stored/staging/4711-0")).expect("created");
    let daemon = Daemon::builder().dir(&dir).start();
    assert_eq!(fs::read(precious.join("4711-0/file")).expect("present"), b"data");
    assert!(staging(&dir).iter().any(|name| name.starts_with("4711-0")));
    drop(daemon);
}

#[test]
fn root_reports_what_to_do_where_the_owner_cannot_reach_the_directory() {
    if !geteuid().is_root() {
        return;
    }
    let scratch = Scratch::new();
    let dir = directory(&scratch);
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o700))
        .expect("the owner may change it");
    let failed = Daemon::builder().env("NIX_STORED_PATH", utf8(&dir)).start_fails();
    assert_eq!(failed.code, 1);
    assert!(failed.log.contains("let this user enter the parent directories"), "{}", failed.log);
}

#[test]
fn files_created_by_root_are_reported_with_a_remedy() {
    if !geteuid().is_root() {
        return;
    }
    let scratch = Scratch::new();
    let dir = directory(&scratch);
    fs::create_dir_all(dir.join(".nix-stored/staging")).expect("created");
    let failed = Daemon::builder().env("NIX_STORED_PATH", utf8(&dir)).start_fails();
    assert_eq!(failed.code, 1);
    assert!(failed.log.contains(&format!("chown -R {} {}", owner(), utf8(&dir))), "{}", failed.log);
    assert!(failed.log.contains("Permission denied"), "{}", failed.log);
}

#[test]
fn unremovable_objects_of_another_user_are_reported_with_a_remedy() {
    if !geteuid().is_root() {
        return;
    }
    let cache = CommandCache::new();
    cache.add(1, &[], 90);
    cache.add(2, &[], 90);
    change_owner(cache.dir());
    change_owner(&cache.dir().join("nar"));
    // Like the files of `nix copy`, run by root.
    let foreign = command_cache::path(1);
    for sample in [&foreign, &command_cache::path(2)] {
        change_owner(&cache.dir().join(&sample.nar_path[1..]));
    }
    change_owner(&cache.dir().join(&command_cache::path(2).narinfo_path[1..]));
    for command in [&["stats"][..], &["gc", "--max-age", "30d"]] {
        let result = cache.run(command).is(0);
        let printed = result.err.lines().find(|line| line.contains("belong to another user"));
        let printed =
            printed.unwrap_or_else(|| panic!("{command:?} does not say it: {}", result.err));
        assert!(
            printed.contains(&foreign.narinfo_path[1..]) && printed.contains("chown -R 65534"),
            "{printed}"
        );
        assert!(printed.contains("count=1"), "{printed}");
    }
}
