//! Shapes, layouts, called computations and attributes of one instruction: V015, V027 to V040.

use super::order::Positions;
use super::{Report, Rule};
use crate::infer::{InferError, inferred};
use crate::ir::shape::Brief;
use crate::ir::{Computation, ComputationId, Instruction, InstructionId, Module, Opcode, Shape};
use crate::proto::{LiteralProto, PrimitiveType, ShapeProto};

/// What the rules of one instruction look at around it.
pub(super) struct Context<'a> {
    pub(super) module: &'a Module,
    pub(super) computation: &'a Computation,
    pub(super) id: ComputationId,
    pub(super) positions: &'a Positions,
    pub(super) parameters: &'a Parameters,
}

/// `operands` is a buffer, so that the thousands of instructions of a computation need one allocation.
pub(super) fn check<'a>(
    context: &Context<'a>,
    instruction: &'a Instruction,
    operands: &mut Vec<&'a Shape>,
    report: &mut Report<'_>,
) {
    let &Context { module, computation, id, positions, parameters } = context;
    let mut refuse = |rule, message| report.instruction(rule, computation, instruction, message);
    if instruction.name.is_empty() {
        refuse(Rule::MissingName, "it has no name".into());
    }
    let mut faults = Faults::default();
    check_shape(&instruction.shape.0, &mut faults);
    for (rule, fault) in [
        (Rule::InvalidShape, faults.shape),
        (Rule::MissingLayout, faults.no_layout),
        (Rule::InvalidLayout, faults.layout),
    ] {
        if let Some(message) = fault {
            refuse(rule, message);
        }
    }
    let defined = |o: &&InstructionId| matches!(positions.get(o.index()), Some(Some(_)));
    operands.clear();
    operands.extend(instruction.operands.iter().filter(defined).filter_map(|&o| Some(&computation.get(o)?.shape)));
    if operands.len() < instruction.operands.len() {
        // A missing operand has been reported; nothing follows from what is left.
        return;
    }
    match inferred(instruction.opcode, operands, &instruction.attributes, &instruction.shape) {
        Err(error @ InferError::Arity { .. }) => {
            refuse(Rule::Arity, error.to_string());
            return;
        }
        Err(error @ InferError::Operands { .. }) => refuse(Rule::Operands, error.to_string()),
        Ok(Some(shape)) if !shape.is_compatible(&instruction.shape) => {
            let message = format!("its shape is {}, its operands make {shape}", Brief(&instruction.shape.0));
            refuse(Rule::ResultShape, message);
        }
        Ok(_) => {}
    }
    match instruction.opcode {
        Opcode::Compare => {
            if let Some(message) = check_comparison(instruction) {
                refuse(Rule::Comparison, message);
            }
        }
        Opcode::Constant => {
            if let Some((rule, message)) = check_literal(instruction) {
                refuse(rule, message);
            }
        }
        Opcode::Parameter => {
            if let Some(message) = check_replication(instruction) {
                refuse(Rule::ParameterReplication, message);
            }
        }
        _ => {}
    }
    let call = Call { module, id, instruction, operands, parameters };
    for (rule, message) in call.check() {
        refuse(rule, message);
    }
}

/// The first fault of each kind in a shape.
#[derive(Default)]
struct Faults {
    shape: Option<String>,
    no_layout: Option<String>,
    layout: Option<String>,
}

fn check_shape(shape: &ShapeProto, faults: &mut Faults) {
    match shape.element_type.as_known() {
        Some(PrimitiveType::PRIMITIVE_TYPE_INVALID) => {
            faults.shape.get_or_insert_with(|| "it has no shape, or an array without element type in it".into());
            return;
        }
        Some(PrimitiveType::TUPLE) => {
            for element in &shape.tuple_shapes {
                check_shape(element, faults);
            }
            return;
        }
        // Of an element type that is not known here, only dimensions and layout can be judged; what has no
        // dimensions need not be an array.
        Some(PrimitiveType::TOKEN | PrimitiveType::OPAQUE_TYPE | PrimitiveType::BUFFER) | None => return,
        Some(_) => {}
    }
    let dynamic = shape.is_dynamic_dimension.len();
    let rank = shape.dimensions.len();
    if shape.dimensions.iter().any(|&d| d < 0) || (dynamic != 0 && dynamic != rank) || !shape.tuple_shapes.is_empty() {
        let message = || format!("{} is no array shape: dimensions {:?}", Brief(shape), shape.dimensions);
        faults.shape.get_or_insert_with(message);
    }
    let Some(layout) = shape.layout.as_option() else {
        faults.no_layout.get_or_insert_with(|| format!("{} has no layout", Brief(shape)));
        return;
    };
    let row_major = layout.minor_to_major.iter().rev().copied().eq((0i64..).take(rank));
    if !row_major && !orders(&layout.minor_to_major, rank) {
        let message =
            || format!("{} has the layout {:?}, no order of {rank} dimensions", Brief(shape), layout.minor_to_major);
        faults.layout.get_or_insert_with(message);
    }
}

