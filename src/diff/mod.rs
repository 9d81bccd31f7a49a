//! The difference of two modules, instruction by instruction.
//!
//! Instructions are matched by what they compute and by what they are connected to, not by name, see [`matching`]; names
//! and metadata are not compared. Calls are inlined on both sides first: a call and the body that it stands for are the
//! same program. Pure: two modules in, a [`Diff`] out.

mod header;
pub mod html;
mod listing;
mod matching;
mod structure;
mod summary;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;

use hlo::{Computation, ComputationId, Module};
use serde::Serialize;

use listing::Listing;
use matching::Matching;
use structure::Structure;

pub use summary::{Counts, Group, Scope, Summary};

/// How two modules differ.
#[derive(Debug, Clone, PartialEq)]
pub struct Diff {
    /// The first module.
    pub before: Side,
    /// The second one.
    pub after: Side,
    /// Differences of what the modules say about themselves: aliases, donors, layouts of the entry.
    pub header: Vec<HeaderChange>,
    /// The instructions of both, by computation, the entry first.
    pub computations: Vec<ComputationDiff>,
}

/// One of the two modules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    /// The module's name.
    pub name: String,
    /// Computations, calls inlined.
    pub computations: usize,
    /// Instructions in all of them.
    pub instructions: usize,
}

/// A line that only one of the modules' headers has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeaderChange {
    /// Whether it is the second module's.
    pub added: bool,
    /// What is said.
    pub text: String,
}

/// The instructions of two computations that belong together, or of one that has no partner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComputationDiff {
    /// Its name in the first module.
    pub before: Option<String>,
    /// Its name in the second one.
    pub after: Option<String>,
    /// In the order of the second module, with what was removed where it stood.
    pub rows: Vec<Row>,
}

/// One instruction, or a pair of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What became of it.
    pub kind: Kind,
    /// How it differs; empty unless it changed.
    pub changes: Vec<Change>,
    /// The instruction of the first module.
    pub before: Option<Line>,
    /// That of the second one.
    pub after: Option<Line>,
}

/// An instruction as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// HLO text.
    pub text: String,
    /// The opcode's name.
    pub opcode: String,
    /// What the front end called it.
    pub op_name: String,
}

/// What became of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It computes the same from the same.
    Same,
    /// It has a partner that is not the same.
    Changed,
    /// Only the second module has it.
    Added,
    /// Only the first module has it.
    Removed,
}

/// In what two instructions differ that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// They read other values.
    Operands,
    /// Element type, dimensions or layout.
    Shape,
    /// The opcode's attributes, or a constant's value.
    Attributes,
    /// What they call does something else.
    Callees,
    /// They wait for others.
    Control,
    /// One of them is its computation's root, the other is not.
    Root,
}

impl Change {
    /// A word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Operands => "operands",
            Self::Shape => "shape",
            Self::Attributes => "attributes",
            Self::Callees => "callees",
            Self::Control => "control",
            Self::Root => "root",
        }
    }
}

impl Diff {
    /// Compares two modules.
    #[must_use]
    pub fn of(before: &Module, after: &Module) -> Self {
        let (before, after) = (inlined(before), inlined(after));
        let (a, b) = (Structure::of(&before), Structure::of(&after));
        let mut computations = Vec::new();
        let mut paired = Paired::default();
        let mut queue = VecDeque::from([(before.entry(), after.entry())]);
        paired.insert(before.entry(), after.entry());
        loop {
            while let Some((x, y)) = queue.pop_front() {
                let (Some(x), Some(y)) = (a.tables(x), b.tables(y)) else { continue };
                let matching = Matching::of(x, y);
                let listing = Listing { a: &a, b: &b, x, y, matching: &matching };
                computations.push(listing.diff());
                for (x, y) in listing.callees() {
                    if paired.insert(x, y) {
                        queue.push_back((x, y));
                    }
                }
            }
            // Those that nothing led to: equal ones first, then those of one name.
            let rest = paired.rest(&a, &b);
            if rest.is_empty() {
                break;
            }
            queue.extend(rest);
        }
        for (id, computation) in before.computations().filter(|(id, _)| !paired.before.contains(id)) {
            computations.push(listing::alone(&a, id, &computation.name, Kind::Removed));
        }
        for (id, computation) in after.computations().filter(|(id, _)| !paired.after.contains(id)) {
            computations.push(listing::alone(&b, id, &computation.name, Kind::Added));
        }
        Self {
            before: Side::of(&before),
            after: Side::of(&after),
            header: header::changes(&before, &after),
            computations,
        }
    }

    /// Whether both modules are the same program.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.header.is_empty() && self.rows().all(|(_, row)| row.kind == Kind::Same)
    }

    /// Every row with the computation in which it stands.
    pub fn rows(&self) -> impl Iterator<Item = (&ComputationDiff, &Row)> + '_ {
        self.computations.iter().flat_map(|c| c.rows.iter().map(move |row| (c, row)))
    }
}

impl Side {
    fn of(module: &Module) -> Self {
        Self {
            name: module.name().to_owned(),
            computations: module.order().len(),
            instructions: module.instruction_count(),
        }
    }
}

/// The module with its calls inlined; as it is where that cannot be.
fn inlined(module: &Module) -> Module {
    let mut inlined = module.clone();
    match inlined.inline_calls(|callee| callee.contains("xla.sdy")) {
        Ok(_) => inlined,
        Err(_) => module.clone(),
    }
}

/// Computations that belong together.
#[derive(Default)]
struct Paired {
    before: HashSet<ComputationId>,
    after: HashSet<ComputationId>,
}

impl Paired {
    fn insert(&mut self, x: ComputationId, y: ComputationId) -> bool {
        let free = !self.before.contains(&x) && !self.after.contains(&y);
        if free {
            self.before.insert(x);
            self.after.insert(y);
        }
        free
    }

    /// Pairs those that no pair of callers led to: of equal structure, else of one name; empty where there are none.
    fn rest(&mut self, a: &Structure<'_>, b: &Structure<'_>) -> Vec<(ComputationId, ComputationId)> {
        let equal = self.rest_by(a, b, |s, id, _| s.tables(id).map_or(0, |t| t.hash));
        if equal.is_empty() { self.rest_by(a, b, |_, _, c| c.name.clone()) } else { equal }
    }

    fn rest_by<K: Eq + Hash>(
        &mut self,
        a: &Structure<'_>,
        b: &Structure<'_>,
        key: impl Fn(&Structure<'_>, ComputationId, &Computation) -> K,
    ) -> Vec<(ComputationId, ComputationId)> {
        let mut waiting: HashMap<K, VecDeque<ComputationId>> = HashMap::new();
        for (y, computation) in b.module.computations().filter(|(y, _)| !self.after.contains(y)) {
            waiting.entry(key(b, y, computation)).or_default().push_back(y);
        }
        let mut pairs = Vec::new();
        for (x, computation) in a.module.computations() {
            if !self.before.contains(&x)
                && let Some(y) = waiting.get_mut(&key(a, x, computation)).and_then(VecDeque::pop_front)
            {
                self.insert(x, y);
                pairs.push((x, y));
            }
        }
        pairs
    }
}
