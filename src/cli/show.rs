//! `entropic show`: a module as text.

use std::path::PathBuf;

use clap::Args;

use super::{Outcome, print};
use entropic::bundle::{self, Bundle};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A serialized HloModuleProto, or a bundle (its step is shown).
    file: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let module =
        if arguments.file.is_dir() { Bundle::open(&arguments.file)?.module } else { bundle::read_module(&arguments.file)? };
    print(&hlo::text::print(&module))?;
    Ok(Outcome::Done)
}
