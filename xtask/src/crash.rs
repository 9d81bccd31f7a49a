//! `cargo xtask crash`: runs that are killed at random moments and go on end where a run that was left alone ends.
//!
//! Every kill is SIGKILL from outside, to a process of its own: at a random time after its start, or, every third time, at the
//! moment when the first file of a checkpoint that is being written appears. What is killed goes on by `train --resume`.
//! At the end the arrays of the last checkpoint are compared byte by byte, and the metrics value by value, all but their times.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{cargo, root};

/// Steps between checkpoints: few, so that many kills find one under way.
const EVERY: u64 = 20;
/// A process is killed within so much time, if it lives that long. Its first step comes after about half of it.
const LONGEST: Duration = Duration::from_millis(2500);

/// Options of `crash`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How many times to kill.
    #[arg(long, default_value_t = Options::default().kills)]
    kills: u32,
    /// Steps of a run. Runs begin anew until there were enough kills.
    #[arg(long, default_value_t = Options::default().steps)]
    steps: u64,
    /// The bundle to train.
    #[arg(long, default_value_os_t = Options::default().model)]
    model: PathBuf,
    /// Seeds the moments.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The program, instead of one that is built from these sources.
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

impl Default for Options {
    /// As without any option.
    fn default() -> Self {
        Self { kills: 25, steps: 3000, model: "models/mlp".into(), seed: 0, program: None }
    }
}

/// What the kills hit.
#[derive(Debug, Default)]
struct Tally {
    kills: u32,
    before_first_checkpoint: u32,
    while_writing: u32,
    runs: u32,
}

pub(crate) fn crash(options: &Options) -> Result<()> {
    if options.program.is_none() {
        cargo(&["build"])?;
    }
    let folder = tempfile::tempdir()?;
    let trained = |name: &str| folder.path().join(name);
    // A text that nobody edits meanwhile: a run does not go on with other data.
    let text: String = (0..20_000).map(|n: u64| format!("{n} squared is {}.\n", n * n)).collect();
    fs::write(trained("text"), text)?;
    let reference = trained("reference");
    let ended = start(options, &reference)?.wait()?;
    ensure!(ended.success(), "the run that is left alone failed ({ended}):\n{}", said(&reference));
    let mut random = fastrand::Rng::with_seed(options.seed);
    let mut tally = Tally::default();
    while tally.kills < options.kills {
        let run = trained(&format!("killed-{}", tally.runs));
        torment(options, &run, &mut random, &mut tally)?;
        compare(&reference, &run)?;
        fs::remove_dir_all(&run)?;
        tally.runs += 1;
        eprintln!("{} kills, {} runs, all as the one that was left alone", tally.kills, tally.runs);
    }
    println!(
        "{} kills in {} runs of {} steps with a checkpoint every {EVERY}: {} before the first checkpoint, {} while one was \
         being written; states and metrics of every run are those of a run that was left alone",
        tally.kills, tally.runs, options.steps, tally.before_first_checkpoint, tally.while_writing
    );
    Ok(())
}

/// Trains one run to its end, killing it on the way.
fn torment(options: &Options, run: &Path, random: &mut fastrand::Rng, tally: &mut Tally) -> Result<()> {
    loop {
        // What an earlier kill left half written says nothing of this process.
        let left = half_written(run);
        let is_writing = || !half_written(run).is_subset(&left);
        let mut child = start(options, run)?;
        let patience = LONGEST.mul_f64(random.f64());
        // Enough were killed: this one may end.
        let enough = tally.kills >= options.kills;
        let in_writing = !enough && tally.kills.is_multiple_of(3);
        let started = Instant::now();
        let ended = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            let due = if in_writing { is_writing() } else { started.elapsed() >= patience };
            if due && !enough {
                break None;
            }
            sleep(Duration::from_micros(if in_writing { 50 } else { 1000 }));
        };
        match ended {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("a run failed that was not killed ({status}):\n{}", said(run)),
            None => {
                child.kill()?;
                child.wait()?;
                tally.kills += 1;
                tally.while_writing += u32::from(is_writing());
                tally.before_first_checkpoint += u32::from(checkpoints(run).is_empty());
            }
        }
    }
}

/// Starts a run, or has it go on.
fn start(options: &Options, run: &Path) -> Result<Child> {
    let built = || root().join("target/debug/entropic");
    let program = options.program.clone().unwrap_or_else(built);
    let mut command = Command::new(&program);
    command
        .current_dir(root())
        .arg("train")
        .arg(&options.model)
        .arg("--data")
        .arg(run.with_file_name("text"))
        .arg("--steps");
    command.arg(options.steps.to_string()).arg("--checkpoint-every").arg(EVERY.to_string()).arg("--resume").arg(run);
    command.stdout(Stdio::null()).stderr(fs::File::create(log(run))?);
    command.spawn().with_context(|| format!("cannot start {}", program.display()))
}

fn log(run: &Path) -> PathBuf {
    run.with_extension("log")
}

/// What the last process of a run said.
fn said(run: &Path) -> String {
    fs::read_to_string(log(run)).unwrap_or_default()
}

/// The names of checkpoints that are half written, or half removed.
fn half_written(run: &Path) -> BTreeSet<OsString> {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().starts_with(".entropic-")).collect()
}

/// The checkpoints of a run, oldest first.
fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    let named = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-"));
    let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(named).collect();
    found.sort();
    found
}

fn compare(reference: &Path, run: &Path) -> Result<()> {
    let last = |run: &Path| checkpoints(run).pop().with_context(|| format!("{} has no checkpoint", run.display()));
    let (expected, found) = (last(reference)?, last(run)?);
    ensure!(expected.file_name() == found.file_name(), "{} ends with {}", run.display(), found.display());
    for file in ["state.safetensors", "controller.safetensors"] {
        ensure!(
            fs::read(expected.join(file))? == fs::read(found.join(file))?,
            "{} differs",
            found.join(file).display()
        );
    }
    let (expected, found) = (records(reference)?, records(run)?);
    ensure!(expected.len() == found.len(), "{} steps are recorded, not {}", found.len(), expected.len());
    for (expected, found) in expected.iter().zip(&found) {
        ensure!(expected == found, "recorded was {found}, not {expected}");
    }
    Ok(())
}

/// The steps of a run without their times.
fn records(run: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(run.join("metrics.jsonl"))?;
    let record = |line: &str| {
        let mut value: Value = serde_json::from_str(line)?;
        if let Some(fields) = value.as_object_mut() {
            fields.remove("seconds");
        }
        Ok(value)
    };
    text.lines().map(record).collect()
}
