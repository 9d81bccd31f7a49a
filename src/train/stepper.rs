//! Launching steps: state stays on the device and goes from step to step.

use hlo::PrimitiveType;
use pjrt::{Buffer, Executable, ExecuteOptions, HostCopy};

use crate::bundle::Manifest;
use crate::bundle::manifest::{InputRole, OutputRole};
use crate::engine::EngineError;

use super::setup::InitialState;

/// Where an argument of the step comes from.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// Kept on the device from step to step.
    State,
    /// Made for this step: the n-th batch input.
    Batch(usize),
}

/// Where an output of the step goes.
#[derive(Debug, Clone, Copy)]
enum Sink {
    /// Next value of that input.
    State(usize),
    /// Read by the host.
    Host,
    /// Nowhere.
    Drop,
}

/// A compiled step, or several in one launch, and where its arguments come from and its results go.
///
/// Inputs and outputs are those of the manifest. What the host reads are the outputs of role loss and telemetry, in the
/// order of outputs.
#[derive(Debug)]
pub struct StepProgram {
    executable: Executable,
    sources: Vec<Source>,
    sinks: Vec<Sink>,
    host_outputs: Vec<usize>,
    /// Steps of one launch.
    steps: u64,
}

/// A program with its state on the device.
#[derive(Debug)]
pub struct Stepper {
    program: StepProgram,
    /// By input number; `None` for batch inputs.
    state: Vec<Option<Buffer>>,
}

/// What a launched step leaves for the host, on its way.
#[derive(Debug)]
pub struct Launched {
    copies: Vec<HostCopy>,
}

impl StepProgram {
    /// What was compiled from the module of that manifest.
    #[must_use]
    pub fn new(executable: Executable, manifest: &Manifest) -> Self {
        let mut batches = 0;
        let sources = manifest.inputs.iter().map(|input| {
            if input.role != InputRole::Batch {
                return Source::State;
            }
            batches += 1;
            Source::Batch(batches - 1)
        });
        let sources = sources.collect();
        let sinks = manifest.outputs.iter().map(|output| match (output.input, output.role) {
            (Some(input), _) => Sink::State(input),
            (None, OutputRole::Loss | OutputRole::Telemetry) => Sink::Host,
            (None, _) => Sink::Drop,
        });
        let sinks: Vec<_> = sinks.collect();
        let host_outputs = (0..).zip(&sinks).filter(|(_, s)| matches!(s, Sink::Host)).map(|(i, _)| i).collect();
        Self { executable, sources, sinks, host_outputs, steps: manifest.launch.steps.get().into() }
    }
}

impl Stepper {
    /// Puts a compiled step and its initial state together. `state[i]` is the value of input `i` and `None` for a batch input.
    ///
    /// # Errors
    ///
    /// Where the number of values is not that of the manifest's inputs, or a value is missing.
    pub fn new(executable: Executable, manifest: &Manifest, state: Vec<Option<Buffer>>) -> Result<Self, EngineError> {
        let program = StepProgram::new(executable, manifest);
        let sources = &program.sources;
        let complete = sources.len() == state.len()
            && sources.iter().zip(&state).all(|(source, value)| matches!(source, Source::Batch(_)) != value.is_some());
        if !complete {
            return Err(device("preparing the step failed")(pjrt::Error::Argument(
                "the initial state does not cover the inputs of the step".to_owned(),
            )));
        }
        Ok(Self { program, state })
    }

