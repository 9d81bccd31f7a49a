//! `gradient-all-reduce`: a step of one device becomes data-parallel.
//!
//! Every replica runs the step at the batch size it was exported with, on data of its own. Each gradient is reduced over
//! all replicas where it is raw, before clipping and weight decay, so that everything the optimizer sees is the global
//! gradient; hence states that begin alike stay alike, bit for bit, and control needs no exchange of its own.
//!
//! ```text
//! mean            g = Σ gₖ / N                 N replicas, all of the same weight
//! mean by count   g = Σ cₖ·gₖ / Σ cₖ           where each normalises by its own count cₖ of what counts (masked tokens);
//!                                              a replica where nothing does is left out
//! sum             g = Σ gₖ                     for losses that add up over examples
//! ```
//!
//! What else differs between replicas, by what it is:
//!
//! - the loss: as the gradient;
//! - statistics of the data (BatchNorm): the mean over replicas, which for variances leaves out how far apart the means are;
//! - metrics that are carried along: floating-point ones as the mean, integers by the sum of what each replica added;
//! - a random key: replica k draws from the key XOR k, so replica 0 as the step does alone; the next key is that of replica 0;
//! - records that the steps of a loop add to: what each step adds, as below;
//! - outputs that nothing carries along: scalars as metrics are, larger ones (predictions) stay each replica's own.
//!
//! Whatever else would let states of replicas drift apart is refused by name.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroU32;

use hlo::build::{Builder, Built, ComparisonDirection, sanitize};
use hlo::partitioning::Partitioning;
use hlo::{ComputationId, Instruction, InstructionId, Module, Opcode, PrimitiveType};
use serde::{Deserialize, Serialize};

use crate::discover::{DataCount, data_dependent_counts, varying_outputs};
use crate::measure_entropy::refuse_unsupported;
use crate::names;
use crate::pass::{Changed, Context, Pass, PassError};
use crate::step::{State, StateRole, TrainStep, Value};
use crate::values::{materialise, readers, replace_outputs, scalar};

/// How a step is made data-parallel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replicas {
    /// How many replicas there are.
    pub count: NonZeroU32,
    /// How their gradients become one.
    pub reduction: Reduction,
    /// What each counts for in a mean, where the step normalises by a count that its data decides.
    pub weighting: Option<Weighting>,
}

/// How the gradients of all replicas become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Their mean: for a loss that is a mean over examples.
    #[default]
    Mean,
    /// Their sum: for a loss that adds up over examples.
    Sum,
}

/// What each replica counts for in a mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// As much as any other.
    Equal,
    /// As much as it divides by: the mean is that over everything that counts, on whichever replica it is.
    Count,
}

/// The pass, see the module's documentation.
#[derive(Debug, Clone, Copy)]
pub struct GradientAllReduce {
    /// How.
    pub replicas: Replicas,
}

impl Pass for GradientAllReduce {
    fn name(&self) -> &'static str {
        "gradient-all-reduce"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        let mut step = context.step()?.clone();
        refuse_unsupported(module, &step)?;
        refuse_parallel(module)?;
        let count = self.count(module, &step)?;
        let mut emitter = Emitter::new(module, self.replicas, count)?;
        emitter.own_keys(&step)?;
        let local = emitter.reduce_gradients(&mut step)?;
        emitter.reduce_outputs(&mut step)?;
        let entry = module.entry();
        module.sort(entry)?;
        refuse_drift(module, &step)?;
        context.local_gradients = local;
        context.replicas = Some(self.replicas);
        context.step = Some(step);
        Ok(Changed::Yes)
    }
}

