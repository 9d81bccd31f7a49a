//! Batches on their way to the device, and losses on their way back.
//!
//! A step takes the same examples whatever the number of replicas: of the global batch, which is one batch per replica,
//! replica `k` takes the `k`-th part. A step that was exported at the size of the global batch takes the same rows, in
//! the same order, on one device.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use hlo::PrimitiveType;

use crate::bundle::manifest::{Data, Input, InputRole, Manifest};
use crate::bundle::{Bundle, Dtype};
use crate::data::{ArrayError, ArrayFormat, Corpus, DataError, Examples, Field, Split, holds_only_arrays};
use crate::engine::{Engine, EngineError};

use super::corruption::{Corruption, Fault};
use super::run_folder::DataDescription;
use super::stepper::{Evaluator, Stepper};
use super::{IN_FLIGHT, TrainError};

/// Held-out rows that an evaluation reads at most.
const HELD_OUT_ROWS: usize = 256;

/// Makes the batches of every step and every replica from text or from arrays.
#[derive(Debug)]
pub struct BatchMaker {
    /// Shared with who makes its checksum.
    source: Arc<Source>,
    inputs: Vec<BatchInput>,
    /// Rows that one replica takes in one step.
    rows: usize,
    replicas: usize,
    seed: u64,
    corruption: Option<Corruption>,
    /// One window of text.
    window: Vec<u8>,
    /// By batch input: the batch made last, as the device wants it.
    bytes: Vec<Vec<u8>>,
}

#[derive(Debug)]
enum Source {
    Text {
        split: Split,
        /// Bytes of a token on the device.
        width: usize,
    },
    Arrays(Examples),
}

/// An input of role batch.
#[derive(Debug)]
struct BatchInput {
    dtype: Dtype,
    /// Dimensions of what one step takes.
    step: Vec<i64>,
    /// Dimensions of the batch made last.
    made: Vec<i64>,
}

/// The array for one batch input, dense, row-major and little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchArray<'a> {
    /// Its elements.
    pub bytes: &'a [u8],
    /// Their type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: &'a [i64],
}

impl BatchMaker {
    /// For the batch inputs of a bundle, from files and folders of text or of arrays.
    ///
    /// Data are arrays where the bundle says nothing about text, or where all paths are arrays; folders with text are text.
    ///
    /// # Errors
    ///
    /// Where the data cannot be read or do not fit the bundle, and where arrays should be spoilt.
    pub fn open(
        bundle: &Bundle,
        paths: &[PathBuf],
        seed: u64,
        corruption: Option<Corruption>,
    ) -> Result<Self, TrainError> {
        let manifest = &bundle.manifest;
        let (source, rows) = match &manifest.data {
            Some(data) if !holds_only_arrays(paths)? => {
                refuse_arrays(paths)?;
                (Source::text(manifest, data, paths)?, data.batch)
            }
            data => {
                if data.is_none() {
                    refuse_text(bundle, paths)?;
                }
                if corruption.is_some() {
                    return Err(TrainError::CorruptArrays);
                }
                let (fields, rows) = fields(bundle)?;
                let per_step = rows.saturating_mul(replicas(manifest));
                (Source::Arrays(Examples::open(paths, &fields, seed, per_step)?), rows)
            }
        };
        let inputs: Vec<_> = batch_inputs(manifest)
            .map(|input| {
                let step = manifest.launch.one_step(&input.shape).unwrap_or_default().to_vec();
                BatchInput { dtype: input.dtype, made: step.clone(), step }
            })
            .collect();
        let bytes = inputs.iter().map(|_| Vec::new()).collect();
        let window = vec![0; manifest.data.as_ref().map_or(0, |data| data.window)];
        let source = Arc::new(source);
        Ok(Self { source, inputs, rows, replicas: replicas(manifest), seed, corruption, window, bytes })
    }

    /// What is wrong, on purpose, with the training batch of a step.
    #[must_use]
    pub fn fault(&self, step: u64) -> Option<Fault> {
        self.corruption.and_then(|corruption| corruption.fault(step))
    }

