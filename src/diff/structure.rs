//! Structural hashes: equal for instructions that compute the same, whatever they are called.
//!
//! An instruction's hash covers its signature (opcode, attributes, literal, shape), the hashes of its operands and those
//! of the computations it calls; a computation's covers its root and, in any order, all its instructions. The hashes
//! are the same in every run.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use hlo::text::{Signature, signature};
use hlo::{Computation, ComputationId, Instruction, InstructionId, Module};

/// A module with what is known of its structure.
pub(super) struct Structure<'a> {
    pub(super) module: &'a Module,
    computations: HashMap<ComputationId, Tables<'a>>,
}

/// What is known of a computation's instructions, by their indices.
pub(super) struct Tables<'a> {
    pub(super) computation: &'a Computation,
    signatures: Vec<Signature>,
    hashes: Vec<u64>,
    users: Vec<Vec<InstructionId>>,
    pub(super) hash: u64,
}

impl<'a> Structure<'a> {
    pub(super) fn of(module: &'a Module) -> Self {
        let mut structure = Self { module, computations: HashMap::new() };
        for (id, computation) in module.computations() {
            let tables = structure.tables_of(computation);
            structure.computations.insert(id, tables);
        }
        structure
    }

    /// The tables of a computation; `None` where the module has none of this id.
    pub(super) fn tables(&self, id: ComputationId) -> Option<&Tables<'a>> {
        self.computations.get(&id)
    }

    /// The hashes of what an instruction calls, in order.
    pub(super) fn callees(&self, instruction: &Instruction) -> Vec<u64> {
        instruction.called.iter().map(|&c| self.tables(c).map_or(0, |t| t.hash)).collect()
    }

    fn tables_of(&self, computation: &'a Computation) -> Tables<'a> {
        let mut signatures = vec![Signature::default(); computation.arena_len()];
        let mut hashes = vec![0; computation.arena_len()];
        let mut sum = 0u64;
        for (id, instruction) in computation.instructions() {
            let own = signature(instruction);
            let mut hasher = DefaultHasher::new();
            own.hash(&mut hasher);
            for operand in &instruction.operands {
                hashes.get(operand.index()).hash(&mut hasher);
            }
            self.callees(instruction).hash(&mut hasher);
            let hash = hasher.finish();
            sum = sum.wrapping_add(hash);
            if let (Some(s), Some(h)) = (signatures.get_mut(id.index()), hashes.get_mut(id.index())) {
                (*s, *h) = (own, hash);
            }
        }
        let mut hasher = DefaultHasher::new();
        (hashes.get(computation.root().index()), sum).hash(&mut hasher);
        Tables { computation, signatures, hashes, users: computation.users(), hash: hasher.finish() }
    }
}

impl Tables<'_> {
    pub(super) fn signature(&self, id: InstructionId) -> Option<&Signature> {
        self.signatures.get(id.index())
    }

    pub(super) fn hash(&self, id: InstructionId) -> Option<u64> {
        self.hashes.get(id.index()).copied()
    }

    pub(super) fn users(&self, id: InstructionId) -> &[InstructionId] {
        self.users.get(id.index()).map_or(&[], Vec::as_slice)
    }

    /// Where the instruction comes from: what the front end called it, else its name.
    pub(super) fn origin(&self, id: InstructionId) -> &str {
        match self.computation.get(id) {
            Some(instruction) if !instruction.op_name().is_empty() => instruction.op_name(),
            Some(instruction) => &instruction.name,
            None => "",
        }
    }
}
