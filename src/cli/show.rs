//! `entropic show`: a module as text.

use std::path::PathBuf;

use clap::Args;

use super::{Outcome, print};
use entropic::model::Model;
use hlo::text::Preset;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A bare module, or a bundle (its step is shown).
    #[arg(value_name = "MODEL")]
    file: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let model = Model::open(&arguments.file)?;
    print(&hlo::text::print(model.module(), Preset::Canonical))?;
    Ok(Outcome::Done)
}
