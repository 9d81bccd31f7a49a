//! `enter-loop` and `leave-loop`: steps that are the body of a loop.
//!
//! A program may do several steps in one launch by itself (`lax.scan` over train steps): the step is the body of a `while`
//! then, and its arrays are the leaves of the tuple that the loop carries. `enter-loop` makes the body the entry, with a
//! parameter and an output for each leaf; the passes after it work there as anywhere else. `leave-loop` puts the body back
//! and makes what they added further leaves:
//!
//! ```text
//! input without an output (policy)         stays as it is from step to step
//! input with an aliased output (state)     goes from step to step, and from launch to launch
//! output of its own (telemetry)            [K, ..] at the program's entry: what step i tells is at i
//! ```
//!
//! The leaves that were there, their numbers, the condition and all other operations stay as they are. K must be known:
//! the trip count that discovery read off the loop's counter, or found noted. With K = 1 nothing is stacked.
//!
//! Refused are loops whose number of steps is not known, loops over devices' parts of a step, loops inside other
//! computations, and copies of states that do not outlast a launch.

mod enclosing;

use std::collections::BTreeMap;

use hlo::build::{Builder, Built};
use hlo::edit::Outside;
use hlo::{AliasKind, Computation, ComputationId, Instruction, InstructionId, Module, Opcode, PrimitiveType, Shape};

use crate::layout::ControllerLayout;
use crate::mesh;
use crate::pass::{Changed, Context, Pass, PassError};
use crate::step::{TrainStep, Value};

pub use enclosing::{EnclosingLoop, Leaf, Trips};

/// What the loop's own operations carry as metadata.
const OP_NAME: &str = "entropic/leave-loop";

/// The pass that makes the loop's body the entry, see the module's documentation.
#[derive(Debug, Clone, Copy, Default)]
pub struct EnterLoop;

/// The pass that makes the program's entry the entry again, see the module's documentation.
#[derive(Debug, Clone, Copy, Default)]
pub struct LeaveLoop;

/// What is outside the loop while passes work inside.
#[derive(Debug, Clone)]
pub(crate) struct Looped {
    enclosing: EnclosingLoop,
    trips: Trips,
    body: ComputationId,
    condition: ComputationId,
    outside: Outside,
    /// In the body, the tuple of all leaves.
    tuple: InstructionId,
}

impl Pass for EnterLoop {
    fn name(&self) -> &'static str {
        "enter-loop"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        let step = context.step()?;
        let Some(enclosing) = step.inside_loop.clone() else { return Ok(Changed::No) };
        let (trips, condition) = self::enclosing(module, step, &enclosing)?;
        let body = step.computation;
        let mut inside = (*enclosing.body).clone();
        rename(&mut inside, step);
        tuple_root(module, body)?;
        let tuple = module.unpack_parameter(body)?;
        let outside = module.enter(body, &[])?;
        context.looped = Some(Looped { enclosing, trips, body, condition, outside, tuple });
        context.step = Some(inside);
        Ok(Changed::Yes)
    }
}

/// How many steps the loop does, and its condition, where control can be put into it.
fn enclosing(module: &Module, step: &TrainStep, around: &EnclosingLoop) -> Result<(Trips, ComputationId), PassError> {
    let refuse = |reason: String| PassError::InsideLoop { loop_name: around.name.clone(), reason };
    let trips = around.trips.clone().map_err(|reason| {
        refuse(format!(
            "{reason}; export the loop with a fixed number of steps (`lax.scan` over batches, or `lax.fori_loop` between Python \
             numbers), or a single step, and let `entropic train` do the looping"
        ))
    })?;
    if mesh::is_split(module) {
        return Err(refuse(
            "the program is split over several devices; export a single step over the mesh, without the loop"
                .to_owned(),
        ));
    }
    let entry = module.entry_computation();
    let Some(instruction) = entry.get(around.site).filter(|i| {
        around.computation == module.entry() && i.opcode == Opcode::While && i.called.contains(&step.computation)
    }) else {
        return Err(refuse("the loop is in another computation; put it into the function that is exported".to_owned()));
    };
    let condition = instruction.called.iter().copied().find(|&c| c != step.computation);
    let condition = condition.ok_or_else(|| refuse("it has no condition".to_owned()))?;
    for called in [step.computation, condition] {
        let calls = |(_, c): (_, &Computation)| c.instructions().filter(|(_, i)| i.called.contains(&called)).count();
        if module.computations().map(calls).sum::<usize>() != 1 {
            let name = module.computation(called).map_or("", |c| c.name.as_str());
            return Err(refuse(format!("{name:?} is called from several places; export a program with one such loop")));
        }
    }
    if let Some(leaf) = instruction.shape.tuple_elements().find(|leaf| !is_data(leaf)) {
        return Err(refuse(format!("it carries {leaf}, which is no array; carry flat arrays")));
    }
    let whole =
        |(_, user): &(_, &Instruction)| user.operands.contains(&around.site) && user.opcode != Opcode::GetTupleElement;
    if let Some((_, user)) = entry.instructions().find(whole) {
        return Err(refuse(format!("{user} takes all that it carries as a whole; take elements of it")));
    }
    let anew = enclosing_anew(step, around);
    if let Some(name) = anew {
        return Err(refuse(format!(
            "{name} begins anew in every launch; hand it in as an argument and return its new value"
        )));
    }
    Ok((trips, condition))
}

