//! A run as one page.
//!
//! The page needs nothing from outside and runs no script; a policy in it says so to the browser. Everything that comes from the
//! run's files is escaped by the template.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use super::chart::{Chart, Curve, Point, number};
use super::heat::{HeatMap, timeline};
use super::overview::{FINAL, Overview};
use super::series::{Series, rates};

pub(super) const STYLE: &str = include_str!("page.css");

/// The frame of every page.
pub(super) fn frame(title: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy"
                    content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    };
    page.into_string()
}

/// The page of a run.
#[must_use]
pub fn page(run: &Overview) -> String {
    let body = html! {
        h1 { (run.run.model) }
        p.sub { (run.name()) @if let Some(version) = &run.run.version { " · entropic " (version) } }
        (notes(run))
        @if run.steps > 0 {
            (tiles(run))
            (losses(run))
            @if !run.events.is_empty() {
                section { h2 { "What happened" } (timeline(&run.events, run.last)) (event_table(run)) }
            }
            (control(run))
            (throughput(run))
        }
        section { h2 { "What ran" } div.wide { (ran(run)) } }
        @if run.steps > 0 { (tensor_table(run)) }
        @if let Some(policy) = &run.run.policy {
            section {
                h2 { "Policy" }
                details { summary { "every key of it" } div.wide { (keys(&serde_json::to_value(policy).unwrap_or_default())) } }
            }
        }
    };
    frame(&format!("{} · {}", run.run.model, run.name()), &body)
}

/// What the reader must know of the record itself.
fn notes(run: &Overview) -> Markup {
    html! {
        @if run.summary.is_none() {
            p.warn {
                "There is no summary.json: the run is still going on, or it ended without warning. This page shows what was recorded \
                 when it was made."
            }
        }
        @if let Some(line) = run.cut {
            p.warn { "Line " (line) ", the last one of metrics.jsonl, was cut short and is left out." }
        }
        @if run.steps == 0 { p.warn { "No step was recorded." } }
        @if run.steps > 0 && run.steps <= run.last {
            p.warn { "Of steps 0 to " (run.last) ", " (run.last - run.steps + 1) " are not in metrics.jsonl." }
        }
    }
}

fn tiles(run: &Overview) -> Markup {
    let optional = |value: Option<f64>| value.map_or("none".to_owned(), number);
    let held_out = run.summary.as_ref().and_then(|s| s.held_out_after);
    let before = run.summary.as_ref().and_then(|s| s.held_out_before);
    html! {
        div.tiles {
            div {
                b { (run.steps) }
                span { "steps" @if let Some(asked) = run.run.steps { " of " (asked) }
                    @if let Some(summary) = &run.summary { ", " (summary.ending.told()) } }
            }
            div { b { (optional(run.final_loss())) } span { "training loss, mean of the last " (FINAL.min(run.steps as usize)) } }
            @if held_out.is_some() || before.is_some() {
                div { b { (optional(held_out)) } span { "held-out loss, " (optional(before)) " before" } }
            }
            div { b { (optional(run.steps_per_second())) } span { "steps per second" } }
            @if run.run.policy.is_some() {
                div { b { (run.refused()) } span { "updates refused, " (run.rollbacks()) " rollbacks" } }
                div { b { (optional(run.final_entropy())) } span { "entropy, smoothed, at the end" } }
            }
        }
    }
}

fn losses(run: &Overview) -> Markup {
    let mut curves = vec![Curve::new("training loss", 0, &run.loss, run.last)];
    let held_out = run.summary.as_ref().map(|s| [(0.0, s.held_out_before), (run.last as f64, s.held_out_after)]);
    let point = |(x, y): (f64, Option<f64>)| y.map(|y| vec![Point { x, y, low: y, high: y }]);
    let pieces: Vec<_> = held_out.into_iter().flatten().filter_map(point).collect();
    if !pieces.is_empty() {
        curves.push(Curve { name: "held-out, before and after".into(), colour: 1, dashed: false, pieces });
    }
    let width = run.loss.width();
    html! {
        section {
            h2 { "Loss" }
            @if run.loss.is_empty() { p.none { "No loss is finite." } }
            @else {
                (chart(run, "loss over steps", &run.run.loss_unit, curves))
                @if width > 1 { p.sub { "Each point is the mean of " (width) " steps; the shade reaches from the lowest to the highest." } }
            }
        }
    }
}

fn chart(run: &Overview, title: &str, unit: &str, curves: Vec<Curve>) -> Markup {
    let (title, unit) = (title.to_owned(), unit.to_owned());
    Chart { title, unit, last: run.last, curves, logarithmic: false, from_zero: false }.draw()
}

