//! The bare execute loop: state on the device, batches that lie ready there, nothing read; only the last step is waited for.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use entropic::bundle::manifest::InputRole;
use entropic::bundle::{Bundle, Dtype};
use entropic::data::{Corpus, Split};
use entropic::engine::Engine;
use entropic::train::controller_arrays;
use pjrt::{Buffer, Executable};

/// Batches that take turns, so that a long run does not learn one of them by heart.
pub(crate) const BATCHES: u64 = 16;

/// What a step starts from, on the host.
pub(crate) struct Initial {
    /// By input number; several values for the batch.
    inputs: Vec<Input>,
    /// The input that each output succeeds.
    successors: Vec<Option<usize>>,
}

struct Input {
    dtype: Dtype,
    shape: Vec<i64>,
    values: Vec<Vec<u8>>,
}

impl Initial {
    /// The initial state of a bundle, and batches from that text.
    pub(crate) fn new(engine: &Engine, bundle: &Bundle, text: &[PathBuf]) -> Result<Self> {
        let manifest = &bundle.manifest;
        let input = |i: &entropic::bundle::manifest::Input| Input {
            dtype: i.dtype,
            shape: i.shape.clone(),
            values: Vec::new(),
        };
        let mut inputs: Vec<_> = manifest.inputs.iter().map(input).collect();
        let mut set = |input: usize, value: Vec<u8>| -> Result<()> {
            inputs.get_mut(input).context("an input is missing")?.values.push(value);
            Ok(())
        };
        let init = manifest.init.as_ref().context("the bundle has no `init`")?;
        let module = bundle.init_module()?.context("the bundle has no `init`")?;
        let seed = engine.upload(&0u32.to_le_bytes(), init.seed_dtype, &[])?;
        let state = engine.compile(&module, "the initial state")?.execute_single(&[&seed])?;
        for (&input, value) in init.outputs.iter().zip(state) {
            set(input, value.to_vec()?)?;
        }
        if let Some(controller) = &manifest.controller {
            for array in controller_arrays(&controller.layout, &controller.policy)? {
                set(array.input, array.bytes)?;
            }
        }
        let data = manifest.data.as_ref().context("the bundle has no `data`")?;
        let split = Split::new(Corpus::open(text)?, data.window)?;
        let mut window = vec![0; data.window];
        for step in 0..BATCHES {
            let mut batch = Vec::new();
            for row in 0..data.batch {
                split.training_window(0, step, row as u64, &mut window);
                batch.extend(window.iter().flat_map(|&byte| i32::from(byte).to_le_bytes()));
            }
            set(data.input, batch)?;
        }
        let complete =
            manifest.inputs.iter().zip(&inputs).all(|(i, v)| i.role == InputRole::Batch || v.values.len() == 1);
        anyhow::ensure!(complete, "{} does not say how every input begins", bundle.folder.display());
        Ok(Self { inputs, successors: manifest.outputs.iter().map(|o| o.input).collect() })
    }
}

impl Initial {
    /// The same for a program that takes `steps` batches in one launch.
    pub(crate) fn in_launches_of(mut self, steps: usize) -> Self {
        for input in self.inputs.iter_mut().filter(|input| input.values.len() > 1) {
            input.values = input.values.chunks(steps).map(<[Vec<u8>]>::concat).collect();
            input.shape.insert(0, i64::try_from(steps).unwrap_or(i64::MAX));
        }
        self
    }
}

/// The loop, with its own copy of everything.
pub(crate) struct Bare {
    /// By input number: the state, or all batches.
    arguments: Vec<Vec<Buffer>>,
    successors: Vec<Option<usize>>,
    done: usize,
}

impl Bare {
    pub(crate) fn new(initial: &Initial, upload: impl Fn(&[u8], Dtype, &[i64]) -> Result<Buffer>) -> Result<Self> {
        let upload = |input: &Input| {
            input.values.iter().map(|value| upload(value, input.dtype, &input.shape)).collect::<Result<Vec<_>>>()
        };
        let arguments = initial.inputs.iter().map(upload).collect::<Result<_>>()?;
        Ok(Self { arguments, successors: initial.successors.clone(), done: 0 })
    }

    /// Runs some steps and returns the seconds that they took.
    pub(crate) fn run(&mut self, executable: &Executable, steps: u64) -> Result<f64> {
        let begin = Instant::now();
        for _ in 0..steps {
            let arguments: Vec<&Buffer> =
                self.arguments.iter().filter_map(|values| values.get(self.done % values.len().max(1))).collect();
            let outputs = executable.execute_single(&arguments)?;
            for (output, input) in outputs.into_iter().zip(&self.successors) {
                if let Some(values) = input.and_then(|i| self.arguments.get_mut(i)) {
                    *values = vec![output];
                }
            }
            self.done += 1;
        }
        let state = self.successors.iter().flatten().next().and_then(|&i| self.arguments.get(i)?.first());
        state.context("the step has no state")?.ready_event()?.wait()?;
        Ok(begin.elapsed().as_secs_f64())
    }

    /// The bytes of all states, one after another.
    pub(crate) fn state(&self) -> Result<Vec<u8>> {
        let states = self.successors.iter().flatten().filter_map(|&i| self.arguments.get(i)?.first());
        Ok(states.map(Buffer::to_vec).collect::<Result<Vec<_>, _>>()?.concat())
    }
}
