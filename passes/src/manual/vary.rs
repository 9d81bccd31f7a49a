//! Which values differ between the devices of a mesh.
//!
//! In a program that is written for one device, values of one name may be different ones. To each value belong its
//! *classes*: devices of one class have the same value for certain. An input's classes are its parts. What is computed
//! from several values is the same where all of them are; a sum over groups of devices is the same in groups that have the
//! same values in them, which is how the sum of parts of a batch is one for all devices.

use std::collections::{BTreeMap, HashMap};

use hlo::proto::HloInstructionProto;
use hlo::{Computation, ComputationId, Instruction, Module, Opcode};

/// For each device, the number of its class, counted from 0 in the order of devices.
type Labels = Vec<u32>;

/// Names a distinct [`Labels`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Classes(usize);

/// Classes of values of one module over so many devices.
pub(super) struct Vary<'m> {
    module: &'m Module,
    devices: usize,
    known: Vec<Labels>,
    numbers: HashMap<Labels, Classes>,
    joined: HashMap<(Classes, Classes), Classes>,
}

/// Computations that call each other deeper than this count as different on every device.
const MOST_DEPTH: usize = 64;

impl<'m> Vary<'m> {
    pub(super) fn new(module: &'m Module, devices: usize) -> Self {
        Self { module, devices, known: Vec::new(), numbers: HashMap::new(), joined: HashMap::new() }
    }

    /// Classes by some key of each device.
    pub(super) fn classes<K: Ord>(&mut self, keys: impl IntoIterator<Item = K>) -> Classes {
        let mut numbers = BTreeMap::new();
        let mut labels = Vec::with_capacity(self.devices);
        for key in keys {
            let next = numbers.len() as u32;
            labels.push(*numbers.entry(key).or_insert(next));
        }
        if let Some(&known) = self.numbers.get(&labels) {
            return known;
        }
        let made = Classes(self.known.len());
        self.known.push(labels.clone());
        self.numbers.insert(labels, made);
        made
    }

    /// All devices have the same.
    pub(super) fn same(&mut self) -> Classes {
        self.classes(vec![(); self.devices])
    }

    /// Every device may have its own.
    fn own(&mut self) -> Classes {
        self.classes(0..self.devices)
    }

    /// Whether devices have different values.
    pub(super) fn varies(&self, classes: Classes) -> bool {
        self.labels(classes).iter().any(|&label| label != 0)
    }

    fn labels(&self, classes: Classes) -> &[u32] {
        self.known.get(classes.0).map_or(&[], Vec::as_slice)
    }

    /// The classes of what is computed from both.
    fn join(&mut self, a: Classes, b: Classes) -> Classes {
        let key = (a.min(b), a.max(b));
        if a == b {
            return a;
        }
        if let Some(&known) = self.joined.get(&key) {
            return known;
        }
        let pairs: Vec<_> = self.labels(a).iter().copied().zip(self.labels(b).iter().copied()).collect();
        let made = self.classes(pairs);
        self.joined.insert(key, made);
        made
    }

    fn join_all(&mut self, classes: impl IntoIterator<Item = Classes>) -> Classes {
        let mut all = self.same();
        for each in classes {
            all = self.join(all, each);
        }
        all
    }

    /// The classes of every leaf of every instruction of a computation, given those of its parameters' leaves.
    pub(super) fn computation(
        &mut self,
        id: ComputationId,
        arguments: &[Vec<Classes>],
        depth: usize,
    ) -> Vec<Vec<Classes>> {
        let module = self.module;
        let Some(computation) = module.computation(id) else { return Vec::new() };
        let mut made: Vec<Vec<Classes>> = vec![Vec::new(); computation.arena_len()];
        for (instruction_id, instruction) in computation.instructions() {
            let operands: Vec<Vec<Classes>> =
                instruction.operands.iter().map(|o| made.get(o.index()).cloned().unwrap_or_default()).collect();
            let leaves = self.instruction(computation, instruction, &operands, arguments, depth);
            if let Some(slot) = made.get_mut(instruction_id.index()) {
                *slot = leaves;
            }
        }
        made
    }

