//! Matched instructions as rows, in the order of the second module.

use std::collections::HashMap;

use hlo::text::{Preset, print_instruction};
use hlo::{Computation, ComputationId, InstructionId, Module};

use super::matching::Matching;
use super::structure::{Structure, Tables};
use super::{Change, ComputationDiff, Kind, Line, Row};

/// Two computations and how their instructions match.
pub(super) struct Listing<'a> {
    pub(super) a: &'a Structure<'a>,
    pub(super) b: &'a Structure<'a>,
    pub(super) x: &'a Tables<'a>,
    pub(super) y: &'a Tables<'a>,
    pub(super) matching: &'a Matching,
}

/// A computation without a partner.
pub(super) fn alone(structure: &Structure<'_>, id: ComputationId, name: &str, kind: Kind) -> ComputationDiff {
    let mut diff = ComputationDiff { before: None, after: None, rows: Vec::new() };
    let slot = if kind == Kind::Removed { &mut diff.before } else { &mut diff.after };
    *slot = Some(name.to_owned());
    if let Some(tables) = structure.tables(id) {
        let order = tables.computation.order().iter();
        diff.rows = order.map(|&id| one(structure.module, tables.computation, id, kind)).collect();
    }
    diff
}

impl Listing<'_> {
    pub(super) fn diff(&self) -> ComputationDiff {
        // What was removed stands behind the partner of what stood before it.
        let mut removed: HashMap<Option<InstructionId>, Vec<InstructionId>> = HashMap::new();
        let mut last = None;
        for &x in self.x.computation.order() {
            match self.matching.forward(x) {
                Some(y) => last = Some(y),
                None => removed.entry(last).or_default().push(x),
            }
        }
        let mut rows = Vec::new();
        let mut removed_behind = |at: Option<InstructionId>, rows: &mut Vec<Row>| {
            let ids = removed.remove(&at).unwrap_or_default();
            rows.extend(ids.into_iter().map(|id| one(self.a.module, self.x.computation, id, Kind::Removed)));
        };
        removed_behind(None, &mut rows);
        for &y in self.y.computation.order() {
            rows.push(match self.matching.backward(y) {
                Some(x) => self.both(x, y),
                None => one(self.b.module, self.y.computation, y, Kind::Added),
            });
            removed_behind(Some(y), &mut rows);
        }
        let name = |t: &Tables<'_>| Some(t.computation.name.clone());
        ComputationDiff { before: name(self.x), after: name(self.y), rows }
    }

    /// Pairs of computations that matched instructions call.
    pub(super) fn callees(&self) -> Vec<(ComputationId, ComputationId)> {
        let mut pairs = Vec::new();
        for (id, instruction) in self.x.computation.instructions().filter(|(_, i)| !i.called.is_empty()) {
            let partner = self.matching.forward(id).and_then(|y| self.y.computation.get(y));
            if let Some(partner) = partner {
                pairs.extend(instruction.called.iter().copied().zip(partner.called.iter().copied()));
            }
        }
        pairs
    }

    fn both(&self, x: InstructionId, y: InstructionId) -> Row {
        let changes = self.changes(x, y);
        Row {
            kind: if changes.is_empty() { Kind::Same } else { Kind::Changed },
            changes,
            before: line(self.a.module, self.x.computation, x),
            after: line(self.b.module, self.y.computation, y),
        }
    }

    fn changes(&self, x: InstructionId, y: InstructionId) -> Vec<Change> {
        let (Some(a), Some(b)) = (self.x.computation.get(x), self.y.computation.get(y)) else { return Vec::new() };
        let mut changes = Vec::new();
        let mut add = |change: Change, differs: bool| {
            if differs {
                changes.push(change);
            }
        };
        // Two values of equal structure are the same value, whichever of them is whose partner.
        let same = |&(x, y): &(InstructionId, InstructionId)| {
            self.matching.forward(x) == Some(y) || self.x.hash(x) == self.y.hash(y)
        };
        let all_same = |xs: &[InstructionId], ys: &[InstructionId]| {
            xs.len() == ys.len() && xs.iter().copied().zip(ys.iter().copied()).all(|pair| same(&pair))
        };
        add(Change::Operands, !all_same(&a.operands, &b.operands));
        if let (Some(a), Some(b)) = (self.x.signature(x), self.y.signature(y)) {
            add(Change::Shape, a.shape != b.shape);
            add(Change::Attributes, a.operation != b.operation);
        }
        add(Change::Callees, self.a.callees(a) != self.b.callees(b));
        add(Change::Control, !all_same(&a.control_predecessors, &b.control_predecessors));
        add(Change::Root, (self.x.computation.root() == x) != (self.y.computation.root() == y));
        changes
    }
}

fn one(module: &Module, computation: &Computation, id: InstructionId, kind: Kind) -> Row {
    let line = line(module, computation, id);
    let (before, after) = if kind == Kind::Removed { (line, None) } else { (None, line) };
    Row { kind, changes: Vec::new(), before, after }
}

fn line(module: &Module, computation: &Computation, id: InstructionId) -> Option<Line> {
    let instruction = computation.get(id)?;
    let root = if computation.root() == id { "ROOT " } else { "" };
    let text = print_instruction(module, computation, instruction, Preset::Snapshot);
    Some(Line {
        text: format!("{root}{text}"),
        opcode: instruction.opcode_name().to_owned(),
        op_name: instruction.op_name().to_owned(),
    })
}
