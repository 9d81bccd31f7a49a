//! `entropic plugin`: what plugins there are, and getting one.

use clap::{Args, Subcommand};

use super::{Outcome, print, table};
use entropic::plugin::{self, Fetched, KNOWN, Known};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the known plugins: where they are, and the version of the PJRT API that they speak.
    List,
    /// Download a known plugin with pip, check its SHA-256, and put it where the other commands look for it.
    Fetch {
        /// Which one.
        #[arg(value_parser = KNOWN.iter().map(|k| k.name).collect::<Vec<_>>())]
        name: String,
    },
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    match &arguments.command {
        Command::List => list(),
        Command::Fetch { name } => fetch(name),
    }
}

fn list() -> anyhow::Result<Outcome> {
    let mut table = table(&["plugin", "package", "PJRT API", "library"]);
    for known in KNOWN {
        let path = known.location()?;
        let version = match plugin::find(known.name) {
            Err(_) => "not fetched".to_owned(),
            Ok(path) => match pjrt::Plugin::load(&path) {
                Ok(plugin) => plugin.api_version().to_string(),
                Err(error) => format!("does not load: {error}"),
            },
        };
        table.add_row([
            known.name.to_owned(),
            format!("{} {}", known.package, known.version),
            version,
            path.display().to_string(),
        ]);
    }
    print(&format!("{table}\n"))?;
    Ok(Outcome::Done)
}

fn fetch(name: &str) -> anyhow::Result<Outcome> {
    let known = Known::by_name(name).ok_or_else(|| anyhow::anyhow!("there is no plugin {name:?}"))?;
    eprintln!("fetching {} {} with pip", known.package, known.version);
    let line = match plugin::fetch(known)? {
        Fetched::Present(path) => format!("{} (was there already)\n", path.display()),
        Fetched::New(path) => format!("{}\n", path.display()),
    };
    print(&line)?;
    Ok(Outcome::Done)
}
