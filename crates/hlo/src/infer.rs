//! Shape inference: one function, read by the builder and by the verifier.
//!
//! [`infer`] says what shape an instruction must have, given its operands'
//! shapes and its attributes. Element type and dimensions are what counts;
//! layouts follow the first operand of the result's dimensions, else row-major.
//! Opcodes that no pass emits and whose rules need more than shapes are
//! answered with `None`: nobody here claims anything about them.

use std::fmt;

use thiserror::Error;

use crate::ir::shape::{Brief, compatible};
use crate::ir::{Opcode, Shape};
use crate::proto::{HloInstructionProto, PrimitiveType, ShapeProto};

/// Why no shape fits.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InferError {
    /// The number of operands is wrong.
    #[error("{opcode} takes {expected} operand(s), {found} given")]
    Arity {
        /// The operation.
        opcode: Opcode,
        /// What its table line says.
        expected: String,
        /// Number of operands given.
        found: usize,
    },
    /// The operands do not go together, or an attribute contradicts them.
    #[error("{opcode} of ({operands}): {reason}")]
    Operands {
        /// The operation.
        opcode: Opcode,
        /// The operands' shapes.
        operands: String,
        /// What is wrong.
        reason: String,
    },
}

/// How many operands' shapes an error spells out, and how much of each.
const SPELLED_OPERANDS: usize = 8;

/// The shape of `opcode` applied to `operands`, or `None` where this crate has no rule.
///
/// `stated` is the shape that the caller asks for; operations whose operands do not
/// determine the result (`broadcast`, `reshape`, `convert`, `iota`) are checked against it.
///
/// # Errors
///
/// Where no shape fits.
pub fn infer(
    opcode: Opcode,
    operands: &[Shape],
    attributes: &HloInstructionProto,
    stated: &Shape,
) -> Result<Option<Shape>, InferError> {
    let operands: Vec<&Shape> = operands.iter().collect();
    Ok(inferred(opcode, &operands, attributes, stated)?.map(Inferred::into_shape))
}

/// An inferred shape, borrowed where it is made of operands' shapes.
///
/// The verifier compares thousands of them with what is stated; nothing is copied for that.
pub(crate) enum Inferred<'a> {
    /// That of an operand, or the stated one.
    Same(&'a Shape),
    /// That of an element of an operand.
    Element(&'a ShapeProto),
    /// A tuple of those.
    Tuple(Vec<&'a ShapeProto>),
    /// Another one.
    New(Shape),
}

impl Inferred<'_> {
    fn into_shape(self) -> Shape {
        match self {
            Self::Same(shape) => shape.clone(),
            Self::Element(shape) => Shape::from(shape.clone()),
            Self::Tuple(elements) => Shape::tuple(elements.into_iter().cloned().map(Shape::from).collect()),
            Self::New(shape) => shape,
        }
    }

    /// Whether `stated` is this shape, layouts aside.
    pub(crate) fn is_compatible(&self, stated: &Shape) -> bool {
        match self {
            Self::Same(shape) => shape.is_compatible(stated),
            Self::Element(shape) => compatible(shape, &stated.0),
            Self::Tuple(elements) => {
                let stated_elements = &stated.0.tuple_shapes;
                stated.is_tuple()
                    && elements.len() == stated_elements.len()
                    && elements.iter().zip(stated_elements).all(|(x, y)| compatible(x, y))
            }
            Self::New(shape) => shape.is_compatible(stated),
        }
    }
}

impl fmt::Display for Inferred<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same(shape) => write!(f, "{}", Brief(&shape.0)),
            Self::Element(shape) => write!(f, "{}", Brief(shape)),
            Self::Tuple(elements) => {
                f.write_str("(")?;
                for (i, element) in elements.iter().take(SPELLED_OPERANDS).enumerate() {
                    write!(f, "{}{}", if i > 0 { ", " } else { "" }, Brief(element))?;
                }
                let more = elements.len().saturating_sub(SPELLED_OPERANDS);
                if more > 0 { write!(f, ", and {more} more)") } else { f.write_str(")") }
            }
            Self::New(shape) => write!(f, "{}", Brief(&shape.0)),
        }
    }
}

