//! `enter-body` and `leave-body`: steps inside a `shard_map`.
//!
//! A `shard_map` is a call of a computation that is written for one device. Where that is the whole step, control is put
//! inside: `enter-body` makes the body the entry, the passes after it work there as anywhere else, and `leave-body` makes
//! what they added to the body's parameters and results inputs and outputs of the program:
//!
//! ```text
//! inputs → GlobalToLocalShape → call of the body → LocalToGlobalShape → outputs
//! ```
//!
//! The controller's arrays are whole on every device, copies of states are split as the states are.
//!
//! Inside the body a gradient is that of the device's part of the batch until the step itself adds it up. What is measured
//! must be the same on all devices, or they would decide differently: [`vary`] follows what differs from device to
//! device, and a gradient that does is refused by name. So is one with a state in it that every device has its own of, as
//! all states are under `jax.pmap`: that copies of it are equal is not in the graph.

mod body;
mod vary;

use hlo::build::Builder;
use hlo::edit::Outside;
use hlo::partitioning::Mesh;
use hlo::{AliasKind, InstructionId, Module, Shape};

use crate::layout::ControllerLayout;
use crate::mesh;
use crate::pass::{Changed, Context, Pass, PassError};
use crate::step::{TrainStep, Value};

pub(crate) use body::Body;
use vary::{Classes, Vary};

/// The pass that makes the body the entry, see the module's documentation.
#[derive(Debug, Clone, Copy, Default)]
pub struct EnterBody;

/// The pass that makes the program's entry the entry again, see the module's documentation.
#[derive(Debug, Clone, Copy, Default)]
pub struct LeaveBody;

/// What is outside the body while passes work inside.
#[derive(Debug, Clone)]
pub(crate) struct Entered {
    body: Body,
    outside: Outside,
    alike: Alike,
}

impl Entered {
    /// Refuses a value of `tensor` that is to be measured, where devices may have different ones.
    pub(crate) fn refuse_own(&self, module: &Module, tensor: &str, value: Value) -> Result<(), PassError> {
        if self.alike.is(value) {
            return Ok(());
        }
        let value = value.display(module, self.body.computation);
        Err(PassError::OwnState { tensor: tensor.to_owned(), value })
    }
}

/// Which values of a body are the same on all devices, by instruction and leaf.
#[derive(Debug, Clone)]
struct Alike(Vec<Vec<bool>>);

impl Alike {
    fn of(module: &Module, body: &Body) -> Self {
        let mut vary = Vary::new(module, body.mesh.size());
        let arguments: Vec<Vec<Classes>> =
            body.split.iter().map(|split| vec![split_classes(&mut vary, &body.mesh, split)]).collect();
        let classes = vary.computation(body.computation, &arguments, 0);
        Self(classes.iter().map(|leaves| leaves.iter().map(|&leaf| !vary.varies(leaf)).collect()).collect())
    }

    fn is(&self, value: Value) -> bool {
        let leaves = self.0.get(value.instruction.index());
        leaves.and_then(|leaves| leaves.get(value.leaf)).copied().unwrap_or(false)
    }
}

impl Pass for EnterBody {
    fn name(&self) -> &'static str {
        "enter-body"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        let step = context.step()?;
        if step.inside_loop.is_some() || step.computation == module.entry() {
            return Ok(Changed::No);
        }
        let body = Body::of(module)?.filter(|body| body.computation == step.computation);
        let Some(body) = body else {
            let computation = module.computation(step.computation).map_or("another computation", |c| c.name.as_str());
            return Err(PassError::InsideCall { computation: computation.to_owned() });
        };
        let alike = Alike::of(module, &body);
        refuse_varying(module, &body, step, &alike)?;
        let inside = body.numbers_inside(step);
        let aliases = body.aliases_inside(module);
        let outside = module.enter(body.computation, &aliases)?;
        context.step = Some(inside);
        context.entered = Some(Entered { body, outside, alike });
        Ok(Changed::Yes)
    }
}