    /// Steps of one launch.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.program.steps
    }

    /// Another program of the same step from here on; the state stays.
    pub fn go_on_with(&mut self, program: StepProgram) {
        self.program = program;
    }

    /// Launches the steps on the given batches and returns at once; the state is the next one from here on.
    ///
    /// # Errors
    ///
    /// Where the launch is refused; the state is lost then, for its buffers may have been donated.
    pub fn launch(&mut self, batch: &[Buffer]) -> Result<Launched, EngineError> {
        let failed = device("launching a step failed");
        let arguments: Vec<&Buffer> = self
            .program
            .sources
            .iter()
            .zip(&self.state)
            .filter_map(|(source, state)| match source {
                Source::State => state.as_ref(),
                Source::Batch(n) => batch.get(*n),
            })
            .collect();
        let outputs = self.program.executable.execute_single(&arguments).map_err(failed)?;
        let mut copies = Vec::new();
        for (output, sink) in outputs.into_iter().zip(&self.program.sinks) {
            match sink {
                Sink::State(input) => {
                    if let Some(slot) = self.state.get_mut(*input) {
                        *slot = Some(output);
                    }
                }
                Sink::Host => {
                    copies.push(output.start_to_host().map_err(device("reading what a step reports failed"))?);
                }
                Sink::Drop => {}
            }
        }
        Ok(Launched { copies })
    }

    /// The current value of input `index`, which for a batch input is in `batch`.
    fn argument<'a>(&'a self, index: usize, batch: &'a [Buffer]) -> Option<&'a Buffer> {
        match self.program.sources.get(index)? {
            Source::State => self.state(index),
            Source::Batch(n) => batch.get(*n),
        }
    }

    /// The current value of input `index`; `None` for a batch input.
    #[must_use]
    pub fn state(&self, index: usize) -> Option<&Buffer> {
        self.state.get(index)?.as_ref()
    }

    /// Returns to the state that the run began with. The values of now are given up first, to make room.
    ///
    /// # Errors
    ///
    /// Where the device refuses; the state is lost then.
    pub fn restart(&mut self, initial: &InitialState) -> Result<(), EngineError> {
        for &input in initial.inputs() {
            if let Some(slot) = self.state.get_mut(input) {
                *slot = None;
            }
        }
        for (input, value) in initial.make()? {
            if let Some(slot) = self.state.get_mut(input) {
                *slot = Some(value);
            }
        }
        Ok(())
    }

    /// Numbers of the outputs that the host reads, in the order in which [`Launched::wait`] returns them.
    #[must_use]
    pub fn host_outputs(&self) -> &[usize] {
        &self.program.host_outputs
    }

    /// The executable.
    #[must_use]
    pub fn executable(&self) -> &Executable {
        &self.program.executable
    }
}

impl Launched {
    /// Waits for the step and returns the bytes of every array that the host reads.
    ///
    /// # Errors
    ///
    /// The error with which the step ended.
    pub fn wait(self) -> Result<Vec<Vec<u8>>, EngineError> {
        self.copies.into_iter().map(|copy| copy.wait().map_err(device("a step failed on the device"))).collect()
    }
}

/// The held-out loss, compiled.
#[derive(Debug)]
pub struct Evaluator {
    executable: Executable,
    inputs: Vec<usize>,
    loss_type: PrimitiveType,
}

impl Evaluator {
    /// Parameter `k` of the executable is input `inputs[k]` of the step; its result is a scalar of `loss_type`.
    #[must_use]
    pub fn new(executable: Executable, inputs: Vec<usize>, loss_type: PrimitiveType) -> Self {
        Self { executable, inputs, loss_type }
    }

    /// Type of the loss.
    #[must_use]
    pub fn loss_type(&self) -> PrimitiveType {
        self.loss_type
    }

    /// Starts computing the loss of the stepper's present state on a batch, whose arrays are those of a step. The state stays
    /// as it is.
    ///
    /// # Errors
    ///
    /// Where the launch is refused.
    pub fn launch(&self, stepper: &Stepper, batch: &[Buffer]) -> Result<Launched, EngineError> {
        let arguments: Vec<&Buffer> = self.inputs.iter().filter_map(|&i| stepper.argument(i, batch)).collect();
        let options = ExecuteOptions { non_donatable_inputs: (0..arguments.len()).collect(), ..Default::default() };
        let execution =
            self.executable.execute(&[arguments], &options).map_err(device("launching the evaluation failed"))?;
        let copies =
            execution.outputs.into_iter().flatten().map(|output| output.start_to_host()).collect::<Result<_, _>>();
        Ok(Launched { copies: copies.map_err(device("reading the held-out loss failed"))? })
    }
}

pub(super) fn device(what: &'static str) -> impl Fn(pjrt::Error) -> EngineError {
    move |source| EngineError::Device { what, source }
}
