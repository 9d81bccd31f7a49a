//! Bundles that do several steps in one launch.

use std::num::NonZeroU32;

use hlo::{Instruction, Module, Opcode};
use passes::{Context, FuseSteps, Pipeline, PipelineError, StepInput, StepOutput};
use thiserror::Error;

use super::check::{CheckError, check};
use super::manifest::{InputRole, Manifest, Output};
use super::{Bundle, Origin};
use crate::target::Platform;

/// Why steps do not go into one launch.
#[derive(Debug, Error)]
pub enum FuseBundleError {
    /// They do already.
    #[error(
        "{bundle} does {steps} steps in one launch already; put the steps of the bundle that it was made from together, or export a \
         longer loop"
    )]
    Fused {
        /// The bundle.
        bundle: String,
        /// Steps of one launch.
        steps: NonZeroU32,
    },
    /// The module cannot be rewritten.
    #[error("{bundle}: {source}")]
    Refused {
        /// The bundle.
        bundle: String,
        /// Why.
        source: Box<PipelineError>,
    },
    /// A step that the CPU's compiler does not leave alone in a loop.
    #[error(
        "{bundle} has convolutions ({instruction}), and the CPU's compiler gives those in a loop to slower code that rounds \
         otherwise; launch single steps on the CPU"
    )]
    Convolution {
        /// The bundle.
        bundle: String,
        /// The first of them.
        instruction: String,
    },
    /// What came out is no bundle.
    #[error("{bundle}: {source}")]
    Check {
        /// The bundle.
        bundle: String,
        /// Why.
        source: CheckError,
    },
}

impl Bundle {
    /// The same step, `steps` times in one launch: batch inputs, loss, other reports and telemetry have that as their first
    /// dimension, and states are those after the last step. With 1 it is the bundle as it is. Nothing is saved.
    ///
    /// # Errors
    ///
    /// Where it does several steps already, `fuse-steps` refuses, or the compiler of `platform` would not compute the same.
    pub fn fuse(&self, steps: NonZeroU32, platform: Platform) -> Result<Self, FuseBundleError> {
        let bundle = || self.folder.display().to_string();
        if steps == NonZeroU32::MIN {
            return Ok(self.clone());
        }
        if self.manifest.launch.steps > NonZeroU32::MIN {
            return Err(FuseBundleError::Fused { bundle: bundle(), steps: self.manifest.launch.steps });
        }
        // XLA's CPU compiler brings convolutions into the form that its library takes in the entry computation only.
        if let Some(convolution) = convolution(&self.module).filter(|_| platform == Platform::Cpu) {
            return Err(FuseBundleError::Convolution { bundle: bundle(), instruction: convolution.to_string() });
        }
        let mut fused = Self { origin: Origin::default(), ..self.clone() };
        let refused = |source| FuseBundleError::Refused { bundle: bundle(), source: Box::new(source) };
        fuse_module(&mut fused.module, &self.manifest, steps).map_err(refused)?;
        stack(&mut fused.manifest, steps);
        check(&fused.manifest, &fused.module).map_err(|source| FuseBundleError::Check { bundle: bundle(), source })?;
        Ok(fused)
    }
}

fn convolution(module: &Module) -> Option<&Instruction> {
    let mut instructions = module.computations().flat_map(|(_, c)| c.instructions().map(|(_, i)| i));
    instructions.find(|i| i.opcode == Opcode::Convolution)
}

fn fuse_module(module: &mut Module, manifest: &Manifest, steps: NonZeroU32) -> Result<(), PipelineError> {
    let inputs = manifest.inputs.iter().map(|input| match input.role {
        InputRole::Batch => StepInput::Batch,
        InputRole::Policy => StepInput::Same,
        _ => StepInput::State,
    });
    let outputs = manifest.outputs.iter().map(|output| match output.input {
        Some(input) => StepOutput::Next(input),
        None if output.role.is_report() => StepOutput::Report,
        None => StepOutput::Last,
    });
    let pass = FuseSteps { steps, inputs: inputs.collect(), outputs: outputs.collect() };
    Pipeline::new().with(pass).run(module, &mut Context::default(), &mut |_, _, _| {})?;
    Ok(())
}

