//! What devices send each other in one step of a compiled module.

#![allow(unreachable_pub, reason = "a module of one test binary")]

use std::collections::BTreeMap;

use hlo::{Module, Opcode};

/// Communication by kind: how often, and bytes of the results.
pub struct Collectives(BTreeMap<&'static str, (i64, i64)>);

const KINDS: &[Opcode] = &[
    Opcode::AllReduce,
    Opcode::AllReduceStart,
    Opcode::AllGather,
    Opcode::AllGatherStart,
    Opcode::ReduceScatter,
    Opcode::AllToAll,
    Opcode::CollectivePermute,
    Opcode::CollectivePermuteStart,
];

impl Collectives {
    pub fn of(module: &Module) -> Self {
        let mut found = BTreeMap::new();
        let instructions = module.computations().flat_map(|(_, c)| c.instructions().map(|(_, i)| i));
        for instruction in instructions.filter(|i| KINDS.contains(&i.opcode)) {
            let (count, bytes): &mut (i64, i64) = found.entry(instruction.opcode.name()).or_default();
            *count += 1;
            *bytes += instruction.shape.byte_size() as i64;
        }
        Self(found)
    }

    /// What this has more than `plain`.
    pub fn beyond(&self, plain: &Self) -> Self {
        let mut more = self.0.clone();
        for (kind, (count, bytes)) in &plain.0 {
            let (c, b) = more.entry(kind).or_default();
            (*c, *b) = (*c - count, *b - bytes);
        }
        more.retain(|_, added| *added != (0, 0));
        Self(more)
    }

    /// At most 8 bytes of sums per tensor, which are S and a weighted sum, for each of the two axes of the mesh that it is split
    /// along, and nothing else.
    pub fn assert_small(&self, name: &str, tensors: u64) {
        for (kind, (count, bytes)) in &self.0 {
            let allowed = if kind.starts_with("all-reduce") { 16 * tensors as i64 } else { 0 };
            assert!(*bytes <= allowed, "{name}: {count} more {kind} with {bytes} bytes, for {tensors} tensors");
        }
    }
}
