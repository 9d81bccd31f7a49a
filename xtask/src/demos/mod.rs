//! The experiments of docs/demos.md: what control does for training when batches are spoilt, when the schedule is wrong, and
//! when the optimizer changes.
//!
//! Every run is one call of the release binary, and what is reported is read from its run folder. Only what stands between
//! the markers of docs/demos.md is written anew.

mod plot;
mod report;
mod runs;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use self::runs::{Control, Group, Plan, Series};
use crate::document;

/// Training text: sources that the documentation is not part of, so that its tables do not change what they report.
const DATA: &[&str] = &["src", "crates", "passes"];

/// The faulty steps of `gpt-nano-spike`, as in models/export/entropic_export/bundles/gpt.py.
const SPIKE: std::ops::Range<u64> = 100..120;

/// When the optimizer is switched, as percentages of the run.
const SWITCHES: &[u64] = &[25, 50, 80];

/// A policy whose gate goes by a multiple of the norm's running mean alone.
fn gate(multiple: f64, warmup: u32) -> String {
    format!(
        "format_version = 1\n\n[gate.norm]\nmultiple = {multiple:?}\ndeviations = 0.0\nhalf_life = 100\nwarmup = {warmup}\n"
    )
}

const ROLLBACK: &str = "
[rollback]
kind = \"snapshot\"
patience = 3
refresh = 25
backoff = 0.5
";

/// Options of `demos`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The experiments; all of them if none is named.
    #[arg(value_enum, value_name = "NAME")]
    names: Vec<Demo>,
    /// A seed of the initial state, the order of the data and the faults; may be given more than once.
    #[arg(long = "seed", value_name = "N", default_values_t = [0, 1])]
    seeds: Vec<u32>,
    /// Steps of a run.
    #[arg(long, value_name = "N", default_value_t = 250)]
    steps: u64,
    /// Take what target/demos has from a finished run of the same command, instead of running it again.
    #[arg(long)]
    keep: bool,
    /// Folder for demos.md and the plots.
    #[arg(long, value_name = "DIR", default_value = "docs")]
    out: PathBuf,
}

/// An experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Demo {
    /// 2% of the batches are spoilt.
    Corruption,
    /// The learning rate is 30 times too high for 20 steps.
    Spike,
    /// From AdamW to SGD with momentum in the middle of a run.
    Switch,
}

impl Demo {
    fn name(self) -> &'static str {
        match self {
            Self::Corruption => "corruption",
            Self::Spike => "spike",
            Self::Switch => "switch",
        }
    }

    /// What is run under every seed. The first is what the others are compared with.
    fn plans(self, steps: u64) -> Vec<Plan> {
        let plan = |key, label: &str, model, control| Plan::new(key, label, model, control);
        let lenient = || Control::Policy(gate(3.0, 100));
        // Armed before the learning-rate spike begins.
        let alert = || Control::Policy(gate(2.0, 20));
        match self {
            Self::Corruption => vec![
                plan("clean", "clean, clipping", "gpt-nano", Control::Off),
                plan("clean-gate", "clean, clipping and gate (3 x, warmup 100)", "gpt-nano", lenient()),
                plan("clip", "spoilt, clipping only", "gpt-nano", Control::Off).corrupted(),
                plan("gate", "spoilt, clipping and gate (3 x, warmup 100)", "gpt-nano", lenient()).corrupted(),
                plan("alert", "spoilt, clipping and gate (2 x, warmup 20)", "gpt-nano", alert()).corrupted(),
                plan("clean-noclip", "clean, no protection", "gpt-nano-noclip", Control::Off),
                plan("none", "spoilt, no protection", "gpt-nano-noclip", Control::Off).corrupted(),
            ],
            Self::Spike => vec![
                plan("clean", "no spike", "gpt-nano", Control::Off),
                plan("none", "no control", "gpt-nano-spike", Control::Off),
                plan("gate", "gate alone", "gpt-nano-spike", alert()),
                plan("rollback", "gate and rollback", "gpt-nano-spike", Control::Policy(gate(2.0, 20) + ROLLBACK)),
            ],
            Self::Switch => {
                let mut plans = vec![plan("none", "no switch", "gpt-nano", Control::Default)];
                for rate in ["nearest", "swats"] {
                    for percent in SWITCHES {
                        let at = steps * percent / 100;
                        let policy = format!(
                            "format_version = 1\n\n[switch]\nenabled = true\ntrigger = \"step\"\nstep = {at}\nrate = \"{rate}\"\n"
                        );
                        let (key, label) = (format!("{rate}-{percent}"), format!("{percent}%, {rate}"));
                        plans.push(Plan::new(&key, &label, "gpt-nano", Control::Policy(policy)).switched(at));
                    }
                }
                plans
            }
        }
    }

    fn report(self, group: &Group) -> Result<String> {
        match self {
            Self::Corruption => report::corruption(group),
            Self::Spike => report::spike(group, SPIKE),
            Self::Switch => report::switch(group),
        }
    }

    fn plot(self, group: &Group) -> Result<String> {
        match self {
            Self::Corruption => {
                let spoilt = group.series.iter().flat_map(|s| s.runs.first()).find(|r| r.faults().next().is_some());
                let marks: Vec<_> =
                    spoilt.into_iter().flat_map(|run| run.faults().map(|s| s.step..s.step + 1)).collect();
                plot::losses(group, "Training loss, 2% of the batches spoilt (grey)", &marks)
            }
            Self::Spike => plot::losses(group, "Training loss, learning rate x 30 (grey)", &[SPIKE]),
            Self::Switch => {
                let mut marks: Vec<_> =
                    group.series.iter().filter_map(|s| s.plan.switch).map(|at| at..at + 1).collect();
                marks.dedup();
                plot::losses(group, "Training loss, AdamW to SGD with momentum (grey)", &marks)
            }
        }
    }
}

