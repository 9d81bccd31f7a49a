//! `entropic train`: progress while it runs, a table at the end.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use passes::Policy;

use super::{Compiling, INTERRUPTED, Outcome, Reading, Replicating, print, progress::Progress, table};
use crate::exporter::{RunMetrics, Server};
use crate::isolate::Worker;
use crate::policy_file;
use crate::train::{
    self, Checkpointing, Consistency, Corruption, Ending, Invocation, Mismatch, Observer, OnWriteError, Options,
    Resume, ResumeError, Setup, Share, StepRecord, Summary, Trainer, Written,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The bundle to train.
    #[arg(required_unless_present = "resume")]
    model: Option<PathBuf>,
    #[command(flatten)]
    reading: Reading,
    /// Files and folders: text, or arrays (.npz, .npy, .safetensors) named like the batch inputs of the step. Folders give all
    /// such files below them.
    #[arg(long, num_args = 1.., required_unless_present = "resume", requires = "model", value_name = "PATH")]
    data: Vec<PathBuf>,
    /// Number of steps, all in all; a run that goes on may be given more than it had.
    #[arg(long, required_unless_present = "resume")]
    steps: Option<u64>,
    #[command(flatten)]
    replicating: Replicating,
    /// Do so many steps in one launch, in a loop on the device: what a launch costs is paid once for all of them, and metrics
    /// come as late. What is left of --steps at the end is done in single steps. If none is given, as many as the bundle
    /// does.
    #[arg(long, value_name = "K", requires = "model")]
    steps_per_launch: Option<NonZeroU32>,
    /// Seeds the initial state and the order of the data.
    #[arg(long, default_value_t = 0, requires = "model")]
    seed: u32,
    /// The plugin to run on: a known name, or the path of a library.
    #[arg(long, default_value = "cpu", requires = "model", value_name = "cpu|cuda|tpu|PATH")]
    plugin: String,
    /// On a GPU, take kernels alone that give the same bits in every run; some are slower. Written down with the run, so that it
    /// goes on alike.
    #[arg(long, requires = "model")]
    deterministic: bool,
    /// Train the step as it is, without a controller.
    #[arg(long, conflicts_with = "policy", requires = "model")]
    no_control: bool,
    /// The controller's policy: a TOML file, or one of the policies that come with the program. The default policy if none
    /// is given.
    #[arg(long, value_name = "FILE|default|article|spectral|monitor")]
    policy: Option<PathBuf>,
    /// Spoil this share of the training batches, such as 0.02, to see what a policy's gates are worth: random bytes, one byte over
    /// and over, bytes in another order, UTF-16, texts cut short, in turns. The seed says which steps; held-out data stays as it is.
    #[arg(long, value_name = "SHARE", requires = "model")]
    corrupt: Option<Share>,
    /// Folder of the run; the next free one below `runs` if none is given.
    #[arg(long, value_name = "RUN_DIR", conflicts_with = "resume")]
    out: Option<PathBuf>,
    /// Go on with the run in this folder from its newest checkpoint, bit for bit as if it had not ended. What it was started with
    /// is in run.json and need not be given again. With MODEL, --data and --steps, a run that is not there yet is started, so
    /// that one command serves for the first start and for every one after it.
    #[arg(long, value_name = "RUN_DIR")]
    resume: Option<PathBuf>,
    /// With --resume: go on with the numbers of --policy instead of those that the run had.
    #[arg(long, requires = "resume", requires = "policy")]
    allow_policy_change: bool,
    /// Steps from one checkpoint to the next, which are written while training goes on; 0 writes none. There is one at the end,
    /// too, and one when the run is interrupted.
    #[arg(long, value_name = "STEPS", default_value_t = Checkpointing::default().every.get())]
    checkpoint_every: u64,
    /// Checkpoints that are kept, the newest ones.
    #[arg(long, value_name = "COUNT", default_value_t = Checkpointing::default().keep)]
    keep: NonZeroUsize,
    /// What becomes of the run when a checkpoint or its record cannot be written: say so and go on, or stop.
    #[arg(long, value_name = "continue|stop", default_value = "continue", value_parser = on_write_error())]
    on_write_error: OnWriteError,
    /// Serve metrics for Prometheus at this address while the run lasts, as in 127.0.0.1:9464: /metrics, /healthz, /readyz. A port
    /// alone is one of this machine for itself alone; name an address to serve others, who need no password.
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = metrics_address)]
    metrics_addr: Option<SocketAddr>,
    /// Tensors that have series of their own in these metrics, at most.
    #[arg(long, value_name = "COUNT", default_value_t = 64, requires = "metrics_addr")]
    metrics_tensors: usize,
    #[command(flatten)]
    compiling: Compiling,
}

