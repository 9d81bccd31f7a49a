//! The value graph: arrays and what they are computed from.
//!
//! Tuples, `get-tuple-element`, optimization barriers and calls dissolve, so that
//! every node is one array. A `conditional` becomes a `phi` over the values of its
//! branches, whose inner nodes are marked as such; a leaf of a `while` depends on
//! the initial values of every leaf that its body lets it depend on, and a leaf
//! that the body passes through is its initial value. An input under other
//! dimensions, its elements in their order (a *view*), is one node however often it
//! is made, and under its own dimensions again it is the input. Nodes are numbered in
//! evaluation order: an operand's number is below its user's.

use std::collections::HashMap;
use std::ops::{Index, IndexMut};

use hlo::proto::{LiteralProto, ShapeProto};
use hlo::{Computation, ComputationId, Instruction, InstructionId, Module, Opcode, PrimitiveType};

use super::DiscoverError;
use crate::step::Value;

/// Names a node of one [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NodeId(u32);

impl NodeId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A table with one entry per node.
#[derive(Debug, Clone)]
pub(super) struct NodeMap<T>(Vec<T>);

impl<T: Clone> NodeMap<T> {
    pub(super) fn new(graph: &Graph<'_>, value: T) -> Self {
        Self(vec![value; graph.len()])
    }
}

impl<T> Index<NodeId> for NodeMap<T> {
    type Output = T;
    #[allow(clippy::indexing_slicing, reason = "a table has an entry for every node of the graph it was made for")]
    fn index(&self, id: NodeId) -> &T {
        &self.0[id.index()]
    }
}

impl<T> IndexMut<NodeId> for NodeMap<T> {
    #[allow(clippy::indexing_slicing, reason = "a table has an entry for every node of the graph it was made for")]
    fn index_mut(&mut self, id: NodeId) -> &mut T {
        &mut self.0[id.index()]
    }
}

/// What a node does: an HLO operation, or the choice that a `conditional` makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Hlo(Opcode),
    /// `deps[0]` decides between the values `deps[1..]`.
    Phi,
    /// A leaf of a `while` that the body changes; `carry` is its initial value.
    While,
}

/// One array.
#[derive(Debug, Clone)]
pub(super) struct Node<'m> {
    pub(super) op: Op,
    pub(super) shape: &'m ShapeProto,
    pub(super) deps: Vec<NodeId>,
    pub(super) computation: ComputationId,
    pub(super) instruction: InstructionId,
    pub(super) leaf: usize,
    /// Inside a branch of a `conditional`: it exists only when that branch runs.
    pub(super) inner: bool,
    /// For a `While` node: the leaf's initial value.
    pub(super) carry: Option<NodeId>,
}

/// The value graph of one computation.
#[derive(Debug)]
pub(super) struct Graph<'m> {
    pub(super) module: &'m Module,
    pub(super) computation: ComputationId,
    nodes: Vec<Node<'m>>,
    users: Vec<Vec<NodeId>>,
    /// Whether a node is among the outputs.
    returned: Vec<bool>,
    /// Leaves of the computation's parameters, by parameter number and leaf.
    pub(super) inputs: Vec<NodeId>,
    /// Leaves of the computation's root.
    pub(super) outputs: Vec<NodeId>,
    uniform: Vec<bool>,
    constants: Vec<Option<f64>>,
    /// What each leaf of a `while` is before the first iteration.
    loops: Loops,
    views: Views<'m>,
}

/// Inputs under other dimensions.
#[derive(Debug, Default)]
struct Views<'m> {
    /// The view of an input that has the dimensions.
    of: HashMap<(NodeId, &'m [i64]), NodeId>,
    /// What each view is a view of.
    input: HashMap<NodeId, NodeId>,
}

type Loops = HashMap<(ComputationId, InstructionId), Vec<NodeId>>;

/// Calls nested deeper than this are refused; real exports stay in single digits.
const MAX_DEPTH: usize = 64;

/// Custom calls that hand their operands through, as far as values are concerned.
pub(crate) const TRANSPARENT: [&str; 8] = [
    "Sharding",
    "SPMDFullToShardShape",
    "SPMDShardToFullShape",
    "xla.sdy.FuncResultSharding",
    "xla.sdy.GlobalToLocalShape",
    "xla.sdy.LocalToGlobalShape",
    "xla.sdy.ShardingGroup",
    "annotate_device_placement",
];

