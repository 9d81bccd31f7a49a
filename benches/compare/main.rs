//! Times contenders that take turns in one process, and writes what each took in every round as JSON.
//!
//! `cargo xtask bench` calls this part by part and makes a table of it; by hand:
//! `cargo bench --bench compare -- control --handwritten DIR --out FILE`.

mod bare;
mod child;
mod flags;
mod launch;
mod operations;
mod replicas;
mod rounds;

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use entropic::bundle::Bundle;
use entropic::engine::Engine;
use entropic::model::Model;
use entropic::target::Platform;
use entropic::train::{self, Observer, Setup, Silent, Trainer};
use passes::Policy;
use passes::policy::{ARTICLE_POLICY, Timing};

use bare::{Bare, Initial};
use child::Child;
use rounds::{Contender, Samples, Schedule};

/// Text to train on, below the repository's root.
const TEXT: [&str; 3] = ["src", "passes", "crates"];

#[derive(Debug, Parser)]
struct Options {
    /// What to compare.
    #[arg(value_enum)]
    part: Part,
    /// The uncontrolled bundle.
    #[arg(long, default_value = "models/gpt-nano")]
    model: PathBuf,
    /// The plugin.
    #[arg(long, default_value = "cpu")]
    plugin: String,
    /// Bundle of the same step with control written by hand.
    #[arg(long, required_if_eq("part", "control"))]
    handwritten: Option<PathBuf>,
    /// A Python with JAX, and PyTorch for that part.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Rounds that count; there is one before them that does not.
    #[arg(long, default_value_t = 24)]
    rounds: usize,
    /// Seconds that one contender takes in a round, about.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Where the times go.
    #[arg(long)]
    out: PathBuf,
    /// Cargo says this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Part {
    /// The plain step, under control, and with control written by hand: all on one plugin, in bare execute loops.
    Control,
    /// `train`, a bare execute loop on the same plugin, and JAX.
    Loop,
    /// JAX plain and with control on the host.
    Jax,
    /// PyTorch plain and with control on the host.
    Torch,
    /// The plain step under one compiler flag after another, and JAX.
    Flags,
    /// Several steps in one launch against launches of one.
    Launch,
    /// What replicas exchange for control, and what comparing them takes.
    Replicas,
    /// What checkpoints take, and reading the metrics.
    Operations,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let schedule = Schedule { rounds: options.rounds, seconds: options.seconds, multiple: 1 };
    let samples = match options.part {
        Part::Control => control(&options, schedule)?,
        Part::Loop => train_loop(&options, schedule)?,
        Part::Jax => {
            let jax = Child::start(&options, "jax")?;
            let run = ["jax", "jax-naive", "jax-packed"].map(|name| jax.contender(name));
            schedule.run(run.into(), vec![jax.versions()])?
        }
        Part::Torch => {
            let torch = Child::start(&options, "torch")?;
            schedule.run(["torch", "torch-naive"].map(|name| torch.contender(name)).into(), vec![torch.versions()])?
        }
        Part::Flags => flags::compare(&options, schedule)?,
        Part::Launch => launch::compare(&options, schedule)?,
        Part::Replicas => replicas::compare(&options, schedule)?,
        Part::Operations => operations::compare(&options, schedule)?,
    };
    samples.write(&options.out)
}

fn control(options: &Options, schedule: Schedule) -> Result<Samples> {
    let engine = Engine::open(&options.plugin)?;
    let platform = Platform::of_plugin(&options.plugin);
    let model = Model::open(&options.model)?;
    let article = Policy::parse(ARTICLE_POLICY)?;
    let mut delayed = article.clone();
    delayed.laws.timing = Timing::Delayed;
    let handwritten = options.handwritten.as_deref().context("--handwritten is missing")?;
    let bundles = [
        ("plain", Bundle::open(&options.model)?),
        ("default", model.inject(&Policy::default(), platform)?),
        ("article", model.inject(&article, platform)?),
        ("article-delayed", model.inject(&delayed, platform)?),
        ("handwritten", Bundle::open(handwritten)?),
    ];
    let mut contenders = Vec::new();
    for (name, bundle) in bundles {
        let initial = Initial::new(&engine, &bundle, &text())?;
        let executable = engine.compile(&bundle.module, name)?;
        let mut bare = Bare::new(&initial, |bytes, dtype, shape| Ok(engine.upload(bytes, dtype, shape)?))?;
        contenders.push(Contender::new(name, move |steps| bare.run(&executable, steps)));
    }
    schedule.run(contenders, vec![plugin(&engine)])
}

fn train_loop(options: &Options, schedule: Schedule) -> Result<Samples> {
    let folder = tempfile::tempdir()?;
    let bundle = Bundle::open(&options.model)?;
    let options_of_run = options_of_run(options, &bundle, NonZeroU32::MIN, &folder.path().join("run"));
    let setup = Setup::new(options_of_run, &mut Silent)?;
    let versions = vec![plugin(&setup.engine)];
    let initial = Initial::new(&setup.engine, &bundle, &text())?;
    let upload = |bytes: &[u8], dtype, shape: &[i64]| Ok(setup.engine.upload(bytes, dtype, shape)?);
    let mut bare = Bare::new(&initial, upload)?;
    let trainer = Rc::new(RefCell::new(Trainer::new(setup)));
    let executable_of = trainer.clone();
    let jax = Child::start(options, "jax")?;
    let contenders = vec![
        // By the trainer's own executable, so that nothing but the loop differs.
        Contender::new("bare", move |steps| bare.run(executable_of.borrow().setup().stepper.executable(), steps)),
        Contender::new("train", move |steps| timed(&mut trainer.borrow_mut(), steps, &mut Silent)),
        jax.contender("jax"),
        jax.contender("jax-loop"),
    ];
    schedule.run(contenders, [versions, vec![jax.versions()]].concat())
}

/// Seconds that so many steps of a run take.
fn timed(trainer: &mut Trainer, steps: u64, observer: &mut dyn Observer) -> Result<f64> {
    let begin = Instant::now();
    trainer.train(steps, &AtomicBool::new(false), observer)?;
    Ok(begin.elapsed().as_secs_f64())
}

/// A run of any number of steps.
fn options_of_run(options: &Options, bundle: &Bundle, steps_per_launch: NonZeroU32, out: &Path) -> train::Options {
    train::Options {
        steps_per_launch: Some(steps_per_launch),
        out: Some(out.to_owned()),
        ..train::Options::new(bundle.clone(), text(), 0, &options.plugin)
    }
}

/// Folders of text.
fn text() -> Vec<PathBuf> {
    TEXT.map(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).into()
}

/// The plugin as a reader of the table wants it named.
fn plugin(engine: &Engine) -> String {
    let file = engine.plugin().path().parent().and_then(Path::file_name).unwrap_or_default();
    format!("plugin {}, PJRT API {}, {}", file.to_string_lossy(), engine.plugin().api_version(), engine.platform())
}
