//! Steps of one device made data-parallel, on devices of the CPU plugin, beside steps exported at the batch size of all.
//!
//! The modules are those of `tests/corpus_replicas`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::Path;

use common::devices::{Over, Spread};
use common::{Array, Compiled, Contraction, Random};
use hlo::{Module, Opcode};
use passes::inject::{Discover, inject_step};
use passes::inline_calls::InlineCalls;
use passes::layout::ArrayKind;
use passes::{
    Context, ControllerLayout, InjectOptions, Pipeline, Policy, Reduction, Replicas, Telemetry, TrainStep, Weighting,
    replicate_step,
};

/// Examples per replica.
const OWN: usize = 4;

fn load(name: &str) -> (Module, TrainStep) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/corpus_replicas/{name}.hlo.pb"));
    found(Module::import(&std::fs::read(path).unwrap()).unwrap())
}

fn found(mut module: Module) -> (Module, TrainStep) {
    let mut context = Context::default();
    let pipeline = Pipeline::new().with(InlineCalls).with(Discover);
    pipeline.run(&mut module, &mut context, &mut |_, _, _| {}).unwrap();
    (module, context.step.unwrap())
}

fn replicas(count: u32) -> Replicas {
    Replicas { count: count.try_into().unwrap(), reduction: Reduction::Mean, weighting: None }
}

fn replicated(name: &str, replicas: Replicas) -> (Module, TrainStep) {
    let (mut module, step) = load(name);
    let step = replicate_step(&mut module, step, replicas).unwrap();
    (module, step)
}

fn refusal(name: &str, replicas: Replicas) -> String {
    let (mut module, step) = load(name);
    replicate_step(&mut module, step, replicas).unwrap_err().to_string()
}

/// A step with its states on one or several devices; batches are given by example.
struct Run {
    program: Program,
    step: TrainStep,
    /// By device and input number.
    inputs: Vec<Vec<Array>>,
}

enum Program {
    One(Compiled),
    Many(Spread),
}

impl Run {
    fn new(module: &Module, step: &TrainStep, devices: usize) -> Self {
        let entry = module.entry_computation();
        let mut random = Random::new(5);
        let initial = |(input, id)| {
            let shape = &entry.get(id).unwrap().shape;
            let element_type = shape.element_type().name().parse().unwrap();
            let mut array = Array { element_type, dims: shape.dims().to_vec(), bytes: vec![] };
            array.bytes = vec![0; shape.byte_size() as usize];
            if step.parameters.iter().any(|p| p.input == input) {
                let values: Vec<f32> = (0..shape.num_elements()).map(|_| 0.3 * random.normal() as f32).collect();
                array = Array::f32(shape.dims(), &values);
            }
            array
        };
        let inputs: Vec<Array> = entry.parameters().into_iter().enumerate().map(initial).collect();
        let program = match devices {
            1 => Program::One(Compiled::new(module)),
            _ => Program::Many(Spread::new(module, Over::Replicas(devices))),
        };
        Self { program, step: step.clone(), inputs: vec![inputs; devices] }
    }

    /// A controlled step.
    fn controlled(
        module: &Module,
        step: &TrainStep,
        layout: &ControllerLayout,
        policy: &Policy,
        devices: usize,
    ) -> Self {
        let mut run = Self::new(module, step, devices);
        for input in &layout.inputs {
            let array = match input.kind {
                ArrayKind::Policy => Array::vector(&layout.policy_vector(policy).unwrap()),
                ArrayKind::State => Array::vector(&layout.initial_state()),
                ArrayKind::Counters => Array::s32(&input.dims, &layout.initial_counters()),
                _ => continue,
            };
            run.inputs.iter_mut().for_each(|own| own[input.parameter] = array.clone());
        }
        run
    }

