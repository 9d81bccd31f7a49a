//! `entropic train`: progress while it runs, a table at the end.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;

use super::inject::read_policy;
use super::{Compiling, Outcome, Reading, Replicating, print, progress::Progress, table};
use entropic::bundle::Bundle;
use entropic::isolate::Worker;
use entropic::model::Model;
use entropic::target::Platform;
use entropic::train::{self, Consistency, Corruption, Ending, Mismatch, Options, Share, Summary};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The bundle to train.
    model: PathBuf,
    #[command(flatten)]
    reading: Reading,
    /// Files and folders: text, or arrays (.npz, .npy, .safetensors) named like the batch inputs of the step. Folders give all
    /// such files below them.
    #[arg(long, num_args = 1.., required = true, value_name = "PATH")]
    data: Vec<PathBuf>,
    /// Number of steps.
    #[arg(long)]
    steps: u64,
    #[command(flatten)]
    replicating: Replicating,
    /// Do so many steps in one launch, in a loop on the device: what a launch costs is paid once for all of them, and metrics
    /// come as late. What is left of --steps at the end is done in single steps. If none is given, as many as the bundle
    /// does.
    #[arg(long, value_name = "K")]
    steps_per_launch: Option<NonZeroU32>,
    /// Seeds the initial state and the order of the data.
    #[arg(long, default_value_t = 0)]
    seed: u32,
    /// The plugin to run on: a known name, or the path of a library.
    #[arg(long, default_value = "cpu", value_name = "cpu|cuda|tpu|PATH")]
    plugin: String,
    /// Train the step as it is, without a controller.
    #[arg(long, conflicts_with = "policy")]
    no_control: bool,
    /// The controller's policy: a TOML file, or one of the policies that come with the program. The default policy if none
    /// is given.
    #[arg(long, value_name = "FILE|default|article|monitor")]
    policy: Option<PathBuf>,
    /// Spoil this share of the training batches, such as 0.02, to see what a policy's gates are worth: random bytes, one byte over
    /// and over, bytes in another order, UTF-16, texts cut short, in turns. The seed says which steps; held-out data stays as it is.
    #[arg(long, value_name = "SHARE")]
    corrupt: Option<Share>,
    /// Folder of the run; the next free one below `runs` if none is given.
    #[arg(long, value_name = "RUN_DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    compiling: Compiling,
}

/// Set by Ctrl-C. A second one ends the process at once.
static INTERRUPT: AtomicBool = AtomicBool::new(false);

pub(super) fn run(arguments: Arguments, started: Instant) -> anyhow::Result<Outcome> {
    if !arguments.model.is_dir() && arguments.model.exists() {
        bail!(
            "{} is a bare module, and training needs a bundle: the initial state and the shape of the data are not in it; \
             models/README.md says how to export one",
            arguments.model.display()
        );
    }
    let policy = arguments.policy.as_deref().map(|path| read_policy(Some(path))).transpose()?;
    let bundle = Bundle::open_with(&arguments.model, &arguments.reading.reader().prefer(&arguments.plugin))?;
    let replicas = arguments.replicating.replicas();
    if replicas.is_some() && bundle.manifest.controller.is_some() {
        bail!(
            "{} has a controller, and a step becomes data-parallel before control is put into it; give the bundle it was \
             injected into, or inject that with --replicas",
            arguments.model.display()
        );
    }
    let (bundle, policy) = match (bundle.manifest.controller.is_some(), arguments.no_control) {
        (true, true) => bail!(
            "{} has a controller, so it cannot be trained without; train the bundle it was injected into",
            arguments.model.display()
        ),
        // Numbers of another policy need no other program.
        (true, false) => (bundle, policy),
        (false, true) => match replicas {
            Some(replicas) => (Model::Bundle(Box::new(bundle)).replicate(replicas)?, None),
            None => (bundle, None),
        },
        (false, false) => {
            let policy = policy.unwrap_or_default();
            let platform = Platform::of_plugin(&arguments.plugin);
            (Model::Bundle(Box::new(bundle)).inject_into(&policy, platform, replicas)?, None)
        }
    };
    ctrlc::set_handler(|| {
        if INTERRUPT.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("interrupted: finishing the steps under way (once more to end at once)");
    })
    .context("cannot listen for Ctrl-C")?;
    let options = Options {
        bundle,
        policy,
        data: arguments.data,
        steps: arguments.steps,
        steps_per_launch: arguments.steps_per_launch,
        seed: arguments.seed,
        corruption: arguments.corrupt.map(|share| Corruption { share, seed: u64::from(arguments.seed) }),
        plugin: arguments.plugin,
        cache: arguments.compiling.cache(),
        out: arguments.out,
        started,
        worker: Some(Worker::this_program()?),
    };
    if let Some(controller) = &options.bundle.manifest.controller {
        eprint!("{}", super::inject::snapshot_cost(&controller.layout));
    }
    let summary = train::run(&options, &INTERRUPT, &mut Progress::new())?;
    print(&report(&summary))?;
    match summary.ending {
        Ending::Complete => Ok(Outcome::Done),
        Ending::Interrupted => Ok(Outcome::Interrupted),
        Ending::Inconsistent => bail!(
            "replicas do not hold the same: {}. A device computed something else than the others, or a value was damaged; which              replica is right cannot be told from this. {} names all of them; `replicas.on_mismatch = \"copy\"` in the policy goes              on with the states of replica 0",
            summary
                .consistency
                .as_ref()
                .and_then(|c| c.first_mismatch.as_ref())
                .map(Mismatch::told)
                .unwrap_or_default(),
            summary.folder.join("summary.json").display()
        ),
        Ending::Stopped => bail!(
            "the controller stopped the run after {} steps: too many steps in a row had gradients that were not finite (the \
             policy's gate.max_pause), so training would not have recovered; {} shows where it began. Lower the learning \
             rate, or look at the data of those steps",
            summary.steps,
            summary.folder.join("metrics.jsonl").display()
        ),
    }
}

