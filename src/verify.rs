//! Whether a controlled step computes what the original computes.
//!
//! Both modules run side by side on a device, each on its own state, under a neutral policy: every scale 1, nothing
//! refused. After every step all outputs of the original are compared bit for bit. The initial state is that of the bundle
//! where it has one; otherwise it is made up from what each state is for (parameters small and random, moments and counters
//! zero, keys random). Batches are always made up: token ids, small random numbers, integers that are 0 or 1.
//!
//! Where the program loops over steps by itself, as many launches are compared as do so many steps.
//!
//! Several steps in one launch are compared with as many launches in the same way, under the policy as it is.

use std::ops::Range;

use passes::step::StateRole;
use passes::{ControllerLayout, Policy, PolicyError, TrainStep};
use pjrt::{Buffer, Executable};
use thiserror::Error;

use crate::bundle::manifest::{Input, InputRole, Manifest};
use crate::bundle::{Bundle, BundleError, Dtype};
use crate::data::mix;
use crate::engine::{Engine, EngineError};
use crate::train::controller_arrays;

/// Steps that are compared.
pub const STEPS: u64 = 20;

/// Mixed into everything made up, so that it has nothing in common with the draws of a run.
const SEED: u64 = 0x76_65_72_69_66_79;

/// Both modules agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Steps run.
    pub steps: u64,
    /// Outputs compared after each.
    pub outputs: usize,
    /// Bytes compared in all.
    pub bytes: u64,
    /// Whether some floating output was not finite: agreement says less then.
    pub non_finite: bool,
}

/// Why agreement was not shown.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// The modules disagree.
    #[error(
        "the controlled step is not neutral: after step {step}, {differing} of {count} outputs differ, first {output} \
         ({bytes} of its bytes); the injected module must not be used. Please report this with the module"
    )]
    Differs {
        /// Step, from 0.
        step: u64,
        /// How many outputs differ.
        differing: usize,
        /// How many there are.
        count: usize,
        /// Name of the first of them.
        output: String,
        /// Differing bytes in it.
        bytes: usize,
    },
    /// Several steps in one launch are not what as many launches are.
    #[error(
        "{steps} steps in one launch are not what {steps} launches of one step are: after step {step}, output {output} \
         differs in {bytes} of its bytes; the fused module must not be used. Please report this with the module"
    )]
    LaunchDiffers {
        /// Steps of one launch.
        steps: u32,
        /// The last step of the launch, from 0.
        step: u64,
        /// Name of the first output that differs.
        output: String,
        /// Differing bytes in it.
        bytes: usize,
    },
    /// The controlled bundle has no controller.
    #[error("there is no controller in the module that is to be verified")]
    NoController,
    /// The bundle's initial state.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The device.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The neutral policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// Runs `original` and `controlled` side by side for at least [`STEPS`] steps.
///
/// `step` is the train step found in the original; it says what each state is for.
///
/// # Errors
///
/// Where an output differs in a bit, or something cannot run.
pub fn verify(
    engine: &Engine,
    original: &Bundle,
    controlled: &Bundle,
    step: &TrainStep,
) -> Result<Verified, VerifyError> {
    let controller = controlled.manifest.controller.as_ref().ok_or(VerifyError::NoController)?;
    let manifest = &original.manifest;
    let first = engine.compile(&original.module, "the original step")?;
    let second = engine.compile(&controlled.module, "the controlled step")?;
    let mut state = initial_state(engine, original, step)?;
    let mut other = state.clone();
    let mut control = neutral_arrays(&controller.layout, &controller.policy)?;
    let several = u64::from(manifest.launch.steps.get());
    let launches = STEPS.div_ceil(several);
    let outputs = manifest.outputs.len();
    let mut verified = Verified { steps: launches * several, outputs, bytes: 0, non_finite: false };
    for number in 0..launches {
        for (index, input) in manifest.inputs.iter().enumerate() {
            if input.role == InputRole::Batch {
                let made = made_up_batch(manifest, index, input, number);
                for values in [&mut state, &mut other] {
                    if let Some(slot) = values.get_mut(index) {
                        slot.clone_from(&made);
                    }
                }
            }
        }
        let expected = run(engine, &first, &manifest.inputs, &state)?;
        let arguments: Vec<Vec<u8>> = other.iter().chain(&control).cloned().collect();
        let mut found = run(engine, &second, &controlled.manifest.inputs, &arguments)?;
        let appended = found.split_off(expected.len().min(found.len()));
        compare(manifest, (number + 1) * several - 1, &expected, &found)?;
        for (output, bytes) in manifest.outputs.iter().zip(&expected) {
            verified.bytes += bytes.len() as u64;
            verified.non_finite |= has_non_finite(bytes, output.dtype);
        }
        advance(manifest.outputs.iter().map(|o| o.input), expected, &mut state);
        advance(manifest.outputs.iter().map(|o| o.input), found, &mut other);
        let appended_inputs = controlled.manifest.outputs.iter().skip(manifest.outputs.len());
        let base = manifest.inputs.len();
        advance(appended_inputs.map(|o| o.input.and_then(|i| i.checked_sub(base))), appended, &mut control);
    }
    Ok(verified)
}