    fn root(&mut self, id: ComputationId, arguments: &[Vec<Classes>], depth: usize) -> Vec<Classes> {
        let root = self.module.computation(id).map_or(0, |c| c.root().index());
        self.computation(id, arguments, depth + 1).get_mut(root).map(std::mem::take).unwrap_or_default()
    }

    fn instruction(
        &mut self,
        computation: &Computation,
        instruction: &Instruction,
        operands: &[Vec<Classes>],
        arguments: &[Vec<Classes>],
        depth: usize,
    ) -> Vec<Classes> {
        let leaves = instruction.shape.num_leaves();
        let spread = |classes: Classes| vec![classes; leaves];
        match instruction.opcode {
            Opcode::Parameter => {
                let given = instruction.index().and_then(|n| arguments.get(n)).filter(|l| l.len() == leaves).cloned();
                given.unwrap_or_else(|| spread(self.own()))
            }
            Opcode::Tuple | Opcode::OptimizationBarrier => operands.concat(),
            Opcode::GetTupleElement => {
                element(computation, instruction, operands).unwrap_or_else(|| spread(self.own()))
            }
            Opcode::PartitionId | Opcode::ReplicaId | Opcode::Rng | Opcode::RngGetAndUpdateState => spread(self.own()),
            _ if depth > MOST_DEPTH => spread(self.own()),
            Opcode::Call => match instruction.called.first() {
                Some(&callee) => self.root(callee, operands, depth),
                None => spread(self.own()),
            },
            Opcode::Conditional => self.conditional(instruction, operands, depth),
            Opcode::While => self.repeated(instruction, operands, depth),
            Opcode::AllReduce | Opcode::AllReduceStart if operands.len() == leaves => {
                operands.iter().map(|o| self.reduced(instruction, o)).collect()
            }
            Opcode::AllGather | Opcode::AllToAll | Opcode::ReduceScatter | Opcode::AllGatherStart => {
                let all = self.join_all(operands.iter().flatten().copied());
                spread(self.exchanged(instruction, all))
            }
            Opcode::CollectivePermute | Opcode::CollectivePermuteStart => {
                let all = self.join_all(operands.iter().flatten().copied());
                spread(self.permuted(instruction, all))
            }
            Opcode::Unrecognized
            | Opcode::RaggedAllToAll
            | Opcode::CollectiveBroadcast
            | Opcode::Infeed
            | Opcode::Recv => spread(self.own()),
            _ => {
                let all = self.join_all(operands.iter().flatten().copied());
                spread(all)
            }
        }
    }

    fn conditional(&mut self, instruction: &Instruction, operands: &[Vec<Classes>], depth: usize) -> Vec<Classes> {
        let predicate = operands.first().and_then(|p| p.first()).copied();
        let mut made: Vec<Classes> = Vec::new();
        for (branch, &callee) in instruction.called.iter().enumerate() {
            let argument = operands.get(branch + 1).cloned().unwrap_or_default();
            let root = self.root(callee, &[argument], depth);
            made = if made.is_empty() { root } else { self.zipped(made, root) };
        }
        made.into_iter().map(|leaf| self.join_all(predicate.into_iter().chain([leaf]))).collect()
    }

    fn zipped(&mut self, a: Vec<Classes>, b: Vec<Classes>) -> Vec<Classes> {
        a.into_iter().zip(b).map(|(a, b)| self.join(a, b)).collect()
    }

    /// A loop: its state differs wherever some iteration's does.
    fn repeated(&mut self, instruction: &Instruction, operands: &[Vec<Classes>], depth: usize) -> Vec<Classes> {
        let mut state = operands.concat();
        for _ in 0..=state.len().saturating_mul(self.devices) {
            let mut after = state.clone();
            for &callee in &instruction.called {
                let root = self.root(callee, std::slice::from_ref(&state), depth);
                if root.len() == state.len() && !self.is_condition(callee) {
                    after = self.zipped(after, root);
                } else {
                    // Whether the loop goes on: one that differs makes everything differ.
                    let goes_on = self.join_all(root);
                    after = after.into_iter().map(|leaf| self.join(leaf, goes_on)).collect();
                }
            }
            if after == state {
                break;
            }
            state = after;
        }
        state
    }

