use crate::support::cache::TestCache;

#[tokio::test]
async fn everybody_gets_nix_cache_info_and_there_is_nothing_to_browse() {
    let cache = TestCache::new();
    let text = cache.get("/nix-cache-info").await.text();
    for accept in ["*/*", "text/html"] {
        assert_eq!(cache.get_with("/", &[("accept", accept)]).await.is(200).text(), text);
        cache.get_with("/browse", &[("accept", accept)]).await.is(404);
    }
}