/// See [`infer`], which owns what this borrows.
pub(crate) fn inferred<'a>(
    opcode: Opcode,
    operands: &[&'a Shape],
    attributes: &HloInstructionProto,
    stated: &'a Shape,
) -> Result<Option<Inferred<'a>>, InferError> {
    use Inferred::{New, Same};
    if !opcode.arity().accepts(operands.len()) {
        return Err(InferError::Arity { opcode, expected: opcode.arity().to_string(), found: operands.len() });
    }
    let fail = |reason: String| {
        let mut spelled: Vec<_> = operands.iter().take(SPELLED_OPERANDS).map(|s| Brief(&s.0).to_string()).collect();
        if operands.len() > SPELLED_OPERANDS {
            spelled.push(format!("and {} more", operands.len() - SPELLED_OPERANDS));
        }
        InferError::Operands { opcode, operands: spelled.join(", "), reason }
    };
    let shape = match (opcode, operands) {
        (Opcode::Tuple, _) => Inferred::Tuple(operands.iter().map(|s| s.0.as_ref()).collect()),
        (Opcode::GetTupleElement, [tuple]) => {
            let index = usize::try_from(attributes.tuple_index).ok();
            let element = index.and_then(|i| tuple.0.tuple_shapes.get(i));
            Inferred::Element(element.ok_or_else(|| fail(format!("it has no element {}", attributes.tuple_index)))?)
        }
        (Opcode::OptimizationBarrier, [x]) => Same(x),
        (Opcode::Convert | Opcode::Broadcast | Opcode::Reshape, [x]) if stated.is_array() && x.is_array() => {
            check_reshaping(opcode, x, attributes, stated).map_err(fail)?;
            Same(stated)
        }
        (Opcode::Compare, [x, y]) => {
            if !x.same_array(y) {
                return Err(fail("both sides must have one element type and the same dimensions".into()));
            }
            New(x.with_element_type(PrimitiveType::PRED))
        }
        (Opcode::IsFinite, [x]) => {
            if !x.element_type().is_floating() {
                return Err(fail("the operand must be floating-point".into()));
            }
            New(x.with_element_type(PrimitiveType::PRED))
        }
        (Opcode::Select, [predicate, x, y]) => {
            let fits = predicate.element_type() == PrimitiveType::PRED
                && (predicate.rank() == 0 || predicate.dims() == x.dims());
            if !fits {
                return Err(fail("the predicate must be pred, scalar or of the arms' dimensions".into()));
            }
            if !x.same_array(y) {
                return Err(fail("both arms must have one element type and the same dimensions".into()));
            }
            Same(x)
        }
        (Opcode::Clamp, [low, x, high]) => {
            for bound in [low, high] {
                let fits = bound.element_type() == x.element_type() && (bound.rank() == 0 || bound.dims() == x.dims());
                if !fits {
                    return Err(fail("the bounds must be scalars or of the operand's shape".into()));
                }
            }
            Same(x)
        }
        (Opcode::Real | Opcode::Imag | Opcode::Abs, [x])
            if matches!(x.element_type(), PrimitiveType::C64 | PrimitiveType::C128) =>
        {
            let real = if x.element_type() == PrimitiveType::C64 { PrimitiveType::F32 } else { PrimitiveType::F64 };
            New(x.with_element_type(real))
        }
        (op, [x]) if op.is_elementwise_unary() && op != Opcode::Convert => {
            // `copy` moves tuples and tokens as well.
            if !x.is_array() && op != Opcode::Copy {
                return Err(fail("the operand must be an array".into()));
            }
            Same(x)
        }
        (op, [x, y]) if op.is_elementwise_binary() => {
            if !x.same_array(y) {
                return Err(fail("both operands must have one element type and the same dimensions".into()));
            }
            Same(x)
        }
        (Opcode::Iota, []) if stated.is_array() => {
            let counted = match attributes.dimensions.as_slice() {
                [d] => usize::try_from(*d).is_ok_and(|d| d < stated.rank()),
                _ => false,
            };
            if !counted {
                let dimensions = &attributes.dimensions;
                return Err(fail(format!("`dimensions` {dimensions:?} must name one dimension of {stated}")));
            }
            Same(stated)
        }
        (Opcode::Slice, [x]) => New(slice(x, attributes).map_err(fail)?),
        (Opcode::DynamicSlice, [x, starts @ ..]) => New(dynamic_slice(x, starts, attributes, stated).map_err(fail)?),
        (Opcode::DynamicUpdateSlice, [x, update, starts @ ..]) => {
            dynamic_update_slice(x, update, starts).map_err(fail)?;
            Same(x)
        }
        (Opcode::Concatenate, [first, rest @ ..]) => New(concatenate(first, rest, attributes).map_err(fail)?),
        (Opcode::Reduce, _) => New(reduce(operands, attributes).map_err(fail)?),
        (Opcode::Transpose, [x]) => New(transpose(x, attributes, stated).map_err(fail)?),
        (Opcode::AllReduce, [x]) => Same(x),
        (Opcode::AllReduce, xs) => Inferred::Tuple(xs.iter().map(|s| s.0.as_ref()).collect()),
        _ => return Ok(None),
    };
    Ok(Some(shape))
}