/// Refuses gradients that differ between devices.
fn refuse_varying(module: &Module, body: &Body, step: &TrainStep, alike: &Alike) -> Result<(), PassError> {
    let display = |value: Value| value.display(module, body.computation);
    for (parameter, gradient) in step.controlled() {
        let tensor = parameter.name.clone();
        if !alike.is(gradient.measured) && !alike.is(gradient.raw) {
            return Err(PassError::Varying { tensor, gradient: display(gradient.measured) });
        }
        let mut decides = [Some(gradient.measured), step.consumes].into_iter().flatten();
        if let Some(own) = decides.find(|&value| !alike.is(value)) {
            return Err(PassError::OwnState { tensor, value: display(own) });
        }
    }
    Ok(())
}

/// The classes of an input that is split along these axes.
fn split_classes(vary: &mut Vary<'_>, mesh: &Mesh, axes: &[String]) -> Classes {
    let place = |device: usize| -> Vec<usize> {
        // An axis that is not known may split in any way.
        axes.iter().map(|axis| mesh.along(axis, device).unwrap_or(device)).collect()
    };
    vary.classes((0..mesh.size()).map(place))
}

impl Pass for LeaveBody {
    fn name(&self) -> &'static str {
        "leave-body"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        let Some(Entered { body, outside, .. }) = context.entered.take() else { return Ok(Changed::No) };
        let mut layout = context.layout()?.clone();
        module.leave(outside);
        let step = context.step()?;
        let result = body.result(module)?;
        for input in &mut layout.inputs {
            let of = input.copy_of.and_then(|inner| body.inputs.get(inner).copied());
            let shape = body.parameter_shape(module, input.parameter)?;
            let shape = of.map_or(Ok(shape), |of| whole(module, of))?;
            let (id, parameter) = module.append_parameter(&input.name, shape)?;
            mesh::split_input(module, id, of)?;
            body.pass_in(module, id, input.copy_of)?;
            let named = module.entry_computation().get(id).map(|i| i.name.clone());
            input.name = named.unwrap_or_else(|| input.name.clone());
            input.dims = module.entry_computation().get(id).map_or(Vec::new(), |i| i.shape.dims().to_vec());
            (input.parameter, input.copy_of) = (parameter, of);
        }
        body.take_result(module, &result);
        for output in &mut layout.outputs {
            let of = output.copy_of.and_then(|inner| body.inputs.get(inner).copied());
            let shape = result.tuple_elements().nth(output.output);
            let local =
                shape.ok_or_else(|| PassError::Stale { what: format!("result {} of the body", output.output) })?;
            let shape = of.map_or(Ok(local), |of| whole(module, of))?;
            output.dims = shape.dims().to_vec();
            let value = body.pass_out(module, output.output, shape, output.copy_of)?;
            output.output = mesh::append_output(module, value, of)?;
            output.copy_of = of;
            if let Some(input) = layout.inputs.iter().find(|i| i.kind == output.kind && i.copy_of == of) {
                module.alias(output.output, input.parameter, AliasKind::May)?;
            }
        }
        let entry = module.entry();
        module.sort(entry)?;
        renumber(&mut layout, &body);
        context.step = Some(body.numbers_outside(step));
        context.layout = Some(layout);
        Ok(Changed::Yes)
    }
}

/// The shape of the whole of an input.
fn whole(module: &Module, input: usize) -> Result<Shape, PassError> {
    let entry = module.entry_computation();
    let parameter = entry.parameters().get(input).and_then(|&id| entry.get(id));
    Ok(parameter.ok_or_else(|| PassError::Stale { what: format!("input {input}") })?.shape.clone())
}

/// Numbers of the step's own inputs and outputs, as the program has them.
fn renumber(layout: &mut ControllerLayout, body: &Body) {
    for tensor in &mut layout.tensors {
        tensor.input = body.inputs.get(tensor.input).copied().unwrap_or(tensor.input);
    }
    for state in &mut layout.states {
        state.input = body.inputs.get(state.input).copied().unwrap_or(state.input);
        state.output = body.outputs.get(state.output).copied().unwrap_or(state.output);
    }
}

/// An element of a tuple of the entry.
fn element(module: &mut Module, tuple: InstructionId, index: usize) -> Result<InstructionId, PassError> {
    let mut b = Builder::at_entry(module);
    b.set_scope("entropic", "entropic/leave-body");
    Ok(b.get_tuple_element(tuple, index)?)
}
