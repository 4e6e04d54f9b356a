//! Listing all objects.

use std::collections::BTreeMap;
use std::error::Error;

use futures_util::StreamExt;
use nix_stored::nix::{CachePath, narinfo as nix_narinfo};
use nix_stored::store::{Listed, ListedObject, Store};

use super::test_backend::{KEYS, NAR, TestBackend, narinfo, noise, path, present};

/// More than one page of every server (1,000).
const MANY: usize = 1100;

/// The objects by key. Checks that there are no other files.
pub async fn objects(
    store: &Store,
    wanted: fn(&CachePath) -> bool,
) -> BTreeMap<String, ListedObject> {
    let (objects, others) = everything(store, wanted).await;
    assert_eq!(others, [""; 0]);
    objects
}

/// The objects by key, and the names of all other files.
async fn everything(
    store: &Store,
    wanted: fn(&CachePath) -> bool,
) -> (BTreeMap<String, ListedObject>, Vec<String>) {
    let (mut objects, mut others) = (BTreeMap::new(), Vec::new());
    let mut all = store.list(wanted);
    while let Some(listed) = all.next().await {
        match listed.unwrap() {
            Listed::Object(object) => {
                let twice = objects.insert(object.path.key(), object);
                assert!(twice.is_none(), "{twice:?}");
            }
            Listed::Foreign(name) => others.push(name),
            Listed::Unreadable(path, error) => {
                let why = error.source().expect("an error of the disk").to_string();
                others.push(format!("{path}: {why}"));
            }
            Listed::NoFile(path, _) => panic!("{path} is no file"),
        }
    }
    others.sort();
    (objects, others)
}

fn narinfos(path: &CachePath) -> bool {
    matches!(path, CachePath::NarInfo(_))
}

pub async fn every_object_is_listed_with_its_metadata(backend: &impl TestBackend) {
    let store = backend.open().await;
    let many = futures_util::stream::iter(0..MANY).map(|number| {
        let store = &store;
        async move {
            let path = narinfo(number);
            let text = format!("{number}").into();
            store.put(&path, text).await.unwrap();
            path.key()
        }
    });
    let mut keys: Vec<String> = many.buffer_unordered(16).collect().await;
    for key in &KEYS[1..] {
        store.put(&path(key), (*key).into()).await.unwrap();
        keys.push((*key).to_owned());
    }
    store.private_files().write("pins/one", "text".into()).await.unwrap();
    let strangers = ["README", "nar/README", "nar/x.nar", "x.narinfo"];
    let ours = ["nix-cache-info", ".nix-stored/something/else"];
    for key in strangers.into_iter().chain(ours) {
        backend.plant(key, b"text");
    }

    let (listed, foreign) = everything(&store, narinfos).await;
    keys.sort();
    assert!(listed.keys().eq(&keys), "{} of {} are listed", listed.len(), keys.len());
    assert_eq!(foreign, strangers);
    for (key, object) in listed {
        assert_eq!(object.path, path(&key));
        let size = object.metadata.size;
        assert_eq!(object.content.is_some(), narinfos(&object.path), "{key}");
        let head = present(store.head(&object.path).await);
        assert_eq!(head.size, size, "{key}");
        assert!(head.etag == object.metadata.etag || !backend.lists_tags(), "{key}: {head:?}");
        // The time in a listing may be more precise than that of a HEAD request.
        let apart = |a: std::time::SystemTime, b| {
            a.duration_since(b).unwrap_or_else(|error| error.duration()).as_secs()
        };
        assert_eq!(apart(head.modified, object.metadata.modified), 0, "{key}");
        assert_eq!(apart(head.used, object.metadata.used), 0, "{key}");
        // Last, because reading a file can count as a use.
        assert_eq!(
            backend.read_directly(&key).map(|bytes| bytes.len() as u64),
            Some(size),
            "{key}"
        );
    }
}

pub async fn objects_are_listed_with_their_content_up_to_the_largest_narinfo(
    backend: &impl TestBackend,
) {
    let store = backend.open().await;
    let limit = nix_narinfo::MAX_SIZE as usize;
    let (largest, larger) = (noise(limit), noise(limit + 1));
    store.put(&narinfo(1), largest.clone().into()).await.unwrap();
    store.put(&narinfo(2), larger.into()).await.unwrap();
    store.put(&path(KEYS[1]), "wanted by nobody".into()).await.unwrap();
    store.put(&path(NAR), Vec::new().into()).await.unwrap();

    let (listed, unreadable) = everything(&store, narinfos).await;
    assert_eq!(listed.len(), 3);
    let found = |path: &CachePath| listed[&path.key()].content.as_deref();
    assert!(found(&narinfo(1)) == Some(&largest), "another content");
    let too_large = format!("{}: it has {} bytes", narinfo(2), limit + 1);
    assert!(unreadable.len() == 1 && unreadable[0].starts_with(&too_large), "{unreadable:?}");
    assert!(found(&path(KEYS[1])).is_none() && found(&path(NAR)).is_none());
    let (listed, _) = everything(&store, |_| true).await;
    assert_eq!(listed[KEYS[1]].content.as_deref(), Some(&b"wanted by nobody"[..]));
    assert_eq!(listed[NAR].content.as_deref(), Some(&b""[..]));
}

pub async fn a_dropped_listing_does_not_disturb_the_next(backend: &impl TestBackend) {
    let store = backend.open().await;
    for number in 0..20 {
        store.put(&narinfo(number), "text".into()).await.unwrap();
    }
    let mut some = store.list(narinfos);
    assert!(some.next().await.is_some_and(|listed| listed.is_ok()));
    drop(some);
    assert_eq!(objects(&store, narinfos).await.len(), 20);
}
