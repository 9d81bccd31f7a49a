//! What several steps in one launch are worth: the controlled step by itself and in launches of [`STEPS`], in bare execute
//! loops and in `train`. Both give the same bits, or nothing is timed.

use std::num::NonZeroU32;
use std::path::Path;

use anyhow::{Context, Result};
use entropic::bundle::Bundle;
use entropic::engine::Engine;
use entropic::model::Model;
use entropic::target::Platform;
use entropic::train::{Setup, Silent, Trainer};
use passes::Policy;

use crate::bare::{BATCHES, Bare, Initial};
use crate::rounds::{Contender, Samples, Schedule};
use crate::{Options, text, timed};

/// Steps of one launch.
const STEPS: u32 = 8;

pub(crate) fn compare(options: &Options, schedule: Schedule) -> Result<Samples> {
    let engine = Engine::open(&options.plugin)?;
    let steps = NonZeroU32::new(STEPS).context("no steps in a launch")?;
    let platform = Platform::of_plugin(&options.plugin);
    let single = Model::open(&options.model)?.inject(&Policy::default(), platform)?;
    let fused = single.fuse(steps, platform)?;
    let initial = Initial::new(&engine, &single, &text())?;
    let (one, one_state) = bare(&engine, &single, &initial)?;
    let initial = initial.in_launches_of(STEPS as usize);
    let (several, several_state) = bare(&engine, &fused, &initial)?;
    anyhow::ensure!(one_state == several_state, "{STEPS} steps in a launch are not {STEPS} launches");
    let folder = tempfile::tempdir()?;
    let contenders = vec![
        Contender::new("single", one),
        Contender::new("launch", several),
        Contender::new("train", train(options, &single, NonZeroU32::MIN, &folder.path().join("single"))?),
        Contender::new("train-launch", train(options, &single, steps, &folder.path().join("launch"))?),
    ];
    // All do the same steps, so that none pays more often for what a change of turns costs.
    let schedule = Schedule { multiple: STEPS.into(), ..schedule };
    schedule.run(contenders, vec![crate::plugin(&engine)])
}

/// A bare loop, to be run for a number of steps, and the bytes of its state after [`BATCHES`] steps.
fn bare(
    engine: &Engine,
    bundle: &Bundle,
    initial: &Initial,
) -> Result<(impl FnMut(u64) -> Result<f64> + 'static, Vec<u8>)> {
    let per_launch = u64::from(bundle.manifest.launch.steps.get());
    let executable = engine.compile(&bundle.module, "the step")?;
    let mut bare = Bare::new(initial, |bytes, dtype, shape| Ok(engine.upload(bytes, dtype, shape)?))?;
    bare.run(&executable, BATCHES / per_launch)?;
    let state = bare.state()?;
    Ok((move |steps| whole_launches(steps, per_launch, |launches| bare.run(&executable, launches)), state))
}

/// A training run, to be run for a number of steps.
fn train(
    options: &Options,
    bundle: &Bundle,
    steps: NonZeroU32,
    run: &Path,
) -> Result<impl FnMut(u64) -> Result<f64> + 'static> {
    let options = crate::options_of_run(options, bundle, steps, run);
    let mut trainer = Trainer::new(Setup::new(options, &mut Silent)?);
    let per_launch = u64::from(steps.get());
    Ok(move |steps| {
        whole_launches(steps, per_launch, |launches| timed(&mut trainer, launches * per_launch, &mut Silent))
    })
}

/// Seconds of `steps` steps, from those of the launches that do at least as many.
fn whole_launches(steps: u64, per_launch: u64, mut run: impl FnMut(u64) -> Result<f64>) -> Result<f64> {
    let launches = steps.div_ceil(per_launch);
    Ok(run(launches)? * steps as f64 / (launches * per_launch) as f64)
}
