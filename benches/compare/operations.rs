//! What a long run pays for being kept and watched: `train` by itself, with checkpoints, and while somebody reads its metrics. Both
//! happen far more often than by default, so that what they take can be told from noise.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use entropic::exporter::{RunMetrics, Server};
use entropic::model::Model;
use entropic::target::Platform;
use entropic::train::{self, Checkpointing, Setup, Silent, Trainer};
use passes::Policy;

use crate::rounds::{Contender, Samples, Schedule};
use crate::{Options, timed};

/// Steps from one checkpoint to the next.
const STEPS: u64 = 10;
/// Scrapes of a second.
const SCRAPES: u32 = 10;
/// Series of this many tensors, as by default.
const TENSORS: usize = 64;

pub(crate) fn compare(options: &Options, schedule: Schedule) -> Result<Samples> {
    let bundle = Model::open(&options.model)?.inject(&Policy::default(), Platform::of_plugin(&options.plugin))?;
    let folder = tempfile::tempdir()?;
    let prepared = |name: &str, checkpoints| -> Result<Trainer> {
        let plain = train::Options::new(bundle.clone(), crate::text(), 0, &options.plugin);
        let options = train::Options { out: Some(folder.path().join(name)), checkpoints, ..plain };
        Ok(Trainer::new(Setup::new(options, &mut Silent)?))
    };
    let mut plain = prepared("train", None)?;
    let every = Checkpointing { every: STEPS.try_into()?, ..Checkpointing::default() };
    let mut kept = prepared("checkpoints", Some(every))?;
    let mut watched = prepared("scraped", None)?;
    let versions = vec![crate::plugin(&plain.setup().engine)];
    // A stretch ends half-way between two checkpoints, two steps of warming up included: what is written behind the last of
    // them is not another contender's to pay.
    kept.train(STEPS / 2 - 2, &AtomicBool::new(false), &mut Silent)?;

    let mut scraper = Scraper::start(&watched)?;
    let contenders = vec![
        Contender::new("train", move |steps| timed(&mut plain, steps, &mut Silent)),
        Contender::new("checkpoints", move |steps| timed(&mut kept, steps, &mut Silent)),
        Contender::new("scraped", move |steps| scraper.watch(|metrics| timed(&mut watched, steps, &mut &*metrics))),
    ];
    Schedule { multiple: STEPS, ..schedule }.run(contenders, versions)
}

/// Serves the metrics of a run, and reads them.
struct Scraper {
    metrics: Arc<RunMetrics>,
    server: Server,
}

impl Scraper {
    fn start(trainer: &Trainer) -> Result<Self> {
        let metrics = Arc::new(RunMetrics::of_run(trainer.setup(), TENSORS));
        let server = Server::start((Ipv4Addr::LOCALHOST, 0).into(), Arc::clone(&metrics))?;
        Ok(Self { metrics, server })
    }

    /// Reads the metrics [`SCRAPES`] times a second while `run` runs, which must feed them.
    fn watch(&mut self, run: impl FnOnce(&RunMetrics) -> Result<f64>) -> Result<f64> {
        let url = format!("http://{}/metrics", self.server.address());
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let reader = scope.spawn(|| -> Result<()> {
                while !ended.load(Ordering::Relaxed) {
                    let page = ureq::get(&url).call()?.body_mut().read_to_string()?;
                    ensure!(page.contains("entropic_steps_total"), "{url} has no metrics of a run");
                    thread::sleep(Duration::from_secs(1) / SCRAPES);
                }
                Ok(())
            });
            let seconds = run(&self.metrics);
            ended.store(true, Ordering::Relaxed);
            reader.join().map_err(|_| anyhow!("reading the metrics failed"))??;
            seconds
        })
    }
}
