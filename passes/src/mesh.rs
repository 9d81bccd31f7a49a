//! What the controller adds to a step over a mesh carries shardings.
//!
//! The step is rewritten before it is partitioned, so that a sum over a gradient is a plain `reduce`, of which the
//! partitioner makes sums over parts and one over devices. Every device has all of the controller's policy, state and
//! telemetry; the copy of a state is split as the state is. Which form a sharding has is the partitioner's affair:
//!
//! | | input | output |
//! |---|---|---|
//! | GSPMD | `sharding` | its element of the root's `sharding`; where the root has none, a `Sharding` call |
//! | Shardy | the same, and the attribute `xla.sdy.sharding` | a call of `xla.sdy.FuncResultSharding`, and as above |
//!
//! A value that takes the place of an output of the step goes below its `FuncResultSharding`.

use hlo::build::{Builder, Built};
use hlo::partitioning::{Partitioner, Partitioning, RESULT_SHARDING, SHARDING, SHARDY_SHARDING, Tiles, attribute};
use hlo::proto::frontend_attributes::Entry;
use hlo::proto::op_sharding::Type;
use hlo::proto::{HloInstructionProto, OpSharding};
use hlo::{Computation, InstructionId, Module, Opcode, Shape};

use crate::pass::PassError;

/// How an array is split.
#[derive(Debug, Clone, PartialEq)]
struct Split {
    /// The field.
    field: Option<OpSharding>,
    /// What follows `#sdy.sharding` in Shardy's attribute.
    shardy: Option<String>,
}

/// Whether the module is split over several devices, as far as can be told.
pub(crate) fn is_split(module: &Module) -> bool {
    !matches!(Partitioning::of(module), Ok(None) | Ok(Some(Partitioning { partitions: 1, .. })))
}

/// How the module is split, where it is split over several devices.
fn split_over(module: &Module) -> Result<Option<Partitioning>, PassError> {
    Ok(Partitioning::of(module)?.filter(|partitioning| partitioning.partitions > 1))
}

/// Says of an input of the controller how it is split: as the parameter `of`, or not at all.
pub(crate) fn split_input(module: &mut Module, id: InstructionId, of: Option<usize>) -> Result<(), PassError> {
    let Some(partitioning) = split_over(module)? else { return Ok(()) };
    let split = Split::of(module, &partitioning, id, of);
    if let Some(input) = module.entry_computation_mut().get_mut(id) {
        split.write(input.attributes_mut(), |text| format!("#sdy.sharding{text}"));
    }
    Ok(())
}

/// How an input is split over devices, in the partitioner's words; `None` where every device has all of it.
pub(crate) fn split_of(module: &Module, input: usize) -> Option<String> {
    let partitioning = split_over(module).ok().flatten()?;
    let entry = module.entry_computation();
    let parameter = entry.parameters().get(input).and_then(|&id| entry.get(id))?;
    let shardy = attribute(parameter.attributes.frontend_attributes.as_option(), SHARDY_SHARDING);
    if let Some(text) = shardy {
        // Axes are named in quotes.
        return text.contains('"').then(|| text.to_owned());
    }
    let sharding = parameter.attributes.sharding.as_option()?;
    let tiles = Tiles::of(sharding, parameter.shape.rank(), partitioning.partitions);
    match tiles {
        Ok(tiles) if tiles.counts().iter().all(|&count| count == 1) => None,
        Ok(tiles) => Some(format!("tiles {:?}", tiles.counts())),
        Err(error) => Some(error.to_string()),
    }
}

/// Appends an output that is split as the parameter `of` is, or not at all; returns its index.
pub(crate) fn append_output(module: &mut Module, value: InstructionId, of: Option<usize>) -> Result<usize, PassError> {
    let Some(partitioning) = split_over(module)? else { return Ok(module.append_output(value)?) };
    let split = Split::of(module, &partitioning, value, of);
    let by_root = root_sharding(module.entry_computation()).is_some();
    let value = match partitioning.partitioner {
        Partitioner::Shardy if split.shardy.is_some() => split.call(module, RESULT_SHARDING, value)?,
        Partitioner::Gspmd if !by_root && split.field.is_some() => split.call(module, SHARDING, value)?,
        Partitioner::Shardy | Partitioner::Gspmd => value,
    };
    let index = module.append_output(value)?;
    let entry = module.entry_computation_mut();
    let root = entry.root();
    let root = entry.get_mut(root).filter(|_| by_root);
    let elements = root.and_then(|r| r.attributes_mut().sharding.as_option_mut()).map(|s| &mut s.tuple_shardings);
    if let (Some(slot), Some(field)) = (elements.and_then(|e| e.get_mut(index)), split.field) {
        *slot = field;
    }
    Ok(index)
}

