//! A controlled step with the controller's own arrays.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses a part of this module")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use hlo::Module;
use passes::{ControllerLayout, InjectOptions, Policy, Telemetry, inject};

use crate::common::{Array, Compiled, Contraction};

/// An injected step that keeps the controller's state between calls.
pub struct Controlled {
    program: Compiled,
    pub layout: ControllerLayout,
    policy: Array,
    state: Array,
    counters: Array,
    /// What the last step had to tell.
    pub telemetry: Option<Telemetry>,
}

impl Controlled {
    pub fn new(module: &Module, policy: &Policy) -> Result<Self, passes::InjectError> {
        Self::with(module, policy, Contraction::Allowed)
    }

    pub fn with(module: &Module, policy: &Policy, contraction: Contraction) -> Result<Self, passes::InjectError> {
        let mut module = module.clone();
        let layout = inject(&mut module, policy, InjectOptions::default())?.layout;
        let counters = layout.initial_counters();
        Ok(Self {
            program: Compiled::with(&module, contraction),
            policy: Array::vector(&layout.policy_vector(policy).unwrap()),
            state: Array::vector(&layout.initial_state()),
            counters: Array::s32(&[counters.len() as i64], &counters),
            layout,
            telemetry: None,
        })
    }

    /// From now on, the numbers of another policy.
    pub fn obey(&mut self, policy: &Policy) {
        self.policy = Array::vector(&self.layout.policy_vector(policy).unwrap());
    }

    /// Runs one step; returns the step's own outputs. The controller's state must stay finite.
    pub fn run(&mut self, inputs: &[Array]) -> Vec<Array> {
        let own = [self.policy.clone(), self.state.clone(), self.counters.clone()];
        let mut outputs = self.program.run(&[inputs, &own].concat());
        let added = outputs.split_off(outputs.len() - self.layout.outputs.len());
        let [state, counters, telemetry] = <[Array; 3]>::try_from(added).unwrap_or_else(|_| panic!("added outputs"));
        self.telemetry = Some(Telemetry::decode(&self.layout, &telemetry.floats()).unwrap());
        (self.state, self.counters) = (state, counters);
        assert!(self.state.floats().iter().all(|v| v.is_finite()), "the controller's state is not finite");
        outputs
    }

    /// The last step's telemetry.
    pub fn told(&self) -> &Telemetry {
        self.telemetry.as_ref().expect("no step has run")
    }
}
