//! `entropic inspect`: what discovery found, as tables or JSON, and gradients as extra outputs.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use passes::expose::Exposed;
use passes::step::GradientStatus;
use serde::Serialize;

use super::{Outcome, Reading, print, table};
use entropic::files;
use entropic::model::{Found, Model};
use entropic::report::{self, ParameterReport, Report};

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
        print(&tables(&report))?;
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

fn tables(report: &Report) -> String {
    let mut parameters = table(&["parameter", "shape", "gradient", "update", "moments", "confidence"]);
    for parameter in &report.parameters {
        parameters.add_row([
            parameter.name.clone(),
            parameter.shape.clone(),
            gradient_cell(parameter),
            update_cell(parameter),
            parameter
                .moments
                .iter()
                .map(|m| format!("{} {}{}", m.name, kebab(&m.form), of(&m.of)))
                .collect::<Vec<_>>()
                .join("\n"),
            parameter.confidence.to_string(),
        ]);
    }
    let mut states = table(&["state", "in", "out", "shape", "role", "class", "why"]);
    for state in report.states.iter().filter(|s| kebab(&s.role) != "parameter") {
        states.add_row([
            state.name.clone(),
            state.input.to_string(),
            state.output.to_string(),
            state.shape.clone(),
            kebab(&state.role),
            state.class.to_string(),
            state.reason.clone(),
        ]);
    }
    let mut actuators = table(&["actuator", "available", "detail"]);
    for actuator in &report.actuators {
        actuators.add_row([actuator.name, if actuator.available { "yes" } else { "no" }, &actuator.detail]);
    }
    let mut text = format!("{}\n", report.model);
    let names =
        |named: &[entropic::report::Named]| named.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(", ");
    text += &format!("batch: {}\n", if report.batch.is_empty() { "none".to_owned() } else { names(&report.batch) });
    let loss = report.loss.as_ref().map(|l| format!("output {} ({})", l.index, l.name));
    text += &format!("loss: {}\n", loss.as_deref().unwrap_or("not recognised"));
    if let Some(inside) = &report.inside_loop {
        let steps = report.steps_per_launch.map_or("an unknown number of".to_owned(), |steps| steps.to_string());
        text += &format!("the step is the body of the loop {inside}, which does {steps} steps in one launch\n");
    }
    text += &format!("{parameters}\n");
    if states.row_count() > 0 {
        text += &format!("{states}\n");
    }
    text += &format!("{actuators}\n");
    for note in &report.notes {
        text += &format!("note: {note}\n");
    }
    for parameter in &report.parameters {
        for reason in &parameter.reasons {
            text += &format!("{}: {reason}\n", parameter.name);
        }
    }
    text
}

/// The views of the gradient; those that coincide share a line.
fn gradient_cell(parameter: &ParameterReport) -> String {
    let Some(g) = &parameter.gradient else {
        return format!("none: {}", parameter.no_gradient.as_deref().unwrap_or_default());
    };
    let mut lines: Vec<(String, &str)> = Vec::new();
    for (view, name) in [("eff", &g.eff), ("preclip", &g.preclip), ("raw", &g.raw)] {
        match lines.last_mut() {
            Some((views, last)) if last == name => *views += &format!(" = {view}"),
            _ => lines.push((view.to_owned(), name)),
        }
    }
    let mut text = lines.iter().map(|(views, name)| format!("{views}: {name}")).collect::<Vec<_>>().join("\n");
    if let Some(scale) = &g.constant_scale {
        text += &format!("\nknown up to the factor {} at {}", scale.factor, scale.instruction);
    }
    text
}

fn update_cell(parameter: &ParameterReport) -> String {
    let update = &parameter.update;
    match (update.form, &update.u) {
        ("add", Some(u)) => format!("p + {u}"),
        ("subtract", Some(u)) => format!("p - {u}"),
        _ => format!("{} - p", update.new),
    }
}

fn of(of: &passes::step::MomentOf) -> &'static str {
    match of {
        passes::step::MomentOf::Gradient => " of g",
        passes::step::MomentOf::GradientSquared => " of g²",
        passes::step::MomentOf::Other => "",
    }
}

/// The name that a value has in JSON.
fn kebab(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