    /// Gives the batch of step `t`, of as many examples as there are devices times what each takes.
    fn feed(&mut self, t: u64) {
        let devices = self.inputs.len();
        for (n, &input) in self.step.batch.clone().iter().enumerate() {
            let dims = self.inputs[0][input].dims.clone();
            // Without dimensions or data it is the controller's.
            let Some(&own) = dims.first().filter(|_| n < 3) else { continue };
            let row: i64 = dims[1..].iter().product();
            let mut random = Random::new(1000 * t + n as u64 + 1);
            let mut value = || match dims.len() {
                // A mask, which shuts out a third.
                1 => f32::from(u8::from(random.uniform() < 0.66)),
                _ => random.normal() as f32,
            };
            let all: Vec<f32> = (0..devices as i64 * own * row).map(|_| value()).collect();
            for (device, part) in all.chunks((own * row) as usize).enumerate() {
                self.inputs[device][input] = Array::f32(&dims, part);
            }
        }
    }

    /// Runs the step on what was fed; returns the outputs by device.
    fn advance(&mut self, carried: &[(usize, usize)]) -> Vec<Vec<Array>> {
        let outputs = match &self.program {
            Program::One(program) => vec![program.run(&self.inputs[0])],
            Program::Many(program) => program.run(&self.inputs),
        };
        for (own, outputs) in self.inputs.iter_mut().zip(&outputs) {
            for state in &self.step.states {
                own[state.input] = outputs[state.output].clone();
            }
            for &(input, output) in carried {
                own[input] = outputs[output].clone();
            }
        }
        outputs
    }

    fn loss(&self, outputs: &[Array]) -> f64 {
        f64::from(outputs[self.step.loss.unwrap()].floats()[0])
    }

    /// All states, to the last bit the same on all devices.
    fn assert_alike(&self) {
        for state in &self.step.states {
            assert!(self.inputs.iter().all(|own| own[state.input] == self.inputs[0][state.input]), "{}", state.name);
        }
    }
}

/// Losses of both for some steps. What they differ in is the order in which examples are added up: per step a relative
/// error of at most n·ε = 32·6e-8 in a gradient, which 100 steps add up to 2e-4.
fn assert_same_curve(mut many: Run, mut one: Run, steps: u64) {
    for t in 0..steps {
        many.feed(t);
        one.feed(t);
        let (all, single) = (many.advance(&[]), one.advance(&[]));
        let expected = one.loss(&single[0]);
        for outputs in &all {
            let loss = many.loss(outputs);
            assert!((loss / expected - 1.0).abs() <= 2e-4, "step {t}: loss {loss}, not {expected}");
        }
    }
    many.assert_alike();
}

#[test]
fn replicas_follow_the_curve_of_the_whole_batch() {
    for (count, whole) in [(2, "mean_b8"), (8, "mean_b32")] {
        let (module, step) = replicated("mean_b4", replicas(count));
        let (single, single_step) = load(whole);
        let (many, one) = (Run::new(&module, &step, count as usize), Run::new(&single, &single_step, 1));
        assert_same_curve(many, one, 100);
    }
    let sum = Replicas { reduction: Reduction::Sum, ..replicas(2) };
    let ((module, step), (single, single_step)) = (replicated("sum_b4", sum), load("sum_b8"));
    assert_same_curve(Run::new(&module, &step, 2), Run::new(&single, &single_step, 1), 50);
}

