//! `entropic compare`: runs side by side.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Outcome, print, table};
use crate::files;
use crate::run_report::{Agreement, Overview, Row, comparison, outcomes, settings};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The folders of two or more runs; each is compared with the first.
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Write a page with their curves in one chart, too.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let folders: Vec<&Path> = arguments.runs.iter().map(PathBuf::as_path).collect();
    let runs = folders.iter().map(|folder| Overview::read(folder)).collect::<Result<Vec<_>, _>>()?;
    for run in runs.iter().filter(|run| run.cut.is_some()) {
        eprintln!("warning: the last line of {}/metrics.jsonl was cut short and is left out", run.name());
    }
    let settings = settings(&folders)?;
    let mut agreements = Vec::new();
    if let Some((first, others)) = folders.split_first() {
        for other in others {
            let agreement = Agreement::of(first, other)?;
            agreements.push(agreement.told(&first.display().to_string(), &other.display().to_string()));
        }
    }
    let names: Vec<String> = runs.iter().map(Overview::name).collect();
    let mut text = format!("{}\n", rows(&names, &outcomes(&runs)));
    text += &if settings.is_empty() {
        "\nAll were asked for the same.\n".to_owned()
    } else {
        format!("\nWhat was asked for differently:\n{}\n", rows(&names, &settings))
    };
    text.push('\n');
    agreements.iter().for_each(|told| text += &format!("{told}.\n"));
    if let Some(output) = &arguments.output {
        files::write(output, comparison(&runs, &settings, &agreements).as_bytes())?;
    }
    print(&text)?;
    Ok(Outcome::Done)
}

fn rows(names: &[String], rows: &[Row]) -> comfy_table::Table {
    let head: Vec<&str> = [""].into_iter().chain(names.iter().map(String::as_str)).collect();
    let mut table = table(&head);
    for row in rows {
        let values = row.values.iter().map(|value| value.as_deref().unwrap_or("-"));
        table.add_row([row.name.as_str()].into_iter().chain(values));
    }
    table
}
