//! Computations and instructions, and the ids that name them.

use std::fmt;
use std::sync::{Arc, LazyLock};

use super::{Opcode, Shape};
use crate::proto::{HloComputationProto, HloInstructionProto};

/// Names a computation of one module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ComputationId(pub(crate) u32);

/// Names an instruction of one computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstructionId(pub(crate) u32);

impl ComputationId {
    /// Position in the module's arena: dense, stable for the life of the module.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl InstructionId {
    /// Position in the computation's arena: dense, stable for the life of the computation.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One operation and the value it makes.
#[derive(Debug, Clone, PartialEq)]
pub struct Instruction {
    /// Unique in the module; printed with a leading `%`.
    pub name: String,
    /// What it does.
    pub opcode: Opcode,
    /// The shape of its value, layout included.
    pub shape: Shape,
    /// The values it reads, in order.
    pub operands: Vec<InstructionId>,
    /// Instructions that must run before it although it reads none of their values.
    pub control_predecessors: Vec<InstructionId>,
    /// The computations it calls, in order (`while`: body, condition).
    pub called: Vec<ComputationId>,
    /// Everything else that the wire format carries (literal, window, metadata,
    /// sharding, fields of newer releases). The fields that have a place above are
    /// empty in here, except `opcode` of an [`Opcode::Unrecognized`] instruction.
    ///
    /// The message is large, and instructions by the thousand have the same one: they share it
    /// (until one is changed, [`Instruction::attributes_mut`]), and what runs over a module stays in the caches.
    pub attributes: Arc<HloInstructionProto>,
    /// The id on the wire, `computation << 32 | local`.
    pub(crate) wire_id: i64,
}

/// The attributes of instructions that have none.
pub(crate) fn no_attributes() -> Arc<HloInstructionProto> {
    static NONE: LazyLock<Arc<HloInstructionProto>> = LazyLock::new(Arc::default);
    Arc::clone(&NONE)
}

impl Instruction {
    /// An instruction with no attributes; its wire id is given when it joins a computation.
    #[must_use]
    pub fn new(name: impl Into<String>, opcode: Opcode, shape: Shape, operands: Vec<InstructionId>) -> Self {
        Self {
            name: name.into(),
            opcode,
            shape,
            operands,
            control_predecessors: Vec::new(),
            called: Vec::new(),
            attributes: no_attributes(),
            wire_id: 0,
        }
    }

    /// Mutable access to the attributes, which are this instruction's own from then on.
    pub fn attributes_mut(&mut self) -> &mut HloInstructionProto {
        Arc::make_mut(&mut self.attributes)
    }

    /// The `op_name` that the front end gave it (`jit(step)/dot_general`), possibly empty.
    ///
    /// A hint for display only: it can be missing or wrong.
    #[must_use]
    pub fn op_name(&self) -> &str {
        self.attributes.metadata.as_option().map_or("", |m| m.op_name.as_str())
    }

    /// The parameter number of a `parameter`, the tuple index of a `get-tuple-element`; `None` for others.
    #[must_use]
    pub fn index(&self) -> Option<usize> {
        let index = match self.opcode {
            Opcode::Parameter => self.attributes.parameter_number,
            Opcode::GetTupleElement => self.attributes.tuple_index,
            _ => return None,
        };
        usize::try_from(index).ok()
    }

    /// The opcode's text: the table's name, or the one on the wire where the table has none.
    #[must_use]
    pub fn opcode_name(&self) -> &str {
        if self.opcode == Opcode::Unrecognized { &self.attributes.opcode } else { self.opcode.name() }
    }

    /// The wire numbers of fields this crate does not know.
    ///
    /// An instruction that has some is carried faithfully, but must not be cloned
    /// or rewritten: nobody here can say whether the field still holds.
    pub fn unknown_fields(&self) -> impl Iterator<Item = u32> + '_ {
        self.attributes.__buffa_unknown_fields.iter().map(|f| f.number)
    }
}

impl fmt::Display for Instruction {
    /// `%name`, as it appears among operands in HLO text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.name)
    }
}

/// A list of instructions in evaluation order, one of which is the root.
#[derive(Debug, Clone, PartialEq)]
pub struct Computation {
    /// Unique in the module.
    pub name: String,
    pub(crate) arena: Vec<Instruction>,
    pub(crate) order: Vec<InstructionId>,
    pub(crate) root: InstructionId,
    /// Wire fields without a place above; `instructions` is empty in here.
    pub(crate) header: HloComputationProto,
    pub(crate) wire_id: i64,
    pub(crate) next_local: i64,
}

impl Computation {
    /// The instruction of that id, or `None` where this computation has none.
    #[must_use]
    pub fn get(&self, id: InstructionId) -> Option<&Instruction> {
        self.arena.get(id.index())
    }

    /// Mutable access, see [`Computation::get`].
    pub fn get_mut(&mut self, id: InstructionId) -> Option<&mut Instruction> {
        self.arena.get_mut(id.index())
    }

    /// Ids in evaluation order.
    #[must_use]
    pub fn order(&self) -> &[InstructionId] {
        &self.order
    }

    /// Instructions in evaluation order, with their ids.
    pub fn instructions(&self) -> impl Iterator<Item = (InstructionId, &Instruction)> + '_ {
        self.order.iter().filter_map(|&id| Some((id, self.get(id)?)))
    }

    /// One more than the largest index an id of this computation can have.
    #[must_use]
    pub fn arena_len(&self) -> usize {
        self.arena.len()
    }

    /// The instruction whose value the computation returns.
    #[must_use]
    pub fn root(&self) -> InstructionId {
        self.root
    }

    /// The root instruction; `None` only in a computation under construction.
    #[must_use]
    pub fn root_instruction(&self) -> Option<&Instruction> {
        self.get(self.root)
    }

    /// The `parameter` instructions by parameter number.
    ///
    /// Numbers that no instruction has are left out, so that the result is dense only
    /// in a verified module.
    #[must_use]
    pub fn parameters(&self) -> Vec<InstructionId> {
        let mut numbered: Vec<_> = self
            .instructions()
            .filter(|(_, i)| i.opcode == Opcode::Parameter)
            .map(|(id, i)| (i.attributes.parameter_number, id))
            .collect();
        numbered.sort_by_key(|&(number, _)| number);
        numbered.into_iter().map(|(_, id)| id).collect()
    }

    /// The values the computation returns: the operands of a tuple root, else the root itself.
    #[must_use]
    pub fn outputs(&self) -> Vec<InstructionId> {
        match self.root_instruction() {
            Some(root) if root.opcode == Opcode::Tuple => root.operands.clone(),
            Some(_) => vec![self.root],
            None => Vec::new(),
        }
    }

    /// For every arena index, the ids of the instructions in order that read it.
    #[must_use]
    pub fn users(&self) -> Vec<Vec<InstructionId>> {
        let mut users = vec![Vec::new(); self.arena.len()];
        for (id, instruction) in self.instructions() {
            for operand in &instruction.operands {
                if let Some(list) = users.get_mut(operand.index())
                    && list.last() != Some(&id)
                {
                    list.push(id);
                }
            }
        }
        users
    }

    /// The id of the instruction of that name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<InstructionId> {
        self.instructions().find(|(_, i)| i.name == name).map(|(id, _)| id)
    }
}