#[test]
fn a_count_that_data_decides_weighs_replicas() {
    let error = refusal("masked_b4", replicas(2));
    for part in ["a count that its data decides", "--weighting count", "--weighting equal"] {
        assert!(error.contains(part), "{error}");
    }
    let by_count = Replicas { weighting: Some(Weighting::Count), ..replicas(2) };
    let ((module, step), (single, single_step)) = (replicated("masked_b4", by_count), load("masked_b8"));
    assert_same_curve(Run::new(&module, &step, 2), Run::new(&single, &single_step, 1), 50);

    let equal = Replicas { weighting: Some(Weighting::Equal), ..replicas(2) };
    let (module, step) = replicated("masked_b4", equal);
    let (mut many, mut one) = (Run::new(&module, &step, 2), Run::new(&single, &single_step, 1));
    let mut furthest: f64 = 0.0;
    for t in 0..20 {
        many.feed(t);
        one.feed(t);
        let (all, single) = (many.advance(&[]), one.advance(&[]));
        furthest = furthest.max((many.loss(&all[0]) / one.loss(&single[0]) - 1.0).abs());
    }
    many.assert_alike();
    assert!(furthest > 0.01, "masks make no difference, so this tests nothing: {furthest}");

    let none = refusal("mean_b4", by_count);
    assert!(none.contains("there is no count to weigh replicas by"), "{none}");
    let sum = refusal("masked_b4", Replicas { reduction: Reduction::Sum, ..by_count });
    assert!(sum.contains("a sum over replicas has no weights"), "{sum}");
}

#[test]
fn statistics_counters_and_reports_have_their_rules() {
    let (module, step) = replicated("batchnorm_b4", replicas(2));
    let (single, single_step) = load("batchnorm_b4");
    let mut many = Run::new(&module, &step, 2);
    many.feed(0);
    // What each would make of its own data alone.
    let alone = Compiled::new(&single);
    let own: Vec<_> = many.inputs.iter().map(|inputs| alone.run(inputs)).collect();
    let outputs = many.advance(&[]);
    many.assert_alike();
    let output = |name: &str| step.states.iter().find(|s| s.name.starts_with(name)).unwrap().output;
    let mean = |index: usize| -> Vec<f32> {
        own[0][index].floats().iter().zip(own[1][index].floats()).map(|(a, b)| (a + b) / 2.0).collect()
    };
    let close = |found: &[f32], expected: &[f32]| found.iter().zip(expected).all(|(f, e)| (f - e).abs() <= 1e-6);
    for name in ["stats['mean']", "stats['var']"] {
        let index = output(name);
        assert!(close(&outputs[0][index].floats(), &mean(index)), "{name}");
        assert_ne!(own[0][index], own[1][index]);
    }
    let seen = output("seen");
    assert_eq!(outputs[0][seen].ints()[0], own[0][seen].ints()[0] + own[1][seen].ints()[0]);
    let loss = single_step.loss.unwrap();
    assert!(close(&outputs[0][loss].floats(), &mean(loss)));
    let (hits, predictions) = (loss + 1, loss + 2);
    assert!(close(&outputs[0][hits].floats(), &mean(hits)));
    assert!((0..2).all(|k| outputs[k][predictions] == own[k][predictions]), "predictions stay each replica's own");
    assert!(step.notes.iter().any(|note| note.contains(&format!("output {predictions} is each replica's own"))));
    // A count that was carried along already is not counted twice.
    many.feed(1);
    let before: Vec<_> = many.inputs.iter().map(|inputs| alone.run(inputs)[seen].ints()[0]).collect();
    let old = many.inputs[0][step.states.iter().find(|s| s.name == "seen").unwrap().input].ints()[0];
    assert_eq!(many.advance(&[])[1][seen].ints()[0], before[0] + before[1] - old);
}

#[test]
fn replicas_draw_different_masks_from_one_key() {
    let (module, step) = replicated("dropout_b4", replicas(2));
    let (single, _) = load("dropout_b4");
    let mut many = Run::new(&module, &step, 2);
    many.feed(0);
    let same: Vec<_> = step.batch.iter().map(|&input| many.inputs[0][input].clone()).collect();
    for (&input, array) in step.batch.iter().zip(same) {
        many.inputs[1][input] = array;
    }
    let alone = Compiled::new(&single).run(&many.inputs[0]);
    let outputs = many.advance(&[]);
    many.assert_alike();
    let key = step.states.iter().find(|s| s.name == "key").unwrap().output;
    assert_eq!(outputs[1][key], alone[key], "the next key is that of the step alone");
    let loss = step.loss.unwrap();
    assert_ne!(outputs[0][loss], alone[loss], "both replicas drew the same mask");
}