type BodyDependencies = std::rc::Rc<(Vec<Vec<usize>>, Vec<bool>)>;

struct Builder<'m> {
    module: &'m Module,
    nodes: Vec<Node<'m>>,
    inputs: Vec<NodeId>,
    bodies: HashMap<ComputationId, BodyDependencies>,
    loops: Loops,
    views: Views<'m>,
    depth: usize,
}

impl<'m> Graph<'m> {
    /// The value graph of `computation`.
    pub(super) fn new(module: &'m Module, computation: ComputationId) -> Result<Self, DiscoverError> {
        Self::at_depth(module, computation, 0)
    }

    fn at_depth(module: &'m Module, computation: ComputationId, depth: usize) -> Result<Self, DiscoverError> {
        let mut builder = Builder {
            module,
            nodes: Vec::new(),
            inputs: Vec::new(),
            bodies: HashMap::new(),
            loops: HashMap::new(),
            views: Views::default(),
            depth,
        };
        let outputs = builder.computation(computation, None, false)?;
        let nodes = builder.nodes;
        let mut users = vec![Vec::new(); nodes.len()];
        for (index, node) in nodes.iter().enumerate() {
            let id = NodeId(index as u32);
            for dep in &node.deps {
                if let Some(list) = users.get_mut(dep.index())
                    && list.last() != Some(&id)
                {
                    list.push(id);
                }
            }
        }
        let mut returned = vec![false; nodes.len()];
        for output in &outputs {
            if let Some(mark) = returned.get_mut(output.index()) {
                *mark = true;
            }
        }
        let mut graph = Self {
            module,
            computation,
            nodes,
            users,
            returned,
            inputs: builder.inputs,
            outputs,
            uniform: Vec::new(),
            constants: Vec::new(),
            loops: builder.loops,
            views: builder.views,
        };
        graph.classify_uniform();
        graph.fold_constants();
        Ok(graph)
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Ids in evaluation order.
    pub(super) fn ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    #[allow(clippy::indexing_slicing, reason = "ids come from this graph alone")]
    pub(super) fn node(&self, id: NodeId) -> &Node<'m> {
        &self.nodes[id.index()]
    }

    #[allow(clippy::indexing_slicing, reason = "ids come from this graph alone")]
    pub(super) fn users(&self, id: NodeId) -> &[NodeId] {
        &self.users[id.index()]
    }

    /// Whether the node is among the outputs.
    #[allow(clippy::indexing_slicing, reason = "one entry per node")]
    pub(super) fn is_output(&self, id: NodeId) -> bool {
        self.returned[id.index()]
    }

    pub(super) fn op(&self, id: NodeId) -> Op {
        self.node(id).op
    }

    /// The HLO opcode; `None` for phis and loop leaves.
    pub(super) fn opcode(&self, id: NodeId) -> Option<Opcode> {
        match self.node(id).op {
            Op::Hlo(opcode) => Some(opcode),
            _ => None,
        }
    }

    pub(super) fn is(&self, id: NodeId, opcode: Opcode) -> bool {
        self.opcode(id) == Some(opcode)
    }

    pub(super) fn deps(&self, id: NodeId) -> &[NodeId] {
        &self.node(id).deps
    }

    /// The operands of a node with exactly two.
    pub(super) fn pair(&self, id: NodeId) -> Option<(NodeId, NodeId)> {
        match self.deps(id) {
            &[x, y] => Some((x, y)),
            _ => None,
        }
    }

    pub(super) fn first_dep(&self, id: NodeId) -> Option<NodeId> {
        self.deps(id).first().copied()
    }

    /// The operands that carry data: a `select`'s and a phi's predicate does not.
    pub(super) fn data_deps(&self, id: NodeId) -> &[NodeId] {
        let node = self.node(id);
        match node.op {
            Op::Phi | Op::Hlo(Opcode::Select) => node.deps.get(1..).unwrap_or_default(),
            _ => &node.deps,
        }
    }

    /// The operands along which values flow: a `select` or phi whose predicate is uniform chooses between whole
    /// arrays, so its predicate is no part of the flow; one that chooses element by element is.
    pub(super) fn flow_deps(&self, id: NodeId) -> &[NodeId] {
        let data = self.data_deps(id);
        let chooses = data.len() < self.deps(id).len();
        if chooses && self.first_dep(id).is_some_and(|p| self.uniform(p)) { data } else { self.deps(id) }
    }

