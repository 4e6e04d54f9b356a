//! The daemon in this process on a real socket, where hours can be set to seconds.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix_stored::cache::{Actor, Cache};
use nix_stored::config::Config;
use nix_stored::http::{self, AppState};
use nix_stored::net::{self, Drained, Listener};
use nix_stored::retention::Collector;
use nix_stored::store::FsStore;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A cache that is being served. Stopped on drop.
pub struct Served {
    cache: Arc<Cache>,
    url: String,
    stop: CancellationToken,
    serving: Option<JoinHandle<Drained>>,
    runtime: Runtime,
}

/// The cache in a directory as another process would see it, with this time of grace.
pub fn open_cache(dir: &Path, grace: Duration) -> Arc<Cache> {
    let Config { cache_info, admission, .. } = configured();
    let store = FsStore::open(dir, 0).expect("the store can be opened");
    Arc::new(Cache::new(Arc::new(store.into()), cache_info, admission).with_grace(grace))
}

fn configured() -> Config {
    let vars = [("NIX_STORED_LISTEN_INTERFACE".to_owned(), "127.0.0.1:0".to_owned())];
    Config::from_vars(vars).expect("the test's configuration is right")
}

impl Served {
    /// Serves the cache in `dir`; what was used stays for `grace`.
    pub fn start(dir: &Path, grace: Duration) -> Self {
        let runtime = Runtime::new().expect("a runtime starts");
        let Config { listen, users, .. } = configured();
        let cache = open_cache(dir, grace);
        let listener = runtime.block_on(Listener::bind(&listen)).expect("a port is free");
        let url = listener.to_string();
        let app = http::app(AppState::local(Arc::clone(&cache), users.access(listener.is_local())));
        let stop = CancellationToken::new();
        let serving = Some(runtime.spawn(net::serve(listener, app, stop.clone())));
        Self { cache, url, stop, serving, runtime }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    pub fn collector(&self) -> Collector {
        Collector::new(Arc::clone(&self.cache), Actor::collector())
    }

    /// Runs what is asynchronous, from any thread.
    pub fn wait_for<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(serving) = self.serving.take() {
            // What it says does not matter any more.
            let _ = self.runtime.block_on(serving);
        }
    }
}
