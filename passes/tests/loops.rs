//! Steps inside a loop: control is put into the body, and every step of a launch is controlled and told as one by itself.
//!
//! The modules are those of `tests/corpus_loops`: steps, and loops over the same steps.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::Path;

use common::devices::{Over, Spread};
use common::{Array, Compiled, Contraction, Random};
use hlo::{Instruction, Module, Opcode};
use passes::layout::ArrayKind;
use passes::policy::{ARTICLE_POLICY, RollbackKind};
use passes::step::StateClass;
use passes::{
    ControllerLayout, InjectOptions, Injection, Policy, Reduction, Replicas, Telemetry, TrainStep, discover, inject,
    replicate_step,
};

/// Steps that a loop of the corpus does in one launch.
const K: usize = 4;

/// Launches of it, so that state goes from one to the next.
const LAUNCHES: usize = 3;

fn load(name: &str) -> Module {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/corpus_loops/{name}.hlo.pb"));
    let mut module = Module::import(&std::fs::read(path).unwrap()).unwrap();
    module.inline_calls(|_| false).unwrap();
    module
}

/// A program, compiled, with the state that goes from launch to launch.
struct Run {
    program: Compiled,
    step: TrainStep,
    layout: Option<ControllerLayout>,
    state: Vec<Array>,
    /// The output that is the next value of each input.
    successors: Vec<Option<usize>>,
    /// Steps of one launch.
    steps: usize,
    /// Inputs of the program without control.
    own: usize,
}

/// What one step told.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    loss: f32,
    telemetry: Option<Telemetry>,
}

/// Steps whose batch is not finite.
type Spoilt<'a> = &'a [usize];

impl Run {
    fn new(name: &str, policy: Option<&Policy>, contraction: Contraction) -> Self {
        Self::of(load(name), policy, contraction)
    }

    fn of(mut module: Module, policy: Option<&Policy>, contraction: Contraction) -> Self {
        let plain = module.clone();
        let (step, layout) = match policy {
            Some(policy) => {
                let Injection { step, layout } = inject(&mut module, policy, InjectOptions::default()).unwrap();
                (step, Some(layout))
            }
            None => (discover(&module).unwrap(), None),
        };
        let mut state = first_state(&plain);
        let mut successors = vec![None; state.len()];
        let own = state.len();
        for state in step.states.iter().filter(|s| s.input < own) {
            successors[state.input] = Some(state.output);
        }
        for input in layout.iter().flat_map(|l| &l.inputs) {
            assert_eq!(input.parameter, state.len());
            let layout = layout.as_ref().unwrap();
            state.push(match input.kind {
                ArrayKind::Policy => Array::vector(&layout.policy_vector(policy.unwrap()).unwrap()),
                ArrayKind::State => Array::vector(&layout.initial_state()),
                ArrayKind::Counters => Array::s32(&input.dims, &layout.initial_counters()),
                ArrayKind::Snapshot => Array {
                    bytes: vec![0; state[input.copy_of.unwrap()].bytes.len()],
                    ..state[input.copy_of.unwrap()].clone()
                },
                ArrayKind::Telemetry => panic!("telemetry as an input"),
            });
            let next = layout.outputs.iter().find(|o| o.kind == input.kind && o.copy_of == input.copy_of);
            successors.push(next.map(|o| o.output));
        }
        let steps = step.inside_loop.as_ref().map_or(1, |around| around.trips.clone().unwrap().steps.get() as usize);
        Self { program: Compiled::with(&module, contraction), step, layout, state, successors, steps, own }
    }