fn check_reshaping(opcode: Opcode, x: &Shape, attributes: &HloInstructionProto, stated: &Shape) -> Result<(), String> {
    let want = |ok: bool, reason: &str| if ok { Ok(()) } else { Err(format!("to {stated}: {reason}")) };
    if opcode == Opcode::Convert {
        return want(x.dims() == stated.dims(), "the dimensions must stay");
    }
    want(x.element_type() == stated.element_type(), "the element type must stay")?;
    if opcode == Opcode::Reshape {
        return want(x.num_elements() == stated.num_elements(), "the number of elements must stay");
    }
    let mapped = &attributes.dimensions;
    want(mapped.len() == x.rank(), "`dimensions` must name a result dimension for each operand dimension")?;
    for (&target, &size) in mapped.iter().zip(x.dims()) {
        let found = usize::try_from(target).ok().and_then(|t| stated.dims().get(t));
        want(found == Some(&size) || size == 1, "an operand dimension and its result dimension differ in size")?;
    }
    Ok(())
}

fn slice(x: &Shape, attributes: &HloInstructionProto) -> Result<Shape, String> {
    if attributes.slice_dimensions.len() != x.rank() {
        return Err(format!("{} slice dimensions for {} dimensions", attributes.slice_dimensions.len(), x.rank()));
    }
    let mut dims = Vec::with_capacity(x.rank());
    for (range, &size) in attributes.slice_dimensions.iter().zip(x.dims()) {
        let (start, limit, stride) = (range.start, range.limit, range.stride);
        if start < 0 || limit < start || limit > size || stride < 1 {
            return Err(format!("[{start}:{limit}:{stride}] does not lie in a dimension of size {size}"));
        }
        dims.push((limit - start).div_euclid(stride) + i64::from((limit - start).rem_euclid(stride) != 0));
    }
    Ok(Shape::array(x.element_type(), &dims))
}

fn dynamic_slice(
    x: &Shape,
    starts: &[&Shape],
    attributes: &HloInstructionProto,
    stated: &Shape,
) -> Result<Shape, String> {
    check_starts(x, starts)?;
    let sizes = &attributes.dynamic_slice_sizes;
    check_within(x, sizes)?;
    let shape = Shape::array(x.element_type(), sizes);
    Ok(if shape.same_array(stated) { stated.clone() } else { shape })
}

fn dynamic_update_slice(x: &Shape, update: &Shape, starts: &[&Shape]) -> Result<(), String> {
    check_starts(x, starts)?;
    if update.element_type() != x.element_type() {
        return Err(format!("the update must be {}", x.element_type()));
    }
    check_within(x, update.dims())
}

/// One integer scalar for each dimension of `x`, or one vector of them, as older modules have it.
fn check_starts(x: &Shape, starts: &[&Shape]) -> Result<(), String> {
    let rank = i64::try_from(x.rank()).unwrap_or(i64::MAX);
    let fits = starts.iter().all(|s| s.element_type().is_integral())
        && match starts {
            [vector] if vector.rank() == 1 => vector.dims() == [rank],
            scalars => scalars.len() == x.rank() && scalars.iter().all(|s| s.is_scalar()),
        };
    if fits { Ok(()) } else { Err(format!("an integer scalar is needed for each dimension of {x}, to start at")) }
}

fn check_within(x: &Shape, sizes: &[i64]) -> Result<(), String> {
    let fits = sizes.len() == x.rank() && sizes.iter().zip(x.dims()).all(|(&size, &whole)| (0..=whole).contains(&size));
    if fits { Ok(()) } else { Err(format!("{sizes:?} elements do not lie in {x}")) }
}

