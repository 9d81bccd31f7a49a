//! Where an array goes in a module, and where one comes from, through tuples, calls, loops and branches.

use std::collections::{HashMap, HashSet};

use hlo::{Computation, ComputationId, Instruction, InstructionId, Module, Opcode, Shape};

use crate::discover::TRANSPARENT;
use crate::values::element_of;

/// One array: a leaf of the value of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) computation: ComputationId,
    pub(super) instruction: InstructionId,
    /// Which leaf of its shape, depth first; 0 for an array.
    pub(super) leaf: usize,
}

/// A module with what reads each value of it, and what calls each computation.
pub(super) struct Flow<'m> {
    pub(super) module: &'m Module,
    users: HashMap<ComputationId, Vec<Vec<InstructionId>>>,
    callers: HashMap<ComputationId, Vec<(ComputationId, InstructionId)>>,
}

impl<'m> Flow<'m> {
    pub(super) fn new(module: &'m Module) -> Self {
        let mut users = HashMap::new();
        let mut callers: HashMap<_, Vec<_>> = HashMap::new();
        for (id, computation) in module.computations() {
            users.insert(id, computation.users());
            for (site, instruction) in computation.instructions() {
                for &called in &instruction.called {
                    callers.entry(called).or_default().push((id, site));
                }
            }
        }
        Self { module, users, callers }
    }