/// Gives what there is for each step its first dimension.
fn stack(manifest: &mut Manifest, steps: NonZeroU32) {
    manifest.launch.steps = steps;
    let steps = i64::from(steps.get());
    for input in manifest.inputs.iter_mut().filter(|i| i.role == InputRole::Batch) {
        input.shape.insert(0, steps);
    }
    for output in manifest.outputs.iter_mut().filter(|o: &&mut Output| o.role.is_report()) {
        output.shape.insert(0, steps);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use passes::Policy;

    use super::*;
    use crate::bundle::check::check_eval_module;
    use crate::model::Model;

    fn controlled() -> Bundle {
        let mlp = Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mlp")).unwrap();
        mlp.inject(&Policy::default(), Platform::Cpu).unwrap()
    }

    fn steps(count: u32) -> NonZeroU32 {
        NonZeroU32::new(count).unwrap()
    }

    #[test]
    fn a_launch_takes_all_batches_and_gives_all_reports() {
        let single = controlled();
        let fused = single.fuse(steps(8), Platform::Cpu).unwrap();
        assert_eq!(fused.manifest.launch.steps, steps(8));
        for (one, many) in single.manifest.inputs.iter().zip(&fused.manifest.inputs) {
            let stacked =
                if one.role == InputRole::Batch { [&[8], one.shape.as_slice()].concat() } else { one.shape.clone() };
            assert_eq!(many.shape, stacked, "{}", one.name);
        }
        for (one, many) in single.manifest.outputs.iter().zip(&fused.manifest.outputs) {
            let stacked = if one.role.is_report() { [&[8], one.shape.as_slice()].concat() } else { one.shape.clone() };
            assert_eq!(many.shape, stacked, "{}", one.name);
        }
        assert_eq!(fused.module.aliases(), single.module.aliases());
        assert_eq!(
            fused
                .fuse(steps(2), Platform::Cpu)
                .unwrap_err()
                .to_string()
                .matches("8 steps in one launch already")
                .count(),
            1
        );
        let eval = fused.eval_module().unwrap().unwrap();
        check_eval_module(&fused.manifest, fused.manifest.eval.as_ref().unwrap(), &eval).unwrap();
    }

    #[test]
    fn one_step_in_a_launch_is_the_bundle_as_it_is() {
        let single = controlled();
        let fused = single.fuse(steps(1), Platform::Cpu).unwrap();
        assert_eq!(fused.manifest.to_json().unwrap(), single.manifest.to_json().unwrap());
        assert_eq!(fused.module.export(), single.module.export());
    }

    #[test]
    fn manifests_with_other_dimensions_than_the_launch_are_refused() {
        let fused = controlled().fuse(steps(8), Platform::Cpu).unwrap();
        let batch = fused.manifest.data.as_ref().unwrap().input;
        let loss = fused.manifest.outputs.iter().position(|o| o.shape == [8]).unwrap();
        let check_edit = |edit: &dyn Fn(&mut Manifest), parts: &[&str]| {
            let mut manifest = fused.manifest.clone();
            edit(&mut manifest);
            let error = check(&manifest, &fused.module).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        };
        check_edit(&|m| m.launch.steps = steps(4), &["inputs[16] (tokens)", "s32[8,64,9]", "a launch does 4 steps"]);
        check_edit(&|m| m.launch.steps = steps(1), &["outputs[16]", "the loss must be a floating scalar"]);
        check_edit(&|m| _ = m.inputs[batch].shape.remove(0), &["inputs[16]", "a launch does 8 steps"]);
        check_edit(&|m| _ = m.outputs[loss].shape.remove(0), &["outputs[16]", "a launch does 8 steps"]);
        check_edit(&|m| m.outputs[loss].shape.push(1), &["outputs[16]"]);
        check_edit(&|m| m.data.as_mut().unwrap().batch = 8, &["data", "batch 8 and window 9"]);
        let telemetry = fused.manifest.outputs.len() - 1;
        check_edit(&|m| m.outputs[telemetry].shape[1] += 1, &["the module's output"]);
    }
}
