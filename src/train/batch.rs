//! Batches of token windows on their way to the device, and losses on their way back.

use std::ops::Range;

use hlo::PrimitiveType;

use crate::bundle::Dtype;
use crate::bundle::manifest::{Data, Manifest};
use crate::data::Split;
use crate::engine::{Engine, EngineError};

use super::IN_FLIGHT;
use super::corruption::{Corruption, Fault};
use super::stepper::{Evaluator, Stepper};

/// Held-out windows that an evaluation reads at most.
const HELD_OUT_ROWS: usize = 256;

/// Makes batches as a bundle's `data` describes them.
#[derive(Debug)]
pub struct BatchMaker {
    engine: Engine,
    data: Data,
    dtype: Dtype,
    corruption: Option<Corruption>,
    /// One window of text.
    window: Vec<u8>,
    /// One batch, or several one after another, as the device wants it.
    batch: Vec<u8>,
}

impl BatchMaker {
    /// For the batch input that `data` names; `None` where the manifest has no such input.
    #[must_use]
    pub fn new(engine: &Engine, manifest: &Manifest, data: &Data) -> Option<Self> {
        let dtype = manifest.inputs.get(data.input)?.dtype;
        Some(Self {
            engine: engine.clone(),
            data: data.clone(),
            dtype,
            corruption: None,
            window: vec![0; data.window],
            batch: Vec::new(),
        })
    }

    /// The same, with training batches spoilt on purpose; held-out ones stay as they are.
    #[must_use]
    pub fn with_corruption(self, corruption: Option<Corruption>) -> Self {
        Self { corruption, ..self }
    }

    /// What is wrong, on purpose, with the training batch of a step.
    #[must_use]
    pub fn fault(&self, step: u64) -> Option<Fault> {
        self.corruption.and_then(|corruption| corruption.fault(step))
    }

    /// The training batches of the steps of one launch: one array, with a first dimension where there are several. The
    /// transfer may still be under way.
    ///
    /// # Errors
    ///
    /// Where the device refuses.
    pub fn training(&mut self, split: &Split, seed: u64, steps: Range<u64>) -> Result<pjrt::Buffer, EngineError> {
        let corruption = self.corruption;
        let count = steps.clone().count();
        self.batch.clear();
        for step in steps {
            self.append(|row, window| {
                split.training_window(seed, step, row as u64, window);
                if let Some(corruption) = corruption {
                    corruption.spoil(step, row as u64, window);
                }
            });
        }
        self.upload(if count == 1 { None } else { Some(count) })
    }

    /// The mean loss over held-out windows: every window, or evenly spread ones where there are many. Always the same ones for the same text.
    ///
    /// `None` where it is not finite.
    ///
    /// # Errors
    ///
    /// Where the device refuses.
    pub fn held_out_loss(
        &mut self,
        evaluator: &Evaluator,
        stepper: &Stepper,
        split: &Split,
    ) -> Result<Option<f64>, EngineError> {
        let windows = split.held_out_windows();
        let rows = self.data.batch.max(1);
        let batches = windows.min(HELD_OUT_ROWS).div_ceil(rows).max(1);
        let total = batches * rows;
        let mut sum = 0.0;
        let mut pending = std::collections::VecDeque::new();
        for batch in 0..=batches {
            if batch < batches {
                let first = batch * rows;
                let buffer = self.make(|row, window| split.held_out_window((first + row) * windows / total, window))?;
                pending.push_back(evaluator.launch(stepper, &buffer)?);
            }
            if pending.len() == IN_FLIGHT || batch == batches {
                let ready = if batch == batches { pending.len() } else { 1 };
                for launched in pending.drain(..ready) {
                    let values = launched.wait()?;
                    sum += values.first().and_then(|v| decode_scalar(v, evaluator.loss_type())).unwrap_or(f64::NAN);
                }
            }
        }
        let mean = sum / batches as f64;
        Ok(mean.is_finite().then_some(mean))
    }

    fn make(&mut self, fill: impl FnMut(usize, &mut [u8])) -> Result<pjrt::Buffer, EngineError> {
        self.batch.clear();
        self.append(fill);
        self.upload(None)
    }

    /// Adds a batch to what is uploaded next.
    fn append(&mut self, mut fill: impl FnMut(usize, &mut [u8])) {
        let width = usize::try_from(self.dtype.primitive().bits().div_ceil(8)).unwrap_or(1);
        for row in 0..self.data.batch {
            fill(row, &mut self.window);
            for &byte in &self.window {
                // Integers are little-endian on every platform that PJRT runs on.
                self.batch.push(byte);
                self.batch.resize(self.batch.len() + width - 1, 0);
            }
        }
    }

    fn upload(&self, stacked: Option<usize>) -> Result<pjrt::Buffer, EngineError> {
        let dims = stacked.into_iter().chain([self.data.batch, self.data.window]);
        let shape: Vec<i64> = dims.map(|d| i64::try_from(d).unwrap_or(i64::MAX)).collect();
        self.engine.upload(&self.batch, self.dtype, &shape)
    }
}

/// The value of one floating scalar as the device wrote it; `None` for other types or too few bytes.
#[must_use]
pub fn decode_scalar(bytes: &[u8], element_type: PrimitiveType) -> Option<f64> {
    Some(match element_type {
        PrimitiveType::F32 => f64::from(f32::from_le_bytes(*bytes.first_chunk()?)),
        PrimitiveType::F64 => f64::from_le_bytes(*bytes.first_chunk()?),
        PrimitiveType::BF16 => half::bf16::from_le_bytes(*bytes.first_chunk()?).to_f64(),
        PrimitiveType::F16 => half::f16::from_le_bytes(*bytes.first_chunk()?).to_f64(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_of_every_loss_type_are_read() {
        for (bytes, element_type, expected) in [
            (1.5f32.to_le_bytes().to_vec(), PrimitiveType::F32, Some(1.5)),
            (1.5f64.to_le_bytes().to_vec(), PrimitiveType::F64, Some(1.5)),
            (vec![0xc0, 0x3f], PrimitiveType::BF16, Some(1.5)),
            (vec![0x00, 0x3e], PrimitiveType::F16, Some(1.5)),
            (vec![0x00], PrimitiveType::F16, None),
            (vec![1, 0, 0, 0], PrimitiveType::S32, None),
        ] {
            assert_eq!(decode_scalar(&bytes, element_type), expected);
        }
    }
}
