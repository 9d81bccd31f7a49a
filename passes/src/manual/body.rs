//! The body of a `shard_map` that is the whole step, and what leads into it and out of it.

use hlo::ir::Alias;
use hlo::partitioning::{MANUAL_BODY, Mesh, Partitioning, RESULT_SHARDING, SHARDING, attribute};
use hlo::proto::HloInstructionProto;
use hlo::{Computation, ComputationId, Instruction, InstructionId, Module, Opcode, Shape};

use super::element;
use crate::pass::PassError;
use crate::step::TrainStep;

const TO_LOCAL: &str = "xla.sdy.GlobalToLocalShape";
const TO_GLOBAL: &str = "xla.sdy.LocalToGlobalShape";
const IN_SHARDINGS: &str = "xla.sdy.in_shardings";
const OUT_SHARDINGS: &str = "xla.sdy.out_shardings";
const MANUAL_AXES: &str = "xla.sdy.manual_axes";

/// A body, and the numbers of its parameters and results in the program.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    pub(super) computation: ComputationId,
    pub(super) mesh: Mesh,
    /// The program's input behind each parameter.
    pub(super) inputs: Vec<usize>,
    /// The program's output of each result.
    pub(super) outputs: Vec<usize>,
    /// The axes that each parameter is split along.
    pub(super) split: Vec<Vec<String>>,
    to_local: InstructionId,
    call: InstructionId,
    to_global: InstructionId,
}

impl Body {
    /// The body in `module`, where the entry does nothing but call it; `None` where there is no such call, or several.
    ///
    /// # Errors
    ///
    /// Where there is one, and the entry does more, or the body is written for some axes of the mesh alone.
    pub(crate) fn of(module: &Module) -> Result<Option<Self>, PassError> {
        let entry = module.entry_computation();
        let mut calls = entry.instructions().filter(|(_, i)| i.opcode == Opcode::Call && is_body(module, i));
        let (Some((call, instruction)), None) = (calls.next(), calls.next()) else { return Ok(None) };
        let Some(&computation) = instruction.called.first() else { return Ok(None) };
        let name = module.computation(computation).map_or(String::new(), |c| c.name.clone());
        let refuse = |reason: String| PassError::Manual { body: name.clone(), reason };
        if let Some((_, other)) = entry.instructions().find(|(id, i)| *id != call && !is_passage(i)) {
            return Err(refuse(format!("the program does more than to call it: {other}. Put all of the step inside")));
        }
        let mesh = Partitioning::of(module)?.and_then(|p| p.mesh);
        let mesh = mesh.ok_or_else(|| refuse("the module has no mesh".to_owned()))?;
        let (to_local, to_global) = (of_target(entry, TO_LOCAL), of_target(entry, TO_GLOBAL));
        let (Some(to_local), Some(to_global)) = (to_local, to_global) else {
            return Err(refuse(format!("one {TO_LOCAL} and one {TO_GLOBAL} were expected")));
        };
        let said = |id: InstructionId, key| {
            let call = entry.get(id)?;
            attribute(call.attributes.frontend_attributes.as_option(), key)
        };
        let manual = said(to_local, MANUAL_AXES).map(quoted).unwrap_or_default();
        if let Some((axis, _)) = mesh.axes().iter().find(|(axis, size)| *size > 1 && !manual.contains(axis)) {
            return Err(refuse(format!(
                "the compiler splits it along {axis:?}; name all axes of the mesh in `axis_names`"
            )));
        }
        let unread = |key: &str| refuse(format!("its attribute {key} cannot be read"));
        let shardings = said(to_local, IN_SHARDINGS).and_then(list).ok_or_else(|| unread(IN_SHARDINGS))?;
        let results = said(to_global, OUT_SHARDINGS).and_then(list).ok_or_else(|| unread(OUT_SHARDINGS))?;
        let inputs = inputs(entry, to_local).filter(|inputs| inputs.len() == shardings.len());
        let inputs = inputs.ok_or_else(|| refuse("not every parameter of it is an input of the program".to_owned()))?;
        let outputs = outputs(entry, to_global).filter(|outputs| outputs.len() == results.len());
        let outputs =
            outputs.ok_or_else(|| refuse("not every result of it is one output of the program".to_owned()))?;
        let split = shardings.iter().map(|sharding| quoted(sharding)).collect();
        Ok(Some(Self { computation, mesh, inputs, outputs, split, to_local, call, to_global }))
    }

