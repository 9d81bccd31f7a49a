//! What discovery says of a loop over steps, and the numbers that a step in its body has in the program.

use std::num::NonZeroU32;

use hlo::{ComputationId, InstructionId};

use crate::step::TrainStep;

/// A loop over steps: the `while` whose body is the train step.
#[derive(Debug, Clone)]
pub struct EnclosingLoop {
    /// Its instruction name.
    pub name: String,
    /// The `while`.
    pub site: InstructionId,
    /// Where it is.
    pub computation: ComputationId,
    /// What it carries.
    pub leaves: Vec<Leaf>,
    /// How many steps it does; where that is not known, why not.
    pub trips: Result<Trips, String>,
    /// The step as the body has it: its inputs and outputs are the leaves.
    pub body: Box<TrainStep>,
    /// How many inputs and outputs the program has.
    pub signature: (usize, usize),
    /// Input numbers of the program's data.
    pub batch: Vec<usize>,
}

/// What a loop over steps carries in one place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leaf {
    /// The input of the program that it begins as, where it does.
    pub input: Option<usize>,
    /// The output of the program that it ends as, where it does.
    pub output: Option<usize>,
    /// Whether it has one element for each step: data of which each takes its own, or a record to which each adds its own.
    pub each: bool,
}

/// How many steps a loop does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trips {
    /// The number.
    pub steps: NonZeroU32,
    /// A leaf that counts them, from 0.
    pub counter: Option<usize>,
}

impl EnclosingLoop {
    /// A step that is told in leaves, with the numbers that its inputs and outputs have in the program.
    #[must_use]
    pub fn outside(self, body: TrainStep) -> TrainStep {
        let mut step = body.clone();
        let (inputs, outputs) = self.signature;
        let at = |leaf: usize| self.leaves.get(leaf).copied().unwrap_or_default();
        step.loss = step.loss.filter(|&leaf| at(leaf).output.is_some());
        step.renumber(&|leaf| at(leaf).input.unwrap_or(inputs + leaf), &|leaf| {
            at(leaf).output.unwrap_or(outputs + leaf)
        });
        step.batch.clone_from(&self.batch);
        step.inside_loop = Some(Self { body: Box::new(body), ..self });
        step
    }
}
