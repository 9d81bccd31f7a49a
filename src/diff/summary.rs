//! Differences counted: by scope and opcode, and as a document for programs.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Change, Diff, HeaderChange, Kind, Line, Row, Side};

/// Version of the JSON document.
const FORMAT_VERSION: u32 = 1;

/// Instructions of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// The same in both.
    pub same: usize,
    /// With a partner that is not the same.
    pub changed: usize,
    /// In the second module only.
    pub added: usize,
    /// In the first module only.
    pub removed: usize,
}

/// The differences of one opcode in one scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// The first two parts of the `op_name`; empty where there is none.
    pub scope: String,
    /// The opcode.
    pub opcode: String,
    /// How many of each kind.
    #[serde(flatten)]
    pub counts: Counts,
}

/// The differences of one scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The first two parts of the `op_name`; empty where there is none.
    pub name: String,
    /// How many of each kind.
    pub counts: Counts,
    /// Opcodes with how many of each differ, those with the most first.
    pub opcodes: Vec<(String, usize)>,
}

/// A difference as a document.
#[derive(Debug, Serialize)]
pub struct Summary<'a> {
    format_version: u32,
    equal: bool,
    before: &'a Side,
    after: &'a Side,
    counts: Counts,
    header: &'a [HeaderChange],
    groups: Vec<Group>,
    instructions: Vec<Difference<'a>>,
}

/// A row that is not the same.
#[derive(Debug, Serialize)]
struct Difference<'a> {
    kind: Kind,
    computation: &'a str,
    opcode: &'a str,
    op_name: &'a str,
    changes: &'a [Change],
    before: Option<&'a str>,
    after: Option<&'a str>,
}

impl Counts {
    fn add(&mut self, kind: Kind) {
        match kind {
            Kind::Same => self.same += 1,
            Kind::Changed => self.changed += 1,
            Kind::Added => self.added += 1,
            Kind::Removed => self.removed += 1,
        }
    }

    /// How many are not the same.
    #[must_use]
    pub fn differing(self) -> usize {
        self.changed + self.added + self.removed
    }
}

impl Diff {
    /// Instructions of each kind.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        self.rows().for_each(|(_, row)| counts.add(row.kind));
        counts
    }

    /// Differing instructions by scope and opcode, those with the most first; the same ones are not counted.
    #[must_use]
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: BTreeMap<(String, &str), Counts> = BTreeMap::new();
        for (_, row) in self.rows().filter(|(_, row)| row.kind != Kind::Same) {
            if let Some(line) = row.line() {
                groups.entry((scope(&line.op_name), &line.opcode)).or_default().add(row.kind);
            }
        }
        let mut groups: Vec<_> = groups
            .into_iter()
            .map(|((scope, opcode), counts)| Group { scope, opcode: opcode.to_owned(), counts })
            .collect();
        groups.sort_by_key(|g| std::cmp::Reverse(g.counts.differing()));
        groups
    }

    /// Differing instructions by scope, those with the most first, each with its opcodes.
    #[must_use]
    pub fn scopes(&self) -> Vec<Scope> {
        let mut scopes: BTreeMap<String, Scope> = BTreeMap::new();
        for Group { scope, opcode, counts } in self.groups() {
            let new = || Scope { name: scope.clone(), counts: Counts::default(), opcodes: Vec::new() };
            let entry = scopes.entry(scope.clone()).or_insert_with(new);
            entry.counts.changed += counts.changed;
            entry.counts.added += counts.added;
            entry.counts.removed += counts.removed;
            entry.opcodes.push((opcode, counts.differing()));
        }
        let mut scopes: Vec<_> = scopes.into_values().collect();
        scopes.sort_by_key(|scope| std::cmp::Reverse(scope.counts.differing()));
        scopes
    }

    /// The difference as a document.
    #[must_use]
    pub fn summary(&self) -> Summary<'_> {
        let differing = self.rows().filter(|(_, row)| row.kind != Kind::Same);
        let instructions = differing.filter_map(|(computation, row)| {
            let line = row.line()?;
            Some(Difference {
                kind: row.kind,
                computation: computation.name(),
                opcode: &line.opcode,
                op_name: &line.op_name,
                changes: &row.changes,
                before: row.before.as_ref().map(|l| l.text.as_str()),
                after: row.after.as_ref().map(|l| l.text.as_str()),
            })
        });
        Summary {
            format_version: FORMAT_VERSION,
            equal: self.is_equal(),
            before: &self.before,
            after: &self.after,
            counts: self.counts(),
            header: &self.header,
            groups: self.groups(),
            instructions: instructions.collect(),
        }
    }
}

impl super::ComputationDiff {
    /// Its name in the second module, else in the first.
    #[must_use]
    pub fn name(&self) -> &str {
        self.after.as_deref().or(self.before.as_deref()).unwrap_or_default()
    }
}

impl Row {
    /// The line of the second module, else of the first.
    #[must_use]
    pub fn line(&self) -> Option<&Line> {
        self.after.as_ref().or(self.before.as_ref())
    }
}

/// The first two parts of an `op_name`; slashes inside brackets and parentheses part nothing.
fn scope(op_name: &str) -> String {
    let (mut depth, mut parts) = (0usize, 1);
    for (at, c) in op_name.char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            '/' if depth == 0 && parts == 2 => return op_name.get(..at).unwrap_or(op_name).to_owned(),
            '/' if depth == 0 => parts += 1,
            _ => {}
        }
    }
    op_name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_has_two_parts() {
        for (op_name, expected) in [
            ("", ""),
            ("params['a/b']", "params['a/b']"),
            ("jit(step)/transpose(jvp(a/b))/dot_general", "jit(step)/transpose(jvp(a/b))"),
            ("entropic/measure-entropy/params['w']", "entropic/measure-entropy"),
            ("entropic/gate", "entropic/gate"),
        ] {
            assert_eq!(scope(op_name), expected);
        }
    }
}