    /// One launch, from step `first` on; returns the program's own outputs and what each step told.
    fn launch(&mut self, first: usize, spoilt: Spoilt<'_>) -> (Vec<Array>, Vec<Told>) {
        let mut inputs = self.state.clone();
        let data = self.step.batch.iter().filter(|&&input| !self.state[input].dims.is_empty());
        for (&input, number) in data.zip(0..) {
            let batches =
                (first..first + self.steps).map(|step| batch(&inputs[input], self.steps, step, number, spoilt));
            inputs[input].bytes = batches.collect::<Vec<_>>().concat();
        }
        let outputs = self.program.run(&inputs);
        for (state, successor) in self.state.iter_mut().zip(&self.successors) {
            if let Some(output) = successor {
                *state = outputs[*output].clone();
            }
        }
        let losses = outputs[self.step.loss.unwrap()].floats();
        let telemetry = self.layout.as_ref().map(|layout| {
            let output = layout.outputs.iter().find(|o| o.kind == ArrayKind::Telemetry).unwrap();
            let values = &outputs[output.output];
            let each =
                if self.steps > 1 { [&[self.steps as i64], &*output.dims].concat() } else { output.dims.clone() };
            assert_eq!(values.dims, each);
            assert_eq!(layout.steps.get() as usize, self.steps);
            let values = values.floats();
            values.chunks(values.len() / self.steps).map(|v| Telemetry::decode(layout, v).unwrap()).collect::<Vec<_>>()
        });
        let told = losses
            .iter()
            .enumerate()
            .map(|(step, &loss)| Told { loss, telemetry: telemetry.as_ref().map(|told| told[step].clone()) });
        let told = told.collect();
        let own = outputs.len() - self.layout.as_ref().map_or(0, |layout| layout.outputs.len());
        (outputs.into_iter().take(own).collect(), told)
    }

    /// Launches until `steps` steps are done; returns what each told, and the step's own states then.
    fn steps(mut self, steps: usize, spoilt: Spoilt<'_>) -> (Vec<Told>, Vec<Array>) {
        let mut told = Vec::new();
        while told.len() < steps {
            told.extend(self.launch(told.len(), spoilt).1);
        }
        let states = self.step.states.iter().filter(|s| s.input < self.own);
        (told, states.map(|s| self.state[s.input].clone()).collect())
    }
}

/// Parameters at random, and whatever else goes from step to step at zero.
fn first_state(module: &Module) -> Vec<Array> {
    let entry = module.entry_computation();
    let parameters = entry.parameters().into_iter().map(|id| entry.get(id).unwrap());
    let mut random = Random::new(1);
    let array = |parameter: &hlo::Instruction| {
        let shape = &parameter.shape;
        let bytes = if parameter.op_name().starts_with("params") {
            (0..shape.num_elements()).flat_map(|_| (0.3 * random.normal() as f32).to_ne_bytes()).collect()
        } else {
            vec![0; shape.byte_size() as usize]
        };
        Array { element_type: shape.element_type().name().parse().unwrap(), dims: shape.dims().to_vec(), bytes }
    };
    parameters.map(array).collect()
}

/// What a step takes of an input, which holds what `steps` steps take.
fn batch(input: &Array, steps: usize, step: usize, number: u64, spoilt: Spoilt<'_>) -> Vec<u8> {
    let mut random = Random::new(1000 * (step as u64 + 1) + number);
    let count = input.bytes.len() / 4 / steps;
    let mut values: Vec<f32> = (0..count).map(|_| random.normal() as f32).collect();
    if spoilt.contains(&step) {
        values[0] = f32::NAN;
    }
    values.into_iter().flat_map(f32::to_ne_bytes).collect()
}

fn snapshots() -> Policy {
    let mut policy = Policy::default();
    policy.rollback.kind = RollbackKind::Snapshot;
    (policy.rollback.patience, policy.rollback.refresh) = (2, 2);
    policy
}

#[test]
fn a_watched_loop_is_the_loop_bit_for_bit() {
    let mut plain = Run::new("micro_scan", None, Contraction::Allowed);
    let mut watched = Run::new("micro_scan", Some(&Policy::monitor()), Contraction::Allowed);
    for launch in 0..LAUNCHES {
        let (expected, found) = (plain.launch(launch * K, &[]), watched.launch(launch * K, &[]));
        let differ: Vec<usize> = (0..expected.0.len()).filter(|&i| expected.0[i] != found.0[i]).collect();
        assert!(differ.is_empty(), "outputs {differ:?} differ in launch {launch}");
    }
}

