//! What is in a checkpoint, and how it is laid out in files.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype as Safe, SafeTensorError, SafeTensors};
use serde::{Deserialize, Serialize};

use super::Fingerprint;
use crate::bundle::Dtype;
use crate::document;
use crate::files::{self, StagedFolder, WriteError};
use crate::train::{Consistency, Gates};

/// The version that this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;

pub(super) const MANIFEST: &str = "checkpoint.json";
pub(super) const SUMS: &str = "SHA256SUMS";

/// The files with arrays, those of the step first.
const STATE: &str = "state.safetensors";
const CONTROLLER: &str = "controller.safetensors";

/// A run after some steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Steps done, which is the number of the next one.
    pub step: u64,
    /// What ran.
    pub fingerprint: Fingerprint,
    /// What the run came to so far.
    pub tallies: Tallies,
    /// Bytes of `metrics.jsonl` that tell of these steps.
    pub metrics_bytes: u64,
    /// What is carried from step to step, by input.
    pub arrays: Vec<Array>,
}

/// What a run came to after some steps; the rest of its summary follows from the state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tallies {
    /// Seconds of training, over all parts of the run.
    pub seconds: f64,
    /// Steps whose loss was not finite.
    pub non_finite_losses: u64,
    /// What the gates did, where there is a controller.
    pub gates: Option<Gates>,
    /// What comparing replicas found, where they are compared.
    pub consistency: Option<Consistency>,
    /// The steps that earlier parts of the run went on from, in order.
    pub resumed_from: Vec<u64>,
}

/// An array that is carried from step to step.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Name of the input.
    pub name: String,
    /// Whether it is the controller's.
    pub controller: bool,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<i64>,
    /// Its elements: dense, row-major, little-endian.
    pub bytes: Vec<u8>,
}

impl Array {
    fn file(&self) -> &'static str {
        if self.controller { CONTROLLER } else { STATE }
    }
}

/// `checkpoint.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format_version: u32,
    step: u64,
    fingerprint: Fingerprint,
    tallies: Tallies,
    metrics_bytes: u64,
    arrays: Vec<Entry>,
}

/// An array of `checkpoint.json`. The type is said here: safetensors has no name for some.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    file: String,
    dtype: Dtype,
    shape: Vec<i64>,
}

/// Writes a checkpoint into a folder under construction.
pub(super) fn write(checkpoint: &Checkpoint, folder: &StagedFolder) -> Result<(), WriteError> {
    let mut sums = String::new();
    let mut put = |name: &str, bytes: &[u8]| {
        sums += &format!("{}  {name}\n", files::sha256_hex(bytes));
        folder.write(name, bytes)
    };
    for file in [STATE, CONTROLLER] {
        let arrays: Vec<_> = checkpoint.arrays.iter().filter(|a| a.file() == file).collect();
        if !arrays.is_empty() {
            put(file, &encode(&arrays).map_err(|e| folder.failed(file, std::io::Error::other(e)))?)?;
        }
    }
    let entry = |array: &Array| Entry {
        name: array.name.clone(),
        file: array.file().to_owned(),
        dtype: array.dtype,
        shape: array.shape.clone(),
    };
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        step: checkpoint.step,
        fingerprint: checkpoint.fingerprint.clone(),
        tallies: checkpoint.tallies.clone(),
        metrics_bytes: checkpoint.metrics_bytes,
        arrays: checkpoint.arrays.iter().map(entry).collect(),
    };
    let mut text = serde_json::to_vec_pretty(&manifest).map_err(|e| folder.failed(MANIFEST, e.into()))?;
    text.push(b'\n');
    put(MANIFEST, &text)?;
    folder.write(SUMS, sums.as_bytes())
}

fn encode(arrays: &[&Array]) -> Result<Vec<u8>, SafeTensorError> {
    let views = arrays.iter().map(|array| {
        let shape: Option<Vec<usize>> = array.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
        let (dtype, shape) = match (array.dtype.safetensors(), shape) {
            (Some(dtype), Some(shape)) => (dtype, shape),
            _ => (Safe::U8, vec![array.bytes.len()]),
        };
        Ok((array.name.as_str(), TensorView::new(dtype, shape, &array.bytes)?))
    });
    safetensors::serialize(views.collect::<Result<Vec<_>, SafeTensorError>>()?, None)
}

/// Reads a checkpoint, and says what is wrong where it is not whole.
pub(super) fn read(folder: &Path) -> Result<Checkpoint, String> {
    let content = |name: &str| std::fs::read(folder.join(name)).map_err(|e| format!("{name} cannot be read: {e}"));
    let sums = String::from_utf8(content(SUMS)?).map_err(|_| format!("{SUMS} is no text"))?;
    let sums: BTreeMap<&str, &str> =
        sums.lines().filter_map(|line| line.split_once("  ").map(|(sum, name)| (name, sum))).collect();
    let checked = |name: &str| {
        let expected = sums.get(name).ok_or_else(|| format!("{SUMS} has no {name}"))?;
        let bytes = content(name)?;
        let found = files::sha256_hex(&bytes);
        let short = |sum: &str| sum.chars().take(12).collect::<String>();
        if found != *expected {
            return Err(format!("{name} is damaged: its checksum is {}…, not {}…", short(&found), short(expected)));
        }
        Ok(bytes)
    };
    decode(&checked(MANIFEST)?, checked)
}

/// What `checkpoint.json` and the files that it names say; `content` gives a file of that name, or says why not.
///
/// # Errors
///
/// What contradicts itself, in words.
pub fn decode(text: &[u8], content: impl Fn(&str) -> Result<Vec<u8>, String>) -> Result<Checkpoint, String> {
    let manifest: Manifest = document::read(text, FORMAT_VERSION).map_err(|flaw| format!("{MANIFEST}: {flaw}"))?;
    let mut contents: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for entry in &manifest.arrays {
        let known = [STATE, CONTROLLER].into_iter().find(|file| *file == entry.file);
        let file = known.ok_or_else(|| format!("{MANIFEST}: {:?} is no file of a checkpoint", entry.file))?;
        if !contents.contains_key(file) {
            contents.insert(file, content(file)?);
        }
    }
    let mut opened = BTreeMap::new();
    for (&file, bytes) in &contents {
        opened.insert(file, SafeTensors::deserialize(bytes).map_err(|e| format!("{file} is damaged: {e}"))?);
    }
    let array = |entry: Entry| {
        let view = opened.get(entry.file.as_str()).and_then(|file| file.tensor(&entry.name).ok());
        let view = view.ok_or_else(|| format!("{} has no {}", entry.file, entry.name))?;
        let size = entry
            .shape
            .iter()
            .try_fold(entry.dtype.width(), |size, &d| usize::try_from(d).ok().and_then(|d| size.checked_mul(d)));
        if size != Some(view.data().len()) {
            return Err(format!(
                "{} has {} bytes of {}, which is {} {:?}",
                entry.file,
                view.data().len(),
                entry.name,
                entry.dtype.name(),
                entry.shape
            ));
        }
        let controller = entry.file == CONTROLLER;
        Ok(Array { name: entry.name, controller, dtype: entry.dtype, shape: entry.shape, bytes: view.data().to_vec() })
    };
    Ok(Checkpoint {
        step: manifest.step,
        fingerprint: manifest.fingerprint,
        tallies: manifest.tallies,
        metrics_bytes: manifest.metrics_bytes,
        arrays: manifest.arrays.into_iter().map(array).collect::<Result<_, String>>()?,
    })
}