#[test]
fn what_would_drift_is_refused_by_name() {
    let error = refusal("own_trust_b4", replicas(2));
    assert!(error.contains("scale: ") && error.contains("shard_map"), "{error}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus/mesh_shardmap.hlo.pb");
    let (mut module, step) = found(Module::import(&std::fs::read(path).unwrap()).unwrap());
    assert!(replicate_step(&mut module, step, replicas(2)).is_err());
}

fn all_reduces(module: &Module) -> Vec<u64> {
    let entry = module.entry_computation();
    let reduced = entry.instructions().filter(|(_, i)| i.opcode == Opcode::AllReduce);
    reduced.map(|(_, i)| i.shape.byte_size()).collect()
}

fn controlled(name: &str, policy: &Policy, replicas: Option<Replicas>) -> (Module, TrainStep, ControllerLayout) {
    let (mut module, step) = load(name);
    let options = InjectOptions { replicas, ..InjectOptions::default() };
    let injection = inject_step(&mut module, step, policy, options, &mut |_, _, _| {}).unwrap();
    (module, injection.step, injection.layout)
}

fn carried(layout: &ControllerLayout) -> Vec<(usize, usize)> {
    let outputs = layout.outputs.iter().filter(|o| o.kind != ArrayKind::Telemetry);
    outputs.filter_map(|o| Some((layout.inputs.iter().find(|i| i.kind == o.kind)?.parameter, o.output))).collect()
}

fn telemetry(layout: &ControllerLayout, outputs: &[Array]) -> Telemetry {
    let output = layout.outputs.iter().find(|o| o.kind == ArrayKind::Telemetry).unwrap().output;
    Telemetry::decode(layout, &outputs[output].floats()).unwrap()
}

#[test]
fn control_of_the_global_gradient_exchanges_nothing_and_changes_no_bit() {
    let policy = Policy::default();
    let (plain, plain_step) = replicated("mean_b4", replicas(2));
    let (module, step, layout) = controlled("mean_b4", &policy, Some(replicas(2)));
    assert_eq!(all_reduces(&module), all_reduces(&plain), "control added an all-reduce");
    let mut with = Run::controlled(&module, &step, &layout, &policy, 2);
    let mut without = Run::new(&plain, &plain_step, 2);
    let exactly = |module| Program::Many(Spread::with(module, Over::Replicas(2), Contraction::Impossible));
    (with.program, without.program) = (exactly(&module), exactly(&plain));
    for t in 0..20 {
        with.feed(t);
        without.feed(t);
        let (controlled, expected) = (with.advance(&carried(&layout)), without.advance(&[]));
        for (controlled, expected) in controlled.iter().zip(&expected) {
            let differs = controlled.iter().zip(expected).position(|(c, e)| c != e);
            assert_eq!(differs, None, "step {t}: an output of the plain step differs");
        }
        let [first, second] = [&controlled[0], &controlled[1]].map(|outputs| telemetry(&layout, outputs));
        assert_eq!(first, second);
        assert!(first.applied);
    }
}

#[test]
fn what_one_replica_cannot_use_none_does() {
    for entropy_of in ["global", "local-mean"] {
        let policy = Policy::parse(&format!("[replicas]\nentropy_of = {entropy_of:?}")).unwrap();
        let (module, step, layout) = controlled("mean_b4", &policy, Some(replicas(2)));
        let mut run = Run::controlled(&module, &step, &layout, &policy, 2);
        run.feed(0);
        let before = run.inputs.clone();
        let spoilt = step.batch[0];
        run.inputs[1][spoilt] = Array::f32(&before[1][spoilt].dims, &[f32::NAN; OWN * 16]);
        let outputs = run.advance(&carried(&layout));
        assert!(outputs.iter().all(|outputs| !telemetry(&layout, outputs).applied));
        run.assert_alike();
        for parameter in &step.parameters {
            assert_eq!(run.inputs[0][parameter.input], before[0][parameter.input], "{}", parameter.name);
        }
    }
}

