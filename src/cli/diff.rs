//! `entropic diff`: two modules, instruction by instruction.

use std::path::PathBuf;

use clap::Args;

use super::{Outcome, print, table};
use crate::diff::{Diff, Kind, Line, Scope, html};
use crate::files;
use crate::model::Model;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The first module or bundle.
    before: PathBuf,
    /// The second one.
    after: PathBuf,
    /// List every instruction that differs, not only their counts.
    #[arg(long)]
    full: bool,
    /// Print JSON instead of tables.
    #[arg(long, conflicts_with = "full")]
    json: bool,
    /// Write the difference as one page, too.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Exit with 1 where the modules differ.
    #[arg(long)]
    exit_code: bool,
}

/// Opcodes that a scope's row names.
const OPCODES: usize = 6;

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let (before, after) = (Model::open(&arguments.before)?, Model::open(&arguments.after)?);
    let diff = Diff::of(before.module(), after.module());
    let names = [&before, &after].map(|model| model.path().display().to_string());
    if let Some(path) = &arguments.html {
        let [before, after] = &names;
        files::write(path, html::page(&diff, before, after).as_bytes())?;
    }
    if arguments.json {
        print(&(serde_json::to_string_pretty(&diff.summary())? + "\n"))?;
    } else {
        print(&text(&diff, &names, arguments.full))?;
    }
    Ok(if arguments.exit_code && !diff.is_equal() { Outcome::Differs } else { Outcome::Done })
}

fn text(diff: &Diff, [before, after]: &[String; 2], full: bool) -> String {
    if diff.is_equal() {
        return format!("{before} and {after} are the same program: {} instructions\n", diff.after.instructions);
    }
    let counts = diff.counts();
    let mut text = format!(
        "{before}: {} instructions, {after}: {}\n{} same, {} changed, {} added, {} removed\n",
        diff.before.instructions, diff.after.instructions, counts.same, counts.changed, counts.added, counts.removed
    );
    let scopes = diff.scopes();
    if !scopes.is_empty() {
        let mut rows = table(&["scope", "changed", "added", "removed", "opcodes"]);
        for Scope { name, counts, opcodes } in scopes {
            let mut named: Vec<_> = opcodes.iter().take(OPCODES).map(|(opcode, n)| format!("{opcode} {n}")).collect();
            if opcodes.len() > OPCODES {
                named.push(format!("{} more", opcodes.len() - OPCODES));
            }
            rows.add_row([
                if name.is_empty() { "(none)".to_owned() } else { name },
                counts.changed.to_string(),
                counts.added.to_string(),
                counts.removed.to_string(),
                named.join(", "),
            ]);
        }
        text += &format!("{rows}\n");
    }
    let header = diff.header.iter().map(|c| format!("{} {}\n", if c.added { '+' } else { '-' }, c.text));
    text.extend(header);
    if full {
        text += &listing(diff);
    }
    text
}

/// What differs, by computation: `+` added, `-` removed, `<` and `>` before and after a change.
fn listing(diff: &Diff) -> String {
    let mut text = String::new();
    for computation in &diff.computations {
        let differing: Vec<_> = computation.rows.iter().filter(|row| row.kind != Kind::Same).collect();
        if differing.is_empty() {
            continue;
        }
        text += &format!("\n%{}\n", computation.name());
        for row in differing {
            let line = |line: &Option<Line>| line.as_ref().map(|l| l.text.clone()).unwrap_or_default();
            text += &match row.kind {
                Kind::Added => format!("+ {}\n", line(&row.after)),
                Kind::Removed => format!("- {}\n", line(&row.before)),
                Kind::Same => String::new(),
                Kind::Changed => {
                    let changes: Vec<_> = row.changes.iter().map(|c| c.name()).collect();
                    format!("< {}\n> {}  ({})\n", line(&row.before), line(&row.after), changes.join(", "))
                }
            };
        }
    }
    text
}