impl GradientAllReduce {
    /// The count that weighs this replica; nothing where all weigh the same.
    fn count(&self, module: &Module, step: &TrainStep) -> Result<Option<Value>, PassError> {
        let counts = data_dependent_counts(module, step)?;
        let names = || counts.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
        let refuse = |reason: String| Err(PassError::NotReplicable { reason });
        match (self.replicas.reduction, self.replicas.weighting, counts.as_slice()) {
            (Reduction::Sum, Some(Weighting::Count), _) => refuse(
                "a sum over replicas has no weights; choose `--reduction mean`, or leave `--weighting` out".to_owned(),
            ),
            (_, None, []) | (_, Some(Weighting::Equal), _) => Ok(None),
            (Reduction::Sum, None, [_, ..]) | (Reduction::Mean, None, [_, ..]) => refuse(format!(
                "it divides by {}, a count that its data decides (such as tokens that are not masked), so the mean of what each \
                 replica normalised by its own count is not what one device would make of the whole batch. Choose `--weighting \
                 count` to weigh each replica by its count, or `--weighting equal` to have them count alike",
                names()
            )),
            (Reduction::Mean, Some(Weighting::Count), [DataCount { value, reachable: true, .. }]) => Ok(Some(*value)),
            (Reduction::Mean, Some(Weighting::Count), []) => refuse(
                "there is no count to weigh replicas by: it divides by nothing that its data alone decides; leave \
                 `--weighting` out"
                    .to_owned(),
            ),
            (Reduction::Mean, Some(Weighting::Count), [single]) => refuse(format!(
                "the count {} is computed inside a branch or a loop, where it cannot be read; compute it outside",
                single.name
            )),
            (Reduction::Mean, Some(Weighting::Count), _) => refuse(format!(
                "it divides by several counts that its data decides ({}), and a replica can be weighed by one only",
                names()
            )),
        }
    }
}

/// A step that exchanges something between devices already is parallel, or belongs to something that is.
fn refuse_parallel(module: &Module) -> Result<(), PassError> {
    if let Some(split) = Partitioning::of(module)?.filter(|split| split.partitions > 1) {
        let reason = format!(
            "it is split over {} devices already; give its mesh an axis for the data instead, and export it so",
            split.partitions
        );
        return Err(PassError::NotReplicable { reason });
    }
    let among = |i: &Instruction| i.is_collective() || matches!(i.opcode, Opcode::ReplicaId | Opcode::PartitionId);
    let all = module.computations().flat_map(|(_, c)| c.instructions().map(|(_, i)| i));
    match all.into_iter().find(|i| among(i)) {
        None => Ok(()),
        Some(found) => Err(PassError::NotReplicable {
            reason: format!(
                "{found} ({}) shows that it runs on several devices already; run it as it was exported, without `--replicas`",
                found.opcode.name()
            ),
        }),
    }
}

/// Emits what goes over all replicas.
struct Emitter<'m> {
    b: Builder<'m>,
    replicas: Replicas,
    /// This replica's count in f32\[\], and that of all of them.
    count: Option<(InstructionId, InstructionId)>,
    reducers: BTreeMap<&'static str, ComputationId>,
}

impl<'m> Emitter<'m> {
    fn new(module: &'m mut Module, replicas: Replicas, count: Option<Value>) -> Result<Self, PassError> {
        let b = Builder::at_entry(module);
        let mut emitter = Self { b, replicas, count: None, reducers: BTreeMap::new() };
        if let Some(count) = count {
            emitter.scope("count", "count");
            let own = scalar(&mut emitter.b, count, PrimitiveType::F32)?;
            emitter.count = Some((own, emitter.sum(own)?));
        }
        Ok(emitter)
    }

    fn scope(&mut self, short: &str, name: &str) {
        self.b.set_scope(&format!("entropic.all_reduce.{short}"), &format!("entropic/gradient-all-reduce/{name}"));
    }

    /// Σ x over all replicas, in the type of x.
    fn sum(&mut self, x: InstructionId) -> Result<InstructionId, PassError> {
        let element_type = self.b.shape(x)?.element_type();
        let reducer = match self.reducers.get(element_type.name()) {
            Some(&known) => known,
            None => {
                let name = format!("entropic.add.{}", element_type.name());
                let made = Builder::reducer(self.b.module_mut(), &name, Opcode::Add, element_type)?;
                self.reducers.insert(element_type.name(), made);
                made
            }
        };
        Ok(self.b.all_reduce(x, reducer)?)
    }

    /// Σ x / N.
    fn mean(&mut self, x: InstructionId) -> Result<InstructionId, PassError> {
        let sum = self.sum(x)?;
        let number = self.b.constant(PrimitiveType::F32, f64::from(self.replicas.count.get()))?;
        let number = self.like(number, sum)?;
        Ok(self.b.divide(sum, number)?)
    }