    pub(super) fn dims(&self, id: NodeId) -> &'m [i64] {
        &self.node(id).shape.dimensions
    }

    pub(super) fn element_type(&self, id: NodeId) -> PrimitiveType {
        self.node(id).shape.element_type.as_known().unwrap_or(PrimitiveType::PRIMITIVE_TYPE_INVALID)
    }

    pub(super) fn num_elements(&self, id: NodeId) -> u64 {
        self.dims(id).iter().fold(1u64, |n, &d| n.saturating_mul(u64::try_from(d).unwrap_or(0)))
    }

    pub(super) fn is_scalar(&self, id: NodeId) -> bool {
        self.num_elements(id) <= 1
    }

    pub(super) fn is_floating(&self, id: NodeId) -> bool {
        self.element_type(id).is_floating()
    }

    pub(super) fn instruction(&self, id: NodeId) -> Option<&'m Instruction> {
        let node = self.node(id);
        self.module.computation(node.computation)?.get(node.instruction)
    }

    pub(super) fn value(&self, id: NodeId) -> Value {
        let node = self.node(id);
        Value { instruction: node.instruction, leaf: node.leaf }
    }

    /// The input that a node is, be it under other dimensions.
    pub(super) fn input(&self, id: NodeId) -> Option<NodeId> {
        if self.is(id, Opcode::Parameter) { Some(id) } else { self.views.input.get(&id).copied() }
    }

    /// An input and the output that succeeds it, as the step works on them: where the output is something under other
    /// dimensions, that, and the view of the input that has the same.
    pub(super) fn carried(&self, input: NodeId, output: NodeId) -> (NodeId, NodeId) {
        let new = self.behind_views(output);
        let dims = self.dims(new);
        let view = if dims == self.dims(input) { Some(input) } else { self.views.of.get(&(input, dims)).copied() };
        view.map_or((input, output), |old| (old, new))
    }

    /// The array whose elements, in their order, a node has under dimensions of its own.
    pub(super) fn behind_views(&self, mut id: NodeId) -> NodeId {
        while let Some(dep) = self.first_dep(id)
            && self.instruction(id).is_some_and(|i| is_view(i, self.node(dep).shape))
        {
            id = dep;
        }
        id
    }

    /// The initial values of all leaves of the `while` at a site, by leaf.
    pub(super) fn initial_of(&self, computation: ComputationId, site: InstructionId) -> &[NodeId] {
        self.loops.get(&(computation, site)).map(Vec::as_slice).unwrap_or_default()
    }

    /// The initial values of all leaves of the `while` that a node belongs to, by leaf.
    pub(super) fn initial(&self, leaf: NodeId) -> &[NodeId] {
        let node = self.node(leaf);
        self.loops.get(&(node.computation, node.instruction)).map(Vec::as_slice).unwrap_or_default()
    }

    /// Name for messages: `%add.3`, with the leaf where the instruction is a tuple.
    pub(super) fn display(&self, id: NodeId) -> String {
        self.value(id).display(self.module, self.node(id).computation)
    }

    /// One element, or the same value spread over more: a broadcast of a scalar and what is computed from such.
    #[allow(clippy::indexing_slicing, reason = "one entry per node")]
    pub(super) fn uniform(&self, id: NodeId) -> bool {
        self.uniform[id.index()]
    }

    /// The value of a uniform node that is known at compile time.
    #[allow(clippy::indexing_slicing, reason = "one entry per node")]
    pub(super) fn constant(&self, id: NodeId) -> Option<f64> {
        self.constants[id.index()]
    }

    /// Whether the node only changes representation: type, layout or nothing.
    pub(super) fn is_conversion(&self, id: NodeId) -> bool {
        matches!(
            self.op(id),
            Op::Hlo(
                Opcode::Convert
                    | Opcode::Copy
                    | Opcode::Bitcast
                    | Opcode::ReducePrecision
                    | Opcode::OptimizationBarrier
            )
        )
    }

    /// The value behind conversions.
    pub(super) fn through_conversions(&self, mut id: NodeId) -> NodeId {
        while self.is_conversion(id)
            && let Some(dep) = self.first_dep(id)
        {
            id = dep;
        }
        id
    }

    /// The scalar behind broadcasts, reshapes and conversions of a uniform node.
    pub(super) fn strip_uniform(&self, mut id: NodeId) -> NodeId {
        while self.uniform(id)
            && (self.is_conversion(id) || matches!(self.op(id), Op::Hlo(Opcode::Broadcast | Opcode::Reshape)))
            && let Some(dep) = self.first_dep(id)
        {
            id = dep;
        }
        id
    }

    /// Whether each element depends only on the same element of the operands.
    pub(super) fn is_elementwise(&self, id: NodeId) -> bool {
        match self.op(id) {
            Op::Phi => true,
            Op::While => false,
            Op::Hlo(opcode) => {
                opcode.is_elementwise()
                    || matches!(opcode, Opcode::Bitcast | Opcode::OptimizationBarrier | Opcode::AllReduce)
            }
        }
    }

    fn classify_uniform(&mut self) {
        let mut uniform: Vec<bool> = Vec::with_capacity(self.nodes.len());
        for id in self.ids() {
            let node = self.node(id);
            let spreads = matches!(node.op, Op::Hlo(Opcode::Broadcast | Opcode::Reshape)) || self.is_elementwise(id);
            let all =
                !node.deps.is_empty() && node.deps.iter().all(|d| uniform.get(d.index()).copied().unwrap_or(false));
            uniform.push(self.is_scalar(id) || (spreads && all));
        }
        self.uniform = uniform;
    }

    fn fold_constants(&mut self) {
        let mut constants: Vec<Option<f64>> = Vec::with_capacity(self.nodes.len());
        for id in self.ids() {
            let known = |d: NodeId| constants.get(d.index()).copied().flatten();
            let value = match (self.op(id), self.deps(id)) {
                (Op::Hlo(Opcode::Constant), _) if self.is_scalar(id) => {
                    self.instruction(id).and_then(|i| i.attributes.literal.as_option()).and_then(scalar_literal)
                }
                (Op::Hlo(_), _) if !self.uniform(id) => None,
                (Op::Hlo(opcode), &[x]) => known(x).and_then(|x| fold_unary(opcode, x)),
                (Op::Hlo(opcode), &[x, y]) => known(x).zip(known(y)).and_then(|(x, y)| fold_binary(opcode, x, y)),
                _ => None,
            };
            constants.push(value.filter(|v| v.is_finite()));
        }
        self.constants = constants;
    }
}

