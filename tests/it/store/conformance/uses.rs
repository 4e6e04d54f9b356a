//! Uses and removals.

use std::time::{Duration, SystemTime};

use nix_stored::store::{Removed, Stored};

use super::test_backend::{KEYS, TestBackend, content, later, metadata, narinfo, path, present};

/// A time later than all events so far.
fn soon() -> SystemTime {
    SystemTime::now() + Duration::from_secs(10)
}

pub async fn an_object_used_since_the_plan_is_kept(backend: &impl TestBackend) {
    let store = backend.open().await;
    for key in KEYS {
        store.put(&path(key), key.into()).await.unwrap();
    }
    let since = later().await;
    for key in KEYS {
        let path = path(key);
        let before = metadata(&store, &path).await;
        assert!(before.used < since, "{key}: {before:?}");
        assert!(store.touch_now(&path).await.unwrap(), "{key}");
        let after = metadata(&store, &path).await;
        assert!(after.used > since, "{key}: {after:?}");
        assert_eq!((after.modified, after.etag), (before.modified, before.etag), "{key}");
        assert_eq!(store.remove(&path, since).await.unwrap(), Removed::InUse, "{key}");
        assert_eq!(content(&store, &path).await, key.as_bytes());
    }
    let listed = super::listing::objects(&store, |_| false).await;
    assert!(listed.values().all(|object| object.metadata.used > since), "{listed:?}");
}

pub async fn an_object_stored_since_the_plan_is_kept(backend: &impl TestBackend) {
    let store = backend.open().await;
    let path = path(KEYS[0]);
    store.put(&path, "old".into()).await.unwrap();
    let since = later().await;
    assert_eq!(store.put(&path, "new".into()).await.unwrap(), Stored::Replaced);
    assert_eq!(store.remove(&path, since).await.unwrap(), Removed::InUse);
    assert_eq!(content(&store, &path).await, b"new");
}

pub async fn an_unused_object_is_removed(backend: &impl TestBackend) {
    let store = backend.open().await;
    for key in KEYS {
        store.put(&path(key), key.into()).await.unwrap();
        store.touch_now(&path(key)).await.unwrap();
    }
    for key in KEYS {
        let path = path(key);
        assert_eq!(store.remove(&path, soon()).await.unwrap(), Removed::Gone, "{key}");
        assert!(store.head(&path).await.unwrap().is_none(), "{key}");
        assert!(store.get(&path).await.unwrap().is_none(), "{key}");
        assert!(!store.touch_now(&path).await.unwrap(), "{key}");
        assert_eq!(store.remove(&path, soon()).await.unwrap(), Removed::Absent, "{key}");
        assert_eq!(backend.read_directly(key), None, "{key}");
    }
    store.sync_removals().await.unwrap();
    assert_eq!(backend.keys(), [""; 0]);
    drop(store);
    assert_eq!(super::listing::objects(&*backend.open().await, |_| true).await.len(), 0);
}

pub async fn a_removed_object_can_be_stored_again(backend: &impl TestBackend) {
    let store = backend.open().await;
    let path = path(KEYS[0]);
    for text in ["one", "two"] {
        assert_eq!(store.put(&path, text.into()).await.unwrap(), Stored::Created);
        assert_eq!(content(&store, &path).await, text.as_bytes());
        let since = SystemTime::now() - Duration::from_secs(3600);
        assert_eq!(store.remove(&path, since).await.unwrap(), Removed::InUse);
        assert_eq!(store.remove(&path, soon()).await.unwrap(), Removed::Gone);
    }
}

pub async fn a_removal_sees_a_concurrent_use(backend: &impl TestBackend) {
    let store = backend.open().await;
    const COUNT: usize = 20;
    for number in 0..COUNT {
        store.put(&narinfo(number), "text".into()).await.unwrap();
    }
    let since = later().await;
    for number in 0..COUNT {
        let path = narinfo(number);
        let (used, removed) = tokio::join!(store.touch_now(&path), store.remove(&path, since));
        let there_now = store.head(&path).await.unwrap().is_some();
        match (used.unwrap(), removed.unwrap()) {
            // A client that was told that the object is present can rely on it.
            (true, Removed::InUse) => assert!(there_now, "{path} was used, and is gone"),
            (false, Removed::Gone) => assert!(!there_now, "{path} is gone, and is there"),
            other => panic!("{path}: {other:?}"),
        }
    }
    for number in 0..COUNT {
        if store.touch_now(&narinfo(number)).await.unwrap() {
            assert!(present(store.head(&narinfo(number)).await).used > since);
        }
    }
}
