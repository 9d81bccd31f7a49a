//! `histogram`: how the elements are distributed over bins of log2 |g|.
//!
//! With c the counts of a tensor's elements per bin and p = c/Σc, h = −Σ p ln p, between 0 (all elements of about one
//! size) and ln bins (as many of each size). Σc is n: elements below the range, zeros among them, are in the lowest bin
//! and those above it in the highest, so that an element that shrinks to zero, or that a narrow type cannot hold, is
//! not lost suddenly. The whole gradient's counts are the sums of its tensors'.
//!
//! Counts are exact: an element's bin is decided by comparison with the edges as `f32` numbers, not by a logarithm;
//! counts of a tensor are s32 (an `f32` cannot count beyond 2²⁴), those of the whole s64 before their shares are taken.
//!
//! Emitted is, per tensor, the number of elements at or above each edge: `|g| ≥ edge` summed over all elements with one
//! result per edge. Differences of neighbours are the counts. On CPU a plain `reduce` is turned into a tree whose first
//! level reads its operand from memory, here one number per element and bin; a variadic one is not, and its naive
//! accumulation is no loss in integers. So styles `Shares` and `Variadic` spread the edges over the operands of one
//! variadic `reduce`, fused with its comparisons: nothing is in memory, and the gradient is read bins/8 times. Style
//! `Separate` emits a plain `reduce` with all edges, which TPU's compiler fuses. S is a `reduce` of its own in
//! every style, since it must not accumulate naively.

use hlo::build::{BuildError, Built, ComparisonDirection};
use hlo::proto::{HloInstructionProto, LiteralProto};
use hlo::{InstructionId, Opcode, PrimitiveType, Shape};

use super::emit::{Emitter, Gradient, sum};
use super::{Measured, ReductionStyle};
use crate::policy::EntropyPolicy;

/// The largest tensor that can be counted.
pub(super) const MOST_ELEMENTS: u64 = i32::MAX as u64;

/// Operands of a variadic reduce that the edges are spread over.
const OPERANDS: usize = 8;

/// Energy and entropy of all gradients.
pub(super) fn emit(
    e: &mut Emitter<'_>,
    gradients: &[Gradient],
    entropy: &EntropyPolicy,
) -> Result<Measured, BuildError> {
    let edges = edges(e, entropy)?;
    let mut energies = Vec::with_capacity(gradients.len());
    let mut rows = Vec::with_capacity(gradients.len());
    for gradient in gradients {
        e.of_one(gradient);
        let g = e.wide(gradient)?;
        let square = e.b.multiply(g, g)?;
        let a = e.b.abs(g)?;
        let [energy] = e.fold([sum(square, "energy")], 0, &gradient.short)?;
        energies.push(energy);
        let reached = reached(e, a, &edges)?;
        let length = e.b.shape(reached)?.num_elements() as i64;
        rows.push(e.b.named(&format!("entropic.reached.{}", gradient.short)).reshape(reached, &[1, length])?);
    }
    e.of_all();
    let energy = e.b.pack(&energies)?;
    let reached = match rows.as_slice() {
        [single] => *single,
        several => e.b.concatenate(several, 0)?,
    };
    let counts = counts(e, reached, gradients, i64::from(entropy.bins))?;
    let whole = whole(e, counts)?;
    let counts = e.b.concatenate(&[counts, whole], 0)?;
    Ok(Measured { energy, nats: nats(e, counts, gradients)? })
}

/// The edges between bins, spread over as many vectors of equal length as one reduce has operands; infinite ones, which
/// nothing finite reaches, fill up the last; there is at least one, so that the highest bin has an upper edge.
fn edges(e: &mut Emitter<'_>, entropy: &EntropyPolicy) -> Result<Vec<InstructionId>, BuildError> {
    let mut edges = entropy.edges();
    let operands = if e.reduction == ReductionStyle::Separate { 1 } else { OPERANDS };
    edges.resize((edges.len() + 1).next_multiple_of(operands), f32::INFINITY);
    let each = edges.len() / operands;
    edges.chunks(each).map(|chunk| e.b.named("entropic.edges").constant_f32_vector(chunk)).collect()
}

