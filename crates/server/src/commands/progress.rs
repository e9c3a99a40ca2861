//! The progress of a long command: a bar on a terminal, nothing elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::input::Position;

/// How often the bar is drawn anew.
const STEP: Duration = Duration::from_millis(100);

/// A bar over the bytes of an input, with a count of records and their rate.
pub struct Progress {
    bar: ProgressBar,
    position: Position,
    begun: Instant,
}

impl Progress {
    /// Begins; draws only on a terminal and unless `quiet`.
    pub fn new(what: &str, position: Position, quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let bar = match (shown, position.total) {
            (false, _) => ProgressBar::hidden(),
            (true, Some(total)) => ProgressBar::new(total).with_style(style(
                "{prefix} {wide_bar} {percent}% {msg} {elapsed}, {eta} left",
            )),
            (true, None) => {
                ProgressBar::new_spinner().with_style(style("{prefix} {spinner} {msg} {elapsed}"))
            }
        };
        bar.set_prefix(what.to_owned());
        Progress {
            bar,
            position,
            begun: Instant::now(),
        }
    }

    /// How often to call [`Progress::show`].
    pub fn step() -> Duration {
        STEP
    }

    /// Draws how many records are done.
    pub fn show(&self, records: u64) {
        if self.bar.is_hidden() {
            return;
        }
        self.bar.set_position(self.position.read());
        let rate = rate(records, self.begun.elapsed());
        self.bar
            .set_message(format!("{records} records, {rate:.0}/s"));
    }

    /// Says something without tearing the bar.
    pub fn note(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    /// Takes the bar away; gives how long it took.
    pub fn end(&self) -> Duration {
        self.bar.finish_and_clear();
        self.begun.elapsed()
    }
}

/// A bar over bytes of which it is known how many there are.
pub struct ByteProgress {
    bar: ProgressBar,
}

impl ByteProgress {
    /// Begins; draws only on a terminal and unless `quiet`.
    pub fn new(what: &str, quiet: bool) -> Self {
        let bar = match !quiet && std::io::stderr().is_terminal() {
            false => ProgressBar::hidden(),
            true => ProgressBar::new(0).with_style(style(
                "{prefix} {wide_bar} {binary_bytes} of {binary_total_bytes}, {eta} left",
            )),
        };
        bar.set_prefix(what.to_owned());
        ByteProgress { bar }
    }

    /// Draws how many bytes are done.
    pub fn show(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    /// Takes the bar away.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// Records a second.
pub fn rate(records: u64, time: Duration) -> f64 {
    records as f64 / time.as_secs_f64().max(1e-3)
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