    /// The step with the numbers that its inputs and outputs have in the body.
    pub(super) fn numbers_inside(&self, step: &TrainStep) -> TrainStep {
        let position = |list: &[usize], n: usize| list.iter().position(|&k| k == n).unwrap_or(n);
        renumbered(step, &|input| position(&self.inputs, input), &|output| position(&self.outputs, output))
    }

    /// The step with the numbers that its inputs and outputs have in the program.
    pub(crate) fn numbers_outside(&self, step: &TrainStep) -> TrainStep {
        let at = |list: &[usize], n: usize| list.get(n).copied().unwrap_or(n);
        renumbered(step, &|input| at(&self.inputs, input), &|output| at(&self.outputs, output))
    }

    /// The program's aliases, as the body's.
    pub(crate) fn aliases_inside(&self, module: &Module) -> Vec<Alias> {
        let inside = |alias: Alias| {
            let output = self.outputs.iter().position(|&k| k == alias.output)?;
            let parameter = self.inputs.iter().position(|&k| k == alias.parameter)?;
            Some(Alias { output, parameter, kind: alias.kind })
        };
        module.aliases().into_iter().filter_map(inside).collect()
    }

    /// The computation's id.
    pub(crate) fn computation(&self) -> ComputationId {
        self.computation
    }

    /// The shape of a parameter of the body.
    pub(super) fn parameter_shape(&self, module: &Module, number: usize) -> Result<Shape, PassError> {
        let body = module.computation(self.computation);
        let shape = body.and_then(|c| Some(c.get(*c.parameters().get(number)?)?.shape.clone()));
        shape.ok_or_else(|| PassError::Stale { what: format!("parameter {number} of the body") })
    }

    /// The shape of the body's result.
    pub(super) fn result(&self, module: &Module) -> Result<Shape, PassError> {
        let root = module.computation(self.computation).and_then(Computation::root_instruction);
        Ok(root.ok_or_else(|| PassError::Stale { what: "the body's result".to_owned() })?.shape.clone())
    }

    /// Hands an input of the program to the body, as its last parameter, split as the body's parameter `as_parameter` is.
    pub(super) fn pass_in(
        &self,
        module: &mut Module,
        input: InstructionId,
        as_parameter: Option<usize>,
    ) -> Result<(), PassError> {
        let number = self.operands(module, self.to_local)?;
        let local = self.parameter_shape(module, number)?;
        self.append(module, self.to_local, IN_SHARDINGS, input, &local, as_parameter)?;
        let value = element(module, self.to_local, number)?;
        self.edit(module, self.call)?.operands.push(value);
        Ok(())
    }

    /// Gives the call the shape of what the body returns.
    pub(super) fn take_result(&self, module: &mut Module, result: &Shape) {
        if let Some(call) = module.entry_computation_mut().get_mut(self.call) {
            call.shape = result.clone();
        }
    }

    /// Takes a result out of the body, of that shape in the program, split as the body's parameter `as_parameter` is.
    pub(super) fn pass_out(
        &self,
        module: &mut Module,
        result: usize,
        shape: Shape,
        as_parameter: Option<usize>,
    ) -> Result<InstructionId, PassError> {
        let value = element(module, self.call, result)?;
        let number = self.operands(module, self.to_global)?;
        self.append(module, self.to_global, OUT_SHARDINGS, value, &shape, as_parameter)?;
        element(module, self.to_global, number)
    }

    fn operands(&self, module: &Module, id: InstructionId) -> Result<usize, PassError> {
        let found = module.entry_computation().get(id).map(|i| i.operands.len());
        found.ok_or_else(|| PassError::Stale { what: format!("instruction {}", id.index()) })
    }

    fn edit<'m>(&self, module: &'m mut Module, id: InstructionId) -> Result<&'m mut Instruction, PassError> {
        let found = module.entry_computation_mut().get_mut(id);
        found.ok_or_else(|| PassError::Stale { what: format!("instruction {}", id.index()) })
    }

    /// Appends an operand, its result and its sharding to a passage.
    fn append(
        &self,
        module: &mut Module,
        passage: InstructionId,
        key: &str,
        operand: InstructionId,
        result: &Shape,
        as_parameter: Option<usize>,
    ) -> Result<(), PassError> {
        let rank = result.rank();
        let sharding = match as_parameter.and_then(|number| self.sharding_of(module, number)) {
            Some(sharding) => sharding,
            None => self.mesh.replicated(rank),
        };
        let call = self.edit(module, passage)?;
        call.operands.push(operand);
        call.shape.proto_mut().tuple_shapes.push(result.to_proto());
        append_sharding(call.attributes_mut(), key, &sharding);
        Ok(())
    }

    /// How a parameter of the body is split, in Shardy's words.
    fn sharding_of(&self, module: &Module, number: usize) -> Option<String> {
        let call = module.entry_computation().get(self.to_local)?;
        let said = attribute(call.attributes.frontend_attributes.as_option(), IN_SHARDINGS)?;
        Some((*list(said)?.get(number)?).to_owned())
    }
}

