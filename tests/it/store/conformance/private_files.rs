//! Private files and the collection lock.

use bytes::Bytes;

use super::test_backend::{TestBackend, until};

pub async fn a_private_file_is_there_until_it_is_removed(backend: &impl TestBackend) {
    let store = backend.open().await;
    let files = store.private_files();
    let name = "pins/release-25.11";
    assert_eq!(files.read(name).await.unwrap(), None);
    assert!(!files.remove(name).await.unwrap());
    assert!(!files.write(name, "one".into()).await.unwrap());
    assert_eq!(files.read(name).await.unwrap(), Some(Bytes::from_static(b"one")));
    assert!(files.write(name, "other".into()).await.unwrap());
    assert_eq!(
        backend.open().await.private_files().read(name).await.unwrap(),
        Some(Bytes::from_static(b"other"))
    );
    assert_eq!(backend.read_directly(".nix-stored/pins/release-25.11"), Some(b"other".to_vec()));
    assert!(files.remove(name).await.unwrap());
    assert_eq!(files.read(name).await.unwrap(), None);
    assert_eq!(files.list("pins").await.unwrap(), [""; 0]);
    assert_eq!(backend.keys(), [""; 0]);
}

pub async fn private_files_are_listed_by_folder(backend: &impl TestBackend) {
    let store = backend.open().await;
    let files = store.private_files();
    assert_eq!(files.list("pins").await.unwrap(), [""; 0]);
    for name in ["pins/a", "pins/B+_.-1", "pins2/c", "other/d"] {
        assert!(!files.write(name, Bytes::new()).await.unwrap(), "{name}");
    }
    let mut found = files.list("pins").await.unwrap();
    found.sort();
    assert_eq!(found, ["B+_.-1", "a"]);
    assert_eq!(files.read("pins/a").await.unwrap(), Some(Bytes::new()));
    assert_eq!(files.list("pins2").await.unwrap(), ["c"]);
    assert_eq!(files.list("none").await.unwrap(), [""; 0]);
}

pub async fn the_collection_lock_has_one_holder_until_it_is_dropped(backend: &impl TestBackend) {
    let (first, second) = (backend.open().await, backend.open().await);
    for _ in 0..2 {
        let lock = first.private_files().lock_collection().await.unwrap();
        assert!(lock.is_some());
        assert!(second.private_files().lock_collection().await.unwrap().is_none());
        assert!(first.private_files().lock_collection().await.unwrap().is_none());
        drop(lock);
        let mut taken = None;
        for _ in 0..1000 {
            taken = second.private_files().lock_collection().await.unwrap();
            if taken.is_some() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert!(taken.is_some(), "the lock was not released");
        assert!(first.private_files().lock_collection().await.unwrap().is_none());
        drop(taken);
    }
    until("the private file is not an object", || backend.keys().is_empty()).await;
}