/// Whether a list has each of `rank` dimensions once.
fn orders(list: &[i64], rank: usize) -> bool {
    let mut seen = vec![false; rank];
    for &d in list {
        if let Some(slot) = usize::try_from(d).ok().and_then(|d| seen.get_mut(d)) {
            *slot = true;
        }
    }
    list.len() == rank && !seen.contains(&false)
}

fn check_comparison(instruction: &Instruction) -> Option<String> {
    let (direction, kind) = (&instruction.attributes.comparison_direction, &instruction.attributes.comparison_type);
    if !matches!(direction.as_str(), "EQ" | "NE" | "GE" | "GT" | "LE" | "LT") {
        return Some(format!("its direction {direction:?} is none of EQ, NE, GE, GT, LE, LT"));
    }
    if !matches!(kind.as_str(), "" | "FLOAT" | "TOTALORDER" | "SIGNED" | "UNSIGNED") {
        return Some(format!("its type {kind:?} is none of FLOAT, TOTALORDER, SIGNED, UNSIGNED"));
    }
    None
}

fn check_replication(instruction: &Instruction) -> Option<String> {
    let replication = instruction.attributes.parameter_replication.as_option()?;
    let (entries, leaves) = (replication.replicated_at_leaf_buffers.len(), instruction.shape.num_leaves());
    (entries != 0 && entries != leaves)
        .then(|| format!("its replication has {entries} entries, its shape {leaves} arrays"))
}

fn check_literal(instruction: &Instruction) -> Option<(Rule, String)> {
    let shape = &instruction.shape;
    let literal = instruction.attributes.literal.as_option();
    let Some(literal) = literal else { return Some((Rule::LiteralShape, "it has no literal".into())) };
    let of = literal.shape.as_option();
    if of.is_none_or(|of| !crate::ir::shape::compatible(of, &shape.0)) {
        let of = of.map_or_else(|| "no shape".to_owned(), |s| Brief(s).to_string());
        return Some((Rule::LiteralShape, format!("its shape is {}, its literal's {of}", Brief(&shape.0))));
    }
    check_elements(&shape.0, literal).map(|message| (Rule::LiteralElements, message))
}

fn check_elements(shape: &ShapeProto, literal: &LiteralProto) -> Option<String> {
    // A type that is not known here has its elements in a field that is not known either.
    let element_type = shape.element_type.as_known()?;
    if element_type == PrimitiveType::TUPLE {
        if literal.tuple_literals.len() != shape.tuple_shapes.len() {
            let (found, expected) = (literal.tuple_literals.len(), shape.tuple_shapes.len());
            return Some(format!("its literal has {found} elements, its shape {expected}"));
        }
        let mut elements = shape.tuple_shapes.iter().zip(&literal.tuple_literals);
        return elements.find_map(|(shape, literal)| check_elements(shape, literal));
    }
    if element_type.bits() == 0 {
        return None;
    }
    let expected = shape.dimensions.iter().fold(1u64, |n, &d| n.saturating_mul(u64::try_from(d).unwrap_or(0)));
    let found = literal.element_count(element_type);
    if found == Some(expected) {
        return None;
    }
    let found = found.map_or_else(|| "half an".to_owned(), |n| n.to_string());
    Some(format!("its literal holds {found} elements of {element_type}, its shape {expected}"))
}

/// An instruction and what it calls.
struct Call<'a> {
    module: &'a Module,
    id: ComputationId,
    instruction: &'a Instruction,
    operands: &'a [&'a Shape],
    parameters: &'a Parameters,
}

/// The parameters of every computation, found once: a computation may be called many times.
pub(super) struct Parameters(Vec<Vec<InstructionId>>);

impl Parameters {
    pub(super) fn new(module: &Module) -> Self {
        Self(module.arena.iter().map(Computation::parameters).collect())
    }

    /// Those of a computation, in order of their numbers, which may have gaps and repetitions.
    pub(super) fn of(&self, id: ComputationId) -> &[InstructionId] {
        self.0.get(id.index()).map_or(&[], Vec::as_slice)
    }
}