fn concatenate(first: &Shape, rest: &[&Shape], attributes: &HloInstructionProto) -> Result<Shape, String> {
    let along = match attributes.dimensions.as_slice() {
        [d] => usize::try_from(*d).ok().filter(|&d| d < first.rank()),
        _ => None,
    };
    let along = along.ok_or_else(|| format!("`dimensions` {:?} must name one dimension", attributes.dimensions))?;
    let mut dims = first.dims().to_vec();
    for other in rest {
        let agrees = other.element_type() == first.element_type()
            && other.rank() == first.rank()
            && other.dims().iter().zip(first.dims()).enumerate().all(|(d, (a, b))| d == along || a == b);
        if !agrees {
            return Err(format!("{first} and {other} differ outside dimension {along}"));
        }
        if let (Some(total), Some(&more)) = (dims.get_mut(along), other.dims().get(along)) {
            *total = total.saturating_add(more);
        }
    }
    Ok(Shape::array(first.element_type(), &dims))
}

fn reduce(operands: &[&Shape], attributes: &HloInstructionProto) -> Result<Shape, String> {
    if !operands.len().is_multiple_of(2) {
        return Err("as many initial values as inputs are needed".into());
    }
    let (inputs, initial) = operands.split_at(operands.len() / 2);
    let mut results = Vec::with_capacity(inputs.len());
    for (x, init) in inputs.iter().zip(initial) {
        if init.rank() != 0 || init.element_type() != x.element_type() {
            return Err(format!("the initial value {init} must be a scalar of {}", x.element_type()));
        }
        let reduced = |d: usize| attributes.dimensions.iter().any(|&r| usize::try_from(r) == Ok(d));
        if attributes.dimensions.iter().any(|&r| usize::try_from(r).map_or(true, |r| r >= x.rank())) {
            return Err(format!("dimensions {:?} do not exist in {x}", attributes.dimensions));
        }
        let dims: Vec<i64> = x.dims().iter().enumerate().filter(|&(d, _)| !reduced(d)).map(|(_, &size)| size).collect();
        results.push(Shape::array(x.element_type(), &dims));
    }
    Ok(match <[Shape; 1]>::try_from(results) {
        Ok([single]) => single,
        Err(several) => Shape::tuple(several),
    })
}

fn transpose(x: &Shape, attributes: &HloInstructionProto, stated: &Shape) -> Result<Shape, String> {
    let mut dims = Vec::with_capacity(x.rank());
    let mut seen = vec![false; x.rank()];
    for &d in &attributes.dimensions {
        let d = usize::try_from(d).ok();
        let (Some(&size), Some(mark)) = (d.and_then(|d| x.dims().get(d)), d.and_then(|d| seen.get_mut(d))) else {
            return Err(format!("{:?} is no permutation of its dimensions", attributes.dimensions));
        };
        *mark = true;
        dims.push(size);
    }
    if dims.len() != x.rank() || seen.contains(&false) {
        return Err(format!("{:?} is no permutation of its dimensions", attributes.dimensions));
    }
    let shape = Shape::array(x.element_type(), &dims);
    Ok(if shape.same_array(stated) { stated.clone() } else { shape })
}

#[cfg(test)]
mod tests {
    use super::*;
    use PrimitiveType::{F32, PRED, S32};

    fn f32s(dims: &[i64]) -> Shape {
        Shape::array(F32, dims)
    }

    fn attributes(edit: impl FnOnce(&mut HloInstructionProto)) -> HloInstructionProto {
        let mut proto = HloInstructionProto::default();
        edit(&mut proto);
        proto
    }

