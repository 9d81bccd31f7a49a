//! `entropic plugin`: what plugins there are, and getting one.

use clap::{Args, Subcommand};

use super::{Outcome, print, table};
use crate::plugin::{self, Fetched, Found, KNOWN, Known, Origin};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List plugins: where they are, the version of the PJRT API that they speak, and whether their files are the pinned
    /// ones. Of several of one name, the first is the one that the name means.
    List {
        /// Known names, or paths of libraries; every known plugin if none are given.
        plugins: Vec<String>,
    },
    /// Download a known plugin with pip, check its SHA-256, and put it where the other commands look for it.
    Fetch {
        /// Which one.
        #[arg(value_parser = KNOWN.iter().map(|k| k.name).collect::<Vec<_>>())]
        name: String,
    },
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    match &arguments.command {
        Command::List { plugins } => list(plugins),
        Command::Fetch { name } => fetch(name),
    }
}

fn list(plugins: &[String]) -> anyhow::Result<Outcome> {
    let mut table = table(&["plugin", "found in", "PJRT API", "files", "library"]);
    let mut row = |name: &str, found: &Found, known: Option<&Known>| {
        // Only the version is read: initialising a plugin may lock its devices, or fail without them.
        let version = match known.map_or(Ok(()), |known| plugin::check(known, found)) {
            Ok(()) => pjrt::Plugin::api_version_of(&found.path)
                .map_or_else(|error| format!("does not load: {error}"), |version| version.to_string()),
            Err(error) => format!("not loaded: {error}"),
        };
        table.add_row([
            name.to_owned(),
            found.origin.to_string(),
            version,
            known.map_or_else(|| "unknown".to_owned(), |known| integrity(known, found)),
            found.path.display().to_string(),
        ]);
    };
    let mut missing = Vec::new();
    if plugins.is_empty() {
        for known in KNOWN {
            let found = known.found(true);
            found.iter().for_each(|found| row(known.name, found, Some(known)));
            if found.is_empty() {
                missing.push(known);
            }
        }
    }
    for given in plugins {
        let found = plugin::locate(given)?;
        let library = found.path.file_name().unwrap_or_default();
        let known = KNOWN.iter().find(|known| known.name == given || library == known.library);
        row(given, &found, known);
    }
    for known in missing {
        let package = format!("{} {}", known.package.name, known.package.version);
        let hint = format!("`entropic plugin fetch {}` gets {package}", known.name);
        table.add_row([known.name.to_owned(), "nowhere".to_owned(), String::new(), String::new(), hint]);
    }
    print(&format!("{table}\n"))?;
    Ok(Outcome::Done)
}

/// Whether a plugin's files are those that a fetch would install.
fn integrity(known: &Known, found: &Found) -> String {
    if known.package.build().is_none() {
        return "none pinned for this machine".to_owned();
    }
    match (plugin::differing(known, found).as_slice(), found.origin) {
        ([], _) => format!("pinned: {} {}", known.package.name, known.package.version),
        (files, Origin::PluginDir | Origin::Cache) => format!("NOT the pinned ones: {}", files.join(", ")),
        // Another release is nothing to worry about there.
        (_, Origin::Given | Origin::Python) => "not the pinned release".to_owned(),
    }
}

fn fetch(name: &str) -> anyhow::Result<Outcome> {
    let known = Known::by_name(name).ok_or_else(|| anyhow::anyhow!("there is no plugin {name:?}"))?;
    let packages: Vec<_> = known.packages().map(|p| format!("{} {}", p.name, p.version)).collect();
    eprintln!("fetching {} with pip", packages.join(", "));
    let line = match plugin::fetch(known)? {
        Fetched::Present(path) => format!("{} (was there already)\n", path.display()),
        Fetched::New(path) => format!("{}\n", path.display()),
    };
    print(&line)?;
    Ok(Outcome::Done)
}
