//! Warm starts: from the start of the process to its first step.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::samples::Samples;

/// How often the run's folder is looked at.
const POLL: Duration = Duration::from_millis(1);

/// Starts a run of one step again and again. The first one, which may have to compile, does not count.
pub(super) fn measure(binary: &Path, model: &str, folder: &Path, rounds: usize) -> Result<Samples> {
    let mut samples = Samples { steps: 1, ..Samples::default() };
    for round in 0..=rounds {
        let times = start(binary, model, &folder.join("start"))?;
        if round > 0 {
            eprintln!("start {round} of {rounds}: {times:?}");
            samples.rounds.push(times);
        }
    }
    Ok(samples)
}

/// Seconds until the run is described, which is when everything is compiled, and until the first step is on record.
fn start(binary: &Path, model: &str, run: &Path) -> Result<BTreeMap<String, f64>> {
    if run.exists() {
        fs::remove_dir_all(run).with_context(|| format!("cannot remove {}", run.display()))?;
    }
    let mut command = Command::new(binary);
    command
        .current_dir(crate::root())
        .args(["train", model, "--data", "src", "passes", "crates", "--steps", "1", "--out"]);
    command.arg(run).stdout(Stdio::null()).stderr(Stdio::null());
    let begin = Instant::now();
    let mut process = command.spawn().with_context(|| format!("cannot run {}", binary.display()))?;
    let written = |file: &str| fs::metadata(run.join(file)).is_ok_and(|m| m.len() > 0);
    let mut times = BTreeMap::new();
    for (name, file) in [("ready", "run.json"), ("step", "metrics.jsonl")] {
        while !written(file) {
            if let Some(status) = process.try_wait()?
                && !written(file)
            {
                bail!("`{command:?}` ended ({status}) without writing {file}");
            }
            std::thread::sleep(POLL);
        }
        times.insert(name.to_owned(), begin.elapsed().as_secs_f64());
    }
    if !process.wait()?.success() {
        bail!("`{command:?}` failed");
    }
    Ok(times)
}
