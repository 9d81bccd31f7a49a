//! What replicas exchange for control, and what comparing them takes: `train` with the statistics of each replica's own gradients
//! against `train` with those of the shared one; the statistics' exchange by itself; and one comparison of all states.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result};
use entropic::engine::Engine;
use entropic::model::Model;
use entropic::target::Platform;
use entropic::train::{Setup, Silent, Trainer};
use hlo::build::Builder;
use hlo::{Module, Opcode, PrimitiveType, Shape};
use passes::{Policy, Reduction, Replicas};
use pjrt::{Buffer, Executable, ExecuteOptions};

use crate::Options;
use crate::rounds::{Contender, Samples, Schedule};

/// How many replicas there are.
const COUNTS: [u32; 2] = [2, 8];

/// Each is compared after so many steps, which a measurement does not come to.
const NEVER: &str = "check_every = 1000000";

pub(crate) fn compare(options: &Options, schedule: Schedule) -> Result<Samples> {
    let mut contenders = Vec::new();
    let (mut versions, mut notes) = (Vec::new(), Vec::new());
    let folder = tempfile::tempdir()?;
    for count in COUNTS {
        let prepare = |entropy_of: &str| -> Result<(Rc<RefCell<Trainer>>, usize)> {
            let policy = Policy::parse(&format!("[replicas]\nentropy_of = {entropy_of:?}\n{NEVER}"))?;
            let count = NonZeroU32::new(count).context("no replicas")?;
            let replicas = Replicas { count, reduction: Reduction::Mean, weighting: None };
            let platform = Platform::of_plugin(&options.plugin);
            let bundle = Model::open(&options.model)?.inject_into(&policy, platform, Some(replicas))?;
            let controller = bundle.manifest.controller.as_ref().context("there is no controller")?;
            let tensors = controller.layout.tensors.len();
            let out = folder.path().join(format!("{entropy_of}-{count}"));
            let options = crate::options_of_run(options, &bundle, NonZeroU32::MIN, &out);
            Ok((Rc::new(RefCell::new(Trainer::new(Setup::new(options, &mut Silent)?))), tensors))
        };
        let (global, tensors) = prepare("global")?;
        let (local, _) = prepare("local-mean")?;
        let engine = global.borrow().setup().engine.clone();
        if versions.is_empty() {
            versions.push(crate::plugin(&engine));
        }
        if notes.is_empty() {
            let trainer = global.borrow();
            let check = trainer.consistency().context("replicas are not compared")?;
            let (states, bytes) = (check.states, check.cost.bytes);
            notes.push(format!(
                "statistics of {} bytes; {states} states of {bytes} bytes are compared",
                8 * tensors + 4
            ));
        }
        for (name, trainer) in [("global", global.clone()), ("local", local)] {
            let run = move |steps| crate::timed(&mut trainer.borrow_mut(), steps, &mut Silent);
            contenders.push(Contender::new(&format!("{name}-{count}"), run));
        }
        for (name, reduces) in [("launch", false), ("reduce", true)] {
            let mut chain = Chain::new(&engine, 2 * tensors + 1, reduces)?;
            contenders.push(Contender::new(&format!("{name}-{count}"), move |steps| chain.run(steps)));
        }
        contenders.push(Contender::new(&format!("check-{count}"), move |checks| {
            let trainer = global.borrow();
            let check = trainer.setup().consistency.as_ref().context("replicas are not compared")?;
            let begin = Instant::now();
            for _ in 0..checks {
                check.check(&trainer.setup().stepper, 0)?;
            }
            Ok(begin.elapsed().as_secs_f64())
        }));
    }
    let mut samples = schedule.run(contenders, versions)?;
    samples.notes = notes;
    Ok(samples)
}

/// A program of one small array, launched on what the launch before left.
struct Chain {
    executable: Executable,
    /// On each device.
    state: Vec<Buffer>,
}

impl Chain {
    /// `words` numbers, whose mean over all replicas is taken, or which are only scaled.
    fn new(engine: &Engine, words: usize, reduces: bool) -> Result<Self> {
        let mut module = Module::new("statistics");
        let adder = Builder::reducer(&mut module, "add", Opcode::Add, PrimitiveType::F32)?;
        let words_signed = i64::try_from(words)?;
        let mut b = Builder::at_entry(&mut module);
        let x = b.parameter("x", Shape::array(PrimitiveType::F32, &[words_signed]))?;
        let sum = if reduces { b.all_reduce(x, adder)? } else { x };
        let share = if reduces { 1.0 / engine.devices() as f32 } else { 1.0 };
        let share = b.constant_f32(share)?;
        let share = b.broadcast_scalar_like(share, sum)?;
        let root = b.multiply(sum, share)?;
        b.set_root(root)?;
        let executable = engine.compile_spread(&module, "the statistics' exchange")?;
        let dtype = entropic::bundle::Dtype::from_primitive(PrimitiveType::F32).context("f32 is no dtype")?;
        let bytes = 1.0_f32.to_le_bytes().repeat(words);
        let upload = |device| Ok(engine.upload_to(device, &bytes, dtype, &[words_signed])?);
        let state = (0..engine.devices()).map(upload).collect::<Result<_>>()?;
        Ok(Self { executable, state })
    }

    /// So many launches, of which each is waited for: the time from the call to the result.
    fn run(&mut self, launches: u64) -> Result<f64> {
        let begin = Instant::now();
        for _ in 0..launches {
            let arguments: Vec<[&Buffer; 1]> = self.state.iter().map(|buffer| [buffer]).collect();
            let execution = self.executable.execute(&arguments, &ExecuteOptions::default())?;
            self.state = execution.outputs.into_iter().flatten().collect();
            for buffer in &self.state {
                buffer.ready_event()?.wait()?;
            }
        }
        Ok(begin.elapsed().as_secs_f64())
    }
}
