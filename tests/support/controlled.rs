//! A controlled step with the controller's own arrays.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses a part of this module")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use hlo::Module;
use passes::layout::ArrayKind;
use passes::{ControllerLayout, InjectOptions, Injection, Policy, Telemetry, TrainStep, inject};

use crate::common::{Array, Compiled, Contraction};

/// An injected step that keeps the controller's state between calls.
pub struct Controlled {
    program: Compiled,
    pub layout: ControllerLayout,
    pub step: TrainStep,
    /// The appended inputs, in order: policy, state, counters, copies of held states.
    own: Vec<Array>,
    /// What the last step had to tell.
    pub telemetry: Option<Telemetry>,
}

/// The appended inputs before the first step, in order: policy, state, counters, copies of held states.
pub fn initial(layout: &ControllerLayout, step: &TrainStep, policy: &Policy) -> Vec<Array> {
    let own = layout.inputs.iter().map(|input| match input.kind {
        ArrayKind::Policy => Array::vector(&layout.policy_vector(policy).unwrap()),
        ArrayKind::State => Array::vector(&layout.initial_state()),
        ArrayKind::Counters => Array::s32(&input.dims, &layout.initial_counters()),
        ArrayKind::Snapshot => {
            let element_type = input.element_type.parse().unwrap();
            let of = step.state(input.copy_of.unwrap()).unwrap();
            Array { element_type, dims: input.dims.clone(), bytes: vec![0; of.shape.byte_size() as usize] }
        }
        ArrayKind::Telemetry => panic!("telemetry as an input"),
    });
    own.collect()
}

impl Controlled {
    pub fn new(module: &Module, policy: &Policy) -> Result<Self, passes::InjectError> {
        Self::with(module, policy, Contraction::Indifferent)
    }

    pub fn with(module: &Module, policy: &Policy, contraction: Contraction) -> Result<Self, passes::InjectError> {
        Self::emitted(module, policy, InjectOptions::default(), contraction)
    }

    /// With control emitted as some compiler likes it.
    pub fn emitted(
        module: &Module,
        policy: &Policy,
        options: InjectOptions,
        contraction: Contraction,
    ) -> Result<Self, passes::InjectError> {
        let mut module = module.clone();
        let Injection { step, layout } = inject(&mut module, policy, options)?;
        let own = initial(&layout, &step, policy);
        Ok(Self { program: Compiled::with(&module, contraction), own, step, layout, telemetry: None })
    }

    /// From now on, the numbers of another policy.
    pub fn obey(&mut self, policy: &Policy) {
        self.own[0] = Array::vector(&self.layout.policy_vector(policy).unwrap());
    }

    /// Runs one step; returns the step's own outputs. The controller's state must stay finite.
    pub fn run(&mut self, inputs: &[Array]) -> Vec<Array> {
        let mut outputs = self.program.run(&[inputs, &self.own].concat());
        let added = outputs.split_off(outputs.len() - self.layout.outputs.len());
        for (said, value) in self.layout.outputs.iter().zip(added) {
            if said.kind == ArrayKind::Telemetry {
                let values = value.floats();
                // Of several steps in one launch, the last.
                let last = values.len() - values.len() / self.layout.steps.get() as usize;
                self.telemetry = Some(Telemetry::decode(&self.layout, &values[last..]).unwrap());
                continue;
            }
            if said.kind == ArrayKind::State {
                assert!(value.floats().iter().all(|v| v.is_finite()), "the controller's state is not finite");
            }
            let succeeds = |i: &passes::layout::ControllerInput| i.kind == said.kind && i.copy_of == said.copy_of;
            let slot = self.layout.inputs.iter().position(succeeds).unwrap();
            self.own[slot] = value;
        }
        outputs
    }

    /// The last step's telemetry.
    pub fn told(&self) -> &Telemetry {
        self.telemetry.as_ref().expect("no step has run")
    }
}