/// Asserts that the steps of a loop are controlled, and told, as those that are launched one by one.
fn assert_same(single: &str, looped: &str, policy: &Policy, spoilt: Spoilt<'_>) -> Vec<Told> {
    let one = Run::new(single, Some(policy), Contraction::Impossible).steps(LAUNCHES * K, spoilt);
    let many = Run::new(looped, Some(policy), Contraction::Impossible).steps(LAUNCHES * K, spoilt);
    // As text, in which what is not a number is equal to itself.
    for (step, (expected, found)) in one.0.iter().zip(&many.0).enumerate() {
        assert_eq!(format!("{expected:?}"), format!("{found:?}"), "{looped}: step {step}");
    }
    assert!(one.1 == many.1, "{looped}: states differ after {} steps", LAUNCHES * K);
    for &step in spoilt {
        assert!(!one.0[step].telemetry.as_ref().unwrap().applied, "{looped}: step {step} was not refused");
    }
    many.0
}

#[test]
fn every_step_of_a_launch_is_controlled_and_told_as_one_by_itself() {
    let article = Policy::parse(ARTICLE_POLICY).unwrap();
    assert_same("adamw", "adamw_scan", &article, &[5]);
    assert_same("multisteps", "multisteps_scan", &Policy::default(), &[5]);
}

#[test]
fn a_launch_goes_on_where_its_steps_are_refused_and_rolled_back() {
    let told = assert_same("adamw", "adamw_fori", &snapshots(), &[5, 6, 9]);
    let rolled_back: Vec<usize> = (0..told.len())
        .filter(|&i| told[i].telemetry.as_ref().unwrap().rollback.as_ref().unwrap().rolled_back)
        .collect();
    assert_eq!(rolled_back, [6]);
}

#[test]
fn models_that_scan_over_their_layers_are_controlled_in_a_scan_over_steps() {
    assert_same("layers", "layers_scan", &Policy::monitor(), &[]);
}

#[test]
fn what_steps_report_goes_on_where_they_are_refused() {
    let mut run = Run::new("reports_scan", Some(&Policy::default()), Contraction::Impossible);
    let inputs: Vec<Array> = run.step.batch.iter().map(|&input| run.state[input].clone()).collect();
    let (outputs, told) = run.launch(0, &[1]);
    let applied: Vec<bool> = told.iter().map(|t| t.telemetry.as_ref().unwrap().applied).collect();
    assert_eq!(applied, [true, false, true, true]);
    // The last three: a loss, a count and a flag of each step.
    let [.., last, losses, hits, finite] = outputs.as_slice() else { panic!("{} outputs", outputs.len()) };
    assert_eq!(losses.floats().iter().map(|l| l.is_finite()).collect::<Vec<_>>(), applied);
    assert_eq!(finite.bytes, [1, 0, 1, 1]);
    let batches = |step| {
        let of = |n: usize| batch(&inputs[n], K, step, n as u64, &[1]);
        [of(0), of(1)].map(|bytes| bytes.chunks_exact(4).map(|v| f32::from_ne_bytes(v.try_into().unwrap())).collect())
    };
    let counts = (0..K).map(|step| {
        let [x, y]: [Vec<f32>; 2] = batches(step);
        x.chunks(16).zip(y.chunks(8)).filter(|(x, y)| x.iter().sum::<f32>() > y.iter().sum::<f32>()).count() as i32
    });
    assert_eq!(hits.ints(), counts.collect::<Vec<_>>());
    let [_, y] = batches(K - 1);
    let mean = |column: usize| y.iter().skip(column).step_by(8).sum::<f32>() / 8.0;
    assert!(last.floats().iter().enumerate().all(|(column, v)| (v - mean(column)).abs() < 1e-6));
}

