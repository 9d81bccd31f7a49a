//! Bytes and floating-point operations of a kernel, as far as shapes tell.
//!
//! For compilers that do not tell it themselves, and the same for both sides of a comparison. Bytes are those of the
//! operands and of the result; of an operand that a fusion only slices, those of the slices; of a result that a fusion
//! updates in place, those of the update, read and written. A product counts two operations per term, a convolution
//! likewise, a reduction one per element that goes in, other arithmetic one per element that comes out. The products
//! of cuBLAS are counted; of other library and custom calls nobody here knows what they compute.
//!
//! A TPU's compiler brings operands into the vector memory ahead of their use where it has time for that. Such a copy and the
//! read of it count as bytes accessed, in the compiler's own figure too, although the array crosses the main memory's bus once;
//! so the bytes of main memory are counted apart.

use hlo::{Computation, Instruction, Module, Opcode, Shape};
use serde_json::Value;

/// Which memories' bytes are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memories {
    /// All.
    All,
    /// The device's main memory alone.
    Main,
}

impl Memories {
    /// Whether an array of this shape lies in one of them; a tuple does where its first leaf does.
    fn hold(self, shape: &Shape) -> bool {
        let space = |s: Shape| s.0.layout.as_option().map_or(0, |layout| layout.memory_space);
        self == Self::All || shape.leaves().next().map_or(0, space) == 0
    }

    fn bytes(self, shape: &Shape) -> u64 {
        shape.leaves().filter(|leaf| self.hold(leaf)).map(|leaf| leaf.byte_size()).sum_saturating()
    }
}

/// Bytes that one launch of `kernel` reads and writes.
pub(super) fn bytes(module: &Module, within: &Computation, kernel: &Instruction, memories: Memories) -> u64 {
    let body = fused(module, kernel);
    let mut total = 0_u64;
    let operands = kernel.operands.iter().filter_map(|&id| within.get(id)).enumerate();
    for (number, operand) in operands.filter(|(_, operand)| memories.hold(&operand.shape)) {
        let whole = operand.shape.byte_size();
        let read = match (kernel.opcode, body) {
            (Opcode::Fusion, Some(body)) => read_of_parameter(body, number).map_or(whole, |read| read.min(whole)),
            // In place: what is not updated is not touched.
            (Opcode::DynamicUpdateSlice, _) if number == 0 => 0,
            (Opcode::DynamicSlice | Opcode::Slice | Opcode::Gather, _) if number == 0 => kernel.shape.byte_size(),
            _ => whole,
        };
        total = total.saturating_add(read);
    }
    let written = match (kernel.opcode, body) {
        (Opcode::Fusion, Some(body)) => {
            let outputs = body.outputs().into_iter().zip(kernel.shape.leaves());
            outputs.filter(|(_, s)| memories.hold(s)).map(|(id, s)| written_of_output(body, id, &s)).sum_saturating()
        }
        (Opcode::DynamicUpdateSlice, _) if memories.hold(&kernel.shape) => operand_bytes(within, kernel, 1),
        (Opcode::DynamicUpdateSlice, _) => 0,
        // Destination and source are both in the shape of what starts an asynchronous copy.
        (Opcode::CopyStart, _) => kernel.shape.tuple_elements().next().map_or(0, |s| memories.bytes(&s)),
        _ => memories.bytes(&kernel.shape),
    };
    total.saturating_add(written)
}

/// Floating-point operations of one launch of `kernel`.
pub(super) fn flops(module: &Module, within: &Computation, kernel: &Instruction) -> u64 {
    match fused(module, kernel) {
        Some(body) => body.instructions().map(|(_, i)| flops(module, body, i)).sum_saturating(),
        None => flops_of(within, kernel),
    }
}

/// Floating-point operations of the products and convolutions of one launch of `kernel`.
pub(super) fn product_flops(module: &Module, within: &Computation, kernel: &Instruction) -> u64 {
    match fused(module, kernel) {
        Some(body) => body.instructions().map(|(_, i)| product_flops(module, body, i)).sum_saturating(),
        None if matches!(kernel.opcode, Opcode::Dot | Opcode::Convolution | Opcode::CustomCall) => {
            flops_of(within, kernel)
        }
        None => 0,
    }
}

trait SumSaturating: Iterator<Item = u64> + Sized {
    fn sum_saturating(self) -> u64 {
        self.fold(0, u64::saturating_add)
    }
}

impl<I: Iterator<Item = u64>> SumSaturating for I {}

/// The body of a fusion.
fn fused<'m>(module: &'m Module, kernel: &Instruction) -> Option<&'m Computation> {
    let body = kernel.called.first().filter(|_| kernel.opcode == Opcode::Fusion);
    body.and_then(|&id| module.computation(id))
}