    /// x of all replicas as the step's gradient and loss become one.
    fn reduced(&mut self, x: InstructionId) -> Result<InstructionId, PassError> {
        match (self.replicas.reduction, self.count) {
            (Reduction::Sum, _) => self.sum(x),
            (Reduction::Mean, None) => self.mean(x),
            (Reduction::Mean, Some((own, all))) => {
                let narrow = self.b.shape(x)?.element_type();
                // A count has more digits than narrow types.
                let wide = if narrow.bits() < 32 { self.b.convert(x, PrimitiveType::F32)? } else { x };
                let own = self.like(own, wide)?;
                let weighed = self.b.multiply(wide, own)?;
                // Where nothing counts, the replica divided by zero.
                let zero = self.b.constant_f32(0.0)?;
                let zero = self.like(zero, wide)?;
                let empty = self.b.compare(own, zero, ComparisonDirection::Eq)?;
                let weighed = self.b.select(empty, zero, weighed)?;
                let sum = self.sum(weighed)?;
                let all = self.like(all, sum)?;
                let mean = self.b.divide(sum, all)?;
                Ok(if wide == x { mean } else { self.b.convert(mean, narrow)? })
            }
        }
    }

    fn like(&mut self, number: InstructionId, x: InstructionId) -> Built {
        let number = self.b.convert(number, self.b.shape(x)?.element_type())?;
        self.b.broadcast_scalar_like(number, x)
    }

    /// Lets every replica draw from a key of its own.
    fn own_keys(&mut self, step: &TrainStep) -> Result<(), PassError> {
        for state in step.states.iter().filter(|s| s.role == StateRole::RngKey) {
            self.scope("key", &state.name);
            let key = materialise(&mut self.b, state.value)?;
            let shape = self.b.shape(key)?;
            if !shape.element_type().is_integral() {
                return Err(PassError::NotReplicable {
                    reason: format!("the random key {} is {shape}, and keys are integers", state.name),
                });
            }
            let replica = self.b.replica_id()?;
            let replica = self.like(replica, key)?;
            let own = self.b.named(&format!("entropic.own_key.{}", sanitize(&state.name))).xor(key, replica)?;
            let entry = self.b.module().entry();
            self.b.module_mut().replace_uses(entry, &HashMap::from([(key, own)]), &HashSet::from([own]))?;
        }
        Ok(())
    }

    /// Reduces every gradient where it is raw; returns what it was on this replica, by input number of the parameter.
    fn reduce_gradients(&mut self, step: &mut TrainStep) -> Result<BTreeMap<usize, InstructionId>, PassError> {
        let found: Vec<_> = step.controlled().map(|(p, g)| (p.name.clone(), p.input, g.raw)).collect();
        let short = names::short(&found.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>());
        let entry = self.b.module().entry();
        let users = self.b.module().entry_computation().users();
        let mut local = BTreeMap::new();
        let mut done: HashMap<Value, InstructionId> = HashMap::new();
        for ((name, input, raw), short) in found.iter().zip(&short) {
            self.scope(short, name);
            if let Some(&own) = done.get(raw) {
                local.insert(*input, own);
                continue;
            }
            let read = readers(self.b.module().entry_computation(), &users, *raw, name)?;
            let own = materialise(&mut self.b, *raw)?;
            let first = self.b.module().entry_computation().arena_len();
            let reduced = self.reduced(own)?;
            let all = self.b.module().entry_computation().order();
            let made = all.iter().copied().filter(|id| id.index() >= first).collect();
            let replacements = read.into_iter().chain([own]).map(|reader| (reader, reduced)).collect();
            self.b.module_mut().replace_uses(entry, &replacements, &made)?;
            step.replace(*raw, Value::array(reduced));
            local.insert(*input, own);
            done.insert(*raw, own);
        }
        Ok(local)
    }

    /// x of replica 0.
    fn of_first(&mut self, x: InstructionId) -> Result<InstructionId, PassError> {
        let replica = self.b.replica_id()?;
        let zero = self.b.constant(PrimitiveType::U32, 0.0)?;
        let first = self.b.compare(replica, zero, ComparisonDirection::Eq)?;
        let first = self.b.broadcast_scalar_like(first, x)?;
        let zero = self.like(zero, x)?;
        let own = self.b.select(first, x, zero)?;
        self.sum(own)
    }

