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
    of_each(module, within, kernel, flops_of)
}

/// Those of its products and convolutions.
pub(super) fn product_flops(module: &Module, within: &Computation, kernel: &Instruction) -> u64 {
    of_each(module, within, kernel, |within, i| products_of(within, i).unwrap_or(0))
}

/// What is counted of an operation, or of all that are fused into one.
fn of_each(
    module: &Module,
    within: &Computation,
    kernel: &Instruction,
    count: fn(&Computation, &Instruction) -> u64,
) -> u64 {
    match fused(module, kernel) {
        Some(body) => body.instructions().map(|(_, i)| of_each(module, body, i, count)).sum_saturating(),
        None => count(within, kernel),
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
    if let Some(flops) = products_of(within, i) {
        return flops;
    }
    let elements = i.shape.leaves().map(|s| s.num_elements()).sum_saturating();
    match i.opcode {
        Opcode::Reduce => {
            // Half of the operands are initial values.
            let inputs = i.operands.len() / 2;
            let shapes = i.operands.iter().take(inputs).filter_map(|&id| within.get(id));
            shapes.map(|o| o.shape.num_elements()).sum_saturating()
        }
        Opcode::Copy | Opcode::Convert | Opcode::Select | Opcode::Compare => 0,
        opcode if opcode.is_elementwise() && i.shape.element_type().is_floating() => elements,
        _ => 0,
    }
}

/// Those of a product or a convolution; `None` of anything else.
fn products_of(within: &Computation, i: &Instruction) -> Option<u64> {
    let cublas_call = i.opcode == Opcode::CustomCall && i.attributes.custom_call_target.starts_with("__cublas");
    if cublas_call { Some(cublas(within, i)) } else { hlo::flops::product(within, i) }
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
    let lhs = operand(within, i, 0).map(|lhs| &lhs.shape);
    let counted = |(lhs, dims): (&Shape, Vec<i64>)| hlo::flops::contraction(result, lhs, &dims);
    lhs.zip(contracting()).map_or(0, counted)
}
