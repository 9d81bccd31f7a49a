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
use hlo::build::Builder;
use hlo::proto::HloInstructionProto;
use hlo::{AliasKind, InstructionId, Module, Opcode, PrimitiveType, Shape};
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
        let [single, fused] = [&self.module, &self.fused()].map(|module| Compiled::with(module, Contraction::Allowed));
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

/// The CPU's compiler treats convolutions in a loop otherwise, so that the program refuses these steps there.
const CONVOLUTIONS: &[&str] = &["cnn_trainstate_adamw_clip"];

#[test]
fn every_step_of_the_corpus_is_the_same_in_a_launch_of_several() {
    let names = corpus::names();
    let names = names.iter().map(String::as_str).filter(|name| !CONVOLUTIONS.contains(name));
    let differing = differences(names, &[("plain", None)]);
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

/// Optimizers, dropout, batch statistics, a loss scale, accumulation, and steps with loops of their own.
const CONTROLLED: &[&str] =
    &["dropout_rng", "nnx_adamw", "mlp_fp16_lossscale", "mlp_multisteps", "gptscan_adamw_clip", "mlp_adam"];

#[test]
fn controlled_steps_are_the_same_in_a_launch_of_several() {
    let article = Policy::parse(ARTICLE_POLICY).unwrap();
    let mut differing = differences(CONTROLLED.iter().copied(), &[("article", Some(article))]);
    differing.extend(differences(["dropout_rng", "nnx_adamw"], &[("default", Some(Policy::default()))]));
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

/// `w' = w · x` and a report of `x`, with a change.
fn product(change: impl FnOnce(&mut Builder<'_>, InstructionId)) -> Module {
    let mut module = Module::new("product");
    let mut b = Builder::at_entry(&mut module);
    let w = b.parameter("w", Shape::array(PrimitiveType::F32, &[4])).unwrap();
    let x = b.parameter("x", Shape::array(PrimitiveType::F32, &[4])).unwrap();
    let new = b.named("new").multiply(w, x).unwrap();
    change(&mut b, new);
    module.set_outputs(&[new, x]).unwrap();
    module
}

fn fuse(steps: u32) -> FuseSteps {
    FuseSteps {
        steps: NonZeroU32::new(steps).unwrap(),
        inputs: vec![StepInput::State, StepInput::Batch],
        outputs: vec![StepOutput::Next(0), StepOutput::Report],
    }
}

fn fused(mut module: Module, fuse: FuseSteps) -> Result<Module, String> {
    let ran = Pipeline::new().with(fuse).run(&mut module, &mut Context::default(), &mut |_, _, _| {});
    ran.map(|_| module).map_err(|error| error.to_string())
}

#[test]
fn one_step_is_left_alone_and_the_last_of_several_outputs_is_kept_where_asked() {
    let module = product(|_, _| {});
    assert_eq!(fused(module.clone(), fuse(1)).unwrap(), module);
    let last = FuseSteps { outputs: vec![StepOutput::Next(0), StepOutput::Last], ..fuse(3) };
    let module = fused(module, last).unwrap();
    let x: Vec<f32> = (1..=12).map(|i| i as f32).collect();
    let outputs = Compiled::new(&module).run(&[Array::vector(&[1.0; 4]), Array::f32(&[3, 4], &x)]);
    assert_eq!(outputs[0].floats(), [1.0 * 5.0 * 9.0, 2.0 * 6.0 * 10.0, 3.0 * 7.0 * 11.0, 4.0 * 8.0 * 12.0]);
    assert_eq!(outputs[1].floats(), [9.0, 10.0, 11.0, 12.0]);
}

#[test]
fn a_step_that_returns_one_array_is_fused() {
    let mut module = product(|_, _| {});
    let new = module.entry_computation().find("new").unwrap();
    Builder::at_entry(&mut module).set_root(new).unwrap();
    let module = fused(module, FuseSteps { outputs: vec![StepOutput::Next(0)], ..fuse(2) }).unwrap();
    let outputs = Compiled::new(&module).run(&[Array::vector(&[2.0; 4]), Array::f32(&[2, 4], &[3.0; 8])]);
    assert_eq!(outputs[0].floats(), [18.0; 4]);
}

#[test]
fn the_trip_count_is_known_to_compilers() {
    let module = fused(product(|_, _| {}), fuse(7)).unwrap();
    let optimized = String::from_utf8_lossy(&Compiled::new(&module).optimized()).into_owned();
    assert!(optimized.contains(r#""known_trip_count":{"n":"7"}"#), "{optimized}");
}

#[test]
fn an_alias_goes_where_its_sides_no_longer_have_one_size() {
    let mut module = product(|_, _| {});
    module.alias(0, 1, AliasKind::May).unwrap();
    module.alias(1, 0, AliasKind::May).unwrap();
    assert!(fused(module.clone(), fuse(2)).unwrap().aliases().is_empty());
    let mut module = product(|_, _| {});
    module.alias(0, 0, AliasKind::May).unwrap();
    module.alias(1, 1, AliasKind::May).unwrap();
    assert_eq!(fused(module.clone(), fuse(2)).unwrap().aliases(), module.aliases());
}

#[test]
fn what_cannot_be_fused_is_refused_by_name() {
    let refused = |module: Module, fuse: FuseSteps, parts: &[&str]| {
        let error = fused(module, fuse).unwrap_err();
        assert!(error.starts_with("fuse-steps: ") && parts.iter().all(|part| error.contains(part)), "{error}");
    };
    refused(corpus::module("mesh_jit"), fuse(2), &["partitioned over devices", "carries a sharding"]);
    let loud = product(|b, x| {
        let attributes = HloInstructionProto { custom_call_has_side_effect: true, ..Default::default() };
        let shape = Shape::scalar(PrimitiveType::F32);
        b.named("callback").emit_with(Opcode::CustomCall, &[x], shape, attributes, Vec::new()).unwrap();
    });
    refused(loud, fuse(2), &["%callback", "custom-call", "more than compute a value", "launch single steps"]);
    let plain = || product(|_, _| {});
    let inputs = |inputs: &[StepInput]| FuseSteps { inputs: inputs.to_vec(), ..fuse(2) };
    refused(plain(), inputs(&[StepInput::State]), &["1 inputs and 2 outputs, the module 2 and 2"]);
    refused(plain(), inputs(&[StepInput::State; 2]), &["input 1 is State, and 0 outputs"]);
    refused(plain(), inputs(&[StepInput::Same, StepInput::Batch]), &["input 0 is Same, and 1 outputs"]);
    let outputs = |outputs: [StepOutput; 2]| FuseSteps { outputs: outputs.to_vec(), ..fuse(2) };
    refused(
        plain(),
        outputs([StepOutput::Next(0), StepOutput::Next(5)]),
        &["output 1", "input 5, which does not exist"],
    );
    refused(plain(), outputs([StepOutput::Next(0), StepOutput::Next(0)]), &["2 outputs are its next value"]);
    let other = product(|b, _| {
        b.parameter("narrow", Shape::array(PrimitiveType::F32, &[2])).unwrap();
    });
    let narrow = FuseSteps {
        inputs: vec![StepInput::State, StepInput::Batch, StepInput::State],
        outputs: vec![StepOutput::Next(0), StepOutput::Next(2)],
        ..fuse(2)
    };
    refused(other, narrow, &["output 1 is f32[4], the input that it succeeds f32[2]"]);
    let pair = product(|b, _| {
        b.parameter("pair", Shape::tuple(vec![Shape::scalar(PrimitiveType::F32)])).unwrap();
    });
    let with = |more| FuseSteps { inputs: vec![StepInput::State, StepInput::Batch, more], ..fuse(2) };
    refused(pair, with(StepInput::Same), &["input 2 is (f32[])", "cannot be stacked: it is no array"]);
    let ragged = product(|b, _| {
        let mut shape = Shape::array(PrimitiveType::F32, &[8]);
        shape.proto_mut().is_dynamic_dimension = vec![true];
        b.parameter("ragged", shape).unwrap();
    });
    refused(ragged, with(StepInput::Batch), &["input 2", "not fixed"]);
    let huge = product(|b, _| {
        b.parameter("huge", Shape::array(PrimitiveType::F32, &[1 << 40])).unwrap();
    });
    let many =
        FuseSteps { inputs: vec![StepInput::State, StepInput::Batch, StepInput::Batch], ..fuse(i32::MAX as u32) };
    refused(huge, many, &["input 2", "more than can be counted"]);
}
