//! A progress bar on standard error, if that is a terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How long a command runs before the bar is shown.
const SHOW_AFTER: Duration = Duration::from_millis(500);

/// The progress bar of a command. Dropping it clears the line.
pub(super) struct CommandProgressBar {
    bar: ProgressBar,
    started: Instant,
    shown: bool,
}

impl CommandProgressBar {
    /// Creates a bar that is not shown yet.
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self { bar, started: Instant::now(), shown: false }
    }

    /// Shows the number of objects that have been listed; the total is not known.
    pub(super) fn found(&mut self, objects: u64) {
        self.at("{spinner} {msg}: {human_pos} objects", "listing objects", objects);
    }

    /// Shows `done` of `of` steps.
    pub(super) fn done(&mut self, doing: &'static str, done: u64, of: u64) {
        self.bar.set_length(of);
        self.at("{msg} {wide_bar} {human_pos}/{human_len} {eta}", doing, done);
    }

    /// Shows `done` of `of` bytes.
    pub(super) fn read(&mut self, doing: &'static str, done: u64, of: u64) {
        self.bar.set_length(of);
        let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}";
        self.at(template, doing, done);
    }

    fn at(&mut self, template: &str, doing: &'static str, position: u64) {
        if !self.shown && self.started.elapsed() >= SHOW_AFTER {
            self.shown = true;
            // Draws nothing unless standard error is a terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        if self.bar.message() != doing {
            self.bar.set_message(doing);
            self.bar.set_style(
                ProgressStyle::with_template(template).expect("the template is a constant"),
            );
        }
        self.bar.set_position(position);
    }
}

impl Drop for CommandProgressBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