    /// What one replica takes in a launch that does these steps: an array per batch input, in their order. Where they are
    /// several, their number is the first dimension, and their batches follow each other.
    pub fn training(&mut self, steps: Range<u64>, replica: usize) -> Vec<BatchArray<'_>> {
        self.begin(steps.end.saturating_sub(steps.start));
        let first = replica.saturating_mul(self.rows);
        let global = self.replicas.saturating_mul(self.rows) as u128;
        for step in steps {
            for row in (first..).take(self.rows) {
                match &*self.source {
                    Source::Text { split, width } => {
                        split.training_window(self.seed, step, row as u64, &mut self.window);
                        if let Some(corruption) = self.corruption {
                            corruption.spoil(step, row as u64, &mut self.window);
                        }
                        append_tokens(&self.window, *width, &mut self.bytes);
                    }
                    Source::Arrays(examples) => {
                        examples.training(u128::from(step) * global + row as u128, &mut self.bytes);
                    }
                }
            }
        }
        self.made()
    }

    /// Number of batches of an evaluation, a multiple of the number of replicas: all that is held out, or an evenly spread part
    /// where that is much.
    #[must_use]
    pub fn held_out_batches(&self) -> usize {
        let replicas = self.replicas.max(1);
        self.held_out_rows().min(HELD_OUT_ROWS).div_ceil(self.rows.max(1).saturating_mul(replicas)).max(1) * replicas
    }

    /// A batch of an evaluation, of the size that one replica takes in one step. All of them together are the same rows for
    /// the same data and global batch, however many replicas share it.
    pub fn held_out(&mut self, batch: usize) -> Vec<BatchArray<'_>> {
        let (there, total) = (self.held_out_rows(), self.held_out_batches() * self.rows.max(1));
        self.begin(1);
        for row in (batch * self.rows..).take(self.rows) {
            let index = row * there / total;
            match &*self.source {
                Source::Text { split, width } => {
                    split.held_out_window(index, &mut self.window);
                    append_tokens(&self.window, *width, &mut self.bytes);
                }
                Source::Arrays(examples) => examples.held_out(index, &mut self.bytes),
            }
        }
        self.made()
    }

    /// The mean loss over what is held out. `None` where it is not finite.
    ///
    /// # Errors
    ///
    /// Where the device refuses.
    pub fn held_out_loss(
        &mut self,
        engine: &Engine,
        evaluator: &Evaluator,
        stepper: &Stepper,
    ) -> Result<Option<f64>, EngineError> {
        let batches = self.held_out_batches();
        let mut sum = 0.0;
        let mut pending = VecDeque::new();
        for batch in 0..=batches {
            if batch < batches {
                let arrays = self.held_out(batch);
                pending.push_back(evaluator.launch(stepper, &upload(engine, 0, &arrays)?)?);
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

    /// SHA-256 of the data, see [`Corpus::sha256`] and [`Examples::sha256`]. It takes a second for a gigabyte, and so is made
    /// when what is returned here is called, on whatever thread.
    pub fn sha256(&self) -> impl FnOnce() -> String + Send + 'static {
        let source = Arc::clone(&self.source);
        move || match &*source {
            Source::Text { split, .. } => split.corpus().sha256(),
            Source::Arrays(examples) => examples.sha256(),
        }
    }

    /// The data, for the record of the run.
    pub(super) fn describe(&self, paths: &[PathBuf]) -> DataDescription {
        let paths = paths.iter().map(|p| p.display().to_string()).collect();
        match &*self.source {
            Source::Text { split, .. } => DataDescription::Text {
                paths,
                files: split.corpus().files().len(),
                bytes: split.corpus().len(),
                training_bytes: split.training_len(),
                held_out_bytes: split.held_out_len(),
            },
            Source::Arrays(examples) => DataDescription::Arrays {
                paths,
                files: examples.files(),
                examples: examples.len(),
                training_examples: examples.training_len(),
                held_out_examples: examples.held_out_len(),
            },
        }
    }

    fn held_out_rows(&self) -> usize {
        match &*self.source {
            Source::Text { split, .. } => split.held_out_windows(),
            Source::Arrays(examples) => examples.held_out_len(),
        }
    }

    /// Makes room for the batches of that many steps.
    fn begin(&mut self, steps: u64) {
        self.bytes.iter_mut().for_each(Vec::clear);
        let steps = i64::try_from(steps).ok().filter(|&steps| steps != 1);
        for input in &mut self.inputs {
            input.made.clear();
            input.made.extend(steps.iter().chain(&input.step));
        }
    }

    fn made(&self) -> Vec<BatchArray<'_>> {
        let arrays = self.inputs.iter().zip(&self.bytes);
        arrays.map(|(input, bytes)| BatchArray { bytes, dtype: input.dtype, shape: &input.made }).collect()
    }
}

