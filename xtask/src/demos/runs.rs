//! One run: how it is called, and what is read from its folder.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The share of batches that is spoilt.
const CORRUPT: &str = "0.02";

/// Steps of a moving average.
pub(super) const SMOOTH: usize = 10;

/// Who controls a run.
#[derive(Debug, Clone)]
pub(super) enum Control {
    /// Nobody: `--no-control`.
    Off,
    /// The default policy.
    Default,
    /// A policy file with this text.
    Policy(String),
}

/// What to run, but for the seed.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Its name among the runs of an experiment, and on disk.
    pub(super) key: String,
    /// Its name for readers.
    pub(super) label: String,
    /// The step at which the optimizer is switched.
    pub(super) switch: Option<u64>,
    model: &'static str,
    control: Control,
    corrupt: bool,
}

impl Plan {
    pub(super) fn new(key: &str, label: &str, model: &'static str, control: Control) -> Self {
        Self { key: key.to_owned(), label: label.to_owned(), switch: None, model, control, corrupt: false }
    }

    /// The same with spoilt batches.
    pub(super) fn corrupted(self) -> Self {
        Self { corrupt: true, ..self }
    }

    /// The same, for a policy that switches the optimizer at a step.
    pub(super) fn switched(self, at: u64) -> Self {
        Self { switch: Some(at), ..self }
    }

    /// Runs it in a folder of its own below `folder`, which is relative to the repository's root. With `keep`, a finished run of the same command counts.
    pub(super) fn run(&self, binary: &Path, folder: &Path, seed: u32, steps: u64, keep: bool) -> Result<Run> {
        let folder = folder.join(format!("{}-seed-{seed}-steps-{steps}", self.key));
        let (run, policy) = (folder.join("run"), folder.join("policy.toml"));
        let mut command = Command::new(binary);
        command.arg("train").arg(format!("models/{}", self.model)).arg("--data").args(super::DATA);
        command.args(["--steps", &steps.to_string(), "--seed", &seed.to_string()]).arg("--out").arg(&run);
        match &self.control {
            Control::Off => _ = command.arg("--no-control"),
            Control::Default => {}
            Control::Policy(_) => _ = command.arg("--policy").arg(&policy),
        }
        if self.corrupt {
            command.args(["--corrupt", CORRUPT]);
        }

        // The program runs in the root and is told relative paths, so that the command means the same everywhere.
        let [folder, run, policy] = [folder, run, policy].map(|path| crate::root().join(path));
        let notes = folder.join("command.txt");
        let text = if let Control::Policy(text) = &self.control { text.as_str() } else { "" };
        let described = command.get_args().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ") + "\n" + text;
        let finished = run.join("summary.json").is_file() && fs::read_to_string(&notes).is_ok_and(|n| n == described);
        if !(keep && finished) {
            if folder.exists() {
                fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
            }
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
            for (path, text) in [(&policy, text), (&notes, described.as_str())] {
                crate::document::write(path, text)?;
            }
            let result = crate::run(&mut command);
            // A run that the controller stopped has failed, but in order: that is a result.
            if !run.join("summary.json").is_file() {
                result?;
            }
        }
        Run::read(&run)
    }
}

/// A step, as far as it is reported.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Step {
    pub(super) step: u64,
    pub(super) loss: Option<f64>,
    pub(super) fault: Option<String>,
    pub(super) norm: Option<f64>,
    pub(super) gate: Option<String>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Ending {
    Complete,
    Interrupted,
    Stopped,
}

/// What a run came to.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Summary {
    pub(super) ending: Ending,
    pub(super) held_out_after: Option<f64>,
}

/// A finished run.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) steps: Vec<Step>,
    pub(super) summary: Summary,
}

impl Run {
    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("summary.json");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let summary: Summary = parse(&path, &text)?;
        if summary.ending == Ending::Interrupted {
            bail!("the run in {} was interrupted", folder.display());
        }
        let path = folder.join("metrics.jsonl");
        let file = fs::File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let steps = BufReader::new(file).lines().map(|line| parse(&path, &line?)).collect::<Result<_>>()?;
        Ok(Self { steps, summary })
    }

    /// The steps whose batches were spoilt.
    pub(super) fn faults(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|s| s.fault.is_some())
    }

    /// From the first step that has enough of them before it: each step with the mean of the last losses.
    pub(super) fn smoothed(&self) -> impl Iterator<Item = (u64, Option<f64>)> {
        let means = self.steps.windows(SMOOTH).map(mean_loss);
        self.steps.iter().skip(SMOOTH - 1).map(|s| s.step).zip(means)
    }

    /// The mean loss of some steps whose batches are not spoilt; `None` where there are none, or one is not finite.
    pub(super) fn mean_loss(&self, steps: std::ops::Range<u64>) -> Option<f64> {
        let first = self.steps.partition_point(|s| s.step < steps.start);
        let end = self.steps.partition_point(|s| s.step < steps.end);
        mean_loss(self.steps.get(first..end)?)
    }
}

/// The mean loss on batches that are not spoilt: how badly noise is predicted says nothing about the model.
fn mean_loss(steps: &[Step]) -> Option<f64> {
    let losses = steps.iter().filter(|s| s.fault.is_none()).map(|s| s.loss).collect::<Option<Vec<_>>>()?;
    (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64)
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    serde_json::from_str(text).with_context(|| format!("{} is not what `entropic train` writes", path.display()))
}

/// A plan and its runs, one for each seed.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) plan: Plan,
    pub(super) runs: Vec<Run>,
}

/// All runs of an experiment.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) seeds: Vec<u32>,
    pub(super) steps: u64,
    pub(super) series: Vec<Series>,
}

impl Group {
    /// The runs of the plan with that key.
    pub(super) fn get(&self, key: &str) -> Result<&Series> {
        self.series.iter().find(|s| s.plan.key == key).with_context(|| format!("there are no runs {key}"))
    }
}