fn fold_unary(opcode: Opcode, x: f64) -> Option<f64> {
    Some(match opcode {
        Opcode::Broadcast | Opcode::Reshape | Opcode::Convert | Opcode::Copy | Opcode::Bitcast => x,
        Opcode::Negate => -x,
        Opcode::Sqrt => x.sqrt(),
        Opcode::Rsqrt => 1.0 / x.sqrt(),
        Opcode::Exp => x.exp(),
        Opcode::Log => x.ln(),
        _ => return None,
    })
}

fn fold_binary(opcode: Opcode, x: f64, y: f64) -> Option<f64> {
    Some(match opcode {
        Opcode::Add => x + y,
        Opcode::Subtract => x - y,
        Opcode::Multiply => x * y,
        Opcode::Divide => x / y,
        Opcode::Power => x.powf(y),
        Opcode::Maximum => x.max(y),
        Opcode::Minimum => x.min(y),
        _ => return None,
    })
}

fn scalar_literal(literal: &LiteralProto) -> Option<f64> {
    let half = |bytes: &[u8]| Some(u16::from_le_bytes([*bytes.first()?, *bytes.get(1)?]));
    literal
        .f32s
        .first()
        .map(|&v| f64::from(v))
        .or_else(|| literal.f64s.first().copied())
        .or_else(|| literal.s32s.first().map(|&v| f64::from(v)))
        .or_else(|| literal.u32s.first().map(|&v| f64::from(v)))
        .or_else(|| literal.s64s.first().map(|&v| v as f64))
        .or_else(|| literal.u64s.first().map(|&v| v as f64))
        .or_else(|| literal.preds.first().map(|&v| f64::from(u8::from(v))))
        .or_else(|| half(&literal.bf16s).map(|v| f64::from(half::bf16::from_bits(v))))
        .or_else(|| half(&literal.f16s).map(|v| f64::from(half::f16::from_bits(v))))
}

