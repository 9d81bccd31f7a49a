//! How often the body of a loop runs.

use hlo::{Computation, Instruction, InstructionId, Module, Opcode};
use serde_json::Value;

use crate::target::Platform;

/// How often the body of the `while` runs, where the compiler knows.
///
/// The compilers of CPU and GPU write it down. That of the TPU does not, so there it is read off the loop: a counter that
/// goes from a constant, by a constant, as long as it is less than a constant.
pub(super) fn trip_count(module: &Module, within: &Computation, i: &Instruction, platform: Platform) -> Option<u64> {
    noted(i).or_else(|| if platform == Platform::Tpu { counted(module, within, i) } else { None })
}

fn noted(i: &Instruction) -> Option<u64> {
    let config: Value = serde_json::from_slice(&i.attributes.backend_config).ok()?;
    let count = config.get("known_trip_count")?.get("n")?;
    count.as_u64().or_else(|| count.as_str()?.parse().ok())
}

fn counted(module: &Module, within: &Computation, i: &Instruction) -> Option<u64> {
    let [body, condition] = i.called.as_slice() else { return None };
    let (body, condition) = (module.computation(*body)?, module.computation(*condition)?);
    let test = condition.root_instruction().filter(|test| test.opcode == Opcode::Compare)?;
    let [counter, limit] = test.operands.as_slice() else { return None };
    let less = test.attributes.comparison_direction == "LT";
    let (element, limit) = (carried(condition, *counter)?, constant(condition, *limit).filter(|_| less)?);
    let first = constant(within, element_of(within, *i.operands.first()?, element)?)?;
    let next = body.get(element_of(body, body.root(), element)?).filter(|next| next.opcode == Opcode::Add)?;
    let step = match *next.operands.as_slice() {
        [x, y] if carried(body, x) == Some(element) => constant(body, y)?,
        [x, y] if carried(body, y) == Some(element) => constant(body, x)?,
        _ => return None,
    };
    let distance = u64::try_from(limit.checked_sub(first)?).unwrap_or(0);
    Some(distance.div_ceil(u64::try_from(step).ok().filter(|&step| step > 0)?))
}

/// The element of the loop's tuple that a value of body or condition is.
fn carried(computation: &Computation, id: InstructionId) -> Option<usize> {
    let value = through_copies(computation, id)?;
    let tuple = computation.get(*value.operands.first()?)?;
    value.index().filter(|_| value.opcode == Opcode::GetTupleElement && tuple.opcode == Opcode::Parameter)
}

fn element_of(computation: &Computation, tuple: InstructionId, element: usize) -> Option<InstructionId> {
    let tuple = computation.get(tuple).filter(|tuple| tuple.opcode == Opcode::Tuple)?;
    tuple.operands.get(element).copied()
}

fn constant(computation: &Computation, id: InstructionId) -> Option<i64> {
    let value = through_copies(computation, id).filter(|value| value.opcode == Opcode::Constant)?;
    value.attributes.literal.as_option()?.s32s.first().copied().map(i64::from)
}

fn through_copies(computation: &Computation, mut id: InstructionId) -> Option<&Instruction> {
    loop {
        let value = computation.get(id)?;
        match value.operands.as_slice() {
            &[source] if value.opcode == Opcode::Copy => id = source,
            _ => return Some(value),
        }
    }
}
