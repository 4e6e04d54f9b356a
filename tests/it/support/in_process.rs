//! The daemon in this process on a real socket, with a grace period of seconds instead of hours.

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
pub struct InProcessServer {
    cache: Arc<Cache>,
    url: String,
    stop: CancellationToken,
    serving: Option<JoinHandle<Drained>>,
    runtime: Runtime,
}

/// Opens the cache in a directory like another process would, with this grace period.
pub fn open_cache(dir: &Path, grace: Duration) -> Arc<Cache> {
    let Config { cache_info, admission, .. } = configured();
    let store = FsStore::open(dir, 0).expect("the store opens");
    Arc::new(Cache::new(Arc::new(store.into()), cache_info, admission).with_grace(grace))
}

fn configured() -> Config {
    let vars = [("NIX_STORED_LISTEN_INTERFACE".to_owned(), "127.0.0.1:0".to_owned())];
    Config::from_vars(vars).expect("the test's configuration is right")
}

impl InProcessServer {
    /// Serves the cache in `dir`, which keeps paths used within `grace`.
    pub fn start(dir: &Path, grace: Duration) -> Self {
        let runtime = Runtime::new().expect("the runtime starts");
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

    /// Runs a future from any thread.
    pub fn wait_for<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

impl Drop for InProcessServer {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(serving) = self.serving.take() {
            // The result is irrelevant: the server is being stopped.
            let _ = self.runtime.block_on(serving);
        }
    }
}