#[test]
fn the_loss_is_found_among_what_steps_write() {
    for (name, loss) in [("adamw_scan", 13), ("adamw_fori", 13), ("layers_scan", 10), ("reports_scan", 5)] {
        let step = discover(&load(name)).unwrap();
        let around = step.inside_loop.as_ref().unwrap();
        assert_eq!(around.trips.as_ref().unwrap().steps.get() as usize, K, "{name}");
        assert_eq!(step.loss, Some(loss), "{name}");
        assert!(around.leaves.iter().any(|leaf| leaf.output == Some(loss) && leaf.each), "{name}");
        for input in &step.batch {
            assert!(around.leaves.iter().any(|leaf| leaf.input == Some(*input) && leaf.each), "{name}: input {input}");
        }
    }
}

#[test]
fn a_step_and_the_body_of_a_loop_over_it_are_found_to_be_the_same() {
    for single in ["adamw", "multisteps", "layers", "micro"] {
        let looped = &format!("{single}_scan");
        let told = |name: &str| {
            let step = discover(&load(name)).unwrap();
            let inputs = load(name).entry_computation().parameters().len();
            let parameters = step.parameters.iter().map(|p| {
                let gradient = p.found_gradient().map(|g| g.links.iter().map(|l| l.kinds.clone()).collect::<Vec<_>>());
                format!("{} {} {} {gradient:?} {:?} {:?}", p.name, p.input, p.output, p.moments, p.confidence)
            });
            let states = step.states.iter().filter(|s| s.input < inputs);
            let states = states.map(|s| format!("{} {} {} {:?} {:?}", s.name, s.input, s.output, s.role, s.class));
            (parameters.chain(states).collect::<Vec<_>>(), step.consumes.is_some(), step.batch)
        };
        assert_eq!(told(single), told(looped), "{looped}");
    }
}

#[test]
fn what_begins_anew_in_every_launch_has_a_class() {
    let module = load("reports_scan");
    let step = discover(&module).unwrap();
    let inputs = module.entry_computation().parameters().len();
    let own: Vec<_> = step.states.iter().filter(|s| s.input >= inputs).collect();
    let of = |class| own.iter().filter(|s| s.class == class).count();
    // Eight moments; the count of AdamW; three records, and what the last batch was like.
    assert_eq!((of(StateClass::Held), of(StateClass::Both) + of(StateClass::Unclassified)), (9, 0));
    assert_eq!(of(StateClass::Advancing), 4);
    let around = step.inside_loop.as_ref().unwrap();
    let counter = around.trips.as_ref().unwrap().counter.unwrap();
    assert!(around.body.states.iter().all(|s| s.input != counter), "a policy could hold the loop's own counter");
}

/// Every operation by name, with its operands' names.
fn operations(module: &Module) -> Vec<(String, Opcode, Vec<String>)> {
    let operations = module.computations().flat_map(|(_, c)| {
        let name = |id: &hlo::InstructionId| c.get(*id).unwrap().name.clone();
        c.instructions()
            .map(move |(_, i): (_, &Instruction)| (i.name.clone(), i.opcode, i.operands.iter().map(name).collect()))
    });
    operations.collect()
}

#[test]
fn nothing_else_in_the_graph_changes() {
    for name in ["adamw_scan", "adamw_fori", "reports_scan"] {
        let plain = load(name);
        let mut controlled = plain.clone();
        inject(&mut controlled, &Policy::monitor(), InjectOptions::default()).unwrap();
        let after = operations(&controlled);
        for (operation, opcode, operands) in operations(&plain) {
            // The loop takes more, the body returns more, and so does the program.
            let more = matches!(opcode, Opcode::Tuple | Opcode::While);
            let found = after.iter().find(|(name, ..)| *name == operation);
            let kept = found.is_some_and(|(_, o, found)| *o == opcode && (more || *found == operands));
            let begun = opcode == Opcode::Tuple && found.is_none();
            assert!(kept || begun, "{name}: {operation} was {opcode:?} of {operands:?}, and is {found:?}");
        }
        let aliases = controlled.aliases();
        assert!(plain.aliases().iter().all(|alias| aliases.contains(alias)), "{name}");
        assert_eq!(aliases.len(), plain.aliases().len() + 2, "{name}");
    }
}