/// Whether an instruction has all elements of its operand in their order, and only its dimensions are its own.
fn is_view(instruction: &Instruction, operand: &ShapeProto) -> bool {
    let shape = &instruction.shape.0;
    let elements = |s: &ShapeProto| s.dimensions.iter().fold(1i64, |n, &d| n.saturating_mul(d));
    let keeps_order = match instruction.opcode {
        Opcode::Reshape => true,
        Opcode::Slice => shape.dimensions == operand.dimensions,
        Opcode::Broadcast => instruction.attributes.dimensions.is_sorted(),
        _ => false,
    };
    keeps_order && shape.element_type == operand.element_type && elements(shape) == elements(operand)
}

/// The leaves of a shape by reference, depth first.
fn leaf_shapes<'m>(shape: &'m ShapeProto, out: &mut Vec<&'m ShapeProto>) {
    if shape.element_type.as_known() == Some(PrimitiveType::TUPLE) {
        shape.tuple_shapes.iter().for_each(|s| leaf_shapes(s, out));
    } else {
        out.push(shape);
    }
}

fn leaf_count(shape: &ShapeProto) -> usize {
    if shape.element_type.as_known() == Some(PrimitiveType::TUPLE) {
        shape.tuple_shapes.iter().map(leaf_count).sum()
    } else {
        1
    }
}

impl<'m> Builder<'m> {
    fn malformed(&self, computation: &Computation, instruction: &Instruction, what: &str) -> DiscoverError {
        DiscoverError::Malformed {
            computation: computation.name.clone(),
            instruction: instruction.to_string(),
            what: what.into(),
        }
    }

    fn push(&mut self, node: Node<'m>) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(node);
        id
    }

    /// Adds the nodes of a computation; returns the leaves of its root.
    fn computation(
        &mut self,
        id: ComputationId,
        arguments: Option<&[Vec<NodeId>]>,
        inner: bool,
    ) -> Result<Vec<NodeId>, DiscoverError> {
        let computation = self
            .module
            .computation(id)
            .ok_or_else(|| DiscoverError::NoSuchComputation { computation: id.index().to_string() })?;
        if self.depth > MAX_DEPTH {
            return Err(DiscoverError::TooDeep { computation: computation.name.clone(), limit: MAX_DEPTH });
        }
        self.depth += 1;
        let mut leaves: Vec<Vec<NodeId>> = vec![Vec::new(); computation.arena_len()];
        // Inputs are numbered by parameter number, whatever the order of the instructions.
        if arguments.is_none() {
            for parameter in computation.parameters() {
                let Some(instruction) = computation.get(parameter) else {
                    continue;
                };
                let made = self.leaves_of(id, parameter, instruction, Op::Hlo(Opcode::Parameter), &[], inner);
                self.inputs.extend(&made);
                if let Some(slot) = leaves.get_mut(parameter.index()) {
                    *slot = made;
                }
            }
        }
        for (instruction_id, instruction) in computation.instructions() {
            if arguments.is_none() && instruction.opcode == Opcode::Parameter {
                continue;
            }
            let operands: Vec<&[NodeId]> = instruction
                .operands
                .iter()
                .map(|o| leaves.get(o.index()).map(Vec::as_slice).unwrap_or_default())
                .collect();
            let made = self.instruction(id, computation, instruction_id, instruction, &operands, arguments, inner)?;
            if let Some(slot) = leaves.get_mut(instruction_id.index()) {
                *slot = made;
            }
        }
        self.depth -= 1;
        Ok(leaves.get_mut(computation.root().index()).map(std::mem::take).unwrap_or_default())
    }

    fn leaves_of(
        &mut self,
        computation: ComputationId,
        id: InstructionId,
        instruction: &'m Instruction,
        op: Op,
        deps: &[NodeId],
        inner: bool,
    ) -> Vec<NodeId> {
        let mut shapes = Vec::with_capacity(1);
        leaf_shapes(&instruction.shape.0, &mut shapes);
        shapes
            .into_iter()
            .enumerate()
            .map(|(leaf, shape)| {
                let deps = deps.to_vec();
                self.push(Node { op, shape, deps, computation, instruction: id, leaf, inner, carry: None })
            })
            .collect()
    }

