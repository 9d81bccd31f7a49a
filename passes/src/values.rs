//! Values of a train step as instructions: reading them, replacing their uses, replacing outputs.

use std::collections::HashMap;

use hlo::build::{BuildError, Builder, Built};
use hlo::edit::EditError;
use hlo::proto::HloInstructionProto;
use hlo::{Computation, InstructionId, Module, Opcode, PrimitiveType, Shape};

use crate::mesh;
use crate::pass::PassError;
use crate::step::{Factors, Term, Update, UpdateForm, UpdateParts, Value};

/// The array that `value` names, taken out of its tuple where it lies in one.
///
/// # Errors
///
/// Where the module does not hold it.
pub fn materialise(b: &mut Builder<'_>, value: Value) -> Result<InstructionId, PassError> {
    let mut id = value.instruction;
    let mut leaf = value.leaf;
    loop {
        let shape = b.shape(id)?;
        if !shape.is_tuple() {
            return if leaf == 0 { Ok(id) } else { Err(stale(value)) };
        }
        let (element, inner) = element_of(&shape, leaf).ok_or_else(|| stale(value))?;
        leaf = inner;
        let made = b.module().entry_computation().get(id);
        id = match made {
            Some(tuple) if tuple.opcode == Opcode::Tuple => {
                tuple.operands.get(element).copied().ok_or_else(|| stale(value))?
            }
            _ => b.get_tuple_element(id, element)?,
        };
    }
}

/// The one number that `value` holds, however often.
pub(crate) fn scalar(b: &mut Builder<'_>, value: Value, wide: PrimitiveType) -> Result<InstructionId, PassError> {
    let array = materialise(b, value)?;
    let rank = b.shape(array)?.rank();
    let first = if rank == 0 {
        array
    } else {
        let corner = b.slice(array, &vec![(0, 1); rank])?;
        b.reshape(corner, &[])?
    };
    Ok(b.convert(first, wide)?)
}

/// A predicate spread over arrays, once for each shape unless told otherwise.
pub(crate) struct Spread {
    predicate: InstructionId,
    made: Vec<(Shape, InstructionId)>,
    /// Up to this many elements, an array of the predicate is a value of its own, behind an `opt-barrier`.
    own_up_to: u64,
    /// Whether no two arrays share one: over a mesh arrays of one shape may be split in different ways.
    one_each: bool,
}

impl Spread {
    pub(crate) fn new(predicate: InstructionId) -> Self {
        Self { predicate, made: Vec::new(), own_up_to: 0, one_each: false }
    }

    pub(crate) fn own_up_to(self, elements: u64) -> Self {
        Self { own_up_to: elements, ..self }
    }

    pub(crate) fn one_each(self, one_each: bool) -> Self {
        Self { one_each, ..self }
    }

    /// The predicate over the dimensions and the layout of `like`.
    pub(crate) fn over(&mut self, b: &mut Builder<'_>, like: InstructionId) -> Built {
        let shape = b.shape(like)?.with_element_type(PrimitiveType::PRED);
        if let Some(&(_, made)) = self.made.iter().find(|(known, _)| *known == shape && !self.one_each) {
            return Ok(made);
        }
        let mut made = b.broadcast_scalar_like(self.predicate, like)?;
        if shape.num_elements() <= self.own_up_to && shape.rank() > 0 {
            made = b.emit_with(Opcode::OptimizationBarrier, &[made], shape.clone(), Default::default(), Vec::new())?;
        }
        self.made.push((shape, made));
        Ok(made)
    }
}

/// The same value, but for no compiler pass the same value: a `reduce-precision` to the precision that x has. x itself
/// where it is no `f32`.
pub(crate) fn apart(b: &mut Builder<'_>, x: InstructionId) -> Built {
    let shape = b.shape(x)?;
    if shape.element_type() != PrimitiveType::F32 {
        return Ok(x);
    }
    let attributes = HloInstructionProto { exponent_bits: 8, mantissa_bits: 23, ..Default::default() };
    b.emit_with(Opcode::ReducePrecision, &[x], shape, attributes, Vec::new())
}