    fn is_condition(&self, id: ComputationId) -> bool {
        let root = self.module.computation(id).and_then(Computation::root_instruction);
        root.is_some_and(|r| r.shape.is_scalar() && r.shape.element_type() == hlo::PrimitiveType::PRED)
    }

    /// A sum over groups: the same for groups with the same values in them.
    fn reduced(&mut self, instruction: &Instruction, operand: &[Classes]) -> Classes {
        let before = self.join_all(operand.iter().copied());
        let Some(groups) = groups(&instruction.attributes, self.devices) else { return self.own() };
        let labels = self.labels(before).to_vec();
        let mut keys: Vec<Vec<u32>> = labels.iter().map(|&l| vec![l]).collect();
        for group in groups {
            let mut within: Vec<u32> = group.iter().filter_map(|&d| labels.get(d)).copied().collect();
            within.sort_unstable();
            for device in group {
                if let Some(key) = keys.get_mut(device) {
                    key.clone_from(&within);
                }
            }
        }
        self.classes(keys)
    }

    /// What a device receives depends on the values of its group in their order, and on its place there.
    fn exchanged(&mut self, instruction: &Instruction, before: Classes) -> Classes {
        let Some(groups) = groups(&instruction.attributes, self.devices) else { return self.own() };
        let labels = self.labels(before).to_vec();
        let gathers = matches!(instruction.opcode, Opcode::AllGather | Opcode::AllGatherStart);
        let mut keys: Vec<(Vec<u32>, usize)> = labels.iter().map(|&l| (vec![l], 0)).collect();
        for group in groups {
            let within: Vec<u32> = group.iter().filter_map(|&d| labels.get(d)).copied().collect();
            for (place, device) in group.into_iter().enumerate() {
                if let Some(key) = keys.get_mut(device) {
                    *key = (within.clone(), if gathers { 0 } else { place });
                }
            }
        }
        self.classes(keys)
    }

    fn permuted(&mut self, instruction: &Instruction, before: Classes) -> Classes {
        let labels = self.labels(before).to_vec();
        // Devices that receive nothing have zeros.
        let mut keys: Vec<Option<u32>> = vec![None; self.devices];
        for pair in &instruction.attributes.source_target_pairs {
            let at = |n: i64| usize::try_from(n).ok();
            if let (Some(source), Some(target)) = (at(pair.source), at(pair.target))
                && let Some(slot) = keys.get_mut(target)
            {
                *slot = labels.get(source).copied();
            }
        }
        self.classes(keys)
    }
}

/// The leaves of a tuple's element.
fn element(computation: &Computation, instruction: &Instruction, operands: &[Vec<Classes>]) -> Option<Vec<Classes>> {
    let source = computation.get(*instruction.operands.first()?)?;
    let index = instruction.index()?;
    let before: usize = source.shape.tuple_elements().take(index).map(|e| e.num_leaves()).sum();
    let count = source.shape.tuple_elements().nth(index)?.num_leaves();
    operands.first()?.get(before..before + count).map(<[Classes]>::to_vec)
}