    /// Makes one of what replicas return differently, each output by what it is.
    fn reduce_outputs(&mut self, step: &mut TrainStep) -> Result<(), PassError> {
        let entry = self.b.module().entry();
        self.b.module_mut().sort(entry)?;
        let varying = varying_outputs(self.b.module(), step)?;
        let outputs = self.b.module().entry_computation().outputs();
        let mut replacements = HashMap::new();
        for (index, (&value, _)) in outputs.iter().zip(&varying).enumerate().filter(|(_, (_, varies))| **varies) {
            let reduced = match step.states.iter().position(|s| s.output == index) {
                Some(position) => self.next_state(step, position, value)?,
                None if step.loss == Some(index) => {
                    self.scope("loss", "loss");
                    Some(self.reduced(value)?)
                }
                None => self.report(step, index, value)?,
            };
            if let Some(reduced) = reduced {
                replacements.insert(index, reduced);
            }
        }
        replace_outputs(self.b.module_mut(), &replacements)
    }

    /// The next value of a state, made one of those of all replicas; nothing where there is no rule for it.
    fn next_state(
        &mut self,
        step: &mut TrainStep,
        position: usize,
        new: InstructionId,
    ) -> Result<Option<InstructionId>, PassError> {
        let loss = step.loss;
        let Some(state) = step.states.get_mut(position) else { return Ok(None) };
        self.scope(&sanitize(&state.name), &state.name);
        let element_type = self.b.shape(new)?.element_type();
        if let Some((writer, operand, written)) = self.written(state, new) {
            let one = self.b.shape(written)?.num_elements() == 1;
            let reduced = match element_type {
                _ if loss == Some(state.output) => self.reduced(written)?,
                narrow if narrow.is_floating() => self.mean(written)?,
                whole if whole.is_integral() && one => self.sum(written)?,
                _ => return Ok(None),
            };
            let entry = self.b.module_mut().entry_computation_mut();
            if let Some(slot) = entry.get_mut(writer).and_then(|i| i.operands.get_mut(operand)) {
                *slot = reduced;
            }
            return Ok(None);
        }
        let reduced = match state.role {
            StateRole::RngKey => self.of_first(new)?,
            StateRole::BatchStatistic | StateRole::Metric if element_type.is_floating() => self.mean(new)?,
            StateRole::Metric if element_type.is_integral() => {
                let old = materialise(&mut self.b, state.value)?;
                let added = self.b.subtract(new, old)?;
                let added = self.sum(added)?;
                self.b.add(old, added)?
            }
            _ => return Ok(None),
        };
        state.new_value = Value::array(reduced);
        Ok(Some(reduced))
    }

    /// Of a record in a loop over steps, what writes to it, as which operand, and what is written: that alone is made one
    /// of those of all replicas, since the rest was by the steps before.
    fn written(&self, state: &State, new: InstructionId) -> Option<(InstructionId, usize, InstructionId)> {
        let writer = self.b.module().entry_computation().get(new)?;
        let operand = match writer.opcode {
            Opcode::DynamicUpdateSlice => 1,
            Opcode::Scatter => 2,
            _ => return None,
        };
        let record = state.role == StateRole::Metric;
        record.then_some((new, operand, *writer.operands.get(operand)?))
    }

    /// What a step reports, made one of that of all replicas; nothing where it stays each replica's own.
    fn report(
        &mut self,
        step: &mut TrainStep,
        index: usize,
        value: InstructionId,
    ) -> Result<Option<InstructionId>, PassError> {
        self.scope(&format!("output.{index}"), &format!("output {index}"));
        let shape = self.b.shape(value)?;
        let element_type = shape.element_type();
        if shape.num_elements() == 1 && element_type.is_floating() {
            return Ok(Some(self.mean(value)?));
        }
        if shape.num_elements() == 1 && element_type.is_integral() {
            return Ok(Some(self.sum(value)?));
        }
        step.notes.push(format!("output {index} is each replica's own"));
        Ok(None)
    }
}

/// States that would differ between replicas after a step, in spite of everything.
fn refuse_drift(module: &Module, step: &TrainStep) -> Result<(), PassError> {
    let varying = varying_outputs(module, step)?;
    let drifts = |s: &&State| varying.get(s.output).copied().unwrap_or(false);
    let states: Vec<_> = step.states.iter().filter(drifts).map(|s| (s.name.clone(), s.reason.clone())).collect();
    if states.is_empty() { Ok(()) } else { Err(PassError::Drifts { states }) }
}
