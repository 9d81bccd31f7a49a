//! K steps in one launch are K launches, bit for bit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../passes/tests/common/mod.rs"]
mod common;
#[path = "support/controlled.rs"]
mod controlled;
#[path = "support/corpus.rs"]
mod corpus;

use std::num::NonZeroU32;

use common::{Array, Compiled};
use corpus::Case;
use hlo::Module;
use passes::layout::ArrayKind;
use passes::policy::ARTICLE_POLICY;
use passes::{
    Context, ControllerLayout, FuseSteps, InjectOptions, Pipeline, Policy, StepInput, StepOutput, Telemetry, inject,
};

/// Steps of one launch.
const K: usize = 4;

/// Launches of it, so that state goes from one to the next.
const LAUNCHES: usize = 3;

/// A step with what it begins from, and what its inputs and outputs are to a loop.
struct Subject {
    module: Module,
    inputs: Vec<Array>,
    fuse: FuseSteps,
    layout: Option<ControllerLayout>,
    /// Steps whose batch is not finite.
    spoilt: Vec<usize>,
}

impl Subject {
    fn new(case: &Case, policy: Option<&Policy>) -> Result<Self, passes::InjectError> {
        let mut module = case.module.clone();
        let mut arrays = case.inputs.clone();
        let mut successors = case.successor_of.clone();
        let mut controller = None;
        let batch = |n: usize| case.roles.get(n).is_some_and(|role| role == "batch");
        if let Some(policy) = policy {
            let injection = inject(&mut module, policy, InjectOptions::default())?;
            let layout = &injection.layout;
            arrays.extend(controlled::initial(layout, &injection.step, policy));
            successors.extend(layout.outputs.iter().map(|output| {
                let input = layout.inputs.iter().find(|i| i.kind == output.kind && i.copy_of == output.copy_of);
                input.map(|i| i.parameter)
            }));
            controller = Some(injection.layout);
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
        Ok(Self { module, inputs: arrays, fuse, layout: controller, spoilt: Vec::new() })
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
        if self.spoilt.contains(&step) && array.element_type == pjrt::ElementType::F32 {
            array.bytes[..4].copy_from_slice(&f32::NAN.to_ne_bytes());
        }
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
    fn difference(&self) -> Option<String> {
        let single = Compiled::new(&self.module);
        let fused = Compiled::new(&self.fused());
        let (mut one, mut many) = (self.inputs.clone(), self.inputs.clone());
        for launch in 0..LAUNCHES {
            let first = launch * K;
            let found = self.launch(&fused, &many, first, Some(K));
            self.advance(&mut many, &found);
            let mut made: Vec<Vec<Array>> = vec![Vec::new(); self.fuse.outputs.len()];
            for step in first..first + K {
                let outputs = self.launch(&single, &one, step, None);
                self.advance(&mut one, &outputs);
                for (gathered, output) in made.iter_mut().zip(outputs) {
                    gathered.push(output);
                }
            }
            let expected = self.fuse.outputs.iter().zip(made).map(|(output, mut made)| match output {
                StepOutput::Report => stack(made),
                StepOutput::Next(_) | StepOutput::Last => made.pop().unwrap(),
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

    /// What the controller reports of each step, out of launches of several.
    fn told(&self) -> Vec<Telemetry> {
        let layout = self.layout.as_ref().unwrap();
        let telemetry = layout.outputs.iter().find(|o| o.kind == ArrayKind::Telemetry).unwrap().output;
        let fused = Compiled::new(&self.fused());
        let mut state = self.inputs.clone();
        let mut told = Vec::new();
        for launch in 0..LAUNCHES {
            let outputs = self.launch(&fused, &state, launch * K, Some(K));
            self.advance(&mut state, &outputs);
            let values = outputs[telemetry].floats();
            told.extend(values.chunks(values.len() / K).map(|step| Telemetry::decode(layout, step).unwrap()));
        }
        told
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

/// What differs in any of the cases under any of the policies.
fn differences<'a>(names: impl IntoIterator<Item = &'a str>, policies: &[(&str, Option<Policy>)]) -> Vec<String> {
    let mut found = Vec::new();
    for name in names {
        let case = corpus::case(name);
        for (label, policy) in policies {
            let subject = Subject::new(&case, policy.as_ref()).unwrap_or_else(|e| panic!("{name}, {label}: {e}"));
            found.extend(subject.difference().map(|difference| format!("{name}, {label}: {difference}")));
        }
    }
    found
}

#[test]
fn every_step_of_the_corpus_is_the_same_in_a_launch_of_several() {
    let names = corpus::names();
    let differing = differences(names.iter().map(String::as_str), &[("plain", None)]);
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

/// Optimizers, dropout, batch statistics, a loss scale, accumulation, and steps with loops of their own.
const CONTROLLED: &[&str] = &[
    "dropout_rng",
    "cnn_trainstate_adamw_clip",
    "mlp_fp16_lossscale",
    "mlp_multisteps",
    "gptscan_adamw_clip",
    "mlp_adam",
];

#[test]
fn controlled_steps_are_the_same_in_a_launch_of_several() {
    let article = Policy::parse(ARTICLE_POLICY).unwrap();
    let policies = [("default", Some(Policy::default())), ("article", Some(article))];
    let differing = differences(CONTROLLED.iter().copied(), &policies);
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn gates_and_rollbacks_fall_on_the_same_steps() {
    let policy = "[rollback]\nkind = \"snapshot\"\nrefresh = 2\npatience = 2\n[gate]\nmax_pause = 9\n";
    let policy = Policy::parse(policy).unwrap();
    let mut subject = Subject::new(&corpus::case("mlp_adam"), Some(&policy)).unwrap();
    subject.spoilt = vec![5, 6, 7];
    assert_eq!(subject.difference(), None);
    let told = subject.told();
    let refused: Vec<usize> = (0..told.len()).filter(|&step| !told[step].applied).collect();
    assert_eq!(refused, [5, 6, 7]);
    assert!(told.iter().any(|t| t.rollback.as_ref().is_some_and(|r| r.rolled_back)));
}
