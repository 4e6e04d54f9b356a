//! File trees compared as NARs: kinds, names, contents, and the executable bit.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Panics with the first difference.
#[track_caller]
pub fn assert_same_tree(one: &Path, other: &Path) {
    if let Some(difference) = difference(one, other) {
        panic!("{} and {}: {difference}", one.display(), other.display());
    }
}

/// The first difference, with its path below the root.
fn difference(one: &Path, other: &Path) -> Option<String> {
    let Ok(meta) = fs::symlink_metadata(one) else {
        return Some("the first is absent".into());
    };
    let Ok(other_meta) = fs::symlink_metadata(other) else {
        return Some("the second is absent".into());
    };
    if meta.file_type() != other_meta.file_type() {
        return Some(format!("{:?} against {:?}", meta.file_type(), other_meta.file_type()));
    }
    if meta.is_symlink() {
        let targets = (fs::read_link(one).ok(), fs::read_link(other).ok());
        return (targets.0 != targets.1).then(|| format!("the links go to {targets:?}"));
    }
    if meta.is_dir() {
        let (ours, theirs) = (names(one), names(other));
        if ours != theirs {
            return Some(format!("{ours:?} against {theirs:?}"));
        }
        return ours.iter().find_map(|name| {
            let inner = difference(&one.join(name), &other.join(name))?;
            Some(format!("{}: {inner}", name.display()))
        });
    }
    let executable = |meta: &fs::Metadata| meta.permissions().mode() & 0o100 != 0;
    if executable(&meta) != executable(&other_meta) {
        return Some("only one is executable".into());
    }
    (!same_bytes(one, other)).then(|| "the contents differ".into())
}

fn names(dir: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(dir).expect("a directory of a store can be read");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("a directory of a store can be read").file_name())
        .collect();
    names.sort();
    names
}

fn same_bytes(one: &Path, other: &Path) -> bool {
    let open = |path| File::open(path).expect("a file of a store can be read");
    let (mut one, mut other) = (open(one), open(other));
    let (mut a, mut b) = (Vec::new(), Vec::new());
    loop {
        for (file, buffer) in [(&mut one, &mut a), (&mut other, &mut b)] {
            buffer.clear();
            let part = file.take(1 << 20).read_to_end(buffer);
            part.expect("a file of a store can be read");
        }
        if a != b || a.is_empty() {
            return a == b;
        }
    }
}