impl Source {
    fn text(manifest: &Manifest, data: &Data, paths: &[PathBuf]) -> Result<Self, TrainError> {
        let bits = manifest.inputs.get(data.input).map_or(8, |input| input.dtype.primitive().bits());
        let split = Split::new(Corpus::open(paths)?, data.window)?;
        let width = usize::try_from(bits.div_ceil(8)).unwrap_or(1);
        Ok(Self::Text { split, width })
    }
}

/// Copies the arrays of a batch to the device of that number, in order. The transfers may still be under way.
///
/// # Errors
///
/// Where the device refuses.
pub fn upload(engine: &Engine, device: usize, batch: &[BatchArray<'_>]) -> Result<Vec<pjrt::Buffer>, EngineError> {
    batch.iter().map(|array| engine.upload_to(device, array.bytes, array.dtype, array.shape)).collect()
}

/// Appends bytes as tokens, to the only batch input that there is for text.
fn append_tokens(window: &[u8], width: usize, target: &mut [Vec<u8>]) {
    let Some(target) = target.first_mut() else { return };
    for &byte in window {
        // Integers are little-endian on every platform that PJRT runs on.
        target.push(byte);
        target.resize(target.len() + width - 1, 0);
    }
}

fn batch_inputs(manifest: &Manifest) -> impl Iterator<Item = &Input> {
    manifest.inputs.iter().filter(|input| input.role == InputRole::Batch)
}

fn replicas(manifest: &Manifest) -> usize {
    usize::try_from(manifest.launch.replicas.get()).unwrap_or(1)
}

/// What arrays must hold for each batch input, and how many examples a replica takes in a step.
fn fields(bundle: &Bundle) -> Result<(Vec<Field>, usize), TrainError> {
    let mut fields = Vec::new();
    let mut rows: Option<(&str, usize)> = None;
    for input in batch_inputs(&bundle.manifest) {
        let shape: Vec<_> = bundle
            .manifest
            .launch
            .one_step(&input.shape)
            .unwrap_or_default()
            .iter()
            .map(|&d| usize::try_from(d).unwrap_or(0))
            .collect();
        let Some((&count, example)) = shape.split_first().filter(|&(&count, _)| count > 0) else {
            return Err(untrainable(
                bundle,
                format!(
                    "its batch input {} is {} {shape:?} and has no dimension that counts examples; make it part of the state, \
                     or a constant of the step",
                    input.name,
                    input.dtype.name()
                ),
            ));
        };
        let (first, expected) = *rows.get_or_insert((&input.name, count));
        if count != expected {
            return Err(untrainable(
                bundle,
                format!(
                    "its batch input {first} takes {expected} examples in a step and {} takes {count}, but the first dimension of \
                     every batch input must count the same examples; make what is no example part of the state, or a \
                     constant of the step",
                    input.name
                ),
            ));
        }
        fields.push(Field { name: input.name.clone(), dtype: input.dtype, shape: example.to_vec() });
    }
    Ok((fields, rows.map_or(0, |(_, rows)| rows)))
}

/// Refuses files that hold no arrays, for a bundle that does not say what a token is.
fn refuse_text(bundle: &Bundle, paths: &[PathBuf]) -> Result<(), TrainError> {
    let Some(path) = paths.iter().find(|path| path.is_file() && ArrayFormat::of(path).is_none()) else {
        return Ok(());
    };
    let inputs: Vec<_> = batch_inputs(&bundle.manifest).map(|input| input.name.as_str()).collect();
    Err(untrainable(
        bundle,
        format!(
            "its manifest has no `data`, so text makes no batch of it, and {} is no .npz, .npy or .safetensors file; give arrays \
             for {}, or export it with `data=\"bytes\"`",
            path.display(),
            inputs.join(", ")
        ),
    ))
}

/// Refuses files of arrays beside text: their bytes would be trained on as if they were text.
fn refuse_arrays(paths: &[PathBuf]) -> Result<(), DataError> {
    match paths.iter().find(|path| path.is_file() && ArrayFormat::of(path).is_some()) {
        None => Ok(()),
        Some(path) => {
            let message = "it holds arrays, and other paths hold text; give one kind of data";
            Err(ArrayError::new(path.display(), message).into())
        }
    }
}

fn untrainable(bundle: &Bundle, what: String) -> TrainError {
    TrainError::Untrainable { bundle: bundle.folder.display().to_string(), what }
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
    use std::fs;
    use std::num::NonZeroU32;
    use std::path::Path;

    use super::*;

    /// A bundle whose batch of `rows` rows is shared by that many replicas, in launches of that many steps.
    fn bundle(name: &str, rows: usize, replicas: u32, steps: u32) -> Bundle {
        let mut bundle = Bundle::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
        let manifest = &mut bundle.manifest;
        manifest.launch.replicas = NonZeroU32::new(replicas).unwrap();
        manifest.launch.steps = NonZeroU32::new(steps).unwrap();
        let rows = rows / replicas as usize;
        if let Some(data) = &mut manifest.data {
            data.batch = rows;
        }
        for input in manifest.inputs.iter_mut().filter(|i| i.role == InputRole::Batch) {
            input.shape[0] = rows as i64;
            if steps > 1 {
                input.shape.insert(0, i64::from(steps));
            }
        }
        bundle
    }

    /// A folder with a text, and points with labels: `count` of each.
    fn data(count: u16) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("text"), (0..count).map(|n| (n % 251) as u8).collect::<Vec<_>>()).unwrap();
        let points: Vec<u8> = (0..count).flat_map(|n| [f32::from(n); 4]).flat_map(f32::to_le_bytes).collect();
        let labels: Vec<u8> = (0..count).flat_map(u16::to_le_bytes).collect();
        let count = usize::from(count);
        let view = |dtype, shape, bytes| safetensors::tensor::TensorView::new(dtype, shape, bytes).unwrap();
        let views = [
            ("point", view(safetensors::Dtype::F32, vec![count, 4], &points)),
            ("label", view(safetensors::Dtype::U16, vec![count], &labels)),
        ];
        fs::write(folder.path().join("points.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        folder
    }

    const SOURCES: [(&str, &str); 2] = [("models/mlp", "text"), ("tests/corpus_data/classifier", "points.safetensors")];

    fn maker(bundle: &Bundle, data: &tempfile::TempDir, file: &str, seed: u64) -> BatchMaker {
        BatchMaker::open(bundle, &[data.path().join(file)], seed, None).unwrap()
    }

    /// Bytes by input.
    fn owned(batch: &[BatchArray<'_>]) -> Vec<Vec<u8>> {
        for array in batch {
            let elements: i64 = array.shape.iter().product();
            assert_eq!(array.bytes.len() as u64, elements as u64 * array.dtype.primitive().bits() / 8);
        }
        batch.iter().map(|array| array.bytes.to_vec()).collect()
    }

    /// Batches one behind the other, by input.
    fn joined(batches: impl IntoIterator<Item = Vec<Vec<u8>>>) -> Vec<Vec<u8>> {
        batches.into_iter().reduce(|a, b| a.into_iter().zip(b).map(|(a, b)| [a, b].concat()).collect()).unwrap()
    }

    #[test]
    fn replicas_share_the_batch_that_one_device_takes() {
        let data = data(2000);
        for (name, file) in SOURCES {
            let mut one = maker(&bundle(name, 64, 1, 1), &data, file, 5);
            for replicas in [1, 2, 4, 8] {
                let mut shared = maker(&bundle(name, 64, replicas, 1), &data, file, 5);
                // Examples of several epochs.
                for step in [0, 1, 27, 28, 1000, u64::MAX - 1] {
                    let parts = (0..replicas as usize).map(|k| owned(&shared.training(step..step + 1, k)));
                    let whole = owned(&one.training(step..step + 1, 0));
                    assert_eq!(joined(parts), whole, "{name}, {replicas} replicas, step {step}");
                }
                assert_eq!(shared.held_out_batches() as u32, one.held_out_batches() as u32 * replicas);
                let parts = (0..shared.held_out_batches()).map(|n| owned(&shared.held_out(n)));
                let parts = joined(parts);
                assert_eq!(parts, joined((0..one.held_out_batches()).map(|n| owned(&one.held_out(n)))), "{name}");
            }
        }
    }

    #[test]
    fn steps_of_one_launch_follow_each_other() {
        let data = data(2000);
        for (name, file) in SOURCES {
            let mut single = maker(&bundle(name, 16, 2, 1), &data, file, 5);
            let mut fused = maker(&bundle(name, 16, 2, 3), &data, file, 5);
            for replica in 0..2 {
                let launch = fused.training(6..9, replica);
                assert!(launch.iter().all(|array| array.shape[..2] == [3, 8]));
                let launch = owned(&launch);
                let steps = (6..9).map(|step| owned(&single.training(step..step + 1, replica)));
                assert_eq!(joined(steps), launch, "{name}");
            }
            // What a launch of several does not reach is done in single steps.
            let (rest, same) = (fused.training(9..10, 0), single.training(9..10, 0));
            assert_eq!(rest, same);
            assert_eq!(fused.held_out(0), single.held_out(0));
        }
    }

    #[test]
    fn an_epoch_takes_every_training_example_once_and_none_held_out() {
        let data = data(1000);
        let mut batches = maker(&bundle("tests/corpus_data/classifier", 16, 4, 1), &data, "points.safetensors", 5);
        let labels = |batch: &[BatchArray<'_>]| -> Vec<i32> {
            batch[0].bytes.as_chunks().0.iter().map(|c| i32::from_le_bytes(*c)).collect()
        };
        // 904 examples to train on are 56.5 batches.
        let mut taken: Vec<_> = (0..57)
            .flat_map(|step| (0..4).flat_map(|k| labels(&batches.training(step..step + 1, k))).collect::<Vec<_>>())
            .collect();
        taken.truncate(904);
        taken.extend((0..batches.held_out_batches()).flat_map(|n| labels(&batches.held_out(n))).collect::<Vec<_>>());
        taken.sort_unstable();
        taken.dedup();
        assert_eq!(taken, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn the_seed_decides() {
        let data = data(2000);
        for (name, file) in SOURCES {
            let bundle = bundle(name, 64, 1, 1);
            let first = |seed| owned(&maker(&bundle, &data, file, seed).training(0..1, 0));
            assert_eq!(first(1), first(1));
            assert_ne!(first(1), first(2));
        }
    }

    #[test]
    fn steps_that_arrays_cannot_feed_are_refused() {
        let data = data(2000);
        let refused = |edit: &dyn Fn(&mut Manifest), file: &str, parts: &[&str]| {
            let mut bundle = bundle("tests/corpus_data/classifier", 16, 1, 1);
            edit(&mut bundle.manifest);
            let error = BatchMaker::open(&bundle, &[data.path().join(file)], 0, None).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{error:?} lacks {part:?}");
            }
        };
        let points = "points.safetensors";
        refused(&|m| m.inputs[7].shape.clear(), points, &["batch['label']", "int32 []", "no dimension that counts"]);
        refused(
            &|m| m.inputs[7].shape = vec![10],
            points,
            &["batch['label'] takes 10 examples", "batch['point'] takes 16"],
        );
        refused(&|m| m.inputs[8].shape = vec![16, 5], points, &["array point", "float32 [4]", "float32 [5]"]);
        refused(&|m| m.launch.replicas = NonZeroU32::new(200).unwrap(), points, &["a step takes 3200"]);
        refused(&|_| (), "text", &["no `data`", "text is no .npz", "batch['label'], batch['point']"]);
    }

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