/// A product computed once more, for another reader; x itself where it is none.
///
/// A product with a single reader is contracted with the sum that reads it where the compiler sees fit, and rounds once
/// with it. Another reader of the same product would end that, and move the last bit of the sum.
pub(crate) fn twin(b: &mut Builder<'_>, x: InstructionId) -> Result<InstructionId, PassError> {
    let made = b.module().entry_computation().get(x).map(|i| (i.opcode, i.operands.clone()));
    Ok(match made {
        Some((Opcode::Multiply, operands)) => match operands.as_slice() {
            &[first, second] => {
                let first = apart(b, first)?;
                b.multiply(first, second)?
            }
            _ => x,
        },
        Some((Opcode::Negate, operands)) => match operands.as_slice() {
            &[inner] => {
                let inner = twin(b, inner)?;
                b.negate(inner)?
            }
            _ => x,
        },
        _ => x,
    })
}

/// An update for another reader than the step's own: what it was narrowed from, computed once more.
///
/// Of u alone most bits are gone where parameters are narrow.
pub(crate) fn own_copy(b: &mut Builder<'_>, u: InstructionId) -> Result<InstructionId, PassError> {
    let wide = widest(b, u);
    twin(b, wide)
}

/// The value that `u` was converted from, as long as that is wider.
fn widest(b: &Builder<'_>, mut u: InstructionId) -> InstructionId {
    loop {
        let entry = b.module().entry_computation();
        let Some(instruction) = entry.get(u) else { return u };
        let [source] = instruction.operands.as_slice() else { return u };
        let wider = entry.get(*source).is_some_and(|s| {
            let (from, to) = (s.shape.element_type(), instruction.shape.element_type());
            from.is_floating() && from.bits() > to.bits()
        });
        if instruction.opcode != Opcode::Convert || !wider {
            return u;
        }
        u = *source;
    }
}

/// A scalar, if any, times all factors; nothing where there is nothing to multiply.
pub(crate) fn product(
    b: &mut Builder<'_>,
    first: Option<InstructionId>,
    factors: &Factors,
    wide: PrimitiveType,
) -> Result<Option<InstructionId>, PassError> {
    let mut made = first;
    for &(divides, value) in &factors.factors {
        let factor = scalar(b, value, wide)?;
        made = Some(match (made, divides) {
            (Some(made), false) => b.multiply(made, factor)?,
            (Some(made), true) => b.divide(made, factor)?,
            (None, false) => factor,
            (None, true) => {
                let one = b.constant(wide, 1.0)?;
                b.divide(one, factor)?
            }
        });
    }
    Ok(match (made, factors.negative) {
        (Some(made), true) => Some(b.negate(made)?),
        (None, true) => Some(b.constant(wide, -1.0)?),
        (made, false) => made,
    })
}

/// An array times a scalar, if any.
pub(crate) fn times(
    b: &mut Builder<'_>,
    scalar: Option<InstructionId>,
    x: InstructionId,
) -> Result<InstructionId, PassError> {
    let Some(scalar) = scalar else { return Ok(x) };
    let scalar = b.broadcast_scalar_like(scalar, x)?;
    Ok(b.multiply(scalar, x)?)
}

/// x and all terms.
pub(crate) fn summed(
    b: &mut Builder<'_>,
    x: InstructionId,
    terms: &[Term],
    wide: PrimitiveType,
) -> Result<InstructionId, PassError> {
    let mut made = x;
    for term in terms {
        let value = materialise(b, term.value)?;
        let value = b.convert(value, wide)?;
        made = b.emit(if term.negative { Opcode::Subtract } else { Opcode::Add }, &[made, value])?;
    }
    Ok(made)
}

/// η·(w + s·x) in a wide type: a step in which `x` stands for what data decides, with learning rate η and decoupled weight decay
/// w of an update's parts, and a scalar s, if any.
pub(crate) fn stepped(
    b: &mut Builder<'_>,
    parts: &UpdateParts,
    scalar: Option<InstructionId>,
    x: InstructionId,
    wide: PrimitiveType,
) -> Result<InstructionId, PassError> {
    // Without decay between them, all scalars are multiplied before any array is.
    if parts.decay.is_empty() {
        let all = product(b, scalar, &parts.outer, wide)?;
        return times(b, all, x);
    }
    let step = times(b, scalar, x)?;
    let step = summed(b, step, &parts.decay, wide)?;
    let outer = product(b, None, &parts.outer, wide)?;
    times(b, outer, step)
}