/// A tensor under control that is not handed in.
fn enclosing_anew<'s>(step: &'s TrainStep, around: &EnclosingLoop) -> Option<&'s str> {
    step.controlled().find(|(p, _)| p.input >= around.signature.0).map(|(p, _)| p.name.as_str())
}

fn is_data(leaf: &Shape) -> bool {
    leaf.is_array() && !matches!(leaf.element_type(), PrimitiveType::TOKEN | PrimitiveType::OPAQUE_TYPE)
}

/// Gives parameters and states the names that they have in the program: a manifest may have told them.
fn rename(inside: &mut TrainStep, outside: &TrainStep) {
    let parameters = outside.parameters.iter().map(|p| (p.value, &p.name));
    let names: BTreeMap<Value, &String> = parameters.chain(outside.states.iter().map(|s| (s.value, &s.name))).collect();
    let own = inside.parameters.iter_mut().map(|p| (p.value, &mut p.name));
    for (value, name) in own.chain(inside.states.iter_mut().map(|s| (s.value, &mut s.name))) {
        if let Some(&given) = names.get(&value) {
            name.clone_from(given);
        }
    }
}

/// Makes the body's result a tuple of its own, as that of an entry is.
fn tuple_root(module: &mut Module, body: ComputationId) -> Result<(), PassError> {
    let root = module.computation(body).and_then(|c| Some((c.root(), c.root_instruction()?)));
    let Some((root, instruction)) = root.filter(|(_, root)| root.opcode != Opcode::Tuple) else { return Ok(()) };
    let count = instruction.shape.tuple_elements().len();
    let mut b = builder(module, body);
    let elements = (0..count).map(|k| b.get_tuple_element(root, k)).collect::<Result<Vec<_>, _>>()?;
    let root = b.emit(Opcode::Tuple, &elements)?;
    Ok(b.set_root(root)?)
}

impl Pass for LeaveLoop {
    fn name(&self) -> &'static str {
        "leave-loop"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        let Some(looped) = context.looped.take() else { return Ok(Changed::No) };
        let added = Added::of(module, &looped)?;
        let Looped { enclosing, trips, body, condition, outside, tuple } = looped;
        module.leave(outside);
        let shapes = added.put_into_body(module, body, tuple, trips)?;
        module.extend_parameter(condition, &shapes)?;
        let (inputs, outputs) = added.put_around(module, &enclosing, &shapes)?;
        if let Some(layout) = &mut context.layout {
            layout.steps = trips.steps;
            renumber(module, layout, &enclosing, &inputs, &outputs)?;
        }
        let step = context.step.take().ok_or(PassError::Needs { pass: "discover" })?;
        context.step = Some(enclosing.outside(step));
        Ok(Changed::Yes)
    }
}

/// What passes added to the body while it was the entry.
struct Added {
    /// Leaves that there were.
    leaves: usize,
    /// Appended parameters, and for a state its next value with the number of the output.
    inputs: Vec<(InstructionId, Option<(InstructionId, usize)>)>,
    /// Other appended outputs, with their numbers.
    reports: Vec<(InstructionId, usize)>,
}

impl Added {
    fn of(module: &Module, looped: &Looped) -> Result<Self, PassError> {
        let entry = module.entry_computation();
        let stale = || PassError::Stale { what: "the body of the loop".to_owned() };
        let (parameters, outputs) = (entry.parameters(), entry.outputs());
        let leaves = looped.enclosing.leaves.len();
        if module.entry() != looped.body || parameters.len() < leaves || outputs.len() < leaves {
            return Err(stale());
        }
        let aliases: BTreeMap<usize, usize> = module.aliases().iter().map(|a| (a.parameter, a.output)).collect();
        let next = |number: usize| {
            let output = *aliases.get(&number)?;
            Some((*outputs.get(output)?, output))
        };
        let inputs: Vec<_> =
            parameters.iter().enumerate().skip(leaves).map(|(number, &id)| (id, next(number))).collect();
        let carried: Vec<usize> = inputs.iter().filter_map(|(_, next)| next.map(|(_, output)| output)).collect();
        let reports = outputs.iter().enumerate().skip(leaves).filter(|(output, _)| !carried.contains(output));
        let reports = reports.map(|(output, &id)| (id, output)).collect();
        Ok(Self { leaves, inputs, reports })
    }

