//! `entropic cache`: the compiled programs that are kept.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Outcome, print, table};
use crate::cache::{CACHE_SIZE, CompileCache};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the compiled programs, the one used last first.
    List,
    /// Remove all of them.
    Clear,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let Some(cache) = CompileCache::from_environment()? else {
        print(&format!("there is no cache: {CACHE_SIZE} is 0\n"))?;
        return Ok(Outcome::Done);
    };
    let text = match arguments.command {
        Command::List => {
            let entries = cache.entries()?;
            let mut table = table(&["used", "size", "program"]);
            for entry in &entries {
                let name = entry.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                table.add_row([ago(entry.used.elapsed().unwrap_or_default()), mebibytes(entry.size), name]);
            }
            let total = entries.iter().map(|entry| entry.size).sum();
            let (count, folder) = (entries.len(), cache.folder().display());
            format!("{table}\n{count} compiled programs, {}, in {folder}\n", mebibytes(total))
        }
        Command::Clear => {
            let (count, size) = cache.clear()?;
            format!("removed {count} compiled programs, {}, from {}\n", mebibytes(size), cache.folder().display())
        }
    };
    print(&text)?;
    Ok(Outcome::Done)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

fn ago(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s ago"),
        seconds @ 120..7200 => format!("{} min ago", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}
