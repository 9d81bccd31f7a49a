//! `append-state`: the controller's outputs, behind all outputs of the step.
//!
//! New state, new counters and new snapshots reuse the buffers of their inputs, which the passes that read them
//! appended behind all inputs of the step; so every index of the step's own inputs and outputs stays. Over a mesh every
//! device has all of what is added, except that a snapshot is split as the state that it is a copy of.

use hlo::{AliasKind, InstructionId, Module, PrimitiveType, Shape};

use crate::layout::{ArrayKind, ControllerInput, ControllerLayout, ControllerOutput, length};
use crate::mesh;
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
        let snapshots: Vec<_> =
            context.snapshots.iter().map(|s| (ArrayKind::Snapshot, Some(s.input), s.successor)).collect();
        for (kind, copy_of, value) in
            [(ArrayKind::State, None, control.state), (ArrayKind::Counters, None, control.counters)]
                .into_iter()
                .chain(snapshots)
                .chain([(ArrayKind::Telemetry, None, control.telemetry)])
        {
            let output = append(module, kind, copy_of, value)?;
            if let Some(input) = inputs.iter().find(|i| i.kind == kind && i.copy_of == copy_of) {
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
        ArrayKind::Telemetry | ArrayKind::Snapshot => {
            return Err(PassError::Stale { what: format!("{kind:?} among the controller's own inputs") });
        }
    };
    let shape = Shape::array(element_type, &[length(fields) as i64]);
    append_array(module, layout, kind, name, shape, None)
}

/// Appends the input that carries a copy of the state at input `of`; notes it in the layout.
pub(crate) fn append_snapshot(
    module: &mut Module,
    layout: &mut ControllerLayout,
    name: &str,
    shape: Shape,
    of: usize,
) -> Result<InstructionId, PassError> {
    append_array(module, layout, ArrayKind::Snapshot, name, shape, Some(of))
}

fn append_array(
    module: &mut Module,
    layout: &mut ControllerLayout,
    kind: ArrayKind,
    name: &str,
    shape: Shape,
    copy_of: Option<usize>,
) -> Result<InstructionId, PassError> {
    let (element_type, dims) = (shape.element_type().to_string(), shape.dims().to_vec());
    let (id, parameter) = module.append_parameter(name, shape)?;
    mesh::split_input(module, id, copy_of)?;
    let name = module.entry_computation().get(id).map_or(name, |i| i.name.as_str()).to_owned();
    layout.inputs.push(ControllerInput { name, kind, parameter, element_type, dims, copy_of });
    Ok(id)
}

fn append(
    module: &mut Module,
    kind: ArrayKind,
    copy_of: Option<usize>,
    value: InstructionId,
) -> Result<ControllerOutput, PassError> {
    let output = mesh::append_output(module, value, copy_of)?;
    let made = module.entry_computation().get(value);
    let made = made.ok_or_else(|| PassError::Stale { what: format!("output {output}") })?;
    Ok(ControllerOutput {
        name: made.name.clone(),
        kind,
        output,
        element_type: made.shape.element_type().to_string(),
        dims: made.shape.dims().to_vec(),
        copy_of,
    })
}