/// The groups of a collective, as numbers of devices; none where they are written in a way that is not read here.
fn groups(attributes: &HloInstructionProto, devices: usize) -> Option<Vec<Vec<usize>>> {
    let list = attributes.collective_device_list.as_option();
    let iota = attributes.iota_collective_device_list.as_option();
    let iota = iota.or_else(|| list?.iota_replica_group_list.as_option());
    let listed = list.map(|l| l.replica_groups.as_slice()).filter(|g| !g.is_empty());
    let listed = listed.unwrap_or(&attributes.replica_groups);
    // Without global numbers a group is of replicas; of each replica, all partitions take part where there is a channel.
    if attributes.channel_id > 0 && !attributes.use_global_device_ids {
        return Some(vec![(0..devices).collect()]);
    }
    if let Some(iota) = iota {
        let dims: Vec<i64> = iota.iota_reshape_dims.clone();
        let order = hlo::partitioning::iota(&dims, &iota.iota_transpose_perm)?;
        let size = usize::try_from(iota.num_devices_per_group).ok().filter(|&s| s > 0)?;
        return Some(order.chunks(size).map(<[usize]>::to_vec).collect());
    }
    if listed.is_empty() {
        return Some(vec![(0..devices).collect()]);
    }
    let group = |g: &hlo::proto::ReplicaGroup| g.replica_ids.iter().map(|&d| usize::try_from(d).ok()).collect();
    listed.iter().map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: &str = "%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}
";

    /// Whether the entry's result differs on four devices, of which the first input has a value of its own on each and
    /// the second on each pair.
    fn check(computations: &str, body: &str, expected: bool) {
        let text = format!(
            "HloModule m\n\n{SUM}\n{computations}\nENTRY %main (a: f32[2], b: f32[2]) -> f32[2] {{\n  \
             %a = f32[2]{{0}} parameter(0)\n  %b = f32[2]{{0}} parameter(1)\n{body}\n}}\n"
        );
        let module = hlo::text::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let mut vary = Vary::new(&module, 4);
        let inputs = [vec![vary.own()], vec![vary.classes([0, 0, 1, 1])]];
        let root = vary.root(module.entry(), &inputs, 0);
        assert_eq!(vary.varies(root[0]), expected, "{body}");
    }

    #[test]
    fn sums_over_all_that_differs_are_one() {
        let sum = |of: &str, groups: &str| {
            format!(
                "  ROOT %r = f32[2]{{0}} all-reduce(%{of}), channel_id=1, replica_groups={groups}, use_global_device_ids=true, to_apply=%sum"
            )
        };
        check("", &sum("a", "{{0,1,2,3}}"), false);
        check("", &sum("a", "{{0,1},{2,3}}"), true);
        // Pairs have one of either value each.
        check("", &sum("b", "{{0,2},{1,3}}"), false);
        check("", &sum("b", "{{0,1},{2,3}}"), true);
        check("", &sum("b", "[2,2]<=[2,2]T(1,0)"), false);
        check("", &sum("a", "[1,4]<=[4]"), false);
    }

    #[test]
    fn what_is_computed_from_something_that_differs_differs() {
        check("", "  ROOT %r = f32[2]{0} multiply(%b, %b)", true);
        check("", "  %c = f32[] constant(2)\n  ROOT %r = f32[2]{0} broadcast(%c), dimensions={}", false);
        check(
            "",
            "  %p = u32[] partition-id()\n  %q = f32[] convert(%p)\n  ROOT %r = f32[2]{0} broadcast(%q), dimensions={}",
            true,
        );
    }

    #[test]
    fn a_loop_differs_where_its_state_comes_to() {
        let repeat = |step: &str| {
            let body = format!(
                "%body (s: (s32[], f32[2], f32[2])) -> (s32[], f32[2], f32[2]) {{\n  %s.1 = (s32[], f32[2]{{0}}, f32[2]{{0}}) \
                 parameter(0)\n  %i = s32[] get-tuple-element(%s.1), index=0\n  %u = f32[2]{{0}} get-tuple-element(%s.1), index=1\n  \
                 %v = f32[2]{{0}} get-tuple-element(%s.1), index=2\n{step}\n  ROOT %t = (s32[], f32[2]{{0}}, f32[2]{{0}}) tuple(%i, %w, %v)\n}}\n"
            );
            let condition = "%go (s.2: (s32[], f32[2], f32[2])) -> pred[] {
  %s.3 = (s32[], f32[2]{0}, f32[2]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.3), index=0
  %n = s32[] constant(3)
  ROOT %l = pred[] compare(%i.1, %n), direction=LT
}
";
            format!("{body}\n{condition}")
        };
        let whole = "  %zero = s32[] constant(0)\n  %one = f32[] constant(1)\n  %ones = f32[2]{0} broadcast(%one), dimensions={}\n  \
                     %start = (s32[], f32[2]{0}, f32[2]{0}) tuple(%zero, %ones, %a)\n  \
                     %w.1 = (s32[], f32[2]{0}, f32[2]{0}) while(%start), condition=%go, body=%body\n  \
                     ROOT %r = f32[2]{0} get-tuple-element(%w.1), index=1";
        check(&repeat("  %w = f32[2]{0} add(%u, %v)"), whole, true);
        check(
            &repeat(
                "  %w = f32[2]{0} all-reduce(%v), channel_id=1, replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=%sum",
            ),
            whole,
            false,
        );
    }
}
