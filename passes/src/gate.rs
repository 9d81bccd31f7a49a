//! `gate`: a refused step leaves every held state as it was.
//!
//! Each output that succeeds a *held* state returns `select(applied, new, old)`;
//! *advancing* states go on. Classes come from discovery, and the policy's
//! `[states]` overrides them. A state that serves both ways is held unless the policy
//! says otherwise; one without a class is refused with the policy lines that would assign it.
//! Under a policy that refuses nothing, nothing is emitted.
//!
//! For GPU the predicate over each shape of at most [`SHARED_LIMIT`] elements is kept a value of its own by an
//! `opt-barrier`. XLA's GPU compiler puts kernels together that read one array: the updates of all small tensors of a shape,
//! each a kernel in the step as it was, become a few. A scalar that they all read does not bring that about.

use std::collections::HashMap;

use hlo::Module;
use hlo::build::{Builder, sanitize};

use crate::layout::ClassifiedState;
use crate::pass::{Changed, Context, Pass, PassError};
use crate::policy::Policy;
use crate::step::{StateClass, TrainStep};
use crate::values::{Spread, materialise, replace_outputs};

/// The pass, see the module's documentation.
#[derive(Debug, Clone)]
pub struct Gate {
    /// The policy, for its classes and for whether anything can be refused.
    pub policy: Policy,
    /// Whether small states of one shape share an array of the predicate.
    pub shared: bool,
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
        let outputs = module.entry_computation().outputs();
        let mut replacements = HashMap::new();
        let mut b = Builder::at_entry(module);
        b.set_scope("entropic.gate", "entropic/gate");
        let mut applied = Spread::new(applied).own_up_to(if self.shared { SHARED_LIMIT } else { 0 });
        for (state, decided) in step.states.iter().zip(&states) {
            if !decided.held {
                continue;
            }
            let missing = || PassError::Stale { what: format!("output {}", state.output) };
            let new = *outputs.get(state.output).ok_or_else(missing)?;
            let name = sanitize(&state.name);
            let old = materialise(&mut b, state.value)?;
            if old == new {
                continue;
            }
            let applied = applied.over(&mut b, new)?;
            let kept = b.named(&format!("entropic.gated.{name}")).select(applied, new, old)?;
            replacements.insert(state.output, kept);
        }
        let changed = if replacements.is_empty() { Changed::No } else { Changed::Yes };
        replace_outputs(module, &replacements)?;
        let entry = module.entry();
        module.sort(entry)?;
        if let Some(layout) = &mut context.layout {
            layout.states = states;
        }
        Ok(changed)
    }
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
