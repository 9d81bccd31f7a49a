//! Floating-point operations of products and convolutions, from shapes: two for each term of each element that comes out.

use crate::{Computation, Instruction, Opcode, Shape};

/// Those of a `dot` or a `convolution`; `None` of anything else.
#[must_use]
pub fn product(within: &Computation, instruction: &Instruction) -> Option<u64> {
    let operand = |number: usize| instruction.operands.get(number).and_then(|&id| within.get(id)).map(|o| &o.shape);
    let elements = instruction.shape.num_elements();
    let attributes = &instruction.attributes;
    match instruction.opcode {
        Opcode::Dot => {
            let dims = attributes.dot_dimension_numbers.as_option();
            let contracting = dims.map_or(&[][..], |dims| &dims.lhs_contracting_dimensions);
            Some(operand(0).map_or(0, |lhs| contraction(elements, lhs, contracting)))
        }
        Opcode::Convolution => {
            let Some(kernel) = operand(1) else { return Some(0) };
            let dims = attributes.convolution_dimension_numbers.as_option();
            let features = dims.map_or(1, |dims| extent(kernel, dims.kernel_output_feature_dimension)).max(1);
            // A term for each element of the kernel that belongs to one feature.
            Some(operations(elements, kernel.num_elements() / features))
        }
        _ => None,
    }
}

/// Those of `elements` that come of products which sum over these dimensions of the left-hand side.
#[must_use]
pub fn contraction(elements: u64, lhs: &Shape, contracting: &[i64]) -> u64 {
    operations(elements, contracting.iter().map(|&d| extent(lhs, d)).fold(1, u64::saturating_mul))
}

fn operations(elements: u64, terms: u64) -> u64 {
    elements.saturating_mul(terms).saturating_mul(2)
}

fn extent(shape: &Shape, dimension: i64) -> u64 {
    let extent = usize::try_from(dimension).ok().and_then(|d| shape.dims().get(d).copied());
    extent.and_then(|e| u64::try_from(e).ok()).unwrap_or(1)
}
