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

/// A program with its state on the devices that it runs on.
#[derive(Debug)]
pub struct Stepper {
    program: StepProgram,
    /// The state of each device in turn.
    state: Vec<State>,
}

/// What one device holds, by input number; `None` for batch inputs.
pub type State = Vec<Option<Buffer>>;

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
    pub fn new(executable: Executable, manifest: &Manifest, state: State) -> Result<Self, EngineError> {
        Self::spread(executable, manifest, vec![state])
    }

    /// The same for a program that runs on several devices, with the state of each.
    ///
    /// # Errors
    ///
    /// As [`Stepper::new`], for any of them, and where there are fewer states than devices, or more.
    pub fn spread(executable: Executable, manifest: &Manifest, state: Vec<State>) -> Result<Self, EngineError> {
        let program = StepProgram::new(executable, manifest);
        let sources = &program.sources;
        let complete = |state: &State| {
            sources.len() == state.len()
                && sources
                    .iter()
                    .zip(state)
                    .all(|(source, value)| matches!(source, Source::Batch(_)) != value.is_some())
        };
        if state.len() != program.executable.num_devices() || !state.iter().all(complete) {
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

    /// Launches the steps on the given batch and returns at once; the state is the next one from here on. For one device.
    ///
    /// # Errors
    ///
    /// Where the launch is refused; the state is lost then, for its buffers may have been donated.
    pub fn launch(&mut self, batch: &[Buffer]) -> Result<Launched, EngineError> {
        self.launch_on_all(&[batch])
    }

    /// Launches the steps on all devices, each on a batch of its own. What the host reads is that of the first.
    ///
    /// # Errors
    ///
    /// As [`Stepper::launch`].
    pub fn launch_on_all<B: AsRef<[Buffer]>>(&mut self, batches: &[B]) -> Result<Launched, EngineError> {
        let arguments: Vec<Vec<&Buffer>> = (0..self.state.len())
            .map(|device| {
                let batch = batches.get(device).map(AsRef::as_ref).unwrap_or_default();
                (0..self.program.sources.len()).filter_map(|input| self.argument(device, input, batch)).collect()
            })
            .collect();
        let execution = self.program.executable.execute(&arguments, &ExecuteOptions::default());
        let outputs = execution.map_err(device("launching a step failed"))?.outputs;
        let mut copies = Vec::new();
        for (number, (outputs, state)) in outputs.into_iter().zip(&mut self.state).enumerate() {
            for (output, sink) in outputs.into_iter().zip(&self.program.sinks) {
                match sink {
                    Sink::State(input) => {
                        if let Some(slot) = state.get_mut(*input) {
                            *slot = Some(output);
                        }
                    }
                    Sink::Host if number == 0 => {
                        copies.push(output.start_to_host().map_err(device("reading what a step reports failed"))?);
                    }
                    Sink::Host | Sink::Drop => {}
                }
            }
        }
        Ok(Launched { copies })
    }

    /// The current value of input `index` on a device, which for a batch input is in `batch`.
    fn argument<'a>(&'a self, device: usize, index: usize, batch: &'a [Buffer]) -> Option<&'a Buffer> {
        match self.program.sources.get(index)? {
            Source::State => self.state_on(device, index),
            Source::Batch(n) => batch.get(*n),
        }
    }

    /// The current value of input `index` on the first device; `None` for a batch input.
    #[must_use]
    pub fn state(&self, index: usize) -> Option<&Buffer> {
        self.state_on(0, index)
    }

    /// The same on the device of that number.
    #[must_use]
    pub fn state_on(&self, device: usize, index: usize) -> Option<&Buffer> {
        self.state.get(device)?.get(index)?.as_ref()
    }

    /// Has that device begin the next step with another value of input `index`; nothing changes for a batch input.
    pub fn set_state_on(&mut self, device: usize, index: usize, value: Buffer) {
        if let Some(slot) =
            self.state.get_mut(device).and_then(|state| state.get_mut(index)).filter(|slot| slot.is_some())
        {
            *slot = Some(value);
        }
    }

    /// Starts copying these inputs of the first device to the host. The next launch, which may take over their buffers, is made to
    /// wait for the copies by the device, not by the host.
    ///
    /// # Errors
    ///
    /// Where the device refuses, or one of them is not carried from step to step.
    pub fn copy_state(&self, inputs: &[usize]) -> Result<StateCopy, EngineError> {
        let failed = device("copying the state for a checkpoint failed");
        let absent = || pjrt::Error::Argument("an input of the checkpoint is not part of the state".to_owned());
        let copy = |&input: &usize| self.state(input).ok_or_else(absent)?.start_to_host();
        Ok(StateCopy { copies: inputs.iter().map(copy).collect::<Result<_, _>>().map_err(failed)? })
    }

    /// Returns to the state that the run began with. The values of now are given up first, to make room.
    ///
    /// # Errors
    ///
    /// Where the device refuses; the state is lost then.
    pub fn restart(&mut self, initial: &InitialState) -> Result<(), EngineError> {
        for state in &mut self.state {
            for &input in initial.inputs() {
                if let Some(slot) = state.get_mut(input) {
                    *slot = None;
                }
            }
        }
        initial.make_into(&mut self.state)
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

/// Values of the state on their way to the host.
#[derive(Debug)]
pub struct StateCopy {
    copies: Vec<HostCopy>,
}

impl StateCopy {
    /// Waits for them: the bytes of each array.
    ///
    /// # Errors
    ///
    /// The error with which the step that made them ended.
    pub fn wait(self) -> Result<Vec<Vec<u8>>, EngineError> {
        let failed = device("copying the state for a checkpoint failed");
        self.copies.into_iter().map(|copy| copy.wait().map_err(&failed)).collect()
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
        let arguments: Vec<&Buffer> = self.inputs.iter().filter_map(|&i| stepper.argument(0, i, batch)).collect();
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
