//! The command line: one file per subcommand.
//!
//! A command returns what it wants to say on failure as one chain of causes, which [`main`] prints as one
//! paragraph. Results go to standard output, progress and errors to standard error.

mod audit;
mod cache;
mod compare;
mod diff;
mod explain;
mod inject;
mod inspect;
mod plugin;
mod progress;
mod report;
mod show;
mod train;
mod worker;

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::time::Instant;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use passes::{Reduction, Replicas, Weighting};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cache::CompileCache;
use crate::input::Reader;
use crate::isolate;
use crate::table::table;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed, refused, or a check that did not hold
  2    the command line is wrong
  130  interrupted (SIGINT, SIGTERM, SIGHUP); training has written a checkpoint, and --resume goes on from it

MODEL is a bundle (a folder with a manifest.json) or a file with a bare module: a serialized HloModuleProto, HLO text
as XLA prints it, StableHLO (text or bytecode), or what jax.export serializes.";

/// The exit code of a command that failed, or that found a difference it was asked for.
const FAILED: u8 = 1;

/// The exit code of a command that was interrupted.
const INTERRUPTED: u8 = 130;

/// Says what is logged, as in `debug` or `entropic=debug,pjrt=info`; warnings if it is not set.
const LOG: &str = "RUST_LOG";

/// The program: does what a command line asks for, the program's name being its first argument. Returns the exit code.
///
/// A process does this once: what is logged goes to standard error from then on.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let started = Instant::now();
    log();
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(answer) => {
            // Help and version are answers, too; where nobody listens any more, the exit code is all there is to say.
            let _ = answer.print();
            return u8::try_from(answer.exit_code()).unwrap_or(FAILED);
        }
    };
    match cli.run(started) {
        Ok(Outcome::Done) => 0,
        Ok(Outcome::Differs) => FAILED,
        Ok(Outcome::Interrupted) => INTERRUPTED,
        Err(error) => {
            eprintln!("error: {}", isolate::paragraph(error.as_ref()));
            FAILED
        }
    }
}

/// Sends the log to standard error.
fn log() {
    let asked = std::env::var(LOG).ok().filter(|value| !value.is_empty());
    let filter = asked.as_deref().map(str::parse::<Targets>);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time().with_ansi(false);
    let by_default = || Targets::new().with_default(LevelFilter::WARN);
    let subscriber = tracing_subscriber::registry().with(layer);
    subscriber.with(filter.as_ref().and_then(|f| f.as_ref().ok()).cloned().unwrap_or_else(by_default)).init();
    if let Some(Err(error)) = filter {
        tracing::warn!("{LOG} cannot be read ({error}); give a level, or targets with levels as in `entropic=debug`");
    }
}

/// Entropy control for JAX-exported train steps.
#[derive(Debug, Parser)]
#[command(name = "entropic", version, about, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the train step in a module: parameters, gradients, updates, moments, states.
    Inspect(inspect::Arguments),
    /// Put the controller into a train step.
    Inject(inject::Arguments),
    /// Compile a step for a target without and with control, and compare what is launched, moved and kept.
    Audit(audit::Arguments),
    /// Train a model bundle on text, under control.
    Train(train::Arguments),
    /// Say in words what the controller saw and did in one step of a run.
    Explain(explain::Arguments),
    /// Show a run as one page: losses, entropies, scales, what the gates did.
    Report(report::Arguments),
    /// Compare runs: what was asked for, what they came to, and the first step that differs.
    Compare(compare::Arguments),
    /// Compare two modules, instruction by instruction.
    Diff(diff::Arguments),
    /// Print a module as HLO text.
    Show(show::Arguments),
    /// List or fetch PJRT plugins.
    Plugin(plugin::Arguments),
    /// Do one task for a parent process of this program.
    #[command(hide = true)]
    Worker(worker::Arguments),
    /// List or clear the cache of compiled programs.
    Cache(cache::Arguments),
}

