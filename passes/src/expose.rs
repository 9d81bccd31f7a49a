//! Gradients as extra outputs, so that anyone can check them numerically.

use hlo::build::Builder;
use hlo::edit::EditError;
use hlo::{InstructionId, Module};
use serde::Serialize;
use thiserror::Error;

use crate::step::{Gradient, TrainStep, Value};

/// Which view of the gradient to expose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum View {
    /// What the optimizer consumes.
    Eff,
    /// Before clipping, unscaling and skipping.
    Preclip,
    /// Before additions that do not depend on data, too.
    Raw,
}

impl View {
    /// The value of that view.
    #[must_use]
    pub fn of(self, gradient: &Gradient) -> Value {
        match self {
            Self::Eff => gradient.eff,
            Self::Preclip => gradient.preclip,
            Self::Raw => gradient.raw,
        }
    }
}

/// An exposed gradient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exposed {
    /// The parameter's tree path.
    pub parameter: String,
    /// The parameter's input number.
    pub input: usize,
    /// Name of the instruction whose value is exposed.
    pub instruction: String,
    /// Index among the module's outputs.
    pub output: usize,
}

/// Why nothing was exposed.
#[derive(Debug, Error)]
pub enum ExposeError {
    /// The step is not in the entry computation.
    #[error(
        "the gradients are computed in {computation:?}, inside a loop or a per-device body; only values of the entry \
         can become outputs. Export a single step to expose its gradients"
    )]
    NotInEntry {
        /// Where they are.
        computation: String,
    },
    /// An edit was refused.
    #[error(transparent)]
    Edit(#[from] EditError),
}

/// Appends the chosen view of every gradient as an output, in parameter order.
///
/// Parameters without a gradient are left out.
///
/// # Errors
///
/// Where the step is inside a loop or a per-device body.
pub fn expose(module: &mut Module, step: &TrainStep, view: View) -> Result<Vec<Exposed>, ExposeError> {
    if step.computation != module.entry() {
        let computation = module.computation(step.computation).map(|c| c.name.clone()).unwrap_or_default();
        return Err(ExposeError::NotInEntry { computation });
    }
    let mut exposed = Vec::new();
    for (parameter, gradient) in step.controlled() {
        let value = view.of(gradient);
        let instruction = value.display(module, step.computation);
        let array = array_of(module, value)?;
        let output = module.append_output(array)?;
        exposed.push(Exposed { parameter: parameter.name.clone(), input: parameter.input, instruction, output });
    }
    let entry = module.entry();
    module.sort(entry)?;
    Ok(exposed)
}

/// The array that a value names, taken out of its tuple where it lies in one.
fn array_of(module: &mut Module, value: Value) -> Result<InstructionId, EditError> {
    let mut builder = Builder::at_entry(module);
    let (mut id, mut leaf) = (value.instruction, value.leaf);
    loop {
        let shape = builder.shape(id)?;
        if !shape.is_tuple() {
            return Ok(id);
        }
        let mut element = 0;
        for inner in shape.tuple_elements() {
            let leaves = inner.num_leaves();
            if leaf < leaves {
                break;
            }
            leaf -= leaves;
            element += 1;
        }
        id = builder.get_tuple_element(id, element)?;
    }
}
