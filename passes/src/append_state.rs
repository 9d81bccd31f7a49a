//! `append-state`: the controller's outputs, behind all outputs of the step.
//!
//! New state and new counters reuse the buffers of their inputs, which the passes that read them
//! appended behind all inputs of the step; so every index of the step's own inputs and outputs stays.

use hlo::{AliasKind, InstructionId, Module, PrimitiveType, Shape};

use crate::layout::{ArrayKind, ControllerInput, ControllerLayout, ControllerOutput, length};
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

/// Appends the input that carries an array of the controller, behind all inputs there are; notes it in the layout.
pub(crate) fn append_input(
    module: &mut Module,
    layout: &mut ControllerLayout,
    kind: ArrayKind,
) -> Result<InstructionId, PassError> {
    let (name, element_type, fields) = match kind {
        ArrayKind::Policy => ("entropic.policy", PrimitiveType::F32, &layout.policy),
        ArrayKind::State => ("entropic.state", PrimitiveType::F32, &layout.state),
        ArrayKind::Counters => ("entropic.counters", PrimitiveType::S32, &layout.counters),
        ArrayKind::Telemetry => return Err(PassError::Stale { what: "telemetry as an input".to_owned() }),
    };
    let dims = vec![length(fields) as i64];
    let (id, parameter) = module.append_parameter(name, Shape::array(element_type, &dims))?;
    let name = module.entry_computation().get(id).map_or(name, |i| i.name.as_str()).to_owned();
    layout.inputs.push(ControllerInput { name, kind, parameter, element_type: element_type.to_string(), dims });
    Ok(id)
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
