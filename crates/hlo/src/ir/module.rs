//! The module: computations, the entry's signature and its aliases.

use super::names::Names;
use super::{Computation, ComputationId, Instruction, InstructionId};
use crate::proto::{HloComputationProto, HloModuleProto};

/// How firmly an output reuses an input's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AliasKind {
    /// The compiler may copy instead.
    May,
    /// Compilation fails where it cannot.
    Must,
}

/// One entry of the alias table, for a flat program: output `output` reuses the buffer of parameter `parameter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Alias {
    /// Index into the entry's outputs.
    pub output: usize,
    /// Parameter number.
    pub parameter: usize,
    /// How firmly.
    pub kind: AliasKind,
}

/// A program: computations in an order where callees come first, one of them the entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Module {
    pub(crate) arena: Vec<Computation>,
    pub(crate) order: Vec<ComputationId>,
    pub(crate) entry: ComputationId,
    /// Wire fields without a place above; `computations` is empty in here.
    pub(crate) header: HloModuleProto,
    /// Every instruction and computation name in use.
    pub(crate) names: Names,
}

impl Module {
    /// An empty module with an entry computation without instructions.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut module = Self {
            arena: Vec::new(),
            order: Vec::new(),
            entry: ComputationId(0),
            header: HloModuleProto { name: name.into(), ..Default::default() },
            names: Names::default(),
        };
        module.entry = module.add_computation("main");
        module
    }

    /// The module's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.header.name
    }

    /// Wire fields of the module that have no accessor here.
    #[must_use]
    pub fn header(&self) -> &HloModuleProto {
        &self.header
    }

    /// The entry computation's id.
    #[must_use]
    pub fn entry(&self) -> ComputationId {
        self.entry
    }

    /// The entry computation.
    #[must_use]
    pub fn entry_computation(&self) -> &Computation {
        // Import and `new` make the entry first and nothing removes it.
        #[allow(clippy::indexing_slicing, reason = "the entry id is valid by construction")]
        &self.arena[self.entry.index()]
    }

    /// Mutable access to the entry computation.
    pub fn entry_computation_mut(&mut self) -> &mut Computation {
        #[allow(clippy::indexing_slicing, reason = "the entry id is valid by construction")]
        &mut self.arena[self.entry.index()]
    }

    /// The computation of that id.
    #[must_use]
    pub fn computation(&self, id: ComputationId) -> Option<&Computation> {
        self.arena.get(id.index())
    }

    /// Mutable access, see [`Module::computation`].
    pub fn computation_mut(&mut self, id: ComputationId) -> Option<&mut Computation> {
        self.arena.get_mut(id.index())
    }

    /// Ids of the computations, callees before callers.
    #[must_use]
    pub fn order(&self) -> &[ComputationId] {
        &self.order
    }

    /// Computations, callees before callers, with their ids.
    pub fn computations(&self) -> impl Iterator<Item = (ComputationId, &Computation)> + '_ {
        self.order.iter().filter_map(|&id| Some((id, self.computation(id)?)))
    }

    /// Number of instructions in all computations.
    #[must_use]
    pub fn instruction_count(&self) -> usize {
        self.computations().map(|(_, c)| c.order.len()).sum()
    }

    /// The alias table's entries between whole outputs and whole parameters.
    ///
    /// Entries that reach inside a tuple-shaped parameter or a nested output are left out.
    #[must_use]
    pub fn aliases(&self) -> Vec<Alias> {
        let Some(table) = self.header.input_output_alias.as_option() else { return Vec::new() };
        table
            .entries
            .iter()
            .filter(|e| e.parameter_shape_index.is_empty())
            .filter_map(|e| {
                let output = match e.output_shape_index.as_slice() {
                    [] => 0,
                    [output] => usize::try_from(*output).ok()?,
                    _ => return None,
                };
                let kind = if e.kind == 2 { AliasKind::Must } else { AliasKind::May };
                Some(Alias { output, parameter: usize::try_from(e.parameter_number).ok()?, kind })
            })
            .collect()
    }

    /// Parameter numbers that the module donates without naming an output.
    #[must_use]
    pub fn donors(&self) -> Vec<usize> {
        let Some(table) = self.header.buffer_donor.as_option() else { return Vec::new() };
        table.entries.iter().filter_map(|e| usize::try_from(e.parameter_number).ok()).collect()
    }

    /// A name not in use yet, made from `base`, and reserved by this call.
    pub fn unique_name(&mut self, base: &str) -> String {
        self.names.unique(base)
    }

    /// Adds an empty computation in front of the entry, so that the entry may call it.
    pub fn add_computation(&mut self, name: &str) -> ComputationId {
        let wire_id = self.arena.iter().map(|c| c.wire_id).max().unwrap_or(0).saturating_add(1);
        let id = ComputationId(u32::try_from(self.arena.len()).unwrap_or(u32::MAX));
        let name = self.unique_name(name);
        self.arena.push(Computation {
            name,
            arena: Vec::new(),
            order: Vec::new(),
            root: InstructionId(0),
            header: HloComputationProto::default(),
            wire_id,
            next_local: 1,
        });
        let at = self.order.iter().position(|&c| c == self.entry).unwrap_or(self.order.len());
        self.order.insert(at, id);
        id
    }

    /// Appends an instruction to a computation's order and gives it a unique name and a wire id.
    ///
    /// Nothing is checked; [`crate::build::Builder`] is the front door. `None` where the
    /// computation does not exist.
    pub fn push_instruction(
        &mut self,
        computation: ComputationId,
        mut instruction: Instruction,
    ) -> Option<InstructionId> {
        self.computation(computation)?;
        instruction.name = self.unique_name(&instruction.name);
        let target = self.computation_mut(computation)?;
        let id = InstructionId(u32::try_from(target.arena.len()).ok()?);
        instruction.wire_id = (target.wire_id << 32) | target.next_local;
        target.next_local += 1;
        target.arena.push(instruction);
        target.order.push(id);
        Some(id)
    }
}