#[test]
fn local_statistics_take_one_reduction_of_eight_bytes_per_tensor() {
    for estimator in ["energy", "softmax"] {
        let text = format!("[entropy]\nestimator = {estimator:?}\n[replicas]\nentropy_of = \"local-mean\"\n");
        let policy = Policy::parse(&text).unwrap();
        let (plain, _) = replicated("mean_b4", replicas(2));
        let (module, step, layout) = controlled("mean_b4", &policy, Some(replicas(2)));
        let mut added = all_reduces(&module);
        for bytes in all_reduces(&plain) {
            added.remove(added.iter().position(|&b| b == bytes).unwrap());
        }
        assert_eq!(added, [8 * layout.tensors.len() as u64 + 4], "{estimator}");

        let (single, single_step, single_layout) = controlled("mean_b4", &policy, None);
        let mut many = Run::controlled(&module, &step, &layout, &policy, 2);
        many.feed(0);
        let mut alone = Run::controlled(&single, &single_step, &single_layout, &policy, 1);
        let own: Vec<Telemetry> = (0..2)
            .map(|k| {
                for &input in &single_step.batch {
                    alone.inputs[0][input] = many.inputs[k][input].clone();
                }
                let Program::One(program) = &alone.program else { panic!() };
                telemetry(&single_layout, &program.run(&alone.inputs[0]))
            })
            .collect();
        let together = telemetry(&layout, &many.advance(&carried(&layout))[0]);
        let mean = |of: &dyn Fn(&Telemetry) -> f32| (of(&own[0]) + of(&own[1])) / 2.0;
        for i in 0..layout.tensors.len() {
            let (found, expected) = (together.tensors[i].entropy.unwrap(), mean(&|t| t.tensors[i].entropy.unwrap()));
            assert!((found - expected).abs() <= 1e-5, "{estimator}: {found}, not {expected}");
            let (found, expected) = (together.tensors[i].norm.powi(2), mean(&|t| t.tensors[i].norm.powi(2)));
            assert!((found / expected - 1.0).abs() <= 1e-3, "{estimator}: energy {found}, not {expected}");
        }
    }
}

#[test]
fn replicas_that_share_the_work_of_equal_singular_values_come_to_what_each_comes_to() {
    let (module, step) = load("mean_b4");
    let run = |replicas_key: &str| {
        let text =
            format!("[spectral]\nenabled = true\nk = 2.0\niterations = 3\nmin_side = 2\nreplicas = \"{replicas_key}\"");
        let policy = Policy { spectral: Policy::parse(&text).unwrap().spectral, ..Policy::monitor() };
        let mut module = module.clone();
        let options = InjectOptions { replicas: Some(replicas(3)), ..Default::default() };
        let injection = inject_step(&mut module, step.clone(), &policy, options, &mut |_, _, _| {}).unwrap();
        assert!(injection.layout.matrices.iter().any(|m| m.matrices.is_some()));
        let gathers = module.entry_computation().instructions().filter(|(_, i)| i.opcode == Opcode::AllGather).count();
        let mut run = Run::controlled(&module, &injection.step, &injection.layout, &policy, 3);
        run.feed(1);
        (run.advance(&[]), gathers, injection.step)
    };
    let ((each, none, step), (shared, gathers, _)) = (run("each"), run("share"));
    assert!(none == 0 && gathers > 0);
    assert!(shared.iter().all(|outputs| *outputs == shared[0]), "replicas differ");
    for parameter in &step.parameters {
        let [x, y] = [&each, &shared].map(|run| run[0][parameter.output].floats());
        let largest = x.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() <= 1e-5 * largest), "{}", parameter.name);
    }
}