    #[allow(clippy::too_many_arguments, reason = "one site's context, not options")]
    fn instruction(
        &mut self,
        computation_id: ComputationId,
        computation: &'m Computation,
        id: InstructionId,
        instruction: &'m Instruction,
        operands: &[&[NodeId]],
        arguments: Option<&[Vec<NodeId>]>,
        inner: bool,
    ) -> Result<Vec<NodeId>, DiscoverError> {
        let all = || operands.iter().flat_map(|l| l.iter().copied()).collect::<Vec<_>>();
        let bad = |b: &Self, what: &str| b.malformed(computation, instruction, what);
        match instruction.opcode {
            Opcode::Parameter => {
                let argument = instruction.index().and_then(|n| arguments.and_then(|a| a.get(n)));
                argument.cloned().ok_or_else(|| bad(self, "no argument is passed for it"))
            }
            Opcode::Tuple | Opcode::OptimizationBarrier => Ok(all()),
            Opcode::GetTupleElement => {
                let source = instruction.operands.first().and_then(|&o| computation.get(o));
                let source = source.ok_or_else(|| bad(self, "its operand does not exist"))?;
                let index = instruction.index().ok_or_else(|| bad(self, "its tuple index is negative"))?;
                let elements = &source.shape.0.tuple_shapes;
                let offset: usize = elements.iter().take(index).map(leaf_count).sum();
                let count = elements.get(index).map(leaf_count).ok_or_else(|| bad(self, "no such element"))?;
                let range = operands.first().and_then(|l| l.get(offset..offset + count));
                Ok(range.ok_or_else(|| bad(self, "the tuple has fewer leaves than its shape"))?.to_vec())
            }
            Opcode::Call => {
                let callee = *instruction.called.first().ok_or_else(|| bad(self, "it calls nothing"))?;
                let passed: Vec<_> = operands.iter().map(|l| l.to_vec()).collect();
                self.computation(callee, Some(&passed), inner)
            }
            Opcode::CustomCall
                if TRANSPARENT.contains(&instruction.attributes.custom_call_target.as_str())
                    && all().len() == leaf_count(&instruction.shape.0) =>
            {
                Ok(all())
            }
            Opcode::Conditional => self.conditional(computation_id, id, instruction, operands, inner),
            Opcode::While => {
                let body = loop_body(self.module, instruction)
                    .ok_or_else(|| bad(self, "its body cannot be told from its condition"))?;
                let dependencies = self.body_dependencies(body)?;
                let initial = operands.first().copied().unwrap_or_default();
                let mut shapes = Vec::new();
                leaf_shapes(&instruction.shape.0, &mut shapes);
                let (depends, passes) = &*dependencies;
                if initial.len() != shapes.len() || depends.len() != shapes.len() {
                    return Err(bad(self, "its state and its body differ in number of leaves"));
                }
                self.loops.insert((computation_id, id), initial.to_vec());
                let mut made = Vec::with_capacity(shapes.len());
                for (leaf, ((shape, &carry), (on, &through))) in
                    shapes.into_iter().zip(initial).zip(depends.iter().zip(passes)).enumerate()
                {
                    if through {
                        made.push(carry);
                        continue;
                    }
                    let mut deps: Vec<_> = on.iter().filter_map(|&j| initial.get(j)).copied().collect();
                    deps.sort_unstable();
                    deps.dedup();
                    made.push(self.push(Node {
                        op: Op::While,
                        shape,
                        deps,
                        computation: computation_id,
                        instruction: id,
                        leaf,
                        inner,
                        carry: Some(carry),
                    }));
                }
                Ok(made)
            }
            opcode => {
                let operand = operands.first().and_then(|l| l.first()).copied();
                let input = operand.and_then(|operand| self.viewed(instruction, operand));
                if let Some(known) = input.and_then(|input| self.known_view(input, &instruction.shape.0, inner)) {
                    return Ok(vec![known]);
                }
                let made = self.leaves_of(computation_id, id, instruction, Op::Hlo(opcode), &all(), inner);
                if let (Some(input), &[view]) = (input, made.as_slice()) {
                    self.views.of.insert((input, &instruction.shape.0.dimensions), view);
                    self.views.input.insert(view, input);
                }
                Ok(made)
            }
        }
    }

    /// The input that an instruction is a view of.
    fn viewed(&self, instruction: &Instruction, operand: NodeId) -> Option<NodeId> {
        let node = self.nodes.get(operand.index()).filter(|node| is_view(instruction, node.shape))?;
        let is_input = node.op == Op::Hlo(Opcode::Parameter);
        is_input.then_some(operand).or_else(|| self.views.input.get(&operand).copied())
    }

