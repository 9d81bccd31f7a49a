//! Runs side by side: what was asked for differently, what came of it, and where two of them part.

use std::collections::BTreeMap;
use std::path::Path;

use maud::{Markup, html};
use serde_json::Value;

use super::chart::{Chart, Curve, number};
use super::overview::Overview;
use super::page::{flat, frame};
use super::series::Series;
use crate::recorded::{self, RecordedError, Steps};

/// Keys of `run.json` that say what its other keys say.
const SAID_TWICE: [&str; 2] = ["invocation", "program"];

/// Fields of a record that are not the same when a run is repeated.
const TIMES: &str = "seconds";

/// A row of a comparison: what it is, and a value for each run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What is compared.
    pub name: String,
    /// The values, in the order of the runs; `None` where a run has none.
    pub values: Vec<Option<String>>,
}

/// What `run.json` says differently in these runs.
///
/// # Errors
///
/// Where one cannot be read.
pub fn settings(folders: &[&Path]) -> Result<Vec<Row>, RecordedError> {
    let mut rows: BTreeMap<String, Vec<Option<String>>> = BTreeMap::new();
    for (n, folder) in folders.iter().enumerate() {
        let mut document = recorded::whole_document(folder)?;
        if let Some(fields) = document.as_object_mut() {
            fields.retain(|name, _| !SAID_TWICE.contains(&name.as_str()));
        }
        let mut said = Vec::new();
        flat(&document, "", &mut said);
        for (name, value) in said {
            let values = rows.entry(name).or_insert_with(|| vec![None; folders.len()]);
            if let Some(slot) = values.get_mut(n) {
                *slot = Some(value);
            }
        }
    }
    let differs = |values: &[Option<String>]| values.windows(2).any(|pair| pair.first() != pair.last());
    Ok(rows.into_iter().filter(|(_, v)| differs(v)).map(|(name, values)| Row { name, values }).collect())
}

