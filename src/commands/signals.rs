//! Signals: SIGTERM and SIGINT stop the program, SIGHUP reloads files.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Returns a token that the first SIGTERM or SIGINT cancels; `on_signal` is called with the signal's name.
pub(super) fn stop_on_signals(
    on_signal: impl FnOnce(&str) + Send + 'static,
) -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        token.cancel();
        on_signal(name);
    });
    Ok(stop)
}

/// Receives SIGHUP. Without this, SIGHUP would end the process.
pub(super) fn hangups() -> anyhow::Result<Signal> {
    signal(SignalKind::hangup()).context("cannot wait for SIGHUP")
}
