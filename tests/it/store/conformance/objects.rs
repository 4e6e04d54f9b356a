//! Absent, stored, replaced and quarantined objects.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt;
use nix_stored::store::{Removed, Stored};

use super::test_backend::{KEYS, NAR, TestBackend, content, metadata, noise, path, present};

/// Allows for the clocks of two machines, and for times in whole seconds.
const ABOUT: Duration = Duration::from_secs(5);

pub async fn an_absent_object_is_none_in_every_operation(backend: &impl TestBackend) {
    let store = backend.open().await;
    for key in KEYS {
        let path = path(key);
        assert!(matches!(store.head(&path).await, Ok(None)), "{key}");
        assert!(matches!(store.get(&path).await, Ok(None)), "{key}");
        assert!(matches!(store.touch_now(&path).await, Ok(false)), "{key}");
        let removed = store.remove(&path, SystemTime::now()).await;
        assert!(matches!(removed, Ok(Removed::Absent)), "{key}: {removed:?}");
        let quarantined = store.quarantine(&path, &Bytes::from_static(b"\"0\"")).await;
        assert!(matches!(quarantined, Ok(false)), "{key}: {quarantined:?}");
    }
    store.sync_removals().await.unwrap();
    assert_eq!(store.list(|_| true).count().await, 0);
    assert_eq!(backend.keys(), [""; 0]);
}

pub async fn head_and_get_return_the_stored_object(backend: &impl TestBackend) {
    let store = backend.open().await;
    for (number, key) in KEYS.iter().enumerate() {
        let path = path(key);
        let bytes = noise(1000 * number);
        let before = SystemTime::now() - ABOUT;
        let stored = store.put(&path, bytes.clone().into()).await.unwrap();
        assert_eq!(stored, Stored::Created, "{key}");
        let found = metadata(&store, &path).await;
        assert_eq!(found.size, bytes.len() as u64, "{key}");
        let now = before..SystemTime::now() + ABOUT;
        assert!(now.contains(&found.modified), "{key}: {found:?}");
        assert!(found.used >= found.modified && now.contains(&found.used), "{key}: {found:?}");
        let quoted = found.etag.len() > 2 && found.etag[0] == b'"' && found.etag.ends_with(b"\"");
        assert!(quoted, "{key}: {found:?}");
        assert_eq!(content(&store, &path).await, bytes, "{key}");
        assert_eq!(backend.read_directly(key), Some(bytes), "{key}");
    }
}

pub async fn a_second_put_replaces_the_object(backend: &impl TestBackend) {
    let store = backend.open().await;
    let path = path(KEYS[0]);
    let mut before = Bytes::new();
    // Objects of one length, written within one second.
    for (round, text) in ["first", "other", "third", "third"].into_iter().enumerate() {
        let stored = store.put(&path, text.into()).await.unwrap();
        assert_eq!(stored, if round == 0 { Stored::Created } else { Stored::Replaced });
        let etag = metadata(&store, &path).await.etag;
        assert!(etag != before || round == 3, "{text} has the tag of another text");
        assert_eq!(content(&store, &path).await, text.as_bytes());
        before = etag;
    }
    assert_eq!(backend.keys(), [KEYS[0]]);
}

pub async fn odd_names_are_stored_unchanged(backend: &impl TestBackend) {
    const DERIVATION: &str = "8ha1dhmx807czjczmwy078s4r9s254il";
    let store = backend.open().await;
    let hash = "0123456789abcdef".repeat(4);
    let mut keys = [
        format!("realisations/sha256:{hash}!out.doi"),
        format!("realisations/sha256:{hash}!a+b=c?d.doi"),
        format!("log/{DERIVATION}-gtk+3=x?y_z.drv"),
        format!("log/{DERIVATION}-a"),
        format!("log/{DERIVATION}-..."),
        format!("build-trace-v2/{DERIVATION}-q?r+s=t.drv/out.doi"),
        format!("build-trace-v65535/{DERIVATION}-x.drv/dev.doi"),
    ];
    for key in &keys {
        assert_eq!(path(key).key(), *key);
        let text = Bytes::from(key.clone());
        assert_eq!(store.put(&path(key), text.clone()).await.unwrap(), Stored::Created, "{key}");
        assert_eq!(content(&store, &path(key)).await, text, "{key}");
        assert!(present(store.head(&path(key)).await).size > 0, "{key}");
    }
    keys.sort();
    assert_eq!(backend.keys(), keys);
    let listed = super::listing::objects(&store, |_| false).await;
    assert!(listed.keys().eq(&keys), "{listed:?}");
    for key in &keys {
        assert!(store.touch_now(&path(key)).await.unwrap(), "{key}");
        let tag = present(store.head(&path(key)).await).etag;
        assert!(store.quarantine(&path(key), &tag).await.unwrap(), "{key}");
        assert_eq!(backend.read_directly(&quarantined(key)), Some(key.clone().into_bytes()));
    }
    assert_eq!(backend.keys(), [""; 0]);
}