    pub(super) fn instruction(&self, place: Place) -> Option<&'m Instruction> {
        self.module.computation(place.computation)?.get(place.instruction)
    }

    /// The instructions that read a value, and at which of their operands.
    pub(super) fn readers(&self, place: Place) -> impl Iterator<Item = (InstructionId, usize, &'m Instruction)> + '_ {
        let computation = self.module.computation(place.computation);
        let users = self.users.get(&place.computation).and_then(|users| users.get(place.instruction.index()));
        let users = users.map(Vec::as_slice).unwrap_or_default();
        let read = users.iter().filter_map(move |&id| Some((id, computation?.get(id)?)));
        read.flat_map(move |(id, user)| {
            let at = user.operands.iter().enumerate().filter(move |(_, operand)| **operand == place.instruction);
            at.map(move |(number, _)| (id, number, user))
        })
    }

    /// Where the array is, unchanged, once `user` has read it as its operand `number`: in a tuple, taken out of one, in
    /// what is called. Nowhere where the user computes something of it.
    pub(super) fn handed_on(&self, place: Place, id: InstructionId, number: usize, user: &Instruction) -> Vec<Place> {
        let here = |leaf| Place { instruction: id, leaf, ..place };
        let inside = |called: ComputationId, parameter: usize| {
            let instruction = *self.module.computation(called)?.parameters().get(parameter)?;
            Some(Place { computation: called, instruction, leaf: place.leaf })
        };
        match user.opcode {
            Opcode::GetTupleElement => {
                let element = self.instruction(place).and_then(|tuple| element_of(&tuple.shape, place.leaf));
                let taken = element.filter(|&(element, _)| user.index() == Some(element));
                taken.map(|(_, leaf)| here(leaf)).into_iter().collect()
            }
            Opcode::Tuple => vec![here(self.leaves_before(place.computation, user, number) + place.leaf)],
            Opcode::CustomCall if hands_through(user) => {
                vec![here(self.leaves_before(place.computation, user, number) + place.leaf)]
            }
            Opcode::OptimizationBarrier => vec![here(place.leaf)],
            Opcode::While => {
                user.called.iter().filter_map(|&called| inside(called, 0)).chain([here(place.leaf)]).collect()
            }
            Opcode::Call => user.called.first().and_then(|&called| inside(called, number)).into_iter().collect(),
            Opcode::Conditional => {
                let branch = number.checked_sub(1).and_then(|branch| user.called.get(branch));
                branch.and_then(|&called| inside(called, 0)).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// Where a value goes that a computation returns at this place of its root.
    pub(super) fn returned(&self, place: Place) -> Vec<Place> {
        let root = self.module.computation(place.computation).map(Computation::root);
        if root != Some(place.instruction) {
            return Vec::new();
        }
        let sites = self.callers.get(&place.computation).map(Vec::as_slice).unwrap_or_default();
        let of_site = |&(computation, instruction): &(ComputationId, InstructionId)| {
            let site = self.module.computation(computation)?.get(instruction)?;
            let hands = matches!(site.opcode, Opcode::Call | Opcode::Conditional | Opcode::While);
            hands.then_some(Place { computation, instruction, leaf: place.leaf })
        };
        sites.iter().filter_map(of_site).collect()
    }

    fn leaves_before(&self, computation: ComputationId, user: &Instruction, number: usize) -> usize {
        let computation = self.module.computation(computation);
        let operands = user.operands.iter().take(number);
        operands.filter_map(|&o| Some(computation?.get(o)?.shape.num_leaves())).sum()
    }

    /// What an array is computed from, in one step backward. Parameters of `top` come from nowhere.
    pub(super) fn sources(&self, place: Place, top: ComputationId) -> Vec<Place> {
        let Some(instruction) = self.instruction(place) else { return Vec::new() };
        let here = |instruction, leaf| Place { instruction, leaf, ..place };
        let root_of = |called: ComputationId| {
            let root = self.module.computation(called)?.root();
            Some(Place { computation: called, instruction: root, leaf: place.leaf })
        };
        match (instruction.opcode, instruction.operands.as_slice()) {
            (Opcode::Parameter, _) if place.computation == top => Vec::new(),
            (Opcode::Parameter, _) => self.arguments(place, instruction.index().unwrap_or(0)),
            (Opcode::GetTupleElement, &[tuple]) => {
                let shape = self.instruction(here(tuple, 0)).map(|tuple| &tuple.shape);
                let first = shape.and_then(|shape| first_leaf(shape, instruction.index()?));
                first.map(|first| here(tuple, first + place.leaf)).into_iter().collect()
            }
            (Opcode::Tuple, _) => self.operand_leaf(place, instruction).into_iter().collect(),
            (Opcode::CustomCall, _) if hands_through(instruction) => {
                self.operand_leaf(place, instruction).into_iter().collect()
            }
            (Opcode::OptimizationBarrier, &[x]) => vec![here(x, place.leaf)],
            // The body's result, and what it was before the first pass.
            (Opcode::While, &[initial]) => {
                let roots = instruction.called.iter().filter_map(|&called| root_of(called));
                let same = |p: &Place| self.instruction(*p).is_some_and(|root| root.shape.is_tuple());
                roots.filter(same).chain([here(initial, place.leaf)]).collect()
            }
            (Opcode::Call | Opcode::Conditional, _) => {
                instruction.called.iter().filter_map(|&called| root_of(called)).collect()
            }
            (_, operands) => {
                let leaves = |&operand: &InstructionId| {
                    let count = self.instruction(here(operand, 0)).map_or(0, |o| o.shape.num_leaves());
                    (0..count).map(move |leaf| here(operand, leaf))
                };
                operands.iter().flat_map(leaves).collect()
            }
        }
    }

    /// What a parameter of a called computation is, at every site that calls it.
    fn arguments(&self, place: Place, number: usize) -> Vec<Place> {
        let sites = self.callers.get(&place.computation).map(Vec::as_slice).unwrap_or_default();
        let mut found = Vec::new();
        for &(computation, site) in sites {
            let Some(instruction) = self.module.computation(computation).and_then(|c| c.get(site)) else { continue };
            let operand = match instruction.opcode {
                Opcode::While => 0,
                Opcode::Call => number,
                Opcode::Conditional => 1 + instruction.called.iter().position(|&c| c == place.computation).unwrap_or(0),
                _ => continue,
            };
            if let Some(&operand) = instruction.operands.get(operand) {
                found.push(Place { computation, instruction: operand, leaf: place.leaf });
            }
            if instruction.opcode == Opcode::While
                && let Some(body) = self.module.computation(place.computation)
                && body.root_instruction().is_some_and(|root| root.shape.is_tuple())
            {
                found.push(Place { instruction: body.root(), ..place });
            }
        }
        found
    }

    /// The operand's leaf that a leaf of a tuple is.
    fn operand_leaf(&self, place: Place, tuple: &Instruction) -> Option<Place> {
        let mut before = 0;
        for &operand in &tuple.operands {
            let count = self.instruction(Place { instruction: operand, leaf: 0, ..place })?.shape.num_leaves();
            if place.leaf < before + count {
                return Some(Place { instruction: operand, leaf: place.leaf - before, ..place });
            }
            before += count;
        }
        None
    }

    /// All places that `from` is computed from, itself included; what is behind a place of `stops` is left out.
    pub(super) fn behind(&self, from: Place, top: ComputationId, stops: &HashSet<Place>) -> HashSet<Place> {
        let mut seen = HashSet::from([from]);
        let mut open = vec![from];
        while let Some(place) = open.pop() {
            if stops.contains(&place) {
                continue;
            }
            open.extend(self.sources(place, top).into_iter().filter(|&source| seen.insert(source)));
        }
        seen
    }
}

/// Whether a custom call only says how arrays are split.
fn hands_through(call: &Instruction) -> bool {
    call.opcode == Opcode::CustomCall && TRANSPARENT.contains(&call.attributes.custom_call_target.as_str())
}

/// The first leaf of a tuple's element.
fn first_leaf(tuple: &Shape, element: usize) -> Option<usize> {
    let elements: Vec<usize> = tuple.tuple_elements().map(|element| element.num_leaves()).collect();
    Some(elements.get(..=element)?.split_last()?.1.iter().sum())
}
