//! `entropic worker`: the program's own child process, see [`crate::isolate`].

use std::path::PathBuf;

use clap::Args;

use super::Outcome;
use crate::isolate;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The folder of the job.
    folder: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    match isolate::serve(&arguments.folder)? {}
}
