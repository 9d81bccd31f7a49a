//! `append-state`: the controller's outputs, behind all outputs of the step.
//!
//! New state and new counters reuse the buffers of their inputs, which `control`
//! appended behind all inputs of the step; so every index of the step's own inputs and outputs stays.

use hlo::{AliasKind, InstructionId, Module};

use crate::layout::{ArrayKind, ControllerOutput};
use crate::pass::{Changed, Context, Pass, PassError};

/// The pass, see the module's documentation.
#[derive(Debug, Clone, Copy, Default)]
pub struct AppendState;

impl Pass for AppendState {
    fn name(&self) -> &'static str {
        "append-state"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        let control = *context.control()?;
        let inputs = context.layout()?.inputs.clone();
        let mut outputs = Vec::new();
        for (kind, value) in [
            (ArrayKind::State, control.state),
            (ArrayKind::Counters, control.counters),
            (ArrayKind::Telemetry, control.telemetry),
        ] {
            let output = append(module, kind, value)?;
            if let Some(input) = inputs.iter().find(|i| i.kind == kind) {
                module.alias(output.output, input.parameter, AliasKind::May)?;
            }
            outputs.push(output);
        }
        let entry = module.entry();
        module.sort(entry)?;
        if let Some(layout) = &mut context.layout {
            layout.outputs = outputs;
        }
        Ok(Changed::Yes)
    }
}

fn append(module: &mut Module, kind: ArrayKind, value: InstructionId) -> Result<ControllerOutput, PassError> {
    let output = module.append_output(value)?;
    let made = module.entry_computation().get(value);
    let made = made.ok_or_else(|| PassError::Stale { what: format!("output {output}") })?;
    Ok(ControllerOutput {
        name: made.name.clone(),
        kind,
        output,
        element_type: made.shape.element_type().to_string(),
        dims: made.shape.dims().to_vec(),
    })
}