fn quarantined(key: &str) -> String {
    format!(".nix-stored/quarantine/{key}")
}

pub async fn only_the_verified_version_is_quarantined(backend: &impl TestBackend) {
    let store = backend.open().await;
    for (key, length) in [(KEYS[0], 100), (NAR, 6 << 20)] {
        let path = path(key);
        let (looked_at, replaced) = (noise(length), noise(length + 1));
        store.put(&path, looked_at.into()).await.unwrap();
        let old = present(store.head(&path).await).etag;
        store.put(&path, replaced.clone().into()).await.unwrap();
        assert!(!store.quarantine(&path, &old).await.unwrap(), "{key}");
        assert_eq!(content(&store, &path).await, replaced, "{key}");
        assert_eq!(backend.read_directly(&quarantined(key)), None);

        let new = present(store.head(&path).await).etag;
        assert!(store.quarantine(&path, &new).await.unwrap(), "{key}");
        assert!(store.get(&path).await.unwrap().is_none(), "{key}");
        assert!(store.head(&path).await.unwrap().is_none(), "{key}");
        assert!(!store.quarantine(&path, &new).await.unwrap(), "{key}");
        assert_eq!(backend.read_directly(&quarantined(key)), Some(replaced), "{key}");
    }
    assert_eq!(backend.keys(), [""; 0]);
    assert_eq!(store.list(|_| true).count().await, 0);
}

pub async fn an_object_stored_during_a_quarantine_is_kept(backend: &impl TestBackend) {
    let store = backend.open().await;
    for number in 0..20 {
        let path = path(KEYS[0]);
        let (false_one, good) = (format!("false {number}"), format!("good {number}"));
        store.put(&path, false_one.into()).await.unwrap();
        let etag = present(store.head(&path).await).etag;
        let (quarantined, stored) =
            tokio::join!(store.quarantine(&path, &etag), store.put(&path, good.clone().into()));
        quarantined.unwrap();
        stored.unwrap();
        assert_eq!(content(&store, &path).await, good.into_bytes(), "round {number}");
    }
}

pub async fn a_quarantined_object_replaces_no_earlier_one(backend: &impl TestBackend) {
    let store = backend.open().await;
    let path = path(KEYS[0]);
    for text in ["one", "two", "three"] {
        store.put(&path, text.into()).await.unwrap();
        let etag = present(store.head(&path).await).etag;
        assert!(store.quarantine(&path, &etag).await.unwrap());
    }
    let names = ["", ".1", ".2"]
        .map(|number| backend.read_directly(&format!("{}{number}", quarantined(KEYS[0]))));
    let texts = ["one", "two", "three"].map(|text| Some(text.as_bytes().to_vec()));
    assert_eq!(names, texts);
}

pub async fn a_stored_object_is_visible_to_another_process(backend: &impl TestBackend) {
    let (first, second) = (backend.open().await, backend.open().await);
    let path = path(KEYS[0]);
    assert!(second.get(&path).await.unwrap().is_none());
    first.put(&path, "one".into()).await.unwrap();
    // A negative lookup may be cached for a moment.
    let deadline = tokio::time::Instant::now() + ABOUT;
    while second.head(&path).await.unwrap().is_none() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(content(&second, &path).await, b"one");
    second.put(&path, "another".into()).await.unwrap();
    assert_eq!(content(&first, &path).await, b"another");
    drop((first, second));
    assert_eq!(content(&*backend.open().await, &path).await, b"another");
}