/// The sharding of a root with one per output.
fn root_sharding(entry: &Computation) -> Option<&OpSharding> {
    entry.root_instruction()?.attributes.sharding.as_option().filter(|s| s.r#type.as_known() == Some(Type::TUPLE))
}

impl Split {
    /// That of the parameter, or for an array like `array` that of one which every device has all of.
    fn of(module: &Module, partitioning: &Partitioning, array: InstructionId, parameter: Option<usize>) -> Self {
        let entry = module.entry_computation();
        if let Some(number) = parameter {
            let parameter = entry.parameters().get(number).and_then(|&id| entry.get(id));
            let text = |p: &hlo::Instruction| {
                let given = attribute(p.attributes.frontend_attributes.as_option(), SHARDY_SHARDING)?;
                Some(given.strip_prefix("#sdy.sharding")?.to_owned())
            };
            return Self {
                field: parameter.and_then(|p| p.attributes.sharding.as_option().cloned()),
                shardy: parameter.and_then(text),
            };
        }
        let rank = entry.get(array).map_or(0, |i| i.shape.rank());
        Self {
            field: Some(OpSharding::default()),
            shardy: partitioning.mesh.as_ref().map(|mesh| mesh.replicated(rank)),
        }
    }

    /// Puts it on an instruction.
    fn write(self, attributes: &mut HloInstructionProto, text: impl Fn(String) -> String) {
        if let Some(field) = self.field {
            attributes.sharding = field.into();
        }
        if let Some(shardy) = self.shardy {
            let entry = Entry { key: SHARDY_SHARDING.to_owned(), value: text(shardy), ..Default::default() };
            attributes.frontend_attributes.get_or_insert_default().map.push(entry);
        }
    }

    /// The value behind a custom call that splits it so.
    fn call(&self, module: &mut Module, target: &str, value: InstructionId) -> Result<InstructionId, PassError> {
        let mut attributes = HloInstructionProto { custom_call_target: target.to_owned(), ..Default::default() };
        // Each call reads one of the two.
        let read = match target {
            RESULT_SHARDING => Self { field: None, shardy: self.shardy.clone() },
            _ => Self { field: self.field.clone(), shardy: None },
        };
        attributes.custom_call_has_side_effect = target == RESULT_SHARDING;
        read.write(&mut attributes, |text| format!("#sdy.sharding_per_value<[{text}]>"));
        let mut b = Builder::at_entry(module);
        Ok(custom_call(&mut b, value, attributes)?)
    }
}

fn custom_call(b: &mut Builder<'_>, value: InstructionId, attributes: HloInstructionProto) -> Built {
    let shape: Shape = b.shape(value)?;
    let name = b.module().entry_computation().get(value).map_or_else(String::new, |i| format!("{}.result", i.name));
    b.set_scope("entropic", "entropic/append-state");
    b.named(&name).emit_with(Opcode::CustomCall, &[value], shape, attributes, Vec::new())
}

/// The values that the entry returns, below the calls that only say how they are split.
pub(crate) fn results(entry: &Computation) -> Vec<InstructionId> {
    entry.outputs().into_iter().map(|output| below(entry, output)).collect()
}

fn below(entry: &Computation, mut id: InstructionId) -> InstructionId {
    while let Some(inner) = wrapped(entry, id) {
        id = inner;
    }
    id
}

/// What a `FuncResultSharding` of one array is of.
fn wrapped(entry: &Computation, id: InstructionId) -> Option<InstructionId> {
    let call = entry.get(id)?;
    let wraps = call.opcode == Opcode::CustomCall && call.attributes.custom_call_target == RESULT_SHARDING;
    match call.operands.as_slice() {
        [operand] if wraps => Some(*operand),
        _ => None,
    }
}

/// A call like the chain of those above the value `outer` stands for, of another value; that value where there are none.
///
/// A chain that a single output reads is itself made to read the value.
pub(crate) fn rewrap(
    module: &mut Module,
    outer: InstructionId,
    outputs: &[InstructionId],
    value: InstructionId,
) -> Result<InstructionId, PassError> {
    let entry = module.entry_computation();
    let Some(inner) = wrapped(entry, outer) else { return Ok(value) };
    let missing = || PassError::Stale { what: format!("instruction {}", outer.index()) };
    let alone = outputs.iter().filter(|&&o| o == outer).count() <= 1;
    let call = entry.get(outer).ok_or_else(missing)?.clone();
    let value = rewrap(module, inner, &[], value)?;
    if alone {
        let call = module.entry_computation_mut().get_mut(outer).ok_or_else(missing)?;
        call.operands = vec![value];
        return Ok(outer);
    }
    let mut b = Builder::at_entry(module);
    let attributes = (*call.attributes).clone();
    Ok(b.named(&call.name).emit_with(Opcode::CustomCall, &[value], call.shape, attributes, Vec::new())?)
}