fn is_body(module: &Module, call: &Instruction) -> bool {
    let callee = call.called.first().and_then(|&c| module.computation(c));
    callee.is_some_and(|c| c.name.starts_with(MANUAL_BODY))
}

/// Whether an instruction only leads into a body or out of it.
fn is_passage(instruction: &Instruction) -> bool {
    let target = instruction.attributes.custom_call_target.as_str();
    match instruction.opcode {
        Opcode::CustomCall => [TO_LOCAL, TO_GLOBAL, RESULT_SHARDING, SHARDING].contains(&target),
        // The latter two without effect: the front end leaves them beside results.
        Opcode::Parameter | Opcode::GetTupleElement | Opcode::Tuple | Opcode::Reshape | Opcode::Copy => true,
        _ => false,
    }
}

/// The only custom call of that target whose result is a tuple.
fn of_target(entry: &Computation, target: &str) -> Option<InstructionId> {
    let mut found = entry.instructions().filter(|(_, i)| {
        i.opcode == Opcode::CustomCall && i.attributes.custom_call_target == target && i.shape.is_tuple()
    });
    let (Some((id, _)), None) = (found.next(), found.next()) else { return None };
    Some(id)
}

/// The value behind calls that only say how it is split.
fn behind(entry: &Computation, mut id: InstructionId) -> InstructionId {
    while let Some(call) = entry.get(id).filter(|i| i.opcode == Opcode::CustomCall)
        && [RESULT_SHARDING, SHARDING].contains(&call.attributes.custom_call_target.as_str())
        && let &[operand] = call.operands.as_slice()
    {
        id = operand;
    }
    id
}

/// The number of the input behind each operand; none where one is no input.
fn inputs(entry: &Computation, to_local: InstructionId) -> Option<Vec<usize>> {
    let number = |&operand: &InstructionId| entry.get(behind(entry, operand))?.index_of(Opcode::Parameter);
    entry.get(to_local)?.operands.iter().map(number).collect()
}

/// The number of the output of each result; none where one is no output, or twice.
fn outputs(entry: &Computation, to_global: InstructionId) -> Option<Vec<usize>> {
    let mut found = vec![None; entry.get(to_global)?.operands.len()];
    for (output, id) in entry.outputs().into_iter().enumerate() {
        let taken = entry.get(behind(entry, id)).filter(|i| i.operands.first() == Some(&to_global))?;
        let slot = found.get_mut(taken.index_of(Opcode::GetTupleElement)?)?;
        if slot.replace(output).is_some() {
            return None;
        }
    }
    found.into_iter().collect()
}

trait IndexOf {
    fn index_of(&self, opcode: Opcode) -> Option<usize>;
}

impl IndexOf for Instruction {
    /// The number of a parameter or element, where it is one.
    fn index_of(&self, opcode: Opcode) -> Option<usize> {
        self.index().filter(|_| self.opcode == opcode)
    }
}

/// The elements of `#sdy.sharding_per_value<[<…>, <…>]>`.
fn list(text: &str) -> Option<Vec<&str>> {
    let inner = text.strip_prefix("#sdy.sharding_per_value<[")?.strip_suffix("]>")?;
    let (mut depth, mut start, mut elements) = (0_usize, 0, Vec::new());
    for (at, letter) in inner.char_indices() {
        match letter {
            '<' => {
                if depth == 0 {
                    start = at;
                }
                depth += 1;
            }
            '>' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    elements.push(inner.get(start..=at)?);
                }
            }
            _ => {}
        }
    }
    (depth == 0).then_some(elements)
}

fn append_sharding(attributes: &mut HloInstructionProto, key: &str, sharding: &str) {
    let entries = &mut attributes.frontend_attributes.get_or_insert_default().map;
    if let Some(entry) = entries.iter_mut().find(|entry| entry.key == key)
        && let Some(before) = entry.value.strip_suffix("]>")
    {
        entry.value = format!("{before}, {sharding}]>");
    }
}

/// The names between quotation marks.
fn quoted(text: &str) -> Vec<String> {
    text.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

fn renumbered(step: &TrainStep, input: &dyn Fn(usize) -> usize, output: &dyn Fn(usize) -> usize) -> TrainStep {
    let mut step = step.clone();
    step.renumber(input, output);
    step
}