/// Curves of the series that have a value at all, coloured in order.
fn curves(of: &[(&str, &Series)], last: u64) -> Vec<Curve> {
    let filled = of.iter().filter(|(_, series)| !series.is_empty()).enumerate();
    filled.map(|(colour, (name, series))| Curve::new(name, colour, series, last)).collect()
}

fn control(run: &Overview) -> Markup {
    let last = run.last;
    let Some(policy) = &run.run.policy else {
        return html! { section { h2 { "Control" } p.none { "The run had no controller." } } };
    };
    let gate = &policy.gate.entropy;
    let mut entropy = Vec::new();
    if gate.enabled && !run.target.is_empty() {
        let band = Curve::new("band of the gate", 2, &run.target, last).band(gate.low, gate.high);
        // Its line is the target's.
        entropy.push(Curve { name: format!("band of the gate, {} to {} of the target", gate.low, gate.high), ..band });
    }
    for (name, colour, series) in [("entropy", 5, &run.entropy), ("smoothed", 0, &run.smoothed)] {
        if !series.is_empty() {
            entropy.push(Curve::new(name, colour, series, last));
        }
    }
    if !run.target.is_empty() {
        entropy.push(Curve::new("target", 1, &run.target, last).dashed());
    }
    let scales = curves(
        &[
            ("learning rate", &run.lr_scale),
            ("momentum", &run.momentum_scale),
            ("back-off after a return", &run.backoff),
        ],
        last,
    );
    let mut norms = curves(&[("norm", &run.norm)], last);
    if !run.threshold.is_empty() {
        norms.push(Curve::new("limit of the gate", 1, &run.threshold, last).dashed());
    }
    let names = || run.run.tensors.iter().map(String::as_str);
    let map = |title, series: &'_ [Series]| HeatMap { title, rows: names().zip(series).collect(), last }.draw();
    html! {
        section {
            h2 { "Entropy of the whole gradient" }
            @if entropy.is_empty() { p.none { "None was measured." } }
            @else { (chart(run, "entropy over steps", "share of the largest possible", entropy)) }
        }
        section { h2 { "Entropy by tensor" } (map("entropy of every tensor over steps", &run.tensors)) }
        @if !norms.is_empty() {
            section {
                h2 { "Norm of the gradient" }
                (Chart { title: "norm over steps".into(), unit: "before clipping".into(), last, curves: norms, logarithmic: true,
                    from_zero: false }.draw())
            }
        }
        @if !run.spectral.is_empty() {
            section {
                h2 { "Spectral entropy of updates" }
                (chart(run, "spectral entropy over steps", "before singular values are made equal",
                    curves(&[("spectral entropy", &run.spectral)], last)))
            }
        }
        @if !scales.is_empty() {
            section {
                h2 { "Scales" }
                @if scales.iter().all(Curve::is_one) {
                    p.none { "No law moved the learning rate or the momentum of all tensors: their scales stayed at 1." }
                } @else {
                    (chart(run, "scales of learning rate and momentum over steps", "1 leaves the optimizer alone", scales))
                }
            }
        }
        @for (heading, title, series) in [
            ("Scale of updates by tensor", "scale of every tensor over steps", &run.scales),
            ("Scale of momentum by tensor", "momentum scale of every tensor over steps", &run.momenta),
        ] {
            @if !series.is_empty() { section { h2 { (heading) } (map(title, series)) } }
        }
    }
}

fn throughput(run: &Overview) -> Markup {
    let rates = rates(&run.clock);
    let piece = rates.into_iter().map(|(x, y)| Point { x: x.min(run.last as f64), y, low: y, high: y }).collect();
    let curve = Curve { name: "steps per second".into(), colour: 0, dashed: false, pieces: vec![piece] };
    let curves = vec![curve];
    html! {
        @if curves.iter().any(|c| c.pieces.iter().any(|p| !p.is_empty())) {
            section {
                h2 { "Throughput" }
                (Chart { title: "steps per second over steps".into(), unit: "with what the host waits for".into(), last: run.last,
                    curves, logarithmic: false, from_zero: true }.draw())
            }
        }
    }
}

fn event_table(run: &Overview) -> Markup {
    html! {
        div.wide { table {
            tr { th { "what" } th.n { "times" } th.n { "first" } th.n { "last" } }
            @for event in &run.events {
                tr {
                    td { (event.name) } td.n { (event.total) }
                    @if let Some((first, last)) = event.steps { td.n { (first) } td.n { (last) } }
                }
            }
        } }
    }
}

