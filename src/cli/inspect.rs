//! `entropic inspect`: what discovery found, as tables or JSON, and gradients as extra outputs.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use passes::expose::Exposed;
use passes::step::GradientStatus;
use serde::Serialize;

use super::{Outcome, Reading, print, table};
use crate::files;
use crate::model::{Found, Model};
use crate::report::{self, Report};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The bundle or module to look into.
    model: PathBuf,
    #[command(flatten)]
    reading: Reading,
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// Write the module with this view of every gradient as an extra output, in parameter order, instead of describing it.
    #[arg(long, value_name = "VIEW", requires = "output")]
    expose: Option<View>,
    /// Where the module with exposed gradients goes, a .hlo.pb file.
    #[arg(short, long, value_name = "OUT", requires = "expose")]
    output: Option<PathBuf>,
}

/// A view of the gradient.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum View {
    /// What the optimizer consumes.
    Eff,
    /// Before clipping, unscaling and skipping.
    Preclip,
    /// Before additions that do not depend on data, such as weight decay.
    Raw,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let model = Model::open_with(&arguments.model, &arguments.reading.reader())?;
    let found = model.find()?;
    if let (Some(view), Some(output)) = (arguments.expose, &arguments.output) {
        return expose(found, view, output, arguments.json);
    }
    let mut report = Report::new(&model.path().display().to_string(), &found);
    report.notes.splice(0..0, model.origin().note());
    if arguments.json {
        print(&(serde_json::to_string_pretty(&report)? + "\n"))?;
    } else {
        print(&report.text())?;
    }
    Ok(Outcome::Done)
}

/// What was exposed, and what could not be.
#[derive(Debug, Serialize)]
struct Exposure {
    format_version: u32,
    view: &'static str,
    module: String,
    outputs: Vec<Exposed>,
    missing: Vec<Missing>,
}

/// A parameter without a gradient.
#[derive(Debug, Serialize)]
struct Missing {
    parameter: String,
    input: usize,
    reason: String,
}

fn expose(found: Found, view: View, output: &Path, json: bool) -> anyhow::Result<Outcome> {
    let Found { mut module, step, .. } = found;
    let (name, chosen) = match view {
        View::Eff => ("eff", passes::expose::View::Eff),
        View::Preclip => ("preclip", passes::expose::View::Preclip),
        View::Raw => ("raw", passes::expose::View::Raw),
    };
    let outputs = passes::expose::expose(&mut module, &step, chosen).context("nothing was exposed")?;
    hlo::verify::verify(&module).context("the module with exposed gradients is not valid, and was not written")?;
    let missing = step
        .parameters
        .iter()
        .filter_map(|p| match &p.gradient {
            GradientStatus::Absent { reason } => {
                Some(Missing { parameter: p.name.clone(), input: p.input, reason: reason.clone() })
            }
            GradientStatus::Found(_) => None,
        })
        .collect();
    files::write(output, &module.export())?;
    let exposure = Exposure {
        format_version: report::FORMAT_VERSION,
        view: name,
        module: output.display().to_string(),
        outputs,
        missing,
    };
    if json {
        print(&(serde_json::to_string_pretty(&exposure)? + "\n"))?;
        return Ok(Outcome::Done);
    }
    let mut rows = table(&["output", name, "parameter"]);
    for exposed in &exposure.outputs {
        rows.add_row([exposed.output.to_string(), exposed.instruction.clone(), exposed.parameter.clone()]);
    }
    let mut text = format!("{}\n{rows}\n", exposure.module);
    for missing in &exposure.missing {
        text += &format!("{} has no gradient: {}\n", missing.parameter, missing.reason);
    }
    print(&text)?;
    Ok(Outcome::Done)
}
