//! A bar on standard error, where somebody looks at it and it takes long enough to.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is done sooner needs no bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// How far a command has come. Gone when it is dropped.
pub(super) struct Progress {
    bar: ProgressBar,
    started: Instant,
    shown: bool,
}

impl Progress {
    /// Nothing is done yet.
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self { bar, started: Instant::now(), shown: false }
    }

    /// So many objects were found; nobody knows how many there are.
    pub(super) fn found(&mut self, objects: u64) {
        self.at("{spinner} {msg}: {human_pos} objects", "going through the cache", objects);
    }

    /// So much was done of so much.
    pub(super) fn done(&mut self, doing: &'static str, done: u64, of: u64) {
        self.bar.set_length(of);
        self.at("{msg} {wide_bar} {human_pos}/{human_len} {eta}", doing, done);
    }

    /// So many bytes were done of so many.
    pub(super) fn read(&mut self, doing: &'static str, done: u64, of: u64) {
        self.bar.set_length(of);
        let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}";
        self.at(template, doing, done);
    }

    fn at(&mut self, template: &str, doing: &'static str, position: u64) {
        if !self.shown && self.started.elapsed() >= PATIENCE {
            self.shown = true;
            // Draws nothing where standard error is no terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        if self.bar.message() != doing {
            self.bar.set_message(doing);
            self.bar.set_style(ProgressStyle::with_template(template).expect("it is one of ours"));
        }
        self.bar.set_position(position);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
