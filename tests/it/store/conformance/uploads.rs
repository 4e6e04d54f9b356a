//! Uploads in parts.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix_stored::store::Stored;

use super::test_backend::{
    KEYS, NAR, TestBackend, blocking, commit, content, metadata, noise, path, present, until,
    upload,
};

const MIB: usize = 1 << 20;

/// Sizes around those of parts and buffers.
const SIZES: [usize; 9] =
    [0, 1, 64 * 1024 + 1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 8 * MIB, 10 * MIB, 16 * MIB + 4711];

pub async fn an_upload_of_any_size_is_stored(backend: &impl TestBackend) {
    let store = backend.open().await;
    for (number, length) in SIZES.into_iter().enumerate() {
        let path = path(&format!("nar/{number:0>52}.nar"));
        let bytes = noise(length);
        for (round, (size, step)) in
            [(Some(length as u64), 256 * 1024), (None, 300_001)].into_iter().enumerate()
        {
            let upload = upload(&store, &path, size, &bytes, step).await;
            let stored = commit(upload).await;
            assert_eq!(
                stored,
                if round == 0 { Stored::Created } else { Stored::Replaced },
                "{length}"
            );
            assert_eq!(metadata(&store, &path).await.size, length as u64);
            assert!(
                content(&store, &path).await == bytes,
                "{length} bytes were stored differently"
            );
        }
    }
    assert_eq!(backend.keys().len(), SIZES.len());
    assert_eq!(backend.unfinished(), 0);
}

pub async fn nothing_is_visible_before_it_is_committed(backend: &impl TestBackend) {
    let store = backend.open().await;
    for (key, length) in [(KEYS[1], 100_000), (NAR, 12 * MIB)] {
        let path = path(key);
        let bytes = noise(length);
        let first = upload(&store, &path, None, &bytes, MIB).await;
        assert!(store.head(&path).await.unwrap().is_none(), "{key}");
        assert!(store.get(&path).await.unwrap().is_none(), "{key}");
        assert_eq!(backend.read_directly(key), None, "{key}");
        assert_eq!(commit(first).await, Stored::Created);
        let before = metadata(&store, &path).await;

        let other = noise(length + 1);
        let second = upload(&store, &path, Some(length as u64 + 1), &other, MIB).await;
        assert_eq!(metadata(&store, &path).await, before, "{key}");
        assert!(content(&store, &path).await == bytes, "{key}");
        assert_eq!(commit(second).await, Stored::Replaced);
        assert!(content(&store, &path).await == other, "{key}");
        assert_ne!(present(store.head(&path).await).etag, before.etag, "{key}");
    }
}

pub async fn an_upload_that_is_dropped_leaves_nothing(backend: &impl TestBackend) {
    let store = backend.open().await;
    for length in [0, 1000, 5 * MIB, 17 * MIB] {
        let given_up = upload(&store, &path(NAR), None, &noise(length), MIB).await;
        blocking(move || drop(given_up)).await;
    }
    until("the staged upload is removed", || backend.unfinished() == 0).await;
    assert!(store.head(&path(NAR)).await.unwrap().is_none());
    assert_eq!(backend.keys(), [""; 0]);
}

pub async fn an_upload_that_is_dropped_keeps_the_old_object(backend: &impl TestBackend) {
    let store = backend.open().await;
    let path = path(NAR);
    store.put(&path, "good".into()).await.unwrap();
    let before = metadata(&store, &path).await;
    let given_up = upload(&store, &path, None, &noise(12 * MIB), MIB).await;
    blocking(move || drop(given_up)).await;
    until("the staged upload is removed", || backend.unfinished() == 0).await;
    assert_eq!(metadata(&store, &path).await, before);
    assert_eq!(content(&store, &path).await, b"good");
}

pub async fn two_uploads_of_one_object_leave_one_of_them_whole(backend: &impl TestBackend) {
    let store = backend.open().await;
    for length in [1000, 6 * MIB] {
        let path = path(&format!("nar/{length:0>52}.nar"));
        let (one, other) = (noise(length), noise(length + 1));
        let first = upload(&store, &path, None, &one, MIB).await;
        let second = upload(&store, &path, None, &other, MIB).await;
        let (first, second) = tokio::join!(commit(first), commit(second));
        // Not every store can tell which of two concurrent commits was first.
        assert!(first == Stored::Created || second == Stored::Created);
        let found = content(&store, &path).await;
        assert!(found == one || found == other, "{} bytes of neither", found.len());
        assert_eq!(metadata(&store, &path).await.size, found.len() as u64);
    }
    assert_eq!(backend.keys().len(), 2);
    assert_eq!(backend.unfinished(), 0);
}

pub async fn a_staged_file_can_be_read_while_it_is_written(backend: &impl TestBackend) {
    let store = backend.open().await;
    let bytes = noise(13 * MIB);
    let (written, opened) = (bytes.clone(), Arc::clone(&store));
    blocking(move || {
        let mut upload = opened.start_upload(&path(NAR), None).unwrap();
        let early = upload.staged().unwrap();
        let mut begin = 0;
        // To the middle of a part, to the end of one, and a few more.
        for end in [1, MIB + 1, 5 * MIB, 5 * MIB + 1, 13 * MIB] {
            upload.write(&written[begin..end]).unwrap();
            let late = upload.staged().unwrap();
            assert_eq!(late.is_some(), early.is_some());
            for file in [&early, &late].into_iter().flatten() {
                let mut found = vec![0; end];
                file.read_exact_at(&mut found, 0).unwrap();
                assert!(found == written[..end], "other bytes up to {end}");
            }
            begin = end;
        }
        assert_eq!(upload.commit().unwrap(), Stored::Created);
        // An open reader can read on, whatever happens to the upload.
        if let Some(early) = early {
            let mut end = vec![0; MIB];
            early.read_exact_at(&mut end, 12 * MIB as u64).unwrap();
            assert!(end == written[12 * MIB..], "other bytes at the end");
        }
    })
    .await;
    assert!(content(&store, &path(NAR)).await == bytes, "other bytes were stored");
}
