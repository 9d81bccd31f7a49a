//! Progress of a run: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::train::{Observer, StepRecord};

/// Seconds between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Writes to standard error.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    terminal: bool,
    steps: u64,
    refused: u64,
    /// Steps that were done before the run went on.
    done_before: u64,
    start: Instant,
    last_line: Instant,
}

impl Progress {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let terminal = std::io::stderr().is_terminal();
        Self { bar: None, terminal, steps: 0, refused: 0, done_before: 0, start: now, last_line: now }
    }

    /// Prints a line, above the bar where there is one.
    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    fn line(&self, record: &StepRecord) {
        let done = record.step + 1;
        let elapsed = self.start.elapsed().as_secs_f64();
        let rate = done.saturating_sub(self.done_before) as f64 / elapsed.max(1e-9);
        let left = self.steps.saturating_sub(done) as f64 / rate;
        eprintln!("step {done}/{}  {}  {rate:.1} steps/s  ETA {left:.0} s", self.steps, describe(record, self.refused));
    }
}

impl Observer for Progress {
    fn phase(&mut self, what: &str) {
        eprintln!("{what}");
    }

    fn note(&mut self, what: &str) {
        eprintln!("{what}");
    }

    fn warn(&mut self, what: &str) {
        self.say(&format!("warning: {what}"));
    }

    fn start(&mut self, done: u64, steps: u64) {
        self.steps = steps;
        self.done_before = done;
        self.start = Instant::now();
        self.last_line = self.start;
        if self.terminal {
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}  {per_sec}  ETA {eta}");
            let bar = ProgressBar::new(steps).with_position(done);
            bar.reset_eta();
            self.bar = Some(match style {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            });
        }
    }

    fn step(&mut self, record: &StepRecord) {
        self.refused += u64::from(record.control.as_ref().is_some_and(|c| c.gate.is_some()));
        if let Some(bar) = &self.bar {
            bar.set_message(describe(record, self.refused));
            bar.set_position(record.step + 1);
        } else if self.last_line.elapsed() >= LINE_EVERY || record.step + 1 == self.steps {
            self.last_line = Instant::now();
            self.line(record);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }
}

fn describe(record: &StepRecord, refused: u64) -> String {
    let mut text = record.loss.map_or("loss not finite".to_owned(), |loss| format!("loss {loss:.4}"));
    if let Some(control) = &record.control {
        let entropy = control.entropy.map_or("-".to_owned(), |e| format!("{e:.3}"));
        text += &format!("  entropy {entropy}  refused {refused}");
    }
    text
}