fn on_write_error() -> impl TypedValueParser<Value = OnWriteError> {
    let parser = PossibleValuesParser::new(["continue", "stop"]);
    parser.map(|name| if name == "stop" { OnWriteError::Stop } else { OnWriteError::Continue })
}

/// An address with its port, or a port of the loopback interface.
fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    let expected = || format!("{text:?} is no address with a port; write 127.0.0.1:9464, [::1]:9464, or 9464");
    text.parse().map_err(|_| expected())
}

/// Set by Ctrl-C and by SIGTERM. A second one ends the process at once.
static INTERRUPT: AtomicBool = AtomicBool::new(false);

impl Arguments {
    /// What is asked for on the command line, for a run that is new.
    fn invocation(&self, policy: Option<Policy>) -> anyhow::Result<Invocation> {
        let absolute = |path: &Path| std::path::absolute(path).with_context(|| path.display().to_string());
        let model = self.model.as_deref().context("no bundle is given")?;
        if !model.is_dir() && model.exists() {
            bail!(
                "{} is a bare module, and training needs a bundle: the initial state and the shape of the data are not in it; \
                 models/README.md says how to export one",
                model.display()
            );
        }
        Ok(Invocation {
            model: absolute(model)?,
            platform: self.reading.platform.clone(),
            data: self.data.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?,
            steps: self.steps.context("no number of steps is given")?,
            steps_per_launch: self.steps_per_launch,
            seed: self.seed,
            replicas: self.replicating.replicas(),
            plugin: self.plugin.clone(),
            deterministic: self.deterministic,
            no_control: self.no_control,
            policy,
            corrupt: self.corrupt,
        })
    }

    /// What is to run: a new run, or one that goes on.
    fn prepared(&self) -> anyhow::Result<(Invocation, Option<Resume>)> {
        let policy = self.policy.as_deref().map(|path| policy_file::open(Some(path))).transpose()?;
        let Some(folder) = self.resume.as_deref().filter(|folder| Resume::is_run(folder)) else {
            if let (Some(folder), None) = (&self.resume, &self.model) {
                bail!(
                    "there is no run in {}; give MODEL, --data and --steps as well, and one is started there",
                    folder.display()
                );
            }
            return Ok((self.invocation(policy)?, None));
        };
        let (mut resume, recorded) = Resume::open(folder)?;
        resume.allow_policy_change = self.allow_policy_change;
        // What is given again must be what it was; the checkpoint says whether it is.
        let mut invocation = if self.model.is_some() { self.invocation(policy.clone())? } else { recorded };
        invocation.steps = self.steps.unwrap_or(invocation.steps);
        if policy.is_some() {
            invocation.policy = policy;
        }
        if resume.done() > invocation.steps {
            bail!(ResumeError::Done { path: folder.to_owned(), done: resume.done(), asked: invocation.steps });
        }
        Ok((invocation, Some(resume)))
    }
}