    #[test]
    fn shapes_that_follow_from_operands() {
        let none = HloInstructionProto::default();
        let any = Shape::default();
        let check = |opcode, operands: &[Shape], attributes: &HloInstructionProto, expected: Shape| {
            assert_eq!(infer(opcode, operands, attributes, &any).unwrap(), Some(expected), "{opcode}");
        };
        check(Opcode::Add, &[f32s(&[2, 3]), f32s(&[2, 3])], &none, f32s(&[2, 3]));
        check(Opcode::Compare, &[f32s(&[2]), f32s(&[2])], &none, Shape::array(PRED, &[2]));
        check(Opcode::Select, &[Shape::scalar(PRED), f32s(&[2]), f32s(&[2])], &none, f32s(&[2]));
        let over = attributes(|p| p.dimensions = vec![0]);
        check(Opcode::Reduce, &[f32s(&[2, 3]), f32s(&[])], &over, f32s(&[3]));
        check(Opcode::Concatenate, &[f32s(&[2, 3]), f32s(&[4, 3])], &over, f32s(&[6, 3]));
        let swap = attributes(|p| p.dimensions = vec![1, 0]);
        check(Opcode::Transpose, &[f32s(&[2, 3])], &swap, f32s(&[3, 2]));
        let sized = attributes(|p| p.dynamic_slice_sizes = vec![1, 3]);
        let at = Shape::scalar(S32);
        check(Opcode::DynamicSlice, &[f32s(&[2, 3]), at.clone(), at.clone()], &sized, f32s(&[1, 3]));
        check(Opcode::DynamicUpdateSlice, &[f32s(&[2, 3]), f32s(&[1, 3]), at.clone(), at], &none, f32s(&[2, 3]));
        check(Opcode::Tuple, &[], &none, Shape::tuple(vec![]));
    }

    #[test]
    fn refusals_name_opcode_and_shapes() {
        let check = |opcode, operands: &[Shape], attributes: &HloInstructionProto, stated: &Shape, expected: &str| {
            let error = infer(opcode, operands, attributes, stated).unwrap_err().to_string();
            assert!(error.contains(expected), "{opcode}: {error}");
        };
        let none = HloInstructionProto::default();
        let any = Shape::default();
        check(Opcode::Add, &[f32s(&[2])], &none, &any, "takes exactly 2");
        check(Opcode::Add, &[f32s(&[2]), f32s(&[3])], &none, &any, "add of (f32[2], f32[3])");
        check(Opcode::Add, &[f32s(&[2]), Shape::array(S32, &[2])], &none, &any, "one element type");
        check(Opcode::Select, &[f32s(&[]), f32s(&[2]), f32s(&[2])], &none, &any, "must be pred");
        check(Opcode::Reshape, &[f32s(&[2])], &none, &f32s(&[3]), "number of elements");
        check(Opcode::Broadcast, &[f32s(&[2])], &none, &f32s(&[3]), "result dimension");
        check(Opcode::GetTupleElement, &[Shape::tuple(vec![])], &none, &any, "no element 0");
        let bad = attributes(|p| p.dimensions = vec![7]);
        check(Opcode::Reduce, &[f32s(&[2, 3]), f32s(&[])], &bad, &any, "do not exist");
        check(Opcode::Reduce, &[f32s(&[2]), f32s(&[]), f32s(&[])], &bad, &any, "initial values");
        check(Opcode::Concatenate, &[f32s(&[2])], &bad, &any, "must name one dimension");
        check(Opcode::Transpose, &[f32s(&[2, 3])], &bad, &any, "no permutation");
        check(Opcode::Iota, &[], &bad, &f32s(&[2]), "must name one dimension of f32[2]");
        check(Opcode::Iota, &[], &none, &f32s(&[2]), "must name one dimension");
        let outside = attributes(|p| {
            p.slice_dimensions = vec![crate::proto::hlo_instruction_proto::SliceDimensions {
                start: 1,
                limit: 9,
                stride: 1,
                ..Default::default()
            }];
        });
        check(Opcode::Slice, &[f32s(&[2])], &outside, &any, "[1:9:1]");
        let sized = attributes(|p| p.dynamic_slice_sizes = vec![3]);
        let at = Shape::scalar(S32);
        check(Opcode::DynamicSlice, &[f32s(&[2]), at.clone()], &sized, &any, "[3] elements do not lie in f32[2]");
        check(Opcode::DynamicSlice, &[f32s(&[4])], &sized, &any, "for each dimension of f32[4]");
        check(Opcode::DynamicSlice, &[f32s(&[4]), f32s(&[])], &sized, &any, "an integer scalar");
        check(Opcode::DynamicUpdateSlice, &[f32s(&[2]), f32s(&[3]), at.clone()], &none, &any, "do not lie in f32[2]");
        let integers = Shape::array(S32, &[1]);
        check(Opcode::DynamicUpdateSlice, &[f32s(&[2]), integers, at], &none, &any, "must be f32");
    }
}