    /// The node that an input is under the dimensions of `shape`, where there is one: outside of branches none that is inside.
    fn known_view(&self, input: NodeId, shape: &'m ShapeProto, inner: bool) -> Option<NodeId> {
        let node = |id: NodeId| self.nodes.get(id.index());
        if node(input)?.shape.dimensions == shape.dimensions {
            return Some(input);
        }
        let known = self.views.of.get(&(input, shape.dimensions.as_slice())).copied()?;
        (inner || !node(known)?.inner).then_some(known)
    }

    fn conditional(
        &mut self,
        computation: ComputationId,
        id: InstructionId,
        instruction: &'m Instruction,
        operands: &[&[NodeId]],
        inner: bool,
    ) -> Result<Vec<NodeId>, DiscoverError> {
        let predicate = operands.first().and_then(|l| l.first()).copied();
        let mut branches = Vec::with_capacity(instruction.called.len());
        for (branch, &callee) in instruction.called.iter().enumerate() {
            let argument = operands.get(branch + 1).map(|l| l.to_vec()).unwrap_or_default();
            branches.push(self.computation(callee, Some(&[argument]), true)?);
        }
        let mut shapes = Vec::new();
        leaf_shapes(&instruction.shape.0, &mut shapes);
        let mut made = Vec::with_capacity(shapes.len());
        for (leaf, shape) in shapes.into_iter().enumerate() {
            let values: Vec<NodeId> = branches.iter().filter_map(|b| b.get(leaf)).copied().collect();
            match values.split_first() {
                Some((first, rest)) if rest.iter().all(|v| v == first) => made.push(*first),
                _ => {
                    let deps = predicate.into_iter().chain(values).collect();
                    let carry = None;
                    made.push(self.push(Node {
                        op: Op::Phi,
                        shape,
                        deps,
                        computation,
                        instruction: id,
                        leaf,
                        inner,
                        carry,
                    }));
                }
            }
        }
        Ok(made)
    }

    /// For each leaf of a loop body's result: the leaves it depends on after any number of iterations, and
    /// whether it is passed through unchanged.
    fn body_dependencies(&mut self, body: ComputationId) -> Result<BodyDependencies, DiscoverError> {
        if let Some(known) = self.bodies.get(&body) {
            return Ok(known.clone());
        }
        let graph = Graph::at_depth(self.module, body, self.depth)?;
        let reach = Reach::new(&graph, &graph.inputs, |_, _| true);
        let mut depends: Vec<Vec<bool>> = graph
            .outputs
            .iter()
            .enumerate()
            .map(|(k, &o)| (0..graph.inputs.len()).map(|j| j == k || reach.reaches(j, o)).collect())
            .collect();
        // Transitive closure: an iteration's result feeds the next one's input.
        for via in 0..depends.len() {
            let Some(through) = depends.get(via).cloned() else {
                continue;
            };
            for row in &mut depends {
                if row.get(via).copied().unwrap_or(false) {
                    row.iter_mut().zip(&through).for_each(|(a, &b)| *a |= b);
                }
            }
        }
        let passes = graph.outputs.iter().zip(&graph.inputs).map(|(o, i)| o == i).collect();
        let listed = depends
            .into_iter()
            .map(|row| row.into_iter().enumerate().filter(|&(_, d)| d).map(|(j, _)| j).collect())
            .collect();
        let known: BodyDependencies = std::rc::Rc::new((listed, passes));
        self.bodies.insert(body, known.clone());
        Ok(known)
    }
}

/// The body of a `while`: the callee whose result is not a scalar predicate.
pub(super) fn loop_body(module: &Module, instruction: &Instruction) -> Option<ComputationId> {
    let is_condition = |c: &ComputationId| {
        let root = module.computation(*c).and_then(Computation::root_instruction);
        root.is_some_and(|r| r.shape.is_scalar() && r.shape.element_type() == PrimitiveType::PRED)
    };
    let mut bodies = instruction.called.iter().filter(|c| !is_condition(c));
    bodies.next().or(instruction.called.first()).copied()
}

