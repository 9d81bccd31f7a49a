//! A report as tables.

use passes::step::MomentOf;

use super::{Named, ParameterReport, Report};
use crate::table::table;

impl Report {
    /// What was found, as tables for a person to read.
    #[must_use]
    pub fn text(&self) -> String {
        tables(self)
    }
}

fn tables(report: &Report) -> String {
    let mut parameters = table(&["parameter", "shape", "class", "gradient", "update", "moments", "confidence"]);
    for parameter in &report.parameters {
        parameters.add_row([
            parameter.name.clone(),
            parameter.shape.clone(),
            class_cell(parameter),
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
    let names = |named: &[Named]| named.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(", ");
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
        text += &format!("{}: {}: {}\n", parameter.name, parameter.class, parameter.class_reason);
    }
    text
}

/// What the tensor is for, and its matrices where they are not its shape.
fn class_cell(parameter: &ParameterReport) -> String {
    match parameter.matrices.filter(|m| m.count > 1 || m.row_axes > 1) {
        Some(matrices) => format!("{}: {matrices}", parameter.class),
        None => parameter.class.to_string(),
    }
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

fn of(of: &MomentOf) -> &'static str {
    match of {
        MomentOf::Gradient => " of g",
        MomentOf::GradientSquared => " of g²",
        MomentOf::Other => "",
    }
}

/// The name that a value has in JSON.
fn kebab(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
