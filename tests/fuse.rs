//! K steps in one launch are K launches, bit for bit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../passes/tests/common/mod.rs"]
mod common;
#[path = "support/controlled.rs"]
mod controlled;
#[path = "support/corpus.rs"]
mod corpus;

use std::num::NonZeroU32;

use common::{Array, Compiled, Contraction};
use corpus::Case;
use hlo::Module;
use passes::policy::ARTICLE_POLICY;
use passes::{Context, FuseSteps, InjectOptions, Pipeline, Policy, StepInput, StepOutput, inject};

/// Steps of one launch.
const K: usize = 4;

/// Launches of it, so that state goes from one to the next.
const LAUNCHES: usize = 3;

/// A step with what it begins from, and what its inputs and outputs are to a loop.
struct Subject {
    module: Module,
    inputs: Vec<Array>,
    fuse: FuseSteps,
}

impl Subject {
    fn new(case: &Case, policy: Option<&Policy>) -> Result<Self, passes::InjectError> {
        let mut module = case.module.clone();
        let mut arrays = case.inputs.clone();
        let mut successors = case.successor_of.clone();
        let batch = |n: usize| case.roles.get(n).is_some_and(|role| role == "batch");
        if let Some(policy) = policy {
            let injection = inject(&mut module, policy, InjectOptions::default())?;
            let layout = &injection.layout;
            arrays.extend(controlled::initial(layout, &injection.step, policy));
            successors.extend(layout.outputs.iter().map(|output| {
                let input = layout.inputs.iter().find(|i| i.kind == output.kind && i.copy_of == output.copy_of);
                input.map(|i| i.parameter)
            }));
        }
        let inputs = (0..arrays.len()).map(|n| match (successors.contains(&Some(n)), batch(n)) {
            (true, _) => StepInput::State,
            (false, true) => StepInput::Batch,
            (false, false) => StepInput::Same,
        });
        let outputs = successors.iter().map(|s| s.map_or(StepOutput::Report, StepOutput::Next));
        let fuse = FuseSteps {
            steps: NonZeroU32::new(K as u32).unwrap(),
            inputs: inputs.collect(),
            outputs: outputs.collect(),
        };
        Ok(Self { module, inputs: arrays, fuse })
    }

    fn fused(&self) -> Module {
        let mut module = self.module.clone();
        let pipeline = Pipeline::new().with(self.fuse.clone());
        pipeline.run(&mut module, &mut Context::default(), &mut |_, _, _| {}).unwrap();
        module
    }

    /// The batch of a step: the case's, its elements moved on, so that no two are the same.
    fn batch(&self, input: usize, step: usize) -> Array {
        let mut array = self.inputs[input].clone();
        let width = array.bytes.len() / array.dims.iter().product::<i64>().max(1) as usize;
        let by = (step * width * 3) % array.bytes.len().max(1);
        array.bytes.rotate_left(by);
        array
    }

    /// Outputs of a launch of `steps` steps from `first` on.
    fn launch(&self, program: &Compiled, state: &[Array], first: usize, steps: Option<usize>) -> Vec<Array> {
        let inputs: Vec<Array> = (0..state.len())
            .map(|n| match (self.fuse.inputs[n], steps) {
                (StepInput::Batch, Some(steps)) => stack((first..first + steps).map(|step| self.batch(n, step))),
                (StepInput::Batch, None) => self.batch(n, first),
                _ => state[n].clone(),
            })
            .collect();
        program.run(&inputs)
    }

    fn advance(&self, state: &mut [Array], outputs: &[Array]) {
        for (output, value) in self.fuse.outputs.iter().zip(outputs) {
            if let StepOutput::Next(input) = output {
                state[*input] = value.clone();
            }
        }
    }

    /// What differs between launches of K steps and K launches, if anything does.
    fn difference(&self, contraction: Contraction) -> Option<String> {
        let single = Compiled::with(&self.module, contraction);
        let fused = Compiled::with(&self.fused(), contraction);
        if let Ok(dir) = std::env::var("DUMP") {
            std::fs::write(format!("{dir}/single.pb"), single.optimized()).unwrap();
            std::fs::write(format!("{dir}/fused.pb"), fused.optimized()).unwrap();
            std::fs::write(
                format!("{dir}/fused-before.hlo"),
                hlo::text::print(&self.fused(), hlo::text::Preset::Snapshot),
            )
            .unwrap();
        }
        let (mut one, mut many) = (self.inputs.clone(), self.inputs.clone());
        for launch in 0..LAUNCHES {
            let first = launch * K;
            let found = self.launch(&fused, &many, first, Some(K));
            self.advance(&mut many, &found);
            let mut reports: Vec<Vec<Array>> = vec![Vec::new(); self.fuse.outputs.len()];
            for step in first..first + K {
                let outputs = self.launch(&single, &one, step, None);
                self.advance(&mut one, &outputs);
                for (gathered, output) in reports.iter_mut().zip(outputs) {
                    gathered.push(output);
                }
            }
            let expected = self.fuse.outputs.iter().zip(reports).map(|(output, reports)| match output {
                StepOutput::Report => stack(reports),
                StepOutput::Next(_) | StepOutput::Last => reports.last().unwrap().clone(),
            });
            let differing: Vec<usize> =
                expected.zip(&found).enumerate().filter(|(_, (a, b))| a != *b).map(|(i, _)| i).collect();
            if !differing.is_empty() {
                let of = found.len();
                return Some(format!("{} of {of} outputs differ in launch {launch}: {differing:?}", differing.len()));
            }
        }
        None
    }
}

/// Arrays one after another.
fn stack(arrays: impl IntoIterator<Item = Array>) -> Array {
    let mut arrays = arrays.into_iter();
    let mut stacked = arrays.next().unwrap();
    let mut count = 1;
    for array in arrays {
        stacked.bytes.extend(array.bytes);
        count += 1;
    }
    stacked.dims.insert(0, count);
    stacked
}

#[test]
fn explore() {
    let article = Policy::parse(ARTICLE_POLICY).unwrap();
    let only = std::env::var("ONLY").unwrap_or_default();
    for name in corpus::names().into_iter().filter(|n| only.split(',').any(|o| o == n)) {
        let case = corpus::case(&name);
        for (label, policy) in
            [("plain", None), ("default", Some(Policy::default())), ("article", Some(article.clone()))]
        {
            match Subject::new(&case, policy.as_ref()) {
                Ok(subject) => {
                    for c in [Contraction::Allowed, Contraction::Impossible] {
                        let t = std::time::Instant::now();
                        let d = subject.difference(c);
                        eprintln!("{name} {label} {c:?}: {} {:?}", d.unwrap_or("same".into()), t.elapsed());
                    }
                }
                Err(error) => eprintln!("{name} {label}: {}", error.to_string().lines().next().unwrap_or_default()),
            }
        }
    }
}
