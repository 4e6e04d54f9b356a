//! SIGHUP: reloads the files that the configuration names; new requests and connections use them.

#[cfg(feature = "upstream")]
use std::sync::Arc;

use tokio::signal::unix::Signal;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::config::Config;
use crate::http::AccessPolicy;
#[cfg(feature = "upstream")]
use crate::http::Backend;
#[cfg(feature = "tls")]
use crate::net::TlsAcceptorHandle;
use crate::net::systemd;

/// The parts of the daemon that SIGHUP changes.
pub(super) struct Reload {
    /// The configuration, with the file contents of the last successful read.
    pub config: Config,
    /// Whether the daemon is reachable only from this machine.
    pub local: bool,
    pub access_policy: AccessPolicy,
    #[cfg(feature = "upstream")]
    pub mirror: Arc<Backend>,
    #[cfg(feature = "tls")]
    pub tls: Option<TlsAcceptorHandle>,
}

impl Reload {
    /// Reloads the files at each SIGHUP. Ends only with the signal stream.
    pub(super) async fn on_each(mut self, mut hangups: Signal) {
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
        self.access_policy.replace(self.config.users.access(self.local));
        #[cfg(feature = "tls")]
        if let (Some(acceptor), Some(tls)) = (&self.tls, &self.config.tls) {
            acceptor.replace(tls);
            warn_if_not_valid_now(tls);
        }
        #[cfg(feature = "upstream")]
        self.mirror.set_logins(&self.config.upstreams);
        // Logged only after the new values are in use.
        match reread {
            Ok(()) => info!("received SIGHUP: reloaded passwords, certificates and keys"),
            Err(problems) => {
                for problem in problems.0 {
                    warn!("received SIGHUP: the previous value stays in use: {problem}");
                }
            }
        }
    }
}

/// Warns if the certificate has expired or is not valid yet.
#[cfg(feature = "tls")]
pub(super) fn warn_if_not_valid_now(tls: &crate::config::Tls) {
    if let Some(state) = tls.out_of_date(std::time::SystemTime::now()) {
        warn!("the certificate in NIX_STORED_TLS_CERT {state}; clients will reject it");
    }
}
