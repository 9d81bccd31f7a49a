//! `entropic report`: a run as one page, or as an event file for TensorBoard.

use std::path::PathBuf;

use clap::Args;

use super::{Outcome, print};
use crate::files;
use crate::run_report::{Overview, page, tensorboard};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The folder of a run, which may still be going on.
    run: PathBuf,
    /// Where the page goes; RUN/report.html if not given.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write an event file for TensorBoard into this folder; then there is a page only with --output.
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    if let Some(folder) = &arguments.tensorboard {
        let events = tensorboard(&arguments.run, folder)?;
        warn(events.cut);
        print(&format!("{} steps in {}\n", events.steps, events.path.display()))?;
        if arguments.output.is_none() {
            return Ok(Outcome::Done);
        }
    }
    let overview = Overview::read(&arguments.run)?;
    let output = arguments.output.clone().unwrap_or_else(|| arguments.run.join("report.html"));
    files::write(&output, page(&overview).as_bytes())?;
    warn(overview.cut);
    print(&format!("{} steps of {} in {}\n", overview.steps, overview.run.model, output.display()))?;
    Ok(Outcome::Done)
}

fn warn(cut: Option<usize>) {
    if let Some(line) = cut {
        eprintln!("warning: line {line}, the last one of metrics.jsonl, was cut short and is left out");
    }
}
