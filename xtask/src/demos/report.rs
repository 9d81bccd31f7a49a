//! Tables and the sentences that follow from their numbers.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::Result;

use super::runs::{Ending, Group, Run, SMOOTH, Series};

/// What the gate may cost at most under spoilt batches, against clean ones.
const AIM: f64 = 0.01;

/// Healthy steps that a spoilt one's norm is compared with.
const BEFORE: usize = 20;

/// Spoilt batches: held-out losses against the clean runs of the same bundle, what was refused, and how each fault looks.
pub(super) fn corruption(group: &Group) -> Result<String> {
    let mut table = Table::new(group, &["held-out loss"], &["spoilt batches refused", "others refused"]);
    for series in &group.series {
        let clean = group.get(if series.plan.key == "none" { "clean-noclip" } else { "clean" })?;
        let refused = |spoilt: bool| {
            let steps = || series.runs.iter().flat_map(|r| &r.steps).filter(|s| s.fault.is_some() == spoilt);
            (steps().filter(|s| s.gate.is_some()).count(), steps().count())
        };
        let ((hits, spoilt), (misses, _)) = (refused(true), refused(false));
        let mut cells = held_out(series, clean);
        cells.push(if spoilt > 0 { format!("{hits} of {spoilt}") } else { "there are none".to_owned() });
        cells.push(misses.to_string());
        table.row(&series.plan.label, cells);
    }

    let mut text = table.to_string();
    let clean = group.get("clean")?;
    text +=
        "\nOver the seeds, the held-out loss under spoilt batches is, against the clean run of the same bundle,\n\n";
    for (key, base) in [("gate", "clean"), ("alert", "clean"), ("clip", "clean"), ("none", "clean-noclip")] {
        let series = group.get(key)?;
        let change = mean_change(series, group.get(base)?);
        text += &format!("- {}: {}", series.plan.label, change.map_or("not finite".to_owned(), percent));
        if key == "gate" {
            let met = change.is_some_and(|c| c <= AIM);
            text += &format!(" (the aim was at most {}: {})", percent(AIM), if met { "met" } else { "missed" });
        }
        text.push('\n');
    }
    text += &format!(
        "\nThe gate costs {} where nothing is spoilt.\n\n",
        mean_change(group.get("clean-gate")?, clean).map_or("a run".to_owned(), percent)
    );
    text += &faults(group.get("gate")?);
    text += "\n![Training losses](demos/corruption.svg)\n";
    Ok(text)
}

/// By fault: how large the gradient is, and whether the gate saw it.
fn faults(gated: &Series) -> String {
    let mut by_fault: BTreeMap<&str, (Vec<f64>, usize, usize)> = BTreeMap::new();
    for run in &gated.runs {
        for (position, step) in run.steps.iter().enumerate() {
            let Some(fault) = &step.fault else { continue };
            let before = run.steps.iter().take(position).rev().filter(|s| s.fault.is_none()).take(BEFORE);
            let norms: Vec<f64> = before.filter_map(|s| s.norm).collect();
            let mean = norms.iter().sum::<f64>() / norms.len() as f64;
            let (ratios, refused, count) = by_fault.entry(fault).or_default();
            ratios.extend(step.norm.map(|norm| norm / mean));
            *refused += usize::from(step.gate.is_some());
            *count += 1;
        }
    }
    let mut text = format!(
        "| fault | batches | refused (3 x, warmup 100) | norm over the mean of {BEFORE} healthy steps before |\n|---|---|---|---|\n"
    );
    for (fault, (ratios, refused, count)) in by_fault {
        let ratios: Vec<_> = ratios.iter().map(|r| format!("{r:.2}")).collect();
        text += &format!("| {fault} | {count} | {refused} | {} |\n", ratios.join(", "));
    }
    text
}

/// The learning-rate spike: what it does to the loss, and how long that lasts.
pub(super) fn spike(group: &Group, spike: Range<u64>) -> Result<String> {
    let mut table = Table::new(group, &["held-out loss", "worst loss", "recovered at step"], &["updates refused"]);
    let clean = group.get("clean")?;
    for series in &group.series {
        let mut cells = held_out(series, clean);
        cells.extend(series.runs.iter().map(|run| worst(run, spike.start)));
        cells.extend(series.runs.iter().map(|run| recovered(run, &spike)));
        let refused = series.runs.iter().flat_map(|r| &r.steps).filter(|s| s.gate.is_some());
        cells.push(refused.count().to_string());
        table.row(&series.plan.label, cells);
    }
    let mut text = table.to_string();
    text += &format!(
        "\nWorst is the largest training loss from step {} on; recovered, the first step after the spike by which the mean of {SMOOTH} \
         steps is down to what it was before the spike.\n\nOver the seeds, the held-out loss against the run without a spike:\n\n",
        spike.start
    );
    for series in group.series.iter().filter(|s| s.plan.key != "clean") {
        let change = mean_change(series, clean).map_or("not finite".to_owned(), percent);
        text += &format!("- {}: {change}\n", series.plan.label);
    }
    text += "\n![Training losses](demos/spike.svg)\n";
    Ok(text)
}