/// Which of a list of sources every node is computed from, one bit per source.
///
/// A row has a bit for every state, and there are as many nodes as a large model has operations. But most nodes are
/// computed from just what one of their operands is computed from: they share its row, and a row is made only where
/// operands bring together what none of them has alone.
#[derive(Debug)]
pub(super) struct Reach {
    words: usize,
    /// Distinct rows, one after the other; the first one is empty.
    rows: Vec<u64>,
    /// The row of each node.
    row_of: Vec<usize>,
}

impl Reach {
    /// Propagates along edges `(user, operand)` for which `edge` says yes.
    pub(super) fn new(graph: &Graph<'_>, sources: &[NodeId], edge: impl Fn(NodeId, NodeId) -> bool) -> Self {
        let words = sources.len().div_ceil(64).max(1);
        let mut bits_of = HashMap::<NodeId, Vec<usize>>::with_capacity(sources.len());
        for (bit, &source) in sources.iter().enumerate() {
            bits_of.entry(source).or_default().push(bit);
        }
        let mut reach = Self { words, rows: vec![0; words], row_of: Vec::with_capacity(graph.len()) };
        for id in graph.ids() {
            // Rows up to here belong to other nodes as well.
            let shared = reach.rows.len() / words;
            let mut row = bits_of.get(&id).map_or(0, |bits| reach.push_bits(bits));
            for &dep in graph.deps(id).iter().filter(|&&dep| edge(id, dep)) {
                let from = reach.row_of.get(dep.index()).copied().unwrap_or(0);
                row = reach.union(row, from, shared);
            }
            reach.row_of.push(row);
        }
        reach
    }

    /// A new row with these bits.
    fn push_bits(&mut self, bits: &[usize]) -> usize {
        let start = self.rows.len();
        self.rows.resize(start + self.words, 0);
        for &bit in bits {
            if let Some(word) = self.rows.get_mut(start + bit / 64) {
                *word |= 1 << (bit % 64);
            }
        }
        start / self.words
    }

    /// A row that has the bits of both: one of the two where it has all of them, `a` itself where it is not among the
    /// first `shared`, else a new one.
    fn union(&mut self, a: usize, b: usize, shared: usize) -> usize {
        if a == b {
            return a;
        }
        let (x, y) = (self.at(a), self.at(b));
        if y.iter().zip(x).all(|(y, x)| y & !x == 0) {
            return a;
        }
        if x.iter().zip(y).all(|(x, y)| x & !y == 0) {
            return b;
        }
        let mut made = a;
        if a < shared {
            made = self.rows.len() / self.words;
            self.rows.extend_from_within(a * self.words..(a + 1) * self.words);
        }
        // What may be changed is the last row; `b` is before it.
        let (before, rest) = self.rows.split_at_mut(made * self.words);
        let from = before.get(b * self.words..(b + 1) * self.words).unwrap_or_default();
        rest.iter_mut().zip(from).for_each(|(word, more)| *word |= more);
        made
    }

    fn at(&self, row: usize) -> &[u64] {
        self.rows.get(row * self.words..(row + 1) * self.words).unwrap_or_default()
    }

    /// The bits of a node, lowest source first.
    pub(super) fn row(&self, id: NodeId) -> &[u64] {
        self.at(self.row_of.get(id.index()).copied().unwrap_or(0))
    }

    /// Whether source number `source` reaches the node.
    pub(super) fn reaches(&self, source: usize, id: NodeId) -> bool {
        self.row(id).get(source / 64).is_some_and(|w| w >> (source % 64) & 1 == 1)
    }

    /// Whether any source of `mask` reaches the node.
    pub(super) fn reaches_any(&self, mask: &[u64], id: NodeId) -> bool {
        self.row(id).iter().zip(mask).any(|(a, b)| a & b != 0)
    }

    /// The sources that reach the node.
    pub(super) fn sources(&self, id: NodeId) -> impl Iterator<Item = usize> + '_ {
        bits(self.row(id))
    }
}

/// The positions of set bits, ascending.
pub(super) fn bits(words: &[u64]) -> impl Iterator<Item = usize> + '_ {
    words.iter().enumerate().flat_map(|(w, &word)| {
        std::iter::successors(Some(word), |&rest| Some(rest & rest.wrapping_sub(1)))
            .take_while(|&rest| rest != 0)
            .map(move |rest| w * 64 + rest.trailing_zeros() as usize)
    })
}
