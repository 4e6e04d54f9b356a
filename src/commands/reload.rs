//! SIGHUP: what is in files is read again, and holds for what comes from then on.

use tokio::signal::unix::Signal;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::config::Config;
use crate::http::Gate;
#[cfg(feature = "tls")]
use crate::net::Secure;
use crate::net::systemd;

/// What can be changed while the daemon runs.
pub(super) struct Reload {
    /// What was read last.
    pub config: Config,
    /// Whether only this machine reaches the daemon.
    pub local: bool,
    pub gate: Gate,
    #[cfg(feature = "upstream")]
    pub cache: crate::cache::Cache,
    #[cfg(feature = "tls")]
    pub secure: Option<Secure>,
}

impl Reload {
    /// Reads the files again at every one of `hangups`, for ever.
    pub(super) async fn at(mut self, mut hangups: Signal) {
        while hangups.recv().await.is_some() {
            systemd::reloading();
            self = spawn_blocking(move || {
                self.reread();
                self
            })
            .await
            .expect("reading files does not panic");
            systemd::ready();
        }
    }

    fn reread(&mut self) {
        let reread = self.config.reread();
        self.gate.replace(self.config.users.access(self.local));
        #[cfg(feature = "tls")]
        if let (Some(secure), Some(tls)) = (&self.secure, &self.config.tls) {
            secure.replace(tls);
            super::serve::say_if_out_of_date(tls);
        }
        #[cfg(feature = "upstream")]
        self.cache.log_in_to_upstreams(&self.config.upstreams);
        // What is told holds by now.
        match reread {
            Ok(()) => info!("got SIGHUP; passwords, certificates and keys were read again"),
            Err(problems) => {
                for problem in problems.0 {
                    warn!("got SIGHUP; what was read before stays in use: {problem}");
                }
            }
        }
    }
}