impl Call<'_> {
    fn check(&self) -> Vec<(Rule, String)> {
        use Opcode as O;
        let mut broken = Vec::new();
        let count = self.instruction.called.len();
        let (expected, fits) = match self.instruction.opcode {
            O::Call | O::Map | O::Fusion | O::Reduce | O::ReduceWindow | O::Scatter | O::Sort => ("1", count == 1),
            O::AllReduce | O::AllReduceStart | O::ReduceScatter => ("1", count == 1),
            O::While => ("2", count == 2),
            O::SelectAndScatter => ("2", count == 2),
            O::Conditional => ("at least 1", count >= 1),
            op if op.is_elementwise() => ("no", count == 0),
            _ => ("", true),
        };
        if !fits {
            broken.push((Rule::CalledCount, format!("it calls {count} computations, and needs {expected}")));
            return broken;
        }
        if self.instruction.opcode == O::Conditional
            && let Some(message) = self.check_branches()
        {
            broken.push((Rule::Branches, message));
            return broken;
        }
        for (n, &callee) in self.instruction.called.iter().enumerate() {
            // A computation that calls itself is reported as such.
            let Some(target) = self.module.computation(callee).filter(|_| callee != self.id) else { continue };
            let Some(expected) = self.expected_parameters(n) else { continue };
            let parameters = self.parameters.of(callee);
            let name = &target.name;
            if parameters.len() != expected {
                let message = format!("it passes {expected} values to %{name}, which takes {}", parameters.len());
                broken.push((Rule::CalleeParameters, message));
                continue;
            }
            if let Some(message) = self.check_shapes(n, target, parameters) {
                broken.push((Rule::CalleeShapes, format!("%{name} {message}")));
            }
        }
        broken
    }

    fn check_branches(&self) -> Option<String> {
        let branches = self.instruction.called.len();
        let (selector, arguments) = self.operands.split_first()?;
        if arguments.len() != branches {
            return Some(format!("it passes {} arguments to {branches} branches", arguments.len()));
        }
        match (selector.element_type(), selector.rank(), branches) {
            (PrimitiveType::PRED, 0, 2) | (PrimitiveType::S32, 0, _) => None,
            _ => Some(format!("its selector is {selector}, and it has {branches} branches")),
        }
    }

    /// How many parameters the `n`-th callee must have; `None` where nobody here knows.
    fn expected_parameters(&self, n: usize) -> Option<usize> {
        use Opcode as O;
        let operands = self.operands.len();
        match (self.instruction.opcode, n) {
            (O::Call | O::Map | O::Fusion | O::Reduce | O::ReduceWindow, _) => Some(operands),
            (O::While | O::Conditional, _) => Some(1),
            (O::Sort, _) => Some(operands.saturating_mul(2)),
            (O::Scatter, _) => Some(operands.saturating_sub(1)),
            (O::SelectAndScatter | O::AllReduce | O::AllReduceStart | O::ReduceScatter, _) => Some(2),
            _ => None,
        }
    }

    fn check_shapes(&self, n: usize, target: &Computation, parameters: &[InstructionId]) -> Option<String> {
        use Opcode as O;
        let stated = &self.instruction.shape;
        let first = *self.operands.first().unwrap_or(&stated);
        let pred = Shape::scalar(PrimitiveType::PRED);
        let (passed, result): (&[&Shape], Option<&Shape>) = match (self.instruction.opcode, n) {
            (O::Call | O::Fusion, _) => (self.operands, Some(stated)),
            (O::While, 0) => (&[first], Some(stated)),
            (O::While, _) => (&[first], Some(&pred)),
            (O::Conditional, n) => (self.operands.get(n + 1..n + 2).unwrap_or_default(), Some(stated)),
            (O::Sort, _) => (&[], Some(&pred)),
            _ => (&[], None),
        };
        for (number, (passed, &parameter)) in passed.iter().zip(parameters).enumerate() {
            let taken = &target.get(parameter)?.shape;
            if !passed.is_compatible(taken) {
                let (passed, taken) = (Brief(&passed.0), Brief(&taken.0));
                return Some(format!("takes {taken} as parameter {number}, and is passed {passed}"));
            }
        }
        let (result, root) = (result?, &target.root_instruction()?.shape);
        (!result.is_compatible(root)).then(|| format!("returns {}, not {}", Brief(&root.0), Brief(&result.0)))
    }
}
