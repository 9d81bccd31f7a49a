//! The order in which a scheduled module's instructions are printed, and the schedule that a printed order stands for.
//!
//! XLA writes the instructions of a proto in any order in which operands come first, and their schedule apart; in text
//! the order of the lines is the schedule. Computations inside fusions have none.

use std::collections::HashMap;

use buffa::Message;

use crate::ir::{Computation, InstructionId, Module};
use crate::proto::HloScheduleProto;
use crate::proto::hlo_schedule_proto::{Entry, InstructionSequence};

/// The sequences of a module's schedule.
pub(super) struct Schedule {
    by_computation: HashMap<i64, Vec<i64>>,
}

impl Schedule {
    /// Empty where the module has none, or one that cannot be read.
    pub(super) fn of(module: &Module) -> Self {
        let bytes = module.header.schedule.as_deref().unwrap_or_default();
        let proto = HloScheduleProto::decode_from_slice(bytes).unwrap_or_default();
        let sequences = proto.sequences.into_iter();
        let by_computation =
            sequences.filter_map(|mut e| Some((e.key, e.value.take()?.instruction_ids))).collect::<HashMap<_, _>>();
        Self { by_computation }
    }

    /// The order of a computation's lines: the scheduled one where it names every instruction once, else its own.
    pub(super) fn order(&self, computation: &Computation) -> Vec<InstructionId> {
        let own = computation.order();
        let Some(sequence) = self.by_computation.get(&computation.wire_id) else { return own.to_vec() };
        let local = |id: i64| id & 0xffff_ffff;
        let mut by_wire: HashMap<i64, InstructionId> =
            computation.instructions().map(|(id, i)| (local(i.wire_id), id)).collect();
        let scheduled: Option<Vec<_>> = sequence.iter().map(|&id| by_wire.remove(&local(id))).collect();
        scheduled.filter(|s| s.len() == own.len()).unwrap_or_else(|| own.to_vec())
    }
}

/// The encoded schedule in which every computation runs in its own order.
pub(super) fn encode(computations: &[Computation]) -> Vec<u8> {
    let sequences = computations.iter().filter(|c| !c.header.is_fusion_computation);
    let sequences = sequences
        .map(|c| {
            let instruction_ids = c.instructions().map(|(_, i)| i.wire_id).collect();
            let value = InstructionSequence { instruction_ids, ..Default::default() };
            Entry { key: c.wire_id, value: value.into(), ..Default::default() }
        })
        .collect();
    HloScheduleProto { sequences, ..Default::default() }.encode_to_vec()
}
