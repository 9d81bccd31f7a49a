//! [`Module`] to `HloModuleProto` bytes.
//!
//! Deterministic: everything is written in the module's own order, and what
//! import took in comes out again byte for byte where it was not edited.

use buffa::Message;

use crate::ir::{Computation, Instruction, Module, Opcode};
use crate::proto::{HloComputationProto, HloInstructionProto, HloModuleProto};

impl Module {
    /// The serialized `HloModuleProto`.
    #[must_use]
    pub fn export(&self) -> Vec<u8> {
        self.to_proto().encode_to_vec()
    }

    /// The module as its wire message.
    #[must_use]
    pub fn to_proto(&self) -> HloModuleProto {
        let mut proto = self.header.clone();
        proto.computations = self.computations().map(|(_, c)| self.computation_to_proto(c)).collect();
        proto.entry_computation_id = self.entry_computation().wire_id;
        proto.entry_computation_name.clone_from(&self.entry_computation().name);
        proto
    }

    fn computation_to_proto(&self, computation: &Computation) -> HloComputationProto {
        let mut proto = computation.header.clone();
        proto.name.clone_from(&computation.name);
        proto.id = computation.wire_id;
        proto.root_id = computation.root_instruction().map_or(0, |r| r.wire_id);
        proto.instructions =
            computation.instructions().map(|(_, i)| self.instruction_to_proto(computation, i)).collect();
        proto
    }

    fn instruction_to_proto(&self, computation: &Computation, instruction: &Instruction) -> HloInstructionProto {
        let wire = |id: &_| computation.get(*id).map(|i| i.wire_id);
        let mut proto = (*instruction.attributes).clone();
        proto.name.clone_from(&instruction.name);
        if instruction.opcode != Opcode::Unrecognized {
            proto.opcode = instruction.opcode.name().to_owned();
        }
        proto.shape = instruction.shape.0.clone().into();
        proto.id = instruction.wire_id;
        proto.operand_ids = instruction.operands.iter().filter_map(wire).collect();
        proto.control_predecessor_ids = instruction.control_predecessors.iter().filter_map(wire).collect();
        proto.called_computation_ids =
            instruction.called.iter().filter_map(|&c| self.computation(c).map(|c| c.wire_id)).collect();
        proto
    }
}
