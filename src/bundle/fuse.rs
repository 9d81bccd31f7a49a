//! Bundles that do several steps in one launch.

use std::num::NonZeroU32;

use hlo::Module;
use passes::{Context, FuseSteps, Pipeline, PipelineError, StepInput, StepOutput};
use thiserror::Error;

use super::check::{CheckError, check};
use super::manifest::{InputRole, Manifest, Output};
use super::{Bundle, Origin};

/// Why steps do not go into one launch.
#[derive(Debug, Error)]
pub enum FuseBundleError {
    /// They do already.
    #[error(
        "{bundle} does {steps} steps in one launch already; put the steps of the bundle that it was made from together"
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
    /// Where it does several steps already, or `fuse-steps` refuses.
    pub fn fuse(&self, steps: NonZeroU32) -> Result<Self, FuseBundleError> {
        let bundle = || self.folder.display().to_string();
        if self.manifest.launch.steps > NonZeroU32::MIN {
            return Err(FuseBundleError::Fused { bundle: bundle(), steps: self.manifest.launch.steps });
        }
        let mut fused = Self { origin: Origin::default(), ..self.clone() };
        let refused = |source| FuseBundleError::Refused { bundle: bundle(), source: Box::new(source) };
        fuse_module(&mut fused.module, &self.manifest, steps).map_err(refused)?;
        stack(&mut fused.manifest, steps);
        check(&fused.manifest, &fused.module).map_err(|source| FuseBundleError::Check { bundle: bundle(), source })?;
        Ok(fused)
    }
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
    if steps == NonZeroU32::MIN {
        return;
    }
    manifest.launch.steps = steps;
    let steps = i64::from(steps.get());
    for input in manifest.inputs.iter_mut().filter(|i| i.role == InputRole::Batch) {
        input.shape.insert(0, steps);
    }
    for output in manifest.outputs.iter_mut().filter(|o: &&mut Output| o.role.is_report()) {
        output.shape.insert(0, steps);
    }
}