fn report(summary: &Summary) -> String {
    let loss = |value: Option<f64>| value.map_or("not finite".to_owned(), |v| format!("{v:.4}"));
    let mut table = table(&["", summary.loss_unit.as_str()]);
    table.add_row(["held-out loss before".to_owned(), loss(summary.held_out_before)]);
    let change = match (summary.held_out_before, summary.held_out_after) {
        (Some(before), Some(after)) if before > 0.0 => format!(" ({:+.1}%)", (after / before - 1.0) * 100.0),
        _ => String::new(),
    };
    table.add_row(["held-out loss after".to_owned(), loss(summary.held_out_after) + &change]);
    table.add_row(["steps".to_owned(), summary.steps.to_string()]);
    if let Some(seconds) = summary.first_step_seconds {
        let origin = match (summary.compiled, summary.cached) {
            (0, _) => "from cache",
            (_, 0) => "compiled",
            _ => "partly from cache",
        };
        table.add_row(["first step after".to_owned(), format!("{seconds:.2} s ({origin})")]);
    }
    table.add_row(["steps/s".to_owned(), format!("{:.2}", summary.steps_per_second)]);
    let refused = summary.gates.as_ref().map_or("not controlled".to_owned(), |gates| {
        let told: Vec<_> = gates.told().into_iter().map(|(what, count)| format!("{what} {count}")).collect();
        if told.is_empty() { "none".to_owned() } else { format!("{} ({})", gates.refused(), told.join(", ")) }
    });
    table.add_row(["updates refused".to_owned(), refused]);
    if summary.non_finite_losses > 0 {
        table.add_row(["losses not finite".to_owned(), summary.non_finite_losses.to_string()]);
    }
    if let Some(consistency) = &summary.consistency {
        table.add_row(["replicas compared".to_owned(), compared(consistency, summary.steps_per_second)]);
    }
    table.add_row(["run".to_owned(), summary.folder.display().to_string()]);
    format!("{table}\n")
}

/// How often replicas were compared, what that found, and what it takes of the time of the steps.
fn compared(consistency: &Consistency, steps_per_second: f64) -> String {
    let found = match (consistency.replica_mismatches_total, consistency.replica_copies_total) {
        (0, _) => "always alike".to_owned(),
        (mismatches, 0) => format!("{mismatches} not alike"),
        (mismatches, copies) => format!("{mismatches} not alike, copied {copies}"),
    };
    let cost = consistency.seconds_per_check.map_or(String::new(), |each| {
        let (every, ms) = (consistency.check_every, each * 1e3);
        format!("; {ms:.2} ms each, {:.3}% of {every} steps", each * steps_per_second / every as f64 * 100.0)
    });
    format!("{} times, {found}{cost}", consistency.replica_checks_total)
}