/// How many elements of a are at least each edge, s32\[edges\].
fn reached(e: &mut Emitter<'_>, a: InstructionId, edges: &[InstructionId]) -> Built {
    let shape = e.b.shape(a)?;
    let elements: Vec<i64> = (1..=shape.rank() as i64).collect();
    let mut ones = Vec::with_capacity(edges.len());
    for &edges in edges {
        let table = Shape::array(PrimitiveType::F32, &[e.b.shape(edges)?.dims(), shape.dims()].concat());
        let a = spread(e, a, &table, elements.clone())?;
        let edges = spread(e, edges, &table, vec![0])?;
        let reached = e.b.compare(a, edges, ComparisonDirection::Ge)?;
        ones.push(e.b.convert(reached, PrimitiveType::S32)?);
    }
    let zero = e.b.constant(PrimitiveType::S32, 0.0)?;
    if let [ones] = ones.as_slice() {
        return add_along(e, *ones, zero, elements);
    }
    let sums = e.together(&vec![Opcode::Add; ones.len()], &ones, zero, elements)?;
    let parts = (0..ones.len()).map(|i| e.b.get_tuple_element(sums, i)).collect::<Result<Vec<_>, _>>()?;
    e.b.concatenate(&parts, 0)
}

/// c of each bin, s64\[n, bins\], from the numbers of elements that reach each edge, s32\[n, edges\].
fn counts(e: &mut Emitter<'_>, reached: InstructionId, gradients: &[Gradient], bins: i64) -> Built {
    let all: Vec<i32> = gradients.iter().map(|g| i32::try_from(g.elements).unwrap_or(i32::MAX)).collect();
    let shape = Shape::array(PrimitiveType::S32, &[all.len() as i64, 1]);
    let literal = LiteralProto { shape: shape.to_proto().into(), s32s: all, ..Default::default() };
    let attributes = HloInstructionProto { literal: literal.into(), ..Default::default() };
    let all = e.b.emit_with(Opcode::Constant, &[], shape, attributes, Vec::new())?;
    let lower = columns(e, reached, bins - 1)?;
    let lower = e.b.concatenate(&[all, lower], 1)?;
    let upper = columns(e, reached, bins)?;
    let counts = e.b.subtract(lower, upper)?;
    e.b.named("entropic.counts").convert(counts, PrimitiveType::S64)
}

/// The first columns of a matrix.
fn columns(e: &mut Emitter<'_>, x: InstructionId, limit: i64) -> Built {
    let rows = e.b.shape(x)?.dims().first().copied().unwrap_or(1);
    e.b.slice(x, &[(0, rows), (0, limit)])
}

/// Counts of all tensors together, s64\[1, bins\].
fn whole(e: &mut Emitter<'_>, counts: InstructionId) -> Built {
    let zero = e.b.constant(PrimitiveType::S32, 0.0)?;
    let zero = e.b.convert(zero, PrimitiveType::S64)?;
    let sums = add_along(e, counts, zero, vec![0])?;
    let bins = e.b.shape(sums)?.num_elements();
    e.b.reshape(sums, &[1, bins as i64])
}

/// h of each row of counts, f32\[n + 1\].
fn nats(e: &mut Emitter<'_>, counts: InstructionId, gradients: &[Gradient]) -> Built {
    let counts = e.b.convert(counts, PrimitiveType::F32)?;
    let table = e.b.shape(counts)?;
    let all = gradients.iter().fold(0_u64, |sum, g| sum.saturating_add(g.elements));
    #[allow(clippy::cast_precision_loss, reason = "f32 is the device's precision")]
    let elements: Vec<f32> = gradients.iter().map(|g| g.elements as f32).chain([all as f32]).collect();
    let elements = e.b.constant_f32_vector(&elements)?;
    let elements = spread(e, elements, &table, vec![0])?;
    let p = e.b.divide(counts, elements)?;
    let terms = e.surprise(p)?;
    add_along(e, terms, e.zero, vec![1])
}

/// Sums over some dimensions.
fn add_along(e: &mut Emitter<'_>, x: InstructionId, zero: InstructionId, dimensions: Vec<i64>) -> Built {
    let reducer = e.reducer(Opcode::Add, e.b.shape(x)?.element_type())?;
    let attributes = HloInstructionProto { dimensions, ..Default::default() };
    e.b.emit_with(Opcode::Reduce, &[x, zero], Shape::default(), attributes, vec![reducer])
}

/// x in a larger array; dimension i of x is dimension `dimensions[i]` of it.
fn spread(e: &mut Emitter<'_>, x: InstructionId, table: &Shape, dimensions: Vec<i64>) -> Built {
    let attributes = HloInstructionProto { dimensions, ..Default::default() };
    e.b.emit_with(Opcode::Broadcast, &[x], table.clone(), attributes, Vec::new())
}