    /// Makes leaves of what was added; returns their shapes, in order: inputs, reports, and a counter where there is none.
    fn put_into_body(
        &self,
        module: &mut Module,
        body: ComputationId,
        tuple: InstructionId,
        trips: Trips,
    ) -> Result<Vec<Shape>, PassError> {
        let computation = module.computation(body);
        let root = computation.map(Computation::root).ok_or_else(|| stale("the body of the loop"))?;
        let mut results = computation.map(Computation::outputs).unwrap_or_default();
        let counter = computation.and_then(|c| c.parameters().get(trips.counter?).copied());
        results.truncate(self.leaves);
        results.extend(self.inputs.iter().map(|&(id, next)| next.map_or(id, |(next, _)| next)));

        let steps = i64::from(trips.steps.get());
        let mut b = builder(module, body);
        let mut shapes = Vec::new();
        for &(id, _) in &self.inputs {
            shapes.push(b.shape(id)?);
        }
        let stacks = self.reports.iter().map(|&(value, _)| {
            let shape = b.shape(value)?;
            let dims = if steps == 1 { shape.dims().to_vec() } else { [&[steps], shape.dims()].concat() };
            let stack = Shape::array(shape.element_type(), &dims);
            shapes.push(stack.clone());
            Ok((b.parameter("entropic.loop.reports", stack)?, value))
        });
        let stacks = stacks.collect::<Result<Vec<_>, PassError>>()?;
        let index = match counter {
            _ if steps == 1 || stacks.is_empty() => None,
            Some(counter) => Some(counter),
            None => {
                shapes.push(Shape::scalar(PrimitiveType::S32));
                Some(b.parameter("entropic.loop.step", Shape::scalar(PrimitiveType::S32))?)
            }
        };
        for (stack, value) in stacks {
            results.push(match index {
                Some(index) => put(&mut b, stack, value, index)?,
                None => value,
            });
        }
        if let Some(index) = index.filter(|_| counter.is_none()) {
            let one = b.constant(PrimitiveType::S32, 1.0)?;
            results.push(b.add(index, one)?);
        }
        let made = results.iter().map(|&id| b.shape(id)).collect::<Result<Vec<_>, _>>()?;
        let target = b.module_mut().computation_mut(body).and_then(|c| c.get_mut(root));
        let target = target.ok_or_else(|| stale("the result of the loop's body"))?;
        target.operands = results;
        target.shape = Shape::tuple(made);
        b.set_root(root)?;
        module.pack_parameters(body, tuple)?;
        module.sort(body)?;
        Ok(shapes)
    }

    /// Lets the loop carry the new leaves, from and to the program's inputs and outputs. Returns the number that each of the
    /// body's inputs has in the program, and each of its outputs.
    fn put_around(
        &self,
        module: &mut Module,
        around: &EnclosingLoop,
        shapes: &[Shape],
    ) -> Result<(Numbers, Numbers), PassError> {
        let (mut inputs, mut outputs) = (Numbers::new(), Numbers::new());
        let mut first = Vec::with_capacity(shapes.len());
        for (offset, (&(id, _), shape)) in self.inputs.iter().zip(shapes).enumerate() {
            let body = around.body.computation;
            let name = module.computation(body).and_then(|c| c.get(id)).map(|i| i.name.clone()).unwrap_or_default();
            let (parameter, number) = module.append_parameter(&name, shape.clone())?;
            inputs.insert(self.leaves + offset, number);
            first.push(parameter);
        }
        let entry = module.entry();
        let mut b = builder(module, entry);
        for shape in shapes.iter().skip(self.inputs.len()) {
            first.push(zeros(&mut b, shape)?);
        }
        let site = around.site;
        let users = b.module().entry_computation().users();
        let before = b.module().entry_computation().get(site).and_then(|i| i.operands.first().copied());
        let before = before.ok_or_else(|| stale("the loop"))?;
        let alone = users.get(before.index()).is_some_and(|users| users == &[site]);
        let given = b.module().entry_computation().get(before).map(|i| (i.opcode, i.operands.clone()));
        let (tuple, mut operands) = match given {
            Some((Opcode::Tuple, operands)) => (Some(before).filter(|_| alone), operands),
            _ => (None, (0..self.leaves).map(|k| b.get_tuple_element(before, k)).collect::<Result<Vec<_>, _>>()?),
        };
        operands.extend(first);
        let tuple = match tuple {
            Some(tuple) => {
                let made = operands.iter().map(|&id| b.shape(id)).collect::<Result<Vec<_>, _>>()?;
                if let Some(begun) = b.module_mut().entry_computation_mut().get_mut(tuple) {
                    (begun.operands, begun.shape) = (operands, Shape::tuple(made));
                }
                tuple
            }
            None => b.named("entropic.loop.first").emit(Opcode::Tuple, &operands)?,
        };
        if let Some(instruction) = b.module_mut().entry_computation_mut().get_mut(site) {
            instruction.operands = vec![tuple];
            instruction.shape.proto_mut().tuple_shapes.extend(shapes.iter().map(Shape::to_proto));
        }
        let states = (self.leaves..).zip(&self.inputs).filter_map(|(leaf, (_, next))| Some((leaf, next.as_ref()?.1)));
        let reports = (self.leaves + self.inputs.len()..).zip(&self.reports).map(|(leaf, &(_, output))| (leaf, output));
        let mut made: Vec<(usize, usize)> = states.chain(reports).collect();
        made.sort_by_key(|&(_, output)| output);
        for (leaf, output) in made {
            let value = builder(module, entry).get_tuple_element(site, leaf)?;
            let number = module.append_output(value)?;
            outputs.insert(output, number);
            if let Some(&input) = inputs.get(&leaf) {
                module.alias(number, input, AliasKind::May)?;
            }
        }
        module.sort(entry)?;
        Ok((inputs, outputs))
    }
}

