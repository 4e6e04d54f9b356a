//! Notifies systemd of the state of the daemon (sd_notify(3)). Without systemd, nothing happens.

use sd_notify::NotifyState;
use tracing::warn;

/// Reports that requests are served.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Reports that the daemon stops.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Reports that the configuration is being reloaded, until [`ready`] is called.
pub fn reloading() {
    // Without the time, systemd could not match the next `READY=1` to this reload.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => warn!(reason = %error, "cannot read the clock for systemd"),
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(reason = %error, "cannot notify systemd");
    }
}

/// Sends watchdog notifications at half of the interval that systemd requests; returns at once if it
/// requests none.
pub async fn keep_alive() {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = tokio::time::interval(interval / 2);
    loop {
        ticks.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}