/// How modules are read, for every command that reads one.
#[derive(Debug, Args)]
struct Reading {
    /// The platform whose code is taken from a jax.export file for several.
    #[arg(long, value_name = "cpu|cuda|rocm|tpu")]
    platform: Option<String>,
}

impl Reading {
    fn reader(&self) -> Reader {
        Reader::default().platform(self.platform.as_deref())
    }
}

/// How a step of one device becomes data-parallel.
#[derive(Debug, Clone, Copy, Args)]
struct Replicating {
    /// Let so many devices train together: each runs the step at its own batch size on data of its own, and gradients
    /// become one before clipping and weight decay.
    #[arg(long, value_name = "N", default_value = "1", requires = "model")]
    replicas: NonZeroU32,
    /// How the gradients of all replicas become one: their mean, for a loss that is a mean over examples, or their sum.
    #[arg(long, value_name = "mean|sum", default_value = "mean", value_parser = reduction(), requires = "model")]
    reduction: Reduction,
    /// What a replica counts for in a mean, where the loss is divided by a count that the data decides, such as tokens that
    /// are not masked: as much as that count, or as much as any other.
    #[arg(long, value_name = "count|equal", value_parser = weighting(), requires = "model")]
    weighting: Option<Weighting>,
}

impl Replicating {
    /// `None` for a single one.
    fn replicas(self) -> Option<Replicas> {
        let Self { replicas: count, reduction, weighting } = self;
        (count > NonZeroU32::MIN).then_some(Replicas { count, reduction, weighting })
    }
}

fn reduction() -> impl TypedValueParser<Value = Reduction> {
    let parser = PossibleValuesParser::new(["mean", "sum"]);
    parser.map(|name| if name == "sum" { Reduction::Sum } else { Reduction::Mean })
}

fn weighting() -> impl TypedValueParser<Value = Weighting> {
    let parser = PossibleValuesParser::new(["count", "equal"]);
    parser.map(|name| if name == "count" { Weighting::Count } else { Weighting::Equal })
}

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It did what it was asked.
    Done,
    /// It was asked for a difference as exit code, and there is one.
    Differs,
    /// The user interrupted it, and it ended in order.
    Interrupted,
}

impl Cli {
    /// Runs the command, in a program that was started then.
    ///
    /// # Errors
    ///
    /// Why it could not; the chain of causes is for a person to read.
    fn run(self, started: Instant) -> anyhow::Result<Outcome> {
        match self.command {
            Command::Inspect(arguments) => inspect::run(&arguments),
            Command::Inject(arguments) => inject::run(&arguments),
            Command::Audit(arguments) => audit::run(&arguments),
            Command::Explain(arguments) => explain::run(&arguments),
            Command::Report(arguments) => report::run(&arguments),
            Command::Compare(arguments) => compare::run(&arguments),
            Command::Diff(arguments) => diff::run(&arguments),
            Command::Show(arguments) => show::run(&arguments),
            Command::Plugin(arguments) => plugin::run(&arguments),
            Command::Worker(arguments) => worker::run(&arguments),
            Command::Train(arguments) => train::run(arguments, started),
            Command::Cache(arguments) => cache::run(&arguments),
        }
    }
}

/// Prints to standard output; a reader that went away (`entropic show FILE | head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::anyhow!("cannot write to standard output: {e}"))
        }
        _ => Ok(()),
    }
}

/// The options of every command that compiles.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Compiling {
    /// Neither take compiled programs from the cache nor put them there; `entropic cache list` says where it is.
    #[arg(long)]
    no_compile_cache: bool,
}

impl Compiling {
    /// The cache of compiled programs, unless it is not wanted or cannot be used; the latter is said.
    fn cache(self) -> Option<CompileCache> {
        if self.no_compile_cache {
            return None;
        }
        CompileCache::from_environment().unwrap_or_else(|error| {
            eprintln!("warning: compiled programs are not kept: {error}");
            None
        })
    }
}