/// A number in the body, and the one in the program.
type Numbers = BTreeMap<usize, usize>;

/// Tells what was added in the program's numbers.
fn renumber(
    module: &Module,
    layout: &mut ControllerLayout,
    around: &EnclosingLoop,
    inputs: &Numbers,
    outputs: &Numbers,
) -> Result<(), PassError> {
    let leaf = |number: usize| around.leaves.get(number).copied().unwrap_or_default();
    let known = |numbers: &Numbers, number: usize| {
        numbers.get(&number).copied().ok_or_else(|| stale("what the controller added to the loop"))
    };
    let state = |number: usize| {
        let name = around.body.state(number).map_or_else(|| format!("leaf {number}"), |s| s.name.clone());
        leaf(number).input.ok_or_else(|| PassError::InsideLoop {
            loop_name: around.name.clone(),
            reason: format!(
                "the policy keeps a copy of {name}, which begins anew in every launch while the copy does not; hand the state in as \
                 an argument and return its new value, or set `rollback.kind = \"gate\"`"
            ),
        })
    };
    let entry = module.entry_computation();
    let parameters = entry.parameters();
    for input in &mut layout.inputs {
        input.parameter = known(inputs, input.parameter)?;
        let named = parameters.get(input.parameter).and_then(|&id| entry.get(id)).map(|i| i.name.clone());
        input.name = named.unwrap_or_else(|| std::mem::take(&mut input.name));
        input.copy_of = input.copy_of.map(state).transpose()?;
    }
    for output in &mut layout.outputs {
        output.output = known(outputs, output.output)?;
        output.copy_of = output.copy_of.map(state).transpose()?;
    }
    for tensor in &mut layout.tensors {
        tensor.input = leaf(tensor.input).input.unwrap_or(tensor.input);
    }
    // What does not outlast a launch is no input of the program.
    layout.states.retain_mut(|state| {
        let numbers = leaf(state.input).input.zip(leaf(state.output).output);
        (state.input, state.output) = numbers.unwrap_or((state.input, state.output));
        numbers.is_some()
    });
    Ok(())
}

fn stale(what: &str) -> PassError {
    PassError::Stale { what: what.to_owned() }
}

fn builder(module: &mut Module, computation: ComputationId) -> Builder<'_> {
    let mut b = Builder::new(module, computation);
    b.set_scope("entropic.loop", OP_NAME);
    b
}

/// The stack with `value` as its element `index`.
pub(crate) fn put(b: &mut Builder<'_>, stack: InstructionId, value: InstructionId, index: InstructionId) -> Built {
    let shape = b.shape(value)?;
    let one = b.reshape(value, &[&[1], shape.dims()].concat())?;
    let zero = b.constant(b.shape(index)?.element_type(), 0.0)?;
    let starts: Vec<_> = std::iter::once(index).chain(std::iter::repeat_n(zero, shape.rank())).collect();
    b.dynamic_update_slice(stack, one, &starts)
}

/// An array of zeros.
fn zeros(b: &mut Builder<'_>, shape: &Shape) -> Built {
    let zero = b.constant(shape.element_type(), 0.0)?;
    if shape.rank() == 0 {
        return Ok(zero);
    }
    b.emit_with(Opcode::Broadcast, &[zero], shape.clone(), Default::default(), Vec::new())
}