pub(super) fn run(arguments: Arguments, started: Instant) -> anyhow::Result<Outcome> {
    let (invocation, resume) = arguments.prepared()?;
    let (bundle, policy) = invocation.bundle()?;
    ctrlc::set_handler(|| {
        if INTERRUPT.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
        eprintln!("interrupted: finishing the steps under way, then a checkpoint (once more to end at once)");
    })
    .context("cannot listen for signals")?;
    if let Some(resume) = &resume {
        eprint!("{}", told(resume));
    }
    let checkpoints = NonZeroU64::new(arguments.checkpoint_every);
    let out = arguments.out.or(arguments.resume.filter(|_| resume.is_none()));
    let options = Options {
        bundle,
        policy,
        data: invocation.data.clone(),
        steps: invocation.steps,
        steps_per_launch: invocation.steps_per_launch,
        seed: invocation.seed,
        deterministic: invocation.deterministic,
        corruption: invocation.corrupt.map(|share| Corruption { share, seed: u64::from(invocation.seed) }),
        plugin: invocation.plugin.clone(),
        cache: arguments.compiling.cache(),
        out,
        checkpoints: checkpoints.map(|every| Checkpointing { every, keep: arguments.keep }),
        on_write_error: arguments.on_write_error,
        invocation: Some(invocation),
        resume,
        started,
        worker: Some(Worker::this_program()?),
    };
    if let Some(controller) = &options.bundle.manifest.controller {
        eprint!("{}", super::inject::snapshot_cost(&controller.layout));
    }
    let setup = Setup::new(options, &mut Progress::new())?;
    let metrics = arguments.metrics_addr.map(|address| Watched::start(&setup, address, arguments.metrics_tensors));
    let mut observer = Both(Progress::new(), metrics.transpose()?);
    let summary = train::run_prepared(Trainer::new(setup), &INTERRUPT, &mut observer)?;
    print(&report(&summary))?;
    match summary.ending {
        Ending::Complete => Ok(Outcome::Done),
        Ending::Interrupted => Ok(Outcome::Interrupted),
        Ending::Inconsistent => bail!(
            "replicas do not hold the same: {}. A device computed something else than the others, or a value was damaged; which \
             replica is right cannot be told from this. {} names all of them; `replicas.on_mismatch = \"copy\"` in the policy goes \
             on with the states of replica 0",
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

/// Where a run goes on, and which checkpoints it cannot go on from.
fn told(resume: &Resume) -> String {
    let Some(found) = &resume.found else {
        return format!("{} has no checkpoint yet: it begins again with step 0\n", resume.folder.display());
    };
    let mut text = String::new();
    for damage in &found.damaged {
        text += &format!("warning: {} cannot be used: {}\n", damage.path.display(), damage.reason);
    }
    text + &format!("going on after {} steps, from {}\n", found.checkpoint.step, found.path.display())
}

/// The metrics of a run, and where they are served.
struct Watched {
    metrics: Arc<RunMetrics>,
    /// Serves until it is dropped.
    _server: Server,
}

impl Watched {
    fn start(setup: &Setup, address: SocketAddr, most_tensors: usize) -> anyhow::Result<Self> {
        let metrics = Arc::new(RunMetrics::of_run(setup, most_tensors));
        let server = Server::start(address, Arc::clone(&metrics))?;
        eprintln!("metrics at http://{}/metrics", server.address());
        if !server.address().ip().is_loopback() {
            eprintln!("warning: whoever reaches that address can read them; there is no password");
        }
        let tensors = setup.telemetry.iter().flat_map(|telemetry| telemetry.tensors()).count();
        if tensors > most_tensors {
            eprintln!("{most_tensors} of {tensors} tensors have series of their own (--metrics-tensors)");
        }
        Ok(Self { metrics, _server: server })
    }
}

/// Progress for a person, and metrics for Prometheus where they are asked for.
struct Both(Progress, Option<Watched>);

impl Observer for Both {
    fn phase(&mut self, what: &str) {
        self.0.phase(what);
    }

    fn note(&mut self, what: &str) {
        self.0.note(what);
    }

    fn warn(&mut self, what: &str) {
        self.0.warn(what);
    }

    fn start(&mut self, done: u64, steps: u64) {
        self.0.start(done, steps);
    }

    fn step(&mut self, record: &StepRecord) {
        self.0.step(record);
        if let Some(Watched { metrics, .. }) = &self.1 {
            (&**metrics).step(record);
        }
    }

    fn checkpoint(&mut self, written: &Written) {
        self.0.checkpoint(written);
        if let Some(Watched { metrics, .. }) = &self.1 {
            (&**metrics).checkpoint(written);
        }
    }

    fn finish(&mut self) {
        self.0.finish();
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
    if summary.checkpoint.is_some() || summary.checkpoints_failed > 0 {
        let mut text = summary.checkpoint.map_or("none".to_owned(), |step| format!("after {step} steps"));
        if summary.checkpoints_failed > 0 {
            text += &format!("; {} could not be written", summary.checkpoints_failed);
        }
        table.add_row(["last checkpoint".to_owned(), text]);
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