/// p' - p of an update, in a wide type, for another reader than the step's own.
pub(crate) fn update_of(b: &mut Builder<'_>, update: &Update, wide: PrimitiveType) -> Result<InstructionId, PassError> {
    let (u, negative) = match update.form {
        UpdateForm::Add { u } => (u, false),
        UpdateForm::Subtract { u } => (u, true),
        UpdateForm::Difference { .. } => {
            let (new, old) = (materialise(b, update.new)?, materialise(b, update.old)?);
            let (new, old) = (b.convert(new, wide)?, b.convert(old, wide)?);
            return Ok(b.subtract(new, old)?);
        }
    };
    let u = materialise(b, u)?;
    let u = own_copy(b, u)?;
    let u = b.convert(u, wide)?;
    Ok(if negative { b.negate(u)? } else { u })
}

/// `f64` where one of the values is, else `f32`.
pub(crate) fn wide_type(b: &Builder<'_>, values: &[InstructionId]) -> Result<PrimitiveType, BuildError> {
    for &value in values {
        if b.shape(value)?.element_type() == PrimitiveType::F64 {
            return Ok(PrimitiveType::F64);
        }
    }
    Ok(PrimitiveType::F32)
}

/// Which element of a tuple holds leaf `leaf`, and which leaf of that element it is.
pub(crate) fn element_of(tuple: &Shape, leaf: usize) -> Option<(usize, usize)> {
    let mut before = 0;
    for (index, element) in tuple.tuple_elements().enumerate() {
        let count = element.num_leaves();
        if leaf < before + count {
            return Some((index, leaf - before));
        }
        before += count;
    }
    None
}

fn stale(value: Value) -> PassError {
    PassError::Stale { what: format!("leaf {} of instruction {}", value.leaf, value.instruction.index()) }
}

/// The instructions whose results are the array `value`: itself, or every `get-tuple-element` that takes it out.
///
/// # Errors
///
/// Where something else reads the tuple it lies in.
pub(crate) fn readers(
    entry: &Computation,
    users: &[Vec<InstructionId>],
    value: Value,
    tensor: &str,
) -> Result<Vec<InstructionId>, PassError> {
    let producer = entry.get(value.instruction).ok_or_else(|| stale(value))?;
    if !producer.shape.is_tuple() {
        return Ok(vec![value.instruction]);
    }
    let (element, inner) = element_of(&producer.shape, value.leaf).ok_or_else(|| stale(value))?;
    let mut found = Vec::new();
    for &user in users.get(value.instruction.index()).map_or(&[][..], Vec::as_slice) {
        let Some(instruction) = entry.get(user) else { continue };
        match instruction.opcode {
            Opcode::GetTupleElement if instruction.index() == Some(element) => {
                found.extend(readers(entry, users, Value { instruction: user, leaf: inner }, tensor)?);
            }
            Opcode::GetTupleElement => {}
            _ => {
                return Err(PassError::WholeTupleUse {
                    tensor: tensor.to_owned(),
                    producer: producer.to_string(),
                    leaf: value.leaf,
                    user: instruction.to_string(),
                });
            }
        }
    }
    Ok(found)
}

/// Returns other values at the outputs that are keys of `replacements`, split over a mesh as those before them.
///
/// # Errors
///
/// Where an output does not exist, or a value has another shape.
pub(crate) fn replace_outputs(
    module: &mut Module,
    replacements: &HashMap<usize, InstructionId>,
) -> Result<(), PassError> {
    let entry = module.entry_computation();
    let outputs = entry.outputs();
    let results = mesh::results(entry);
    let single = entry.root_instruction().is_none_or(|root| root.opcode != Opcode::Tuple);
    let mut sorted: Vec<_> = replacements.iter().collect();
    sorted.sort();
    for &(&index, &new) in &sorted {
        let missing = || PassError::Stale { what: format!("output {index}") };
        let old = results.get(index).and_then(|&id| entry.get(id)).ok_or_else(missing)?;
        let new = entry.get(new).ok_or_else(missing)?;
        if !old.shape.same_array(&new.shape) {
            return Err(PassError::Edit(EditError::ReplacementShape {
                old: old.to_string(),
                old_shape: old.shape.to_string(),
                new: new.to_string(),
                new_shape: new.shape.to_string(),
            }));
        }
    }
    for (&index, &new) in sorted {
        let Some(&outer) = outputs.get(index) else { continue };
        let new = mesh::rewrap(module, outer, &outputs, new)?;
        if single {
            Builder::at_entry(module).set_root(new)?;
            continue;
        }
        let entry = module.entry_computation_mut();
        let root = entry.root();
        if let Some(operand) = entry.get_mut(root).and_then(|root| root.operands.get_mut(index)) {
            *operand = new;
        }
    }
    Ok(())
}
