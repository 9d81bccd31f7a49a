//! `gate`: a refused step leaves every held state as it was.
//!
//! Each output that succeeds a *held* state returns `select(applied, new, old)`;
//! *advancing* states go on. Classes come from discovery, and the policy's
//! `[states]` overrides them. A state that serves both ways is held unless the policy
//! says otherwise; one without a class is refused with the policy lines that would assign it.
//! Under a policy that refuses nothing, nothing is emitted.
//!
//! How the predicate reaches the states is a property of the target, the [`PredicateStyle`].

use std::collections::HashMap;

use hlo::build::{Builder, Built, ComparisonDirection, sanitize};
use hlo::{Computation, InstructionId, Module, PrimitiveType};

use crate::layout::ClassifiedState;
use crate::mesh;
use crate::pass::{Changed, Context, Pass, PassError};
use crate::policy::Policy;
use crate::step::{StateClass, TrainStep};
use crate::values::{Spread, materialise, replace_outputs};

/// The pass, see the module's documentation.
#[derive(Debug, Clone)]
pub struct Gate {
    /// The policy, for its classes and for whether anything can be refused.
    pub policy: Policy,
    /// How the predicate reaches the states.
    pub predicate: PredicateStyle,
}

/// How the one predicate of a gate reaches the states that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PredicateStyle {
    /// Through a square root, of 0 or of 1, that is compared with a half: for CPU, whose compiler puts cheap scalar
    /// operations into every kernel that needs their result, here all of the decision into every update. It computes a
    /// square root once.
    #[default]
    Rooted,
    /// As it is: for TPU.
    Plain,
    /// Over each shape of at most [`SHARED_LIMIT`] elements as an array of its own, behind an `opt-barrier`: for GPU, whose
    /// compiler puts kernels together that read one array. The updates of all small tensors of a shape, each a kernel in
    /// the step as it was, become a few. A scalar that they all read does not bring that about. Over a mesh as it is: states
    /// of one shape may be split in different ways.
    Shared,
}

/// Up to this many elements states share an array of the predicate; above, reading it would cost more than launches do.
pub const SHARED_LIMIT: u64 = 1 << 16;

impl Pass for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        if !self.policy.gates() {
            return Ok(Changed::No);
        }
        let step = context.step()?;
        let applied = context.control()?.applied;
        let states = classify(step, &self.policy)?;
        let outputs = mesh::results(module.entry_computation());
        let split = mesh::is_split(module);
        let mut replacements = HashMap::new();
        let mut gated = HashMap::new();
        let mut b = Builder::at_entry(module);
        b.set_scope("entropic.gate", "entropic/gate");
        let mut applied = match self.predicate {
            PredicateStyle::Rooted => Spread::new(rooted(&mut b, applied)?),
            PredicateStyle::Plain => Spread::new(applied),
            PredicateStyle::Shared if split => Spread::new(applied),
            PredicateStyle::Shared => Spread::new(applied).own_up_to(SHARED_LIMIT),
        }
        .one_each(split);
        for (state, decided) in step.states.iter().zip(&states) {
            if !decided.held {
                continue;
            }
            let missing = || PassError::Stale { what: format!("output {}", state.output) };
            let new = *outputs.get(state.output).ok_or_else(missing)?;
            let name = sanitize(&state.name);
            let old = materialise(&mut b, state.value)?;
            if old == new || state.stays() {
                continue;
            }
            let applied = applied.over(&mut b, new)?;
            let kept = b.named(&format!("entropic.gated.{name}")).select(applied, new, old)?;
            replacements.insert(state.output, kept);
            gated.insert(new, kept);
        }
        let changed = if replacements.is_empty() { Changed::No } else { Changed::Yes };
        replace_outputs(module, &replacements)?;
        let entry = module.entry();
        module.sort(entry)?;
        if self.predicate == PredicateStyle::Rooted {
            read_gated(module, &gated, &replacements)?;
        }
        if let Some(layout) = &mut context.layout {
            layout.states = states;
        }
        Ok(changed)
    }
}

/// Has all that serves held states alone read the others after the gate, not before it: a parameter's update its new moments.
///
/// Where the step is applied both are the same bits, and where it is not, nothing of it is kept. But a new value that is read
/// besides the selected one is computed twice by compilers that write one array with one kernel, from an old value that then
/// has to be copied first.
fn read_gated(
    module: &mut Module,
    gated: &HashMap<InstructionId, InstructionId>,
    held: &HashMap<usize, InstructionId>,
) -> Result<(), PassError> {
    let computation = module.entry_computation();
    let serves = serving(computation, |output| held.contains_key(&output));
    // Nothing that decides the predicate is among them: telemetry tells it.
    let reads = |id: &InstructionId| serves.get(id.index()).copied().unwrap_or(false);
    let others = computation.instructions().map(|(id, _)| id).filter(|id| !reads(id));
    let keep = others.chain(gated.values().copied()).collect();
    let entry = module.entry();
    module.replace_uses(entry, gated, &keep)?;
    Ok(module.sort(entry)?)
}

/// Of each instruction whether it is read, and all that comes of it ends in outputs that are `chosen`.
fn serving(computation: &Computation, chosen: impl Fn(usize) -> bool) -> Vec<bool> {
    let mut at: HashMap<_, Vec<_>> = HashMap::new();
    for (output, id) in computation.outputs().into_iter().enumerate() {
        at.entry(id).or_default().push(output);
    }
    let users = computation.users();
    let mut serves = vec![false; computation.arena_len()];
    for &id in computation.order().iter().rev() {
        let users = users.get(id.index()).map_or(&[][..], Vec::as_slice);
        let serves_in = |user: &InstructionId| match at.get(&id) {
            Some(outputs) if *user == computation.root() => outputs.iter().all(|&output| chosen(output)),
            _ => serves.get(user.index()).copied().unwrap_or(false),
        };
        let all = !users.is_empty() && users.iter().all(serves_in);
        if let Some(mark) = serves.get_mut(id.index()) {
            *mark = all;
        }
    }
    serves
}

/// The same predicate, see [`PredicateStyle::Rooted`].
fn rooted(b: &mut Builder<'_>, predicate: InstructionId) -> Built {
    let number = b.convert(predicate, PrimitiveType::F32)?;
    let root = b.named("entropic.gate_root").sqrt(number)?;
    let half = b.constant_f32(0.5)?;
    b.compare(root, half, ComparisonDirection::Gt)
}

/// What a refused step does with each state, in the step's order.
///
/// # Errors
///
/// Where a state has no class, or a pattern of the policy names no state.
pub fn classify(step: &TrainStep, policy: &Policy) -> Result<Vec<ClassifiedState>, PassError> {
    let assigned = policy.state_classes(step.states.iter().map(|s| s.name.as_str()))?;
    let mut unclassified = Vec::new();
    let mut states = Vec::with_capacity(step.states.len());
    for (state, assigned) in step.states.iter().zip(assigned) {
        let held = match assigned.map_or(state.class, StateClass::from) {
            StateClass::Held | StateClass::Both => true,
            StateClass::Advancing => false,
            StateClass::Unclassified => {
                unclassified.push((state.name.clone(), state.reason.clone()));
                continue;
            }
        };
        states.push(ClassifiedState { name: state.name.clone(), input: state.input, output: state.output, held });
    }
    if unclassified.is_empty() { Ok(states) } else { Err(PassError::Unclassified { states: unclassified }) }
}