fn worst(run: &Run, from: u64) -> String {
    let losses = run.steps.iter().filter(|s| s.step >= from).map(|s| s.loss);
    // One loss that is not finite is worse than all others.
    let worst = losses.reduce(|a, b| Some(a?.max(b?))).flatten();
    loss(worst)
}

fn recovered(run: &Run, spike: &Range<u64>) -> String {
    let Some(before) = run.mean_loss(spike.start.saturating_sub(SMOOTH as u64)..spike.start) else {
        return "never".to_owned();
    };
    let mut after = run.smoothed().filter(|(step, _)| *step >= spike.end);
    after.find(|(_, mean)| mean.is_some_and(|m| m <= before)).map_or("never".to_owned(), |(step, _)| step.to_string())
}

/// The switch of the optimizer: the jump in the training loss, and where the run ends.
pub(super) fn switch(group: &Group) -> Result<String> {
    let mut table = Table::new(group, &["jump", "held-out loss"], &[]);
    let base = group.get("none")?;
    let mut jumps = Vec::new();
    for series in &group.series {
        let Some(at) = series.plan.switch else {
            let mut cells = vec![String::new(); group.seeds.len()];
            cells.extend(held_out(series, base));
            table.row(&series.plan.label, cells);
            continue;
        };
        let mut cells = Vec::new();
        for (run, without) in series.runs.iter().zip(&base.runs) {
            let (with, without) = (jump(run, at), jump(without, at));
            cells.push(match (with, without) {
                (Some(with), Some(without)) => format!("{:.3} ({with:.3} / {without:.3})", with / without),
                _ => "not finite".to_owned(),
            });
            jumps.push(with.zip(without).map_or(f64::INFINITY, |(with, without)| with / without));
        }
        cells.extend(held_out(series, base));
        table.row(&series.plan.label, cells);
    }
    let mut text = table.to_string();
    let largest = jumps.iter().copied().fold(0.0f64, f64::max);
    text += &format!(
        "\nThe jump is the mean training loss of the {SMOOTH} steps after the switch over that of the {SMOOTH} before it (first in \
         brackets), divided by the same ratio of the run that does not switch (second). The largest is {largest:.3}.\n\
         \nOver the seeds, the held-out loss against the run that does not switch:\n\n"
    );
    for series in group.series.iter().filter(|s| s.plan.switch.is_some()) {
        let change = mean_change(series, base).map_or("not finite".to_owned(), percent);
        text += &format!("- {}: {change}\n", series.plan.label);
    }
    text += "\n![Training losses](demos/switch.svg)\n";
    Ok(text)
}

/// Mean training loss after step `at` over the mean before.
fn jump(run: &Run, at: u64) -> Option<f64> {
    let width = SMOOTH as u64;
    Some(run.mean_loss(at..at + width)? / run.mean_loss(at.saturating_sub(width)..at)?)
}

/// The held-out loss of each seed, and how far it is from that of the base.
fn held_out(series: &Series, base: &Series) -> Vec<String> {
    let cell = |(run, base): (&Run, &Run)| {
        let stopped = if run.summary.ending == Ending::Stopped { ", stopped" } else { "" };
        let own = run.summary.held_out_after;
        match change(run, base) {
            Some(change) if change != 0.0 => format!("{} ({}{stopped})", loss(own), percent(change)),
            _ => format!("{}{stopped}", loss(own)),
        }
    };
    series.runs.iter().zip(&base.runs).map(cell).collect()
}

fn change(run: &Run, base: &Run) -> Option<f64> {
    Some(run.summary.held_out_after? / base.summary.held_out_after? - 1.0)
}

/// The mean over seeds; `None` where a loss is not finite.
fn mean_change(series: &Series, base: &Series) -> Option<f64> {
    let sum: f64 = series.runs.iter().zip(&base.runs).map(|(run, base)| change(run, base)).sum::<Option<f64>>()?;
    Some(sum / series.runs.len() as f64)
}

fn percent(share: f64) -> String {
    format!("{:+.2}%", share * 100.0)
}

fn loss(value: Option<f64>) -> String {
    value.map_or("not finite".to_owned(), |v| format!("{v:.4}"))
}

/// A Markdown table: one line per plan; some columns once per seed, others once.
struct Table(String);

impl Table {
    fn new(group: &Group, per_seed: &[&str], once: &[&str]) -> Self {
        let mut columns = vec!["run".to_owned()];
        columns.extend(per_seed.iter().flat_map(|c| group.seeds.iter().map(move |seed| format!("{c}, seed {seed}"))));
        columns.extend(once.iter().map(|c| (*c).to_owned()));
        Self(format!("| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len())))
    }

    fn row(&mut self, label: &str, cells: Vec<String>) {
        self.0 += &format!("| {label} | {} |\n", cells.join(" | "));
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
