//! `entropic explain`: one step of a run in words.

use std::path::PathBuf;

use clap::Args;

use super::{Outcome, print};
use crate::explain::explain;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The folder of a run.
    run: PathBuf,
    /// Number of the step, from 0.
    #[arg(long)]
    step: u64,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    print(&explain(&arguments.run, arguments.step)?)?;
    Ok(Outcome::Done)
}
