//! `entropic show`: a module as text.

use std::path::PathBuf;

use clap::Args;

use super::{Outcome, Reading, print};
use crate::model::Model;
use hlo::text::Preset;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A file with a module, or a bundle (its step is shown).
    #[arg(value_name = "MODEL")]
    file: PathBuf,
    #[command(flatten)]
    reading: Reading,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let model = Model::open_with(&arguments.file, &arguments.reading.reader())?;
    print(&hlo::text::print(model.module(), Preset::Canonical))?;
    Ok(Outcome::Done)
}