fn operand<'c>(within: &'c Computation, i: &Instruction, number: usize) -> Option<&'c Instruction> {
    i.operands.get(number).and_then(|&id| within.get(id))
}

fn operand_bytes(within: &Computation, i: &Instruction, number: usize) -> u64 {
    operand(within, i, number).map_or(0, |o| o.shape.byte_size())
}

/// Bytes that a fusion reads of its parameter; `None` where it may be all of them.
fn read_of_parameter(body: &Computation, number: usize) -> Option<u64> {
    let parameter = body.instructions().find(|(_, i)| i.opcode == Opcode::Parameter && i.index() == Some(number))?.0;
    let mut read = 0_u64;
    for (_, user) in body.instructions().filter(|(_, i)| i.operands.contains(&parameter)) {
        let first = user.operands.first() == Some(&parameter);
        let once = user.operands.iter().filter(|&&o| o == parameter).count() == 1;
        let bytes = match user.opcode {
            Opcode::DynamicSlice | Opcode::Slice | Opcode::Gather if first && once => user.shape.byte_size(),
            Opcode::DynamicUpdateSlice if first && once => 0,
            _ => return None,
        };
        read = read.saturating_add(bytes);
    }
    Some(read)
}

fn written_of_output(body: &Computation, id: hlo::InstructionId, shape: &Shape) -> u64 {
    match body.get(id) {
        Some(output) if output.opcode == Opcode::DynamicUpdateSlice => operand_bytes(body, output, 1),
        _ => shape.byte_size(),
    }
}

fn flops_of(within: &Computation, i: &Instruction) -> u64 {
    let elements = i.shape.leaves().map(|s| s.num_elements()).sum_saturating();
    match i.opcode {
        Opcode::Dot => {
            let dims = i.attributes.dot_dimension_numbers.as_option();
            let contracting = dims.map_or(&[][..], |d| &d.lhs_contracting_dimensions);
            product(i.shape.num_elements(), operand(within, i, 0), contracting)
        }
        Opcode::Convolution => convolution(within, i),
        Opcode::Reduce => {
            // Half of the operands are initial values.
            let inputs = i.operands.len() / 2;
            let shapes = i.operands.iter().take(inputs).filter_map(|&id| within.get(id));
            shapes.map(|o| o.shape.num_elements()).sum_saturating()
        }
        Opcode::CustomCall if i.attributes.custom_call_target.starts_with("__cublas") => cublas(within, i),
        Opcode::Copy | Opcode::Convert | Opcode::Select | Opcode::Compare => 0,
        opcode if opcode.is_elementwise() && i.shape.element_type().is_floating() => elements,
        _ => 0,
    }
}

/// 2·(elements that come out)·(terms of each).
fn product(elements: u64, lhs: Option<&Instruction>, contracting: &[i64]) -> u64 {
    let Some(lhs) = lhs else { return 0 };
    let terms = contracting.iter().map(|&d| extent(&lhs.shape, d)).fold(1, u64::saturating_mul);
    elements.saturating_mul(terms).saturating_mul(2)
}

fn extent(shape: &Shape, dimension: i64) -> u64 {
    let extent = usize::try_from(dimension).ok().and_then(|d| shape.dims().get(d).copied());
    extent.and_then(|e| u64::try_from(e).ok()).unwrap_or(1)
}

fn convolution(within: &Computation, i: &Instruction) -> u64 {
    let Some(kernel) = operand(within, i, 1) else { return 0 };
    let dims = i.attributes.convolution_dimension_numbers.as_option();
    let features = dims.map_or(1, |d| extent(&kernel.shape, d.kernel_output_feature_dimension)).max(1);
    let terms = kernel.shape.num_elements() / features;
    i.shape.num_elements().saturating_mul(terms).saturating_mul(2)
}

/// A product of cuBLAS says in its configuration which dimensions it contracts.
fn cublas(within: &Computation, i: &Instruction) -> u64 {
    let contracting = || -> Option<Vec<i64>> {
        let config: Value = serde_json::from_slice(&i.attributes.backend_config).ok()?;
        let gemm = config.get("gemm_backend_config").unwrap_or(&config);
        let dims = gemm.get("dot_dimension_numbers")?.get("lhs_contracting_dimensions")?.as_array()?;
        dims.iter().map(|d| d.as_i64().or_else(|| d.as_str()?.parse().ok())).collect()
    };
    // The result, and after it room to work in.
    let result = i.shape.leaves().next().map_or(0, |s| s.num_elements());
    contracting().map_or(0, |contracting| product(result, operand(within, i, 0), &contracting))
}