/// What runs came to, side by side.
#[must_use]
pub fn outcomes(runs: &[Overview]) -> Vec<Row> {
    let summed = |of: &dyn Fn(&crate::train::Summary) -> Option<f64>, run: &Overview| {
        run.summary.as_ref().and_then(of).map(number)
    };
    type Value<'a> = &'a dyn Fn(&Overview) -> Option<String>;
    let controlled = |run: &Overview, value: u64| run.run.policy.is_some().then(|| value.to_string());
    let not_finite =
        |run: &Overview| run.events.iter().find(|e| e.name == "loss not finite").map_or(0, |e| e.total).to_string();
    let rows: [(&str, Value<'_>); 11] = [
        ("ending", &|run| Some(run.summary.as_ref().map_or("not recorded", |s| s.ending.told()).to_owned())),
        ("steps", &|run| Some(run.steps.to_string())),
        ("training loss, mean of the last 100", &|run| run.final_loss().map(number)),
        ("held-out loss before", &|run| summed(&|s| s.held_out_before, run)),
        ("held-out loss after", &|run| summed(&|s| s.held_out_after, run)),
        ("losses not finite", &|run| Some(not_finite(run))),
        ("steps/s", &|run| run.steps_per_second().map(number)),
        ("updates refused", &|run| controlled(run, run.refused())),
        ("rolled back", &|run| controlled(run, run.rollbacks())),
        ("entropy at the end, smoothed", &|run| run.final_entropy().map(number)),
        ("entropy, mean", &|run| (!run.entropy.is_empty()).then(|| number(run.entropy.total().mean))),
    ];
    let row =
        |(name, value): (&str, Value<'_>)| Row { name: name.to_owned(), values: runs.iter().map(value).collect() };
    rows.into_iter().map(row).collect()
}

/// How far two runs are the same, up to times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agreement {
    /// In all of their steps.
    Whole {
        /// How many.
        steps: u64,
    },
    /// In all steps of the one that has fewer.
    Prefix {
        /// How many.
        steps: u64,
        /// Whether it is the first run that goes on.
        first_goes_on: bool,
    },
    /// Up to a step.
    Until {
        /// The first step that differs.
        step: u64,
        /// The first field of it that does.
        field: String,
        /// What both have there.
        values: [String; 2],
    },
}

impl Agreement {
    /// Compares the metrics of two runs, step by step.
    ///
    /// # Errors
    ///
    /// Where they cannot be read, or are damaged.
    pub fn of(first: &Path, second: &Path) -> Result<Self, RecordedError> {
        let mut a: Steps<Value> = Steps::open(first)?;
        let mut b: Steps<Value> = Steps::open(second)?;
        let mut steps = 0;
        loop {
            let (one, other) = match (a.next_step()?, b.next_step()?) {
                (None, None) => return Ok(Self::Whole { steps }),
                (Some(one), Some(other)) => (one, other),
                (one, _) => return Ok(Self::Prefix { steps, first_goes_on: one.is_some() }),
            };
            if let Some((field, values)) = difference(&one, &other) {
                let number = |record: &Value| record.get("step").and_then(Value::as_u64).unwrap_or_default();
                return Ok(Self::Until { step: number(&one).min(number(&other)), field, values });
            }
            steps += 1;
        }
    }

    /// In words.
    #[must_use]
    pub fn told(&self, first: &str, second: &str) -> String {
        match self {
            Self::Whole { steps } => format!("{first} and {second} are the same in all {steps} steps, up to times"),
            Self::Prefix { steps, first_goes_on } => {
                let longer = if *first_goes_on { first } else { second };
                format!("{first} and {second} are the same in {steps} steps, up to times; {longer} has more")
            }
            Self::Until { step, field, values: [a, b] } => {
                format!("{first} and {second} differ from step {step} on: {field} is {a} and {b}")
            }
        }
    }
}

/// The first field in which two records differ, with what both have there.
fn difference(one: &Value, other: &Value) -> Option<(String, [String; 2])> {
    if one.as_object()?.get("step") != other.as_object()?.get("step") {
        return inside("step", one.get("step").unwrap_or(&Value::Null), other.get("step").unwrap_or(&Value::Null));
    }
    let names = one.as_object()?.keys().chain(other.as_object()?.keys()).filter(|name| *name != TIMES);
    names.map(String::as_str).find_map(|name| {
        let absent = Value::Null;
        inside(name, one.get(name).unwrap_or(&absent), other.get(name).unwrap_or(&absent))
    })
}

fn inside(name: &str, one: &Value, other: &Value) -> Option<(String, [String; 2])> {
    match (one, other) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            keys.map(String::as_str).find_map(|key| {
                let absent = Value::Null;
                let [one, other] = [a, b].map(|side| side.get(key).unwrap_or(&absent));
                inside(&format!("{name}.{key}"), one, other)
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let pairs = a.iter().zip(b).enumerate();
            pairs
                .into_iter()
                .find(|(_, (a, b))| !same(a, b))
                .and_then(|(n, (a, b))| inside(&format!("{name}[{n}]"), a, b))
        }
        _ => (!same(one, other)).then(|| (name.to_owned(), [one, other].map(Value::to_string))),
    }
}

/// Whether two values are the same bits: 0 and -0 are not.
fn same(one: &Value, other: &Value) -> bool {
    let negative = |value: &Value| value.as_f64().is_some_and(f64::is_sign_negative);
    one == other && negative(one) == negative(other)
}

/// The runs on one page, with their losses in one chart.
#[must_use]
pub fn comparison(runs: &[Overview], settings: &[Row], agreements: &[String]) -> String {
    let names: Vec<String> = runs.iter().map(Overview::name).collect();
    let last = runs.iter().map(|run| run.last).max().unwrap_or_default();
    // Bins of one width, or else a short run looks noisier than a long one.
    let overlaid = |of: fn(&Overview) -> &Series| -> Vec<Curve> {
        let width = runs.iter().map(|run| of(run).width()).max().unwrap_or(1);
        let all = runs.iter().zip(&names).enumerate().filter(|(_, (run, _))| !of(run).is_empty());
        all.map(|(n, (run, name))| Curve::new(name, n, &of(run).with_width(width), run.last).means()).collect()
    };
    let chart = |title: &str, unit: &str, curves: Vec<Curve>| {
        let (title, unit) = (title.to_owned(), unit.to_owned());
        Chart { title, unit, last, curves, logarithmic: false, from_zero: false }.draw()
    };
    let mut units: Vec<&str> = runs.iter().map(|run| run.run.loss_unit.as_str()).collect();
    units.dedup();
    let (losses, entropies) = (overlaid(|run| &run.loss), overlaid(|run| &run.entropy));
    let body = html! {
        h1 { "Runs compared" }
        p.sub { @for (n, name) in names.iter().enumerate() { @if n > 0 { ", " } code { (name) } } }
        section {
            h2 { "Training loss" }
            @if losses.is_empty() { p.none { "No loss is finite." } }
            @else { (chart("training losses over steps", &units.join(", "), losses)) }
        }
        @if !entropies.is_empty() {
            section {
                h2 { "Entropy of the whole gradient" }
                (chart("entropies over steps", "share of the largest possible", entropies))
            }
        }
        section { h2 { "What they came to" } (rows(&names, &outcomes(runs))) }
        section {
            h2 { "What was asked for differently" }
            @if settings.is_empty() { p.none { "Nothing." } } @else { (rows(&names, settings)) }
        }
        section { h2 { "Step by step" } @for told in agreements { p { (told) "." } } }
    };
    frame("runs compared", &body)
}

fn rows(names: &[String], rows: &[Row]) -> Markup {
    html! {
        div.wide { table {
            tr { th {} @for name in names { th { (name) } } }
            @for row in rows {
                tr { th { (row.name) } @for value in &row.values { td { (value.as_deref().unwrap_or("–")) } } }
            }
        } }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_field_that_differs_is_named_and_times_are_not() {
        let one = json!({"step": 3, "loss": 1.0, "seconds": 1.0, "tensor_entropy": [0.5, 0.25], "rollback": {"rolled_back": false}});
        for (change, expected) in [
            (json!({"seconds": 9.0}), None),
            (json!({"loss": null}), Some("loss")),
            (json!({"tensor_entropy": [0.5, 0.5]}), Some("tensor_entropy[1]")),
            (json!({"tensor_entropy": [0.5]}), Some("tensor_entropy")),
            (json!({"rollback": {"rolled_back": true}}), Some("rollback.rolled_back")),
            (json!({"fault": "noise"}), Some("fault")),
            (json!({"step": 4, "loss": 2.0}), Some("step")),
        ] {
            let mut other = one.clone();
            for (key, value) in change.as_object().into_iter().flatten() {
                other.as_object_mut().into_iter().for_each(|o| drop(o.insert(key.clone(), value.clone())));
            }
            let found = difference(&one, &other).map(|(field, _)| field);
            assert_eq!(found.as_deref(), expected, "{change}");
        }
        assert!(!same(&json!(0.0), &json!(-0.0)));
    }
}