/// Notes a trip count, as a front end may.
fn note(module: &mut Module, count: usize) {
    let entry = module.entry_computation_mut();
    let site = entry.instructions().find(|(_, i)| i.opcode == Opcode::While).unwrap().0;
    let config = format!(r#"{{"known_trip_count":{{"n":"{count}"}}}}"#);
    entry.get_mut(site).unwrap().attributes_mut().backend_config = config.into_bytes();
}

#[test]
fn a_noted_trip_count_is_enough() {
    let mut module = load("asked");
    note(&mut module, K);
    let mut run = Run::of(module, Some(&Policy::monitor()), Contraction::Impossible);
    let count = run.step.batch.iter().copied().find(|&input| run.state[input].dims.is_empty()).unwrap();
    run.state[count] = Array::s32(&[], &[K as i32]);
    for launch in 0..2 {
        let (_, told) = run.launch(launch * K, &[]);
        let accepted: Vec<f32> = told.iter().map(|t| t.telemetry.as_ref().unwrap().accepted).collect();
        let first = (launch * K) as f32;
        assert_eq!(accepted, [first + 1.0, first + 2.0, first + 3.0, first + 4.0]);
    }
}

#[test]
fn loops_that_control_cannot_be_put_into_are_refused_with_the_reason() {
    let refusal = |name: &str, policy: &Policy, edit: &dyn Fn(&mut Module)| {
        let mut module = load(name);
        edit(&mut module);
        inject(&mut module, policy, InjectOptions::default()).unwrap_err().to_string()
    };
    let monitor = Policy::monitor();
    let asked = refusal("asked", &monitor, &|_| ());
    for part in ["enter-loop", "bound of its counter is no constant", "lax.scan", "single step"] {
        assert!(asked.contains(part), "{asked}");
    }
    let contradicted = refusal("adamw_scan", &monitor, &|module| note(module, 5));
    assert!(contradicted.contains("it counts 4 steps, and `known_trip_count` says 5"), "{contradicted}");
    let anew = refusal("reports_scan", &snapshots(), &|_| ());
    assert!(anew.contains("begins anew in every launch") && anew.contains("rollback.kind"), "{anew}");
}

#[test]
fn replicas_of_a_loop_are_replicas_of_its_steps() {
    let replicas = Replicas { count: 2.try_into().unwrap(), reduction: Reduction::Mean, weighting: None };
    let run = |name: &str, steps: usize| {
        let mut module = load(name);
        let step = discover(&module).unwrap();
        let step = replicate_step(&mut module, step, replicas).unwrap();
        let program = Spread::new(&module, Over::Replicas(2));
        let mut state = first_state(&module);
        let mut losses = Vec::new();
        for first in (0..K).step_by(steps) {
            let devices = [0, 1].map(|device| {
                let mut inputs = state.clone();
                for (&input, number) in step.batch.iter().zip(0..) {
                    let of = |step| batch(&inputs[input], steps, step, number + 100 * device, &[]);
                    inputs[input].bytes = (first..first + steps).flat_map(of).collect();
                }
                inputs
            });
            let outputs = program.run(&devices);
            assert!(outputs[0] == outputs[1], "{name}: replicas differ");
            losses.extend(outputs[0][step.loss.unwrap()].floats());
            for own in step.states.iter().filter(|s| s.input < state.len()).collect::<Vec<_>>() {
                state[own.input] = outputs[0][own.output].clone();
            }
        }
        losses
    };
    let (one, several) = (run("adamw", 1), run("adamw_scan", K));
    assert_eq!((one.len(), several.len()), (K, K));
    assert!(one.iter().zip(&several).all(|(a, b)| (a - b).abs() < 1e-5 * a), "{one:?}, {several:?}");
}
