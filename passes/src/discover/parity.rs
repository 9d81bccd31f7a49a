//! What becomes of a value when others change their sign.
//!
//! A first moment follows the sign of the gradient, a second one does not; and a
//! mean of gradients that serves a variance alone enters the update by its square.
//! With some values as seeds, every value computed from them is *even* or *odd* in
//! them, *affine* (something odd and something that does not depend on them), or neither.

use std::collections::{BTreeMap, BTreeSet};

use hlo::Opcode;

use super::graph::{Graph, NodeId, Op};

/// How a value answers to `-x` for every seed `x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parity {
    /// It does not depend on them.
    Constant,
    /// It stays.
    Even,
    /// It changes its sign.
    Odd,
    /// A part of it changes its sign, and the rest does not depend on the seeds.
    Affine,
    /// None of these, or unknown.
    Neither,
}

use Parity::{Affine, Constant, Even, Neither, Odd};

impl Parity {
    /// Of a sum, or of a choice between two values.
    pub(super) fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Constant, x) | (x, Constant) if x != Odd => x,
            (Odd, Odd) => Odd,
            (Constant | Odd | Affine, Constant | Odd | Affine) => Affine,
            (Even, Even) => Even,
            _ => Neither,
        }
    }

    /// Of a product; a quotient is one, too.
    fn times(self, other: Self) -> Self {
        match (self, other) {
            (Constant | Even, x) | (x, Constant | Even) if matches!(x, Odd | Affine | Neither) => x,
            (Constant, x) | (x, Constant) => x,
            (Even, Even) | (Odd, Odd) => Even,
            _ => Neither,
        }
    }

    /// Of any function of it.
    fn through_any(self) -> Self {
        if matches!(self, Odd | Affine) { Neither } else { self }
    }
}

/// The parity of `target` in `seeds`.
pub(super) fn parity(graph: &Graph<'_>, seeds: &[NodeId], target: NodeId) -> Parity {
    let mut known: BTreeMap<NodeId, Parity> = seeds.iter().map(|&s| (s, Odd)).collect();
    let mut open: BTreeSet<NodeId> = seeds.iter().flat_map(|&s| graph.users(s)).copied().collect();
    // Operands are numbered below their users: each node is met once all of its operands are known.
    while let Some(id) = open.pop_first() {
        if id > target || seeds.contains(&id) {
            continue;
        }
        let of = |d: &NodeId| known.get(d).copied().unwrap_or(Constant);
        let made = of_node(graph, id, &of);
        if made != Constant {
            known.insert(id, made);
            open.extend(graph.users(id));
        }
    }
    known.get(&target).copied().unwrap_or(Constant)
}

fn of_node(graph: &Graph<'_>, id: NodeId, of: &impl Fn(&NodeId) -> Parity) -> Parity {
    use Opcode as O;
    let any = || graph.deps(id).iter().map(of).fold(Constant, |all, p| all.plus(p.through_any()));
    // Zero is even and odd.
    let terms = |deps: &[NodeId]| deps.iter().copied().filter(|&d| graph.constant(d) != Some(0.0)).collect::<Vec<_>>();
    let sum = |deps: &[NodeId]| terms(deps).iter().map(of).reduce(Parity::plus).unwrap_or(Constant);
    let Op::Hlo(opcode) = graph.op(id) else {
        return if graph.op(id) == Op::Phi { sum(graph.data_deps(id)) } else { any() };
    };
    match opcode {
        // What is chosen counts, not what decides.
        O::Select | O::Add | O::Subtract | O::Concatenate | O::Pad | O::AllReduce | O::Clamp => {
            sum(graph.data_deps(id))
        }
        // Against a bound.
        O::Maximum | O::Minimum if graph.deps(id).iter().filter(|d| of(d) != Constant).count() == 1 => {
            sum(graph.deps(id))
        }
        O::Multiply | O::Divide | O::Dot | O::Convolution => match graph.pair(id) {
            Some((x, y)) => of(&x).times(of(&y)),
            None => any(),
        },
        O::Power if graph.pair(id).is_some_and(|(_, e)| graph.constant(e) == Some(2.0)) => {
            let base = graph.first_dep(id).map_or(Constant, |x| of(&x));
            base.times(base)
        }
        O::Abs => match graph.first_dep(id).map_or(Constant, |x| of(&x)) {
            Odd | Even => Even,
            other => other.through_any(),
        },
        O::Negate
        | O::Sign
        | O::Tanh
        | O::Cbrt
        | O::Erf
        | O::Convert
        | O::Copy
        | O::Bitcast
        | O::ReducePrecision
        | O::Reshape
        | O::Broadcast
        | O::Slice
        | O::Reverse
        | O::Gather
        | O::DynamicSlice => graph.first_dep(id).map_or(Constant, |x| of(&x)),
        O::Reduce if adds(graph, id) => sum(graph.deps(id)),
        _ => any(),
    }
}

/// Whether a reduce folds by addition.
fn adds(graph: &Graph<'_>, id: NodeId) -> bool {
    let reducer = graph.instruction(id).and_then(|i| i.called.first().copied());
    let root = reducer.and_then(|r| graph.module.computation(r)).and_then(hlo::Computation::root_instruction);
    root.is_some_and(|r| r.opcode == Opcode::Add)
}