/// Runs `single` and `fused`, the same step several times in a launch, side by side for at least [`STEPS`] steps.
///
/// `step` is the train step found in the original; it says what each state is for.
///
/// # Errors
///
/// Where an output differs in a bit, or something cannot run.
pub fn verify_launches(
    engine: &Engine,
    single: &Bundle,
    fused: &Bundle,
    step: &TrainStep,
) -> Result<Verified, VerifyError> {
    let manifest = &single.manifest;
    let inputs = &manifest.inputs;
    let steps = fused.manifest.launch.steps.get();
    let one = engine.compile(&single.module, "the step")?;
    let several = engine.compile(&fused.module, "several steps in one launch")?;
    let mut state = initial_state(engine, single, step)?;
    if let Some(controller) = &manifest.controller {
        for array in controller_arrays(&controller.layout, &controller.policy)? {
            if let Some(slot) = state.get_mut(array.input) {
                *slot = array.bytes;
            }
        }
    }
    let mut other = state.clone();
    let mut verified = Verified { steps: 0, outputs: manifest.outputs.len(), bytes: 0, non_finite: false };
    while verified.steps < STEPS {
        let numbers = verified.steps..verified.steps + u64::from(steps);
        let batches = |values: &mut Vec<Vec<u8>>, numbers: Range<u64>| {
            for (index, input) in inputs.iter().enumerate().filter(|(_, i)| i.role == InputRole::Batch) {
                if let Some(slot) = values.get_mut(index) {
                    *slot = numbers.clone().flat_map(|n| made_up_batch(manifest, index, input, n)).collect();
                }
            }
        };
        let mut expected: Vec<Vec<u8>> = vec![Vec::new(); manifest.outputs.len()];
        for number in numbers.clone() {
            batches(&mut state, number..number + 1);
            let outputs = run(engine, &one, inputs, &state)?;
            for ((gathered, output), value) in expected.iter_mut().zip(&manifest.outputs).zip(&outputs) {
                if !output.role.is_report() {
                    gathered.clear();
                }
                gathered.extend(value);
            }
            advance(manifest.outputs.iter().map(|o| o.input), outputs, &mut state);
        }
        batches(&mut other, numbers);
        let found = run(engine, &several, &fused.manifest.inputs, &other)?;
        verified.steps += u64::from(steps);
        for ((output, expected), found) in manifest.outputs.iter().zip(&expected).zip(&found) {
            if expected != found {
                let (step, bytes) = (verified.steps - 1, differing_bytes(expected, found));
                return Err(VerifyError::LaunchDiffers { steps, step, output: output.name.clone(), bytes });
            }
            verified.bytes += expected.len() as u64;
            verified.non_finite |= has_non_finite(expected, output.dtype);
        }
        advance(manifest.outputs.iter().map(|o| o.input), found, &mut other);
    }
    Ok(verified)
}

fn differing_bytes(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a != b).count() + a.len().abs_diff(b.len())
}

/// Policy, state and counters with which the controller changes nothing, whatever it sees.
fn neutral_arrays(layout: &ControllerLayout, policy: &Policy) -> Result<Vec<Vec<u8>>, PolicyError> {
    let monitor = Policy::monitor();
    let neutral = Policy {
        gate: monitor.gate,
        scale: monitor.scale,
        momentum: monitor.momentum,
        laws: monitor.laws,
        rollback: monitor.rollback,
        switch: monitor.switch,
        spectral: monitor.spectral,
        groups: monitor.groups,
        ..policy.clone()
    };
    Ok(controller_arrays(layout, &neutral)?.into_iter().map(|a| a.bytes).collect())
}

fn advance(inputs: impl Iterator<Item = Option<usize>>, outputs: Vec<Vec<u8>>, state: &mut [Vec<u8>]) {
    for (input, value) in inputs.zip(outputs) {
        if let Some(slot) = input.and_then(|i| state.get_mut(i)) {
            *slot = value;
        }
    }
}

fn compare(manifest: &Manifest, step: u64, expected: &[Vec<u8>], found: &[Vec<u8>]) -> Result<(), VerifyError> {
    let differing: Vec<_> = manifest
        .outputs
        .iter()
        .zip(expected)
        .enumerate()
        .filter(|(i, (_, expected))| found.get(*i) != Some(expected))
        .collect();
    let Some((index, (output, expected))) = differing.first() else { return Ok(()) };
    let found = found.get(*index).map(Vec::as_slice).unwrap_or_default();
    let bytes = differing_bytes(expected, found);
    Err(VerifyError::Differs {
        step,
        differing: differing.len(),
        count: manifest.outputs.len(),
        output: output.name.clone(),
        bytes,
    })
}

