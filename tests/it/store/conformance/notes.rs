//! Notes and the lock.

use bytes::Bytes;

use super::site::{Site, until};

pub async fn a_note_is_there_until_it_is_taken_away(site: &impl Site) {
    let store = site.open().await;
    let name = "pins/release-25.11";
    assert_eq!(store.note(name).await.unwrap(), None);
    assert!(!store.set_note(name, None).await.unwrap());
    assert!(!store.set_note(name, Some("one".into())).await.unwrap());
    assert_eq!(store.note(name).await.unwrap(), Some(Bytes::from_static(b"one")));
    assert!(store.set_note(name, Some("other".into())).await.unwrap());
    assert_eq!(site.open().await.note(name).await.unwrap(), Some(Bytes::from_static(b"other")));
    assert_eq!(site.look(".nix-stored/pins/release-25.11"), Some(b"other".to_vec()));
    assert!(store.set_note(name, None).await.unwrap());
    assert_eq!(store.note(name).await.unwrap(), None);
    assert_eq!(store.notes("pins").await.unwrap(), [""; 0]);
    assert_eq!(site.keys(), [""; 0]);
}

pub async fn notes_are_found_by_their_folder(site: &impl Site) {
    let store = site.open().await;
    assert_eq!(store.notes("pins").await.unwrap(), [""; 0]);
    for name in ["pins/a", "pins/B+_.-1", "pins2/c", "other/d"] {
        assert!(!store.set_note(name, Some(Bytes::new())).await.unwrap(), "{name}");
    }
    let mut found = store.notes("pins").await.unwrap();
    found.sort();
    assert_eq!(found, ["B+_.-1", "a"]);
    assert_eq!(store.note("pins/a").await.unwrap(), Some(Bytes::new()));
    assert_eq!(store.notes("pins2").await.unwrap(), ["c"]);
    assert_eq!(store.notes("none").await.unwrap(), [""; 0]);
}

pub async fn a_lock_is_one_stores_until_it_is_dropped(site: &impl Site) {
    let (first, second) = (site.open().await, site.open().await);
    for _ in 0..2 {
        let lock = first.lock().await.unwrap();
        assert!(lock.is_some());
        assert!(second.lock().await.unwrap().is_none());
        assert!(first.lock().await.unwrap().is_none());
        drop(lock);
        let mut taken = None;
        for _ in 0..1000 {
            taken = second.lock().await.unwrap();
            if taken.is_some() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert!(taken.is_some(), "it was not let go");
        assert!(first.lock().await.unwrap().is_none());
        drop(taken);
    }
    until("it is not an object", || site.keys().is_empty()).await;
}
