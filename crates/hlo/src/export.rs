//! [`Module`] to `HloModuleProto` bytes.
//!
//! Deterministic: everything is written in the module's own order, and what
//! import took in comes out again byte for byte where it was not edited.

use buffa::SizeCachePool;

use crate::ir::{Computation, Instruction, Module, Opcode};
use crate::proto::{HloComputationProto, HloInstructionProto, HloModuleProto};
use crate::wire::Splice;

impl Module {
    /// The serialized `HloModuleProto`.
    #[must_use]
    pub fn export(&self) -> Vec<u8> {
        let mut encoder = Encoder {
            sizes: SizeCachePool::sequential(1 << 16),
            attributes: Vec::new(),
            shape: Vec::new(),
            instruction: Vec::new(),
        };
        let mut rest = Vec::new();
        encoder.sizes.encode(&self.header, &mut rest);
        let (mut out, mut computation) = (Vec::new(), Vec::new());
        let mut splice = Splice::new(&mut out, &rest);
        splice.string(2, &self.entry_computation().name);
        for (_, c) in self.computations() {
            encoder.computation(self, c, &mut computation);
            splice.bytes(3, &computation);
        }
        splice.integer(6, self.entry_computation().wire_id);
        splice.finish();
        out
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
        proto.shape = instruction.shape.to_proto().into();
        proto.id = instruction.wire_id;
        proto.operand_ids = instruction.operands.iter().filter_map(wire).collect();
        proto.control_predecessor_ids = instruction.control_predecessors.iter().filter_map(wire).collect();
        proto.called_computation_ids =
            instruction.called.iter().filter_map(|&c| self.computation(c).map(|c| c.wire_id)).collect();
        proto
    }
}

/// Encodes without copying a message: what the representation holds apart is spliced in.
struct Encoder {
    sizes: SizeCachePool,
    /// Buffers that keep their allocation from one instruction to the next.
    attributes: Vec<u8>,
    shape: Vec<u8>,
    instruction: Vec<u8>,
}

impl Encoder {
    fn computation(&mut self, module: &Module, computation: &Computation, out: &mut Vec<u8>) {
        out.clear();
        let mut rest = Vec::new();
        self.sizes.encode(&computation.header, &mut rest);
        let mut splice = Splice::new(out, &rest);
        splice.string(1, &computation.name);
        for (_, instruction) in computation.instructions() {
            self.instruction(module, computation, instruction);
            splice.bytes(2, &self.instruction);
        }
        splice.integer(5, computation.wire_id);
        splice.integer(6, computation.root_instruction().map_or(0, |r| r.wire_id));
        splice.finish();
    }

    fn instruction(&mut self, module: &Module, computation: &Computation, instruction: &Instruction) {
        self.attributes.clear();
        self.sizes.encode(instruction.attributes.as_ref(), &mut self.attributes);
        self.shape.clear();
        self.sizes.encode(instruction.shape.0.as_ref(), &mut self.shape);
        self.instruction.clear();
        let wire = |id: &_| computation.get(*id).map(|i| i.wire_id);
        let mut splice = Splice::new(&mut self.instruction, &self.attributes);
        splice.string(1, &instruction.name);
        // That of an unrecognized opcode is among the attributes.
        splice.string(2, instruction.opcode.name());
        splice.bytes(3, &self.shape);
        splice.integer(35, instruction.wire_id);
        splice.integers(36, instruction.operands.iter().filter_map(wire));
        splice.integers(37, instruction.control_predecessors.iter().filter_map(wire));
        let called = instruction.called.iter().filter_map(|&c| module.computation(c));
        splice.integers(38, called.map(|c| c.wire_id));
        splice.finish();
    }
}
