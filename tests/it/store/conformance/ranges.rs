//! Reads of ranges.

use std::ops::Range;

use futures_util::TryStreamExt;
use nix_stored::nix::CachePath;
use nix_stored::store::{Content, Store};

use super::test_backend::{
    KEYS, NAR, TestBackend, commit, noise, part, path, present, upload, whole,
};

const MIB: usize = 1 << 20;

async fn assert_parts(store: &Store, path: &CachePath, bytes: &[u8], ranges: &[Range<usize>]) {
    for range in ranges {
        let object = present(store.get(path).await);
        assert_eq!(object.metadata.size, bytes.len() as u64);
        let found = part(object.content, range.start as u64..range.end as u64).await;
        assert!(found == bytes[range.clone()], "{path} {range:?}: {} bytes", found.len());
    }
}

pub async fn every_range_of_a_small_object_can_be_read(backend: &impl TestBackend) {
    let store = backend.open().await;
    for key in KEYS {
        let (path, bytes) = (path(key), noise(1000));
        store.put(&path, bytes.clone().into()).await.unwrap();
        let ranges = [0..1, 0..1000, 999..1000, 1..999, 500..501];
        assert_parts(&store, &path, &bytes, &ranges).await;
    }
    let empty = path(NAR);
    store.put(&empty, Vec::new().into()).await.unwrap();
    #[expect(clippy::single_range_in_vec_init, reason = "one part")]
    let ranges = [0..0];
    assert_parts(&store, &empty, &[], &ranges).await;
}

pub async fn every_range_of_a_large_object_can_be_read(backend: &impl TestBackend) {
    let store = backend.open().await;
    let (path, bytes) = (path(NAR), noise(11 * MIB + 7));
    let upload = upload(&store, &path, Some(bytes.len() as u64), &bytes, MIB).await;
    commit(upload).await;
    let end = bytes.len();
    let ranges = [
        0..1,
        0..end,
        end - 1..end,
        1..end - 1,
        5 * MIB - 1..5 * MIB + 1,
        5 * MIB..10 * MIB,
        10 * MIB..end,
        7..100_007,
    ];
    assert_parts(&store, &path, &bytes, &ranges).await;
}

pub async fn a_narinfo_is_read_into_memory_completely(backend: &impl TestBackend) {
    let store = backend.open().await;
    for length in [500, 300_000, 1 << 20] {
        let (path, bytes) = (path(KEYS[0]), noise(length));
        store.put(&path, bytes.clone().into()).await.unwrap();
        match present(store.get(&path).await).content {
            Content::Bytes(found) => assert!(found == bytes, "other bytes"),
            other => panic!("{length} bytes: {other:?}"),
        }
    }
}

pub async fn a_reader_sees_the_old_object_or_the_new_one(backend: &impl TestBackend) {
    let store = backend.open().await;
    let path = path(NAR);
    let texts = [noise(300_000), noise(300_001), noise(299_999)];
    store.put(&path, texts[0].clone().into()).await.unwrap();
    let replace = async {
        for round in 1..30 {
            store.put(&path, texts[round % 3].clone().into()).await.unwrap();
        }
    };
    let read = async {
        for _ in 0..60 {
            let found = whole_if_it_stayed(&store, &path).await;
            assert!(found.is_none_or(|found| texts.contains(&found)), "a mixture");
        }
    };
    tokio::join!(replace, read);
    assert!(texts.contains(&whole(present(store.get(&path).await)).await));
}

/// Reads a whole object, or returns none if the object was replaced meanwhile.
async fn whole_if_it_stayed(store: &Store, path: &CachePath) -> Option<Vec<u8>> {
    let object = present(store.get(path).await);
    match object.content {
        Content::Stream(stream) => {
            let chunks = stream.read(0..object.metadata.size).try_collect::<Vec<_>>().await;
            chunks.ok().map(|chunks| chunks.concat())
        }
        _ => Some(whole(object).await),
    }
}