/// Runs the experiments and writes what they came to.
pub(crate) fn demos(options: &Options) -> Result<()> {
    let all = Demo::value_variants();
    let names: Vec<Demo> =
        all.iter().copied().filter(|d| options.names.is_empty() || options.names.contains(d)).collect();
    if names.contains(&Demo::Spike) && options.steps <= SPIKE.end {
        bail!("the spike is in steps {} to {}; a run needs more than that (--steps)", SPIKE.start, SPIKE.end - 1);
    }
    crate::cargo(&["build", "--release"])?;
    let binary = crate::root().join("target").join("release").join("entropic");
    crate::run(std::process::Command::new(&binary).args(["plugin", "fetch", "cpu"]))?;

    let text = crate::root().join("docs").join("demos.md");
    let mut text = document::read(&text)?;
    let out = crate::root().join(&options.out);
    let plots = out.join("demos");
    fs::create_dir_all(&plots).with_context(|| format!("cannot create {}", plots.display()))?;
    for demo in names {
        let mut group = Group { seeds: options.seeds.clone(), steps: options.steps, series: Vec::new() };
        for plan in demo.plans(options.steps) {
            let folder = Path::new("target").join("demos").join(demo.name());
            let runs = options.seeds.iter().map(|&seed| plan.run(&binary, &folder, seed, options.steps, options.keep));
            let runs = runs.collect::<Result<_>>()?;
            group.series.push(Series { plan, runs });
        }
        document::write(&plots.join(format!("{}.svg", demo.name())), &demo.plot(&group)?)?;
        let (command, table) = (command(demo, options), demo.report(&group)?);
        text = document::between_markers(&text, demo.name(), &format!("{command}\n\n{table}"))?;
        // After each experiment, so that a failure in the next one loses nothing.
        document::write(&out.join("demos.md"), &text)?;
    }
    Ok(())
}

/// How to repeat what is reported.
fn command(demo: Demo, options: &Options) -> String {
    let seeds: String = options.seeds.iter().map(|seed| format!(" --seed {seed}")).collect();
    format!("`cargo xtask demos {}{seeds} --steps {}`", demo.name(), options.steps)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_markers_for_every_experiment() {
        let text = document::read(&crate::root().join("docs").join("demos.md")).unwrap();
        for demo in Demo::value_variants() {
            document::between_markers(&text, demo.name(), "").unwrap();
        }
    }
}