/// Uploads the inputs, runs the module once, and reads everything back.
fn run(
    engine: &Engine,
    program: &Executable,
    inputs: &[Input],
    values: &[Vec<u8>],
) -> Result<Vec<Vec<u8>>, EngineError> {
    let buffers = inputs
        .iter()
        .zip(values)
        .map(|(input, bytes)| engine.upload(bytes, input.dtype, &input.shape))
        .collect::<Result<Vec<_>, _>>()?;
    let failed = |source| EngineError::Device { what: "running a step to verify it failed", source };
    let outputs = program.execute_single(&buffers.iter().collect::<Vec<&Buffer>>()).map_err(failed)?;
    outputs.iter().map(|o| o.to_vec().map_err(failed)).collect()
}

/// The first value of every input; what batch inputs get is overwritten in each step.
fn initial_state(engine: &Engine, bundle: &Bundle, step: &TrainStep) -> Result<Vec<Vec<u8>>, VerifyError> {
    let made_up =
        |(index, input): (usize, &Input)| made_up_state(step.state(index).map(|s| s.role), index as u64, input);
    let mut state: Vec<_> = bundle.manifest.inputs.iter().enumerate().map(made_up).collect();
    if let (Some(init), Some(module)) = (&bundle.manifest.init, bundle.init_module()?) {
        let program = engine.compile(&module, "the initial state")?;
        let seed = Input { name: String::new(), dtype: init.seed_dtype, shape: Vec::new(), role: InputRole::State };
        let values = run(engine, &program, std::slice::from_ref(&seed), &[vec![0; init.seed_dtype.width()]])?;
        advance(init.outputs.iter().map(|&i| Some(i)), values, &mut state);
    }
    Ok(state)
}

fn made_up_state(role: Option<StateRole>, index: u64, input: &Input) -> Vec<u8> {
    let random = |i: u64| uniform(SEED ^ (index << 40) ^ i);
    match role {
        Some(StateRole::Parameter | StateRole::Master | StateRole::LowPrecisionCopy | StateRole::Average) => {
            floats(input, |i| 0.1 * random(i))
        }
        Some(StateRole::LossScale | StateRole::BatchStatistic) => floats(input, |_| 1.0),
        Some(StateRole::Hyperparameter) => floats(input, |_| 1e-3),
        Some(StateRole::RngKey) => {
            let bits = |i: usize| mix(SEED ^ i as u64).to_le_bytes()[0];
            (0..elements(input) * input.dtype.width()).map(bits).collect()
        }
        _ => floats(input, |_| 0.0),
    }
}

fn made_up_batch(manifest: &Manifest, index: usize, input: &Input, step: u64) -> Vec<u8> {
    let key = SEED ^ (index as u64).rotate_left(48) ^ step.rotate_left(32);
    let data = manifest.data.as_ref().filter(|d| d.input == index);
    let primitive = input.dtype.primitive();
    if primitive.is_floating() {
        // A scalar that comes with each batch is a learning rate more often than not.
        return if input.shape.is_empty() { floats(input, |_| 1e-3) } else { floats(input, |i| uniform(key ^ i)) };
    }
    let vocab = data.map_or(2, |d| d.vocab).max(1);
    let width = input.dtype.width();
    let integer = |i: u64| (mix(key ^ i) % vocab).to_le_bytes().into_iter().chain([0; 8]).take(width);
    (0..elements(input) as u64).flat_map(integer).collect()
}

/// The bytes of a floating array, zeros for other types and for floats below 16 bits.
fn floats(input: &Input, value: impl Fn(u64) -> f64) -> Vec<u8> {
    use hlo::PrimitiveType as P;
    let values = (0..elements(input) as u64).map(value);
    match input.dtype.primitive() {
        P::F64 => values.flat_map(f64::to_le_bytes).collect(),
        P::F32 => values.flat_map(|v| (v as f32).to_le_bytes()).collect(),
        P::BF16 => values.flat_map(|v| half::bf16::from_f64(v).to_le_bytes()).collect(),
        P::F16 => values.flat_map(|v| half::f16::from_f64(v).to_le_bytes()).collect(),
        _ => vec![0; elements(input) * input.dtype.width()],
    }
}

fn has_non_finite(bytes: &[u8], dtype: Dtype) -> bool {
    use hlo::PrimitiveType as P;
    match dtype.primitive() {
        P::F32 => bytes.as_chunks().0.iter().any(|c| !f32::from_le_bytes(*c).is_finite()),
        P::F64 => bytes.as_chunks().0.iter().any(|c| !f64::from_le_bytes(*c).is_finite()),
        P::BF16 => bytes.as_chunks().0.iter().any(|c| !half::bf16::from_le_bytes(*c).is_finite()),
        P::F16 => bytes.as_chunks().0.iter().any(|c| !half::f16::from_le_bytes(*c).is_finite()),
        _ => false,
    }
}

/// A number in [-1, 1) that looks random.
fn uniform(key: u64) -> f64 {
    (mix(key) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

fn elements(input: &Input) -> usize {
    input.shape.iter().map(|&d| usize::try_from(d).unwrap_or(0)).product()
}
