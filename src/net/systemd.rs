//! Notifies systemd of the state of the daemon (sd_notify(3)). Without systemd, nothing happens.

use sd_notify::NotifyState;
use tracing::warn;

/// Requests are served from now on.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// No new connections, and the end is near.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Files are read again, until [`ready`] is told.
pub fn reloading() {
    // Without the time, systemd would take the next `ready` for one of before.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => warn!(reason = %error, "cannot read the clock for systemd"),
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(reason = %error, "cannot notify systemd");
    }
}

/// Tells the service manager again and again that the runtime is alive, twice in the time after
/// which it would be taken for dead; for ever, and not at all if it does not want to know.
pub async fn keep_alive() {
    let Some(patience) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = tokio::time::interval(patience / 2);
    loop {
        ticks.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}