/// Names and values of what is in a JSON object, nested ones with dots; nothing of what is `null`.
pub(super) fn flat(value: &Value, prefix: &str, into: &mut Vec<(String, String)>) {
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            for (name, value) in fields {
                flat(value, &if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") }, into);
            }
        }
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(plain).collect();
            into.push((prefix.to_owned(), items.join(", ")));
        }
        other => into.push((prefix.to_owned(), plain(other))),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn keys(value: &Value) -> Markup {
    let mut rows = Vec::new();
    flat(value, "", &mut rows);
    html! { table { @for (name, value) in &rows { tr { th { code { (name) } } td { (value) } } } } }
}

/// A JSON object in one line.
fn told(value: &Value) -> String {
    let mut parts = Vec::new();
    flat(value, "", &mut parts);
    parts.iter().map(|(name, value)| format!("{} {value}", name.replace('_', " "))).collect::<Vec<_>>().join("; ")
}

fn ran(run: &Overview) -> Markup {
    let document = &run.run;
    let policy = match (&document.policy, &run.summary) {
        (Some(_), _) => format!("yes, over {} tensors", document.tensors.len()),
        (None, _) => "none".to_owned(),
    };
    let whole = |value: Option<u64>| value.map(|v| v.to_string());
    let resumed: Vec<_> = run.resumed_from.iter().map(ToString::to_string).collect();
    let summary = run.summary.as_ref();
    let seconds = |value: f64| format!("{} s", number(value));
    let rows: Vec<(&str, Option<String>)> = vec![
        ("model", Some(document.model.clone())),
        ("bundle", document.model_path.clone()),
        ("module", document.module_sha256.as_ref().map(|sum| format!("SHA-256 {sum}"))),
        ("controller", Some(policy)),
        ("data", Some(told(&document.data)).filter(|t| !t.is_empty())),
        ("device", Some(told(&document.plugin)).filter(|t| !t.is_empty())),
        ("replicas", document.replicas.map(|n| n.to_string())),
        ("steps per launch", document.steps_per_launch.map(|n| n.to_string())),
        ("seed", document.seed.map(|n| n.to_string())),
        ("spoilt on purpose", document.corruption.as_ref().map(told)),
        ("ending", Some(summary.map_or("not recorded", |s| s.ending.told()).to_owned())),
        ("training", summary.map(|s| seconds(s.seconds)).or(run.seconds.map(seconds))),
        (
            "first step",
            summary.and_then(|s| s.first_step_seconds).map(|s| format!("{} after the program's start", seconds(s))),
        ),
        ("programs", summary.map(|s| format!("{} compiled, {} from the cache", s.compiled, s.cached))),
        ("went on from step", Some(resumed.join(", ")).filter(|t| !t.is_empty())),
        ("checkpoint", whole(run.checkpoint).map(|step| format!("after {step} steps"))),
        ("checkpoints failed", summary.map(|s| s.checkpoints_failed).filter(|n| *n > 0).map(|n| n.to_string())),
        (
            "replicas compared",
            summary
                .and_then(|s| s.consistency.as_ref())
                .map(|c| format!("{} times, {} of them not alike", c.replica_checks_total, c.replica_mismatches_total)),
        ),
    ];
    html! {
        table { @for (name, value) in &rows { @if let Some(value) = value { tr { th { (name) } td { (value) } } } } }
    }
}

fn tensor_table(run: &Overview) -> Markup {
    let end = |series: &Series| series.filled().last().map(|(_, bin)| bin.mean);
    let optional = |value: Option<f64>| value.map_or("–".to_owned(), number);
    html! {
        @if !run.tensors.is_empty() {
            section {
                h2 { "Tensors" }
                details {
                    summary { "entropies of " (run.tensors.len()) " tensors in numbers" }
                    div.wide { table {
                        tr { th { "tensor" } th.n { "mean" } th.n { "lowest" } th.n { "highest" } th.n { "at the end" } th.n { "scale" } }
                        @for (n, (name, series)) in run.run.tensors.iter().zip(&run.tensors).enumerate() {
                            @let total = series.total();
                            @let some = |value| optional((total.count > 0).then_some(value));
                            tr {
                                td { code { (name) } }
                                td.n { (some(total.mean)) } td.n { (some(total.low)) } td.n { (some(total.high)) }
                                td.n { (optional(end(series))) }
                                td.n { (optional(run.scales.get(n).and_then(end))) }
                            }
                        }
                    } }
                }
            }
        }
    }
}
